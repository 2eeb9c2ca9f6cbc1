"""Reads planned commits and the tree that they start from, writes commits into a repository's objects.

By `git fast-import`: it keeps the trees in memory and writes one pack, where one commit after the other
means four files each. It runs on an empty bare repository of our own that borrows the target's object
directory, so that nothing of the target (hook, filter, setting, ref) is read, executed or moved.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pygit2
from pygit2.enums import FileMode

from codeconvoy.schemas.errors import BadInput, Unavailable
from codeconvoy.workers.git import trailers
from codeconvoy.workers.git.command import GitFailed, git
from codeconvoy.workers.git.plan import Commit

_REF = "refs/heads/result"
"""Of our own repository: fast-import wants one to write to."""
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 28), "MALLOC_MMAP_THRESHOLD_": str(1 << 28)}
"""It gives memory back after every object, and spends four fifths of its time on that."""
_MAX_SECONDS = (1 << 33) - 1
_MAX_NAME = 100
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def write_commits(repo: pygit2.Repository, base: str, commits: Sequence[Commit]) -> str:
    """Write blobs, trees and commits; nothing points to them yet. Gives the last commit's id.

    Raises:
        BadInput: a path would be both a file and a directory.
        Unavailable: the repository can't be written.
    """
    if not commits:
        return base
    aimed = {"GIT_OBJECT_DIRECTORY": str(_objects(repo)), **_KEEP_MEMORY}
    try:
        stream = b"".join(_stream(repo, base, commits))
        with TemporaryDirectory(prefix="convoy-git-") as name:
            ours = Path(name) / "repository.git"
            git(None, ["init", "--quiet", "--bare", "--template=", "--", str(ours)])
            said = git(ours, ["fast-import", "--quiet", "--date-format=raw"], given=stream, further=aimed)
    except (GitFailed, pygit2.GitError, OSError) as error:
        raise Unavailable("git", f"{repo.path} can't be written: {error}", "Check its permissions") from error
    tip = said.strip()
    _check_result(repo, tip, commits)
    return tip


def _objects(repo: pygit2.Repository) -> Path:
    """The directory of a repository's objects; a linked work tree shares those of its main one."""
    place = Path(repo.path)
    shared = place / "commondir"
    return (place / shared.read_text().strip() if shared.exists() else place) / "objects"


# What fast-import reads ---------------------------------------------------------------------------


def _stream(repo: pygit2.Repository, base: str, commits: Sequence[Commit]) -> Iterator[bytes]:
    tree = _Directory(repo, repo[pygit2.Oid(hex=base)].peel(pygit2.Tree))
    deleted = frozenset(commit.path for commit in commits if commit.content is None)
    for number, commit in enumerate(commits, 1):
        seconds = min(max(commit.timestamp // 1000, 0), _MAX_SECONDS)
        role = _NOT_A_NAME.sub("-", commit.role).strip("-.")[:_MAX_NAME] or "unknown"
        name, address = trailers.COMMITTER
        yield (
            f"commit {_REF}\nmark :{number}\n"
            f"author {role} <{role}@{trailers.EMAIL_DOMAIN}> {seconds} +0000\n"
            f"committer {name} <{address}> {seconds} +0000\n"
        ).encode()
        yield from _data(trailers.message(commit.subject, commit.trailers).encode())
        if number == 1:
            yield f"from {base}\n".encode()
        yield from _change(tree, commit, deleted)
        yield b"\n"
    yield f"get-mark :{len(commits)}\ndone\n".encode()


def _data(content: bytes) -> Iterator[bytes]:
    yield b"data %d\n" % len(content)
    yield content
    yield b"\n"


def _change(tree: "_Directory", commit: Commit, deleted: frozenset[str]) -> Iterator[bytes]:
    """The file that a commit sets or deletes; nothing where it is gone already."""
    if commit.content is None:
        if tree.delete(commit.path.split("/")):
            yield b"D %s\n" % _quoted(commit.path)
        return
    tree.put(commit.path.split("/"), deleted)
    mode = FileMode.BLOB_EXECUTABLE if commit.executable else FileMode.BLOB
    yield b"M %o inline %s\n" % (mode, _quoted(commit.path))
    yield from _data(commit.content)


def _quoted(path: str) -> bytes:
    """A path as a C string: fast-import takes no other with odd characters."""
    escaped = path.encode().replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
    return b'"' + escaped + b'"'


# What is a file and what is a directory -----------------------------------------------------------


@dataclass(slots=True)
class _Directory:
    """A directory as the commits so far have left it, read from the base's tree where one looks."""

    repo: pygit2.Repository
    tree: pygit2.Tree | None
    _entries: "dict[str, _Directory | None] | None" = field(default=None, init=False)

    @property
    def entries(self) -> "dict[str, _Directory | None]":
        """What is in it, by name: directories, and files (None)."""
        if self._entries is None:
            self._entries = {
                _name(item): _Directory(self.repo, item) if isinstance(item, pygit2.Tree) else None
                for item in self.tree or ()
            }
        return self._entries

    def put(self, parts: Sequence[str], deleted: frozenset[str]) -> None:
        """Let a file be there. What is in its way must be something that the job deleted.

        Raises:
            BadInput: something else is in its way.
        """
        at = self
        *directories, name = parts
        for depth, directory in enumerate(directories, 1):
            below = at.entries.get(directory)
            if below is None:
                if directory in at.entries:
                    _check_gone("/".join(directories[:depth]), deleted)
                below = at.entries[directory] = _Directory(self.repo, None)
            at = below
        there = at.entries.get(name)
        if there is not None:
            for path in there.files():
                _check_gone(f"{'/'.join(parts)}/{path}", deleted)
        at.entries[name] = None

    def delete(self, parts: Sequence[str]) -> bool:
        """Let a file be gone, and the directories that it leaves empty: git knows none. False where
        there is no such file."""
        name, *below = parts
        there = self.entries.get(name)
        if not below:
            found = name in self.entries and there is None
        else:
            found = there is not None and there.delete(below)
        if found and (there is None or not there.entries):
            del self.entries[name]
        return found

    def files(self) -> Iterator[str]:
        """The paths of all files below."""
        for name, below in self.entries.items():
            if below is None:
                yield name
            else:
                yield from (f"{name}/{path}" for path in below.files())


def _name(item: pygit2.Object) -> str:
    """The name of an entry, whatever its bytes are."""
    return (item.raw_name or b"").decode("utf-8", "surrogateescape")


def _check_gone(path: str, deleted: frozenset[str]) -> None:
    """A file makes room for a directory, or the other way round, only if a job deleted it."""
    if path not in deleted:
        raise BadInput(
            "path", f"{path!r} is both a file and a directory in the result", "Delete or rename one of them"
        )


def _check_result(repo: pygit2.Repository, tip: str, commits: Sequence[Commit]) -> None:
    """The last commit of every path must be what the final tree holds: nothing was shadowed."""
    final = repo[tip].peel(pygit2.Tree)
    for path, commit in {commit.path: commit for commit in commits}.items():
        entry = final[path] if path in final else None  # noqa: SIM401 - a tree has no get
        if commit.content is None:
            held = entry is None or entry.filemode == FileMode.TREE
        else:
            held = isinstance(entry, pygit2.Blob) and entry.data == commit.content
        if not held:
            _check_gone(path, frozenset())
