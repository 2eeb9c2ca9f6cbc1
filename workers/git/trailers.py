"""Reads and writes commit messages: the trailers that lead from a commit back to its causes.

What `publish` writes here, `convoy why` and `convoy audit` read back. The format is that of
`git interpret-trailers`: the last paragraph of the message, one `Key: value` a line.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from pygit2 import Commit as GitCommit
from pygit2 import Oid, Repository
from pygit2.enums import SortMode

EMAIL_DOMAIN = "codeconvoy.invalid"
COMMITTER = ("codeconvoy", f"codeconvoy@{EMAIL_DOMAIN}")
"""Name and address of the committer of every commit that codeconvoy writes. A person who amends
one becomes its committer, which is how the two are told apart."""
MAX_SUBJECT = 120
MAX_WALK = 10_000
"""Commits that are looked at for the trailers of earlier jobs."""

_LINE = re.compile(r"(Convoy-[A-Za-z]+): (.*)\Z")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Trailers:
    """The causes of one commit."""

    event: str
    """The edit whose content the commit holds."""
    joins: tuple[str, ...] = ()
    """Further edits that this content holds or settles, in log order: those that a resolution
    joined, or that arrived at the same content."""
    task: str = ""
    agent: str = ""
    job: str = ""
    parents: tuple[str, ...] = ()
    """The causal parents of the edit, which are not the parents of the commit."""

    @property
    def edits(self) -> frozenset[str]:
        """All edits that the commit names as its own."""
        return frozenset((self.event, *self.joins))


def one_line(text: str, limit: int) -> str:
    """The text as one line without control characters, at most `limit` characters."""
    line = _UNPRINTABLE.sub(" ", text).strip()
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def message(subject: str, trailers: Trailers) -> str:
    """The whole message of a commit."""
    lines = [f"Convoy-Event: {trailers.event}"]
    lines += [f"Convoy-Joins: {event}" for event in trailers.joins]
    for key, value in (
        ("Task", trailers.task),
        ("Agent", trailers.agent),
        ("Job", trailers.job),
        ("Parents", " ".join(trailers.parents)),
    ):
        if value:
            lines.append(f"Convoy-{key}: {one_line(value, 20_000)}")
    return "\n".join((one_line(subject, MAX_SUBJECT), "", *lines, ""))


def parse(text: str) -> Trailers | None:
    """The trailers of a commit message, or None where it was not written by codeconvoy.

    A message with several `Convoy-Event` lines (a squash of several commits) names no single
    content, and so gives None as well.
    """
    paragraph = text.rstrip().rpartition("\n\n")[2]
    found: dict[str, list[str]] = {}
    for line in paragraph.splitlines():
        if match := _LINE.match(line):
            found.setdefault(match[1], []).append(match[2].strip())
    events = found.get("Convoy-Event", [])
    if len(events) != 1 or not events[0] or text.count("\nConvoy-Event: ") > 1:
        return None
    return Trailers(
        event=events[0],
        joins=tuple(found.get("Convoy-Joins", ())),
        task=_first(found, "Convoy-Task"),
        agent=_first(found, "Convoy-Agent"),
        job=_first(found, "Convoy-Job"),
        parents=tuple(_first(found, "Convoy-Parents").split()),
    )


def of_commit(commit: GitCommit) -> Trailers | None:
    """The trailers of a commit, or None."""
    return parse(commit.raw_message.decode("utf-8", "replace"))


def is_ours(commit: GitCommit) -> bool:
    """True where codeconvoy wrote the commit and nobody amended it since."""
    committer = commit.committer
    return (committer.raw_name, committer.raw_email) == tuple(part.encode() for part in COMMITTER)


def commits_between(repo: Repository, base: str, tip: str) -> Iterator[GitCommit]:
    """The commits that `tip` has and `base` has not, oldest first (parents before children)."""
    walker = repo.walk(Oid(hex=tip), SortMode.TOPOLOGICAL | SortMode.REVERSE)
    walker.hide(Oid(hex=base))
    yield from walker


def newest_events(repo: Repository, commit: str, paths: Iterable[str]) -> dict[str, str]:
    """For each path the newest `Convoy-Event` reachable from the commit that touched it.

    Args:
        repo: the repository.
        commit: hex id of the commit to start from.
        paths: what is looked for; a path that codeconvoy never committed is not in the answer.

    Looks at no more than `MAX_WALK` commits.
    """
    missing, found = set(paths), dict[str, str]()
    walker = repo.walk(Oid(hex=commit), SortMode.TOPOLOGICAL | SortMode.TIME)
    for past in islice(walker, MAX_WALK):
        if not missing:
            break
        trailers = of_commit(past)
        if trailers is not None:
            for path in touched(past) & missing:
                found[path] = trailers.event
                missing.discard(path)
    return found


def touched(commit: GitCommit) -> frozenset[str]:
    """The paths that a commit changed, against its first parent."""
    if commit.parents:
        changes = commit.parents[0].tree.diff_to_tree(commit.tree)
    else:
        changes = commit.tree.diff_to_tree(swap=True)
    return frozenset(path for delta in changes.deltas for path in (delta.old_file.path, delta.new_file.path))


def _first(found: dict[str, list[str]], key: str) -> str:
    return found.get(key, [""])[0]
