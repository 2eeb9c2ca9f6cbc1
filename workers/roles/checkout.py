"""Reads a git repository's objects, writes a directory: the tree of a commit, with other contents on
top.

Only objects are read, so no hook, filter or setting of the repository has a say. Nothing is ever
written outside of the directory: paths are checked as everywhere, and a symlink is written only if
it can't lead out.
"""

import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pygit2

from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.paths import is_normal, normalise
from codeconvoy.workers.git.source import Source

MAX_TREE_BYTES = 2 * 1024**3
MAX_TREE_FILES = 200_000
MEMORY = Path("/dev/shm")
MEMORY_TIMES = 20
"""A tree is put there where so many times its size is free."""
_KEPT = 4

Overlay = Mapping[str, tuple[bytes | None, bool]]
"""Content (None: deleted) and executable bit, by path."""


class Checkouts:
    """Makes checkouts; the last few commits are kept as directories, and copied.

    Its methods block, and may be called from several threads.
    """

    def __init__(self, directory: Path) -> None:
        """Keep commits in `directory`: empty or not there yet, and nobody else's."""
        self._directory, self._lock = directory, threading.Lock()
        self._in_use: Counter[str] = Counter()
        """Copies of each commit that are being made: not to be removed meanwhile."""
        self._kept: dict[str, _Kept] = {}
        """The last used one at the end."""

    def checkout(self, source: Source, overlay: Overlay, target: Path) -> tuple[str, ...]:
        """Write the tree of the source's commit, with the overlay on top, to a new directory.

        Args:
            source: the repository and the commit.
            overlay: contents that take the place of the commit's.
            target: must not exist yet. Everything in it is a copy: nothing is shared.

        Returns:
            Paths of the commit that were left out: submodules, symlinks that lead out, names that no
            file key may hold.

        Raises:
            BadInput: the commit's tree is too large, or a path of the overlay can't be written.
        """
        for path in overlay:
            if normalise(path) != path:
                raise BadInput("path", f"{path!r} is not normalised", f"Write {normalise(path)!r}")
        with self._lock:
            left_out = self._keep(source).left_out
            self._in_use[source.commit] += 1
        try:
            self._copy(self._directory / source.commit, overlay, target)
        finally:
            with self._lock:
                self._in_use[source.commit] -= 1
        for path, (content, _) in overlay.items():
            if content is None:  # first, since a file may have become a directory, or the reverse
                _remove(target, path)
        for path, (content, executable) in overlay.items():
            if content is not None:
                _write(target, path, content, 0o755 if executable else 0o644)
        return left_out

    def size(self, source: Source) -> int:
        """Bytes of all files of the commit.

        Raises:
            BadInput: its tree is too large.
        """
        with self._lock:
            return self._keep(source).size

    @staticmethod
    def _copy(kept: Path, overlay: Overlay, target: Path) -> None:
        """Copy what the overlay does not replace."""
        replaced = {f"{kept}/{path}" for path, (content, _) in overlay.items() if content is not None}

        def written_anew(folder: str, names: list[str]) -> list[str]:
            paths = ((name, f"{folder}/{name}") for name in names)
            return [name for name, path in paths if path in replaced and os.path.isfile(path)]

        shutil.copytree(kept, target, symlinks=True, ignore=written_anew, copy_function=_copy_file)

    def _keep(self, source: Source) -> "_Kept":
        """Make sure that the commit is kept."""
        commit = source.commit
        if commit in self._kept:
            self._kept[commit] = self._kept.pop(commit)
            return self._kept[commit]
        tree = source.repo[pygit2.Oid(hex=commit)].peel(pygit2.Tree)
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._directory, ignore_cleanup_errors=True) as directory:
            kept = _materialise(tree, Path(directory, "tree"))
            os.rename(Path(directory, "tree"), self._directory / commit)
        self._kept[commit] = kept
        idle = [other for other in self._kept if other != commit and not self._in_use[other]]
        for oldest in idle[: max(0, len(self._kept) - _KEPT)]:
            del self._kept[oldest]
            shutil.rmtree(self._directory / oldest)
        return kept


class _Kept(NamedTuple):
    """A commit that was written to a directory."""

    left_out: tuple[str, ...]
    size: int


