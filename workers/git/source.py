"""Reads git repositories, writes clones in the cache: a repository at a ref, opened for reading.

A local repository is read where it is, through libgit2, which runs neither hooks nor filters; its
work tree, index and configuration are never touched. A URL is mirrored in the cache by the `git`
command.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pygit2
from pygit2.enums import RepositoryOpenFlag

from codeconvoy.schemas.errors import BadInput, Unavailable
from codeconvoy.workers.git.command import DEADLINE_SECONDS, GitFailed, git, remote_refs
from codeconvoy.workers.redact import BY_SHAPE

_SCHEMES = ("https", "http", "ssh", "git")
_HELPER = re.compile(r"[A-Za-z0-9+.-]*::")
_SCP_LIKE = re.compile(r"[^/:]+:.")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BAD_REF = re.compile(r"[\x00-\x20\x7f:*?\[\\]|^-")
_NO_REPOSITORY = re.compile(r"not found|does not exist|does not appear to be a git repo|not a git repo", re.I)
_ASKED = "refs/convoy/asked"
"""Where a ref is fetched to that no branch or tag leads to, such as a pull request's."""
_MIRROR = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")


@dataclass(frozen=True, slots=True)
class Local:
    """A repository on this machine."""

    path: Path


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository that only the `git` command reaches."""

    url: str


@dataclass(frozen=True, slots=True)
class Source:
    """A repository at a commit."""

    repo: pygit2.Repository
    """The local repository itself, or the mirror of a URL."""
    commit: str
    """Full hex id of the commit that the ref named when it was opened."""
    location: Local | Remote


def locate(repository: str) -> Local | Remote:
    """Whether this names a local path or a URL; nothing is opened.

    Raises:
        BadInput: it is neither, or not safe to hand to git.
    """
    if not repository.strip() or _CONTROL.search(repository):
        raise BadInput("repository", "it is empty or holds control characters", "Give a path or a URL")
    if repository.startswith("-"):
        raise BadInput("repository", f"{repository!r} looks like an option", "Put ./ before a path")
    if _HELPER.match(repository):
        raise BadInput(
            "repository", f"{repository!r} names a remote helper, which may run programs", _use_schemes()
        )
    scheme, separator, _ = repository.partition("://")
    if not separator:
        if _SCP_LIKE.match(repository) and not Path(repository).exists():
            return Remote(repository)
        return Local(Path(repository).expanduser())
    parts = _split_url(repository)
    if scheme.lower() == "file":
        # Taken as a path: a fetch or push between local repositories would run the target's hooks.
        return Local(Path(unquote(parts.path)))
    if scheme.lower() not in _SCHEMES:
        raise BadInput("repository", f"{scheme}:// is not a scheme that is used here", _use_schemes())
    if not parts.hostname or parts.hostname.startswith("-"):
        raise BadInput("repository", "the URL names no host", _use_schemes())
    if parts.password is not None or BY_SHAPE(repository) != repository:
        raise BadInput(
            "repository",
            "the URL holds a password or a token, which the log would keep for ever",
            "Leave it out and use a git credential helper or ssh",
        )
    return Remote(repository)


def check_ref(ref: str) -> str:
    """The ref, if it is one that may be handed to git.

    Raises:
        BadInput: it is not.
    """
    if not ref or len(ref) > 1024 or _BAD_REF.search(ref):
        raise BadInput("ref", f"{ref[:200]!r} is not a ref", "Give a branch, a tag, a commit or HEAD~2")
    return ref


def open_source(repository: str, ref: str, cache: Path) -> Source:
    """Open a repository at a ref: branch, tag, commit id (also abbreviated), `HEAD~2`.

    Args:
        repository: a local path (of a work tree or bare) or a URL.
        ref: anything that git's revision syntax resolves to a commit.
        cache: the directory in which mirrors of URLs are kept.

    Raises:
        BadInput: there is no such repository or ref.
        Unavailable: the remote can't be reached, or git is missing.
    """
    check_ref(ref)
    location = locate(repository)
    if isinstance(location, Local):
        repo = _open_local(location.path)
        commit = _resolve(repo, ref)
    else:
        repo, commit = _open_mirror(location.url, ref, cache)
    if commit is None:
        raise BadInput("ref", f"{ref!r} is no commit of this repository", _similar(repo, ref))
    return Source(repo, commit, location)


def refresh(source: Source) -> None:
    """Bring the mirror of a URL up to date; a local repository always is.

    Raises:
        BadInput: the remote is no repository any more.
        Unavailable: the remote can't be reached.
    """
    if isinstance(source.location, Remote):
        mirror = Path(source.repo.path)
        with _locked(mirror.with_suffix(".lock")):
            _fetch(mirror, source.location.url, remote_refs_of(source.location.url))


def remote_refs_of(url: str) -> dict[str, str]:
    """The refs of a remote, with git's failures put in our words.

    Raises:
        BadInput: there is no repository at the URL.
        Unavailable: the remote can't be reached.
    """
    try:
        return remote_refs(url)
    except GitFailed as failed:
        raise explained(failed) from failed


def explained(failed: GitFailed) -> BadInput | Unavailable:
    """What a failed fetch or listing means for the user."""
    if _NO_REPOSITORY.search(failed.reason):
        return BadInput("repository", failed.reason, "Check the URL, and that git may read it")
    return Unavailable("git remote", failed.reason, "Check the network, and git's credentials for it")


def _split_url(url: str) -> "_Url":
    try:
        parts = urlsplit(url)
        return _Url(parts.path, parts.hostname, parts.password)
    except ValueError as error:
        raise BadInput("repository", f"it is not a URL: {error}", _use_schemes()) from error


@dataclass(frozen=True, slots=True)
class _Url:
    path: str
    hostname: str | None
    password: str | None


def _use_schemes() -> str:
    return f"Use a local path, user@host:path, or one of {', '.join(s + '://' for s in _SCHEMES)}"


def _open_local(path: Path) -> pygit2.Repository:
    try:
        return pygit2.Repository(str(path), RepositoryOpenFlag.NO_SEARCH)
    except (pygit2.GitError, KeyError, ValueError) as error:
        if not path.exists():
            raise BadInput("repository", f"{path} does not exist", "Check the path") from error
        if "owner" in str(error):
            raise BadInput(
                "repository",
                f"{path} belongs to another user",
                f"If you trust it: git config --global --add safe.directory {path.resolve()}",
            ) from error
        inside = pygit2.discover_repository(str(path))
        remedy = f"Name the root of the repository around it ({inside})" if inside else "Run git init in it"
        raise BadInput("repository", f"{path} is not a git repository", remedy) from error


def _open_mirror(url: str, ref: str, cache: Path) -> tuple[pygit2.Repository, str | None]:
    """The mirror of a URL, made or brought up to date, and what the ref names in it."""
    mirror = cache / "git" / f"{sha256(url.encode()).hexdigest()[:24]}.git"
    mirror.parent.mkdir(parents=True, exist_ok=True)
    refs = remote_refs_of(url)
    if not refs:
        raise BadInput("repository", "it has no commits", "Push a first commit to it")
    with _locked(mirror.with_suffix(".lock")):
        if not (mirror / "HEAD").exists():
            git(None, ["init", "--quiet", "--bare", "--template=", "--", str(mirror)])
        _fetch(mirror, url, refs)
        repo = pygit2.Repository(str(mirror), RepositoryOpenFlag.BARE)
        commit = _resolve(repo, ref)
        if commit is None and (ref in refs or re.fullmatch(r"[0-9a-f]{40}", ref)):
            try:
                git(mirror, ["fetch", *_FETCH, "--", url, f"+{ref}:{_ASKED}"])
            except GitFailed:
                return repo, None
            commit = _resolve(repo, _ASKED)
    return repo, commit


_FETCH = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-gc")


def _fetch(mirror: Path, url: str, refs: dict[str, str]) -> None:
    try:
        git(mirror, ["fetch", "--prune", *_FETCH, "--", url, *_MIRROR])
        if head := refs.get("HEAD"):
            # Detached, so that HEAD~2 means the remote's, and so that no branch is "checked out".
            git(mirror, ["fetch", *_FETCH, "--", url, "+HEAD:refs/convoy/head"])
            git(mirror, ["update-ref", "--no-deref", "HEAD", head])
    except GitFailed as failed:
        raise explained(failed) from failed


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a mirror against other processes: two fetches at once would trip over each other's refs."""
    until = time.monotonic() + DEADLINE_SECONDS
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise Unavailable(
                        "git mirror", f"{path} stays locked", "See which process holds it"
                    ) from error
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _resolve(repo: pygit2.Repository, ref: str) -> str | None:
    """The id of the commit that a ref names, or None."""
    try:
        return str(repo.revparse_single(ref).peel(pygit2.Commit).id)
    except (KeyError, ValueError, pygit2.GitError):
        return None


def _similar(repo: pygit2.Repository, ref: str) -> str:
    if repo.is_empty:
        return "The repository has no commits yet: make a first one"
    names = [
        name.split("/", 2)[2] for name in repo.references if name.startswith(("refs/heads/", "refs/tags/"))
    ]
    if not names:
        return "It has neither branches nor tags: give a commit id"
    shown = ", ".join(sorted(names, key=lambda name: (name != ref, name))[:5])
    return f"Its branches and tags are {shown}{' …' if len(names) > 5 else ''}"
