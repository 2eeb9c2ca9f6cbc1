"""Reads the commits of a job's branch, writes nothing: holds them against what the histories give.

The publisher read its histories at some moment after it was dispatched, which the log does not say.
So each file is looked at in every state from the earliest that it can have read (it holds what the
publisher had to see, and what the job's import had seen), and the branch must be the plan of one of
them. The longest plan that is on the branch counts: one that is made too early is a part of it.

That stays cheap. No plan is made while a file lacks an edit that one of its commits names, and none
after the plan names an edit later than those that is not on the branch: edits that a plan names stay
in it until they are forgotten, the oldest first, so that no later plan can be the one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pygit2
from pygit2.enums import FileMode

from codeconvoy.orchestrator.audit_jobs import Publication
from codeconvoy.orchestrator.audit_report import Check, Counts, Findings
from codeconvoy.schemas.errors import BadInput, Unavailable
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.workers.git import trailers
from codeconvoy.workers.git.plan import Commit, plan_commits
from codeconvoy.workers.git.source import Source, open_source

Held = tuple[bytes | None, bool]
"""Content and executable bit of a file; (None, False) where there is none."""


class Branch(Protocol):
    """The commits that a job has put on top of its base, oldest first."""

    @property
    def messages(self) -> Mapping[str, str]:
        """The message of each commit, by the event that it names (or by its id: it names none)."""
        ...

    def paths(self, event: str) -> Collection[str]:
        """The files that the commit of this event changed."""
        ...

    def file(self, event: str, path: str) -> Held:
        """A file as the commit of this event has it."""
        ...

    def tip(self, path: str) -> Held:
        """A file as the last commit has it."""
        ...


class GitBranch:
    """A branch in a git repository."""

    def __init__(self, repo: pygit2.Repository, base: str, commit: str) -> None:
        self._tip = repo[commit].peel(pygit2.Commit)
        self._commits: dict[str, pygit2.Commit] = {}
        self._paths: dict[str, frozenset[str]] = {}
        self.messages: dict[str, str] = {}
        """See `Branch`."""
        for one in trailers.commits_between(repo, base, commit):
            found = trailers.of_commit(one)
            name = found.event if found else f"commit {one.id}"
            self._commits[name] = one
            self._paths[name] = trailers.touched(one)
            self.messages[name] = one.raw_message.decode("utf-8", "replace")

    def paths(self, event: str) -> Collection[str]:
        """See `Branch`."""
        return self._paths[event]

    def file(self, event: str, path: str) -> Held:
        """See `Branch`."""
        return _held(self._commits[event], path)

    def tip(self, path: str) -> Held:
        """See `Branch`."""
        return _held(self._tip, path)


def _held(commit: pygit2.Commit, path: str) -> Held:
    try:
        found = commit.tree[path]
    except KeyError:
        return None, False
    if not isinstance(found, pygit2.Blob):
        return None, False
    return found.data, found.filemode == FileMode.BLOB_EXECUTABLE


def read_branch(publication: Publication, cache: Path, findings: Findings) -> Branch | None:
    """The branch of a job; None where it can't be read, which is a difference.

    Does IO: reads the repository, and fetches it where it is a URL.
    """
    job_id, commit = publication.job_id, publication.commit
    try:
        source = open_source(publication.repository, commit, cache)
        branch = GitBranch(source.repo, publication.base, commit)
    except (BadInput, Unavailable, KeyError, ValueError, pygit2.GitError) as error:
        what = f"{publication.branch} at {commit[:12]} can't be read: {error}"
        findings.add(Check.BRANCH, job_id, what, commit)
        return None
    if not _kept(source, publication, branch):
        what = f"branch {publication.branch} does not hold {commit[:12]} any more, nor does another"
        findings.add(Check.BRANCH, job_id, what, commit)
    return branch


def _kept(source: Source, publication: Publication, branch: GitBranch) -> bool:
    """True where a branch leads to the commit, or the job's branch names all the same edits."""
    repo, commit = source.repo, pygit2.Oid(hex=publication.commit)
    tips = {name: repo.references[name].peel(pygit2.Commit).id for name in _branches(repo)}
    if any(tip == commit or repo.descendant_of(tip, commit) for tip in tips.values()):
        return True
    tip = tips.get(f"refs/heads/{publication.branch}")
    if tip is None:
        return False
    held = {
        edit
        for one in trailers.commits_between(repo, publication.base, str(tip))
        if (found := trailers.of_commit(one))
        for edit in found.edits
    }
    parsed = (trailers.parse(message) for message in branch.messages.values())
    return all(found is not None and found.edits <= held for found in parsed)


def _branches(repo: pygit2.Repository) -> list[str]:
    return [name for name in repo.references if name.startswith("refs/heads/")]