def place_for(size: int, memory: Path = MEMORY) -> Path | None:
    """Where to make a checkout of this size: in memory if that has room, else None, the usual place.

    A tree is hundreds of small files that live for seconds. A busy disk takes most of a second to write
    and to remove them, memory a few milliseconds.
    """
    try:
        about = os.statvfs(memory)
    except OSError:
        return None
    # Programs of the checkout must run: containers often forbid that there.
    usable = os.access(memory, os.W_OK | os.X_OK) and not about.f_flag & (os.ST_NOEXEC | os.ST_RDONLY)
    return memory if usable and about.f_bavail * about.f_frsize >= MEMORY_TIMES * size else None


def _copy_file(source: str, target: str) -> str:
    """Copy a file's content and executable bit: times and attributes cost twice as much again."""
    shutil.copyfile(source, target, follow_symlinks=False)
    if os.stat(source).st_mode & 0o100:
        os.chmod(target, 0o755)
    return target


def _materialise(tree: pygit2.Tree, root: Path) -> _Kept:
    """Write a tree to a new directory."""
    root.mkdir()
    left_out: list[str] = []
    files = size = 0
    waiting: list[tuple[str, pygit2.Tree]] = [("", tree)]
    while waiting:
        folder, entries = waiting.pop()
        for entry in entries:
            path = folder + (entry.name or "")
            if not is_normal(path):
                left_out.append(path)
            elif isinstance(entry, pygit2.Tree):
                waiting.append((f"{path}/", entry))
            elif isinstance(entry, pygit2.Blob):
                files, size = files + 1, size + entry.size
                if files > MAX_TREE_FILES or size > MAX_TREE_BYTES:
                    limit = f"{MAX_TREE_FILES} files or {MAX_TREE_BYTES} bytes"
                    raise BadInput("repository", f"its tree is over {limit}", "Work on a part of it")
                if not _write_blob(root, path, entry):
                    left_out.append(path)
            else:  # a submodule
                left_out.append(path)
    return _Kept(tuple(sorted(left_out)), size)


def _write_blob(root: Path, path: str, blob: pygit2.Blob) -> bool:
    """Write one file or symlink; False where a symlink could lead out of the tree."""
    if blob.filemode == pygit2.enums.FileMode.LINK:
        destination = os.fsdecode(blob.data)
        if not stays_inside(path, destination):
            return False
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(destination, root / path)
        return True
    executable = blob.filemode == pygit2.enums.FileMode.BLOB_EXECUTABLE
    _write(root, path, blob.data, 0o755 if executable else 0o644)
    return True


def stays_inside(path: str, destination: str) -> bool:
    """True if a symlink at `path` can't lead out of the tree, whatever else the tree holds.

    It may go up first, then only down: `a/../..` could go up from wherever the symlink `a` leads.
    """
    parts = [part for part in destination.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    depth = len(PurePosixPath(path).parts) - 1
    return (
        not destination.startswith("/") and up <= depth and ".." not in parts[up:] and "\0" not in destination
    )


def _write(root: Path, path: str, content: bytes, mode: int) -> None:
    """Write one file, through no symlink."""
    place = root
    for part in PurePosixPath(path).parts[:-1]:
        place = place / part
        if place.is_symlink() or place.is_file():
            raise BadInput("path", f"{path!r} lies below {part!r}, which is no directory", "Use another path")
        place.mkdir(exist_ok=True)
    place = root / path
    if place.is_dir() and not place.is_symlink():
        raise BadInput("path", f"{path!r} is a directory", "Use another path")
    place.unlink(missing_ok=True)
    place.write_bytes(content)
    place.chmod(mode)


def _remove(root: Path, path: str) -> None:
    """Delete one file, through no symlink, and the directories that it leaves empty."""
    place = root / path
    folders = [root / folder for folder in list(PurePosixPath(path).parents)[-2::-1]]
    if any(folder.is_symlink() or not folder.is_dir() for folder in folders) or not os.path.lexists(place):
        return  # it is not there
    if place.is_dir() and not place.is_symlink():
        raise BadInput("path", f"{path!r} is a directory", "Delete files")
    place.unlink()
    for folder in reversed(folders):
        if any(folder.iterdir()):
            return
        folder.rmdir()
