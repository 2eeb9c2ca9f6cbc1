"""Reads planned commits, writes a git branch: by plumbing, without a work tree.

Into a local repository the branch is written as a ref, through libgit2, which runs neither hooks nor
filters; to a URL it is pushed from the mirror. The ids of the commits (see `commits`) follow from what
is committed alone, so publishing twice is publishing once. A branch is moved only where nothing on it
is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pygit2

from codeconvoy.schemas.errors import BadInput, Unavailable
from codeconvoy.workers.git import trailers
from codeconvoy.workers.git.command import GitFailed, git
from codeconvoy.workers.git.commits import write_commits
from codeconvoy.workers.git.plan import Commit
from codeconvoy.workers.git.source import Remote, Source, explained, refresh, remote_refs_of


@dataclass(frozen=True, slots=True)
class Written:
    """A branch that holds a job's result."""

    branch: str
    commit: str
    """Full hex id of its tip; the base itself where there was nothing to commit."""
    count: int
    """Commits on top of the base."""


def check_branch(name: str) -> str:
    """The branch name, if git takes it as one.

    Raises:
        BadInput: it does not.
    """
    full = f"refs/heads/{name}"
    valid = name != "HEAD" and not name.startswith("-") and pygit2.reference_is_valid_name(full)
    if not valid or len(full.encode()) > 200:
        raise BadInput(
            "branch", f"{name[:200]!r} is not a branch name", "See `git check-ref-format --branch`"
        )
    return name


def write_branch(source: Source, base_commit: str, commits: Sequence[Commit], branch: str) -> Written:
    """Write the commits on top of the base, and let the branch point to the last one.

    Args:
        source: the repository; of a URL its mirror, which is pushed from.
        base_commit: full hex id of the commit that the job started from.
        commits: as `plan.plan_commits` gives them.
        branch: without `refs/heads/`.

    Raises:
        BadInput: the branch name is bad or checked out, somebody else's commits are on the
            branch, or the commits contradict what the base holds.
        Unavailable: the remote can't be reached or refuses the push.
    """
    check_branch(branch)
    repo = source.repo
    if base_commit not in repo:
        raise BadInput("commit", f"{base_commit} is not in the repository any more", "Submit the job again")
    tip = write_commits(repo, base_commit, commits)
    events = frozenset[str]().union(*(commit.trailers.edits for commit in commits))
    if isinstance(source.location, Remote):
        _push(source, source.location.url, branch, base_commit, tip, events)
    else:
        _point(repo, branch, base_commit, tip, events)
    return Written(branch, tip, len(commits))


def _point(repo: pygit2.Repository, branch: str, base: str, tip: str, events: frozenset[str]) -> None:
    """Create or move the branch of a local repository, if it is still what was looked at."""
    name = f"refs/heads/{branch}"
    current = repo.references.get(name)
    try:
        if current is None:
            if not repo.is_bare and repo.head_is_unborn and repo.lookup_reference("HEAD").target == name:
                raise checked_out(branch)
            repo.create_reference_direct(name, pygit2.Oid(hex=tip), False, "convoy: publish")
            return
        target = str(current.resolve().target)
        if target == tip:
            return
        found = repo.lookup_branch(branch)
        if found is not None and not repo.is_bare and found.is_checked_out():
            raise checked_out(branch)
        check_movable(repo, branch, base, target, tip, events)
        # Compare-and-swap: libgit2 refuses when the ref is not what was looked up.
        current.set_target(pygit2.Oid(hex=tip), "convoy: publish")
    except (pygit2.GitError, ValueError, OSError) as error:
        raise BadInput("branch", f"{branch!r} can't be written: {error}", "Choose another branch") from error


def _push(source: Source, url: str, branch: str, base: str, tip: str, events: frozenset[str]) -> None:
    """Create or move the branch of a remote, if it is still what was looked at."""
    name = f"refs/heads/{branch}"
    current = remote_refs_of(url).get(name)
    if current == tip:
        return
    # The lease is a compare-and-swap on the server; an empty one says that there is no such branch.
    lease = f"--force-with-lease={name}:{current or ''}"
    if current is not None:
        refresh(source)
        if current not in source.repo:
            raise Unavailable("git remote", f"{branch!r} moves at this moment", "Publish again")
        check_movable(source.repo, branch, base, current, tip, events)
    arguments = [
        "push",
        "--quiet",
        "--no-verify",
        "--recurse-submodules=no",
        lease,
        "--",
        url,
        f"{tip}:{name}",
    ]
    try:
        git(Path(source.repo.path), arguments)
    except GitFailed as failed:
        if "rejected" in failed.reason:
            raise BadInput(
                "branch", f"the remote refuses: {failed.reason}", "Choose another branch"
            ) from failed
        raise explained(failed) from failed


def check_movable(
    repo: pygit2.Repository, branch: str, base: str, current: str, tip: str, events: frozenset[str]
) -> None:
    """Refuse to move a branch away from anything that the new tip does not hold.

    It holds everything where it descends from the branch, or where all that the branch has
    besides the base are our own commits of edits that the new commits name too (an earlier
    publication of the same job).
    """
    old = pygit2.Oid(hex=current)
    if repo.descendant_of(pygit2.Oid(hex=tip), old):
        return
    for commit in trailers.commits_between(repo, base, current):
        found = trailers.of_commit(commit)
        if found is None or not trailers.is_ours(commit) or not found.edits <= events:
            raise BadInput(
                "branch",
                f"{branch!r} has commits of others ({str(commit.id)[:12]})",
                "Choose another branch, or delete this one",
            )


def checked_out(branch: str) -> BadInput:
    """What to tell where a work tree stands on the branch: moving it would change files under its user."""
    return BadInput("branch", f"{branch!r} is checked out", "Choose another branch, or check out another one")