@dataclass(slots=True)
class _Match:
    """The longest plan of one file that is on the branch."""

    named: tuple[str, ...] = ()
    """The edits that the file's commits name, the last ones first: those are the last to arrive."""
    events: tuple[str, ...] = ()
    found: bool = False
    over: bool = False
    """The file has gone on from what was published."""
    tried: str | None = None
    """What was visible when a plan was made last."""
    edits: int = 0
    """How many edits the history held when it was last looked at: fewer now, and some were forgotten."""
    why: str = ""
    lacked: str = ""
    """An edit that a commit names, and the history did not hold."""


@dataclass(slots=True)
class BranchAudit:
    """A publication, being held against the histories of its files."""

    publication: Publication
    branch: Branch
    _matches: dict[str, _Match] = field(init=False)
    _order: Mapping[str, int] = field(init=False)
    _named: frozenset[str] = field(init=False)
    """All edits that the commits name."""

    def __post_init__(self) -> None:
        self._order = {event: index for index, event in enumerate(self.branch.messages)}
        named: dict[str, list[str]] = {path: [] for path in self.publication.imports}
        edits: set[str] = set()
        for event, message in reversed(list(self.branch.messages.items())):
            if (found := trailers.parse(message)) is None:
                continue
            edits |= found.edits
            for path in self.branch.paths(event):
                if path in named:
                    named[path] += (*reversed(found.joins), found.event)
        self._named = frozenset(edits)
        self._matches = {path: _Match(tuple(events)) for path, events in named.items()}

    def is_due(self, partition: int, offset: int) -> bool:
        """True where a history that holds all below this offset may have been what was published."""
        return offset > self.publication.seen.get(partition, -1)

    def has_begun(self, path: str, arrived: Collection[str]) -> bool:
        """True where these events of a file hold all that the job's import had seen of it.

        A job that was told nothing of its files leaves no other sign on the log of when it ran.
        """
        return all(event in arrived for event in self.publication.begun_with.get(path, ()))

    def try_history(self, history: FileHistory) -> None:
        """Hold the file's history, as it is now, against the branch."""
        match = self._matches[history.path]
        if match.over:
            return
        has_forgotten, match.edits = history.edits < match.edits, history.edits
        if match.tried == history.visible and not has_forgotten:
            return
        lacked = next((event for event in match.named if history.edit(event) is None), "")
        if lacked:
            match.lacked = lacked
            return
        match.tried = history.visible
        plan = plan_commits({history.path: history}, {history.path: self.publication.imports[history.path]})
        why = self._compare(history.path, plan)
        match.over = self._has_gone_on(history, match, plan)
        if why:
            match.why = match.why or why
        elif not match.found or len(plan) > len(match.events):
            match.events, match.found = tuple(commit.trailers.event for commit in plan), True

    def _has_gone_on(self, history: FileHistory, match: _Match, plan: Collection[Commit]) -> bool:
        """True where the plan names an edit that is not on the branch and came after all that are."""
        last = max((history.entries[event].seq for event in match.named), default=-1)
        others = (event for commit in plan for event in commit.trailers.edits - self._named)
        return any(history.entries[event].seq > last for event in others)

    def _compare(self, path: str, plan: Sequence[Commit]) -> str:
        """Why a file's planned commits are not on the branch; empty: they are."""
        last = -1
        for commit in plan:
            event = commit.trailers.event
            if event not in self._order:
                return f"no commit holds {event}"
            if self._order[event] < last:
                return f"the commit of {event} comes before that of its parent"
            last = self._order[event]
            if self.branch.messages[event] != trailers.message(commit.subject, commit.trailers):
                return f"the message of the commit of {event} names other causes"
            if self.branch.file(event, path) != _planned(commit.content, commit.executable):
                return f"the commit of {event} holds another content"
        if plan and self.branch.tip(path) != _planned(plan[-1].content, plan[-1].executable):
            return "the last commit holds another content"
        return ""

    def finish(self, findings: Findings, counts: Counts) -> None:
        """Take down what was on the log and not on the branch, and the other way round."""
        job_id, name = self.publication.job_id, self.publication.branch
        named: set[str] = set()
        for path, match in sorted(self._matches.items()):
            named.update(match.events)
            if not match.found:
                lacked = f"a commit names {match.lacked}, which it never had" if match.lacked else ""
                why = match.why or lacked or "it was never seen"
                findings.add(Check.BRANCH, job_id, f"{name}: {path}: {why}")
        unexplained = self.branch.messages.keys() - named
        # Those of a file whose plan is not on the branch would only say the same again.
        for event in unexplained if all(match.found for match in self._matches.values()) else ():
            findings.add(Check.BRANCH, job_id, f"{name} has a commit that no plan has: {event}", event)
        counts.branches += 1
        counts.commits += len(self.branch.messages)


def _planned(content: bytes | None, executable: bool) -> Held:
    return content, executable and content is not None
