"""Reads nothing, writes a temporary directory: a bare git repository whose objects live in memory.

libgit2 merges objects of a repository, so there must be one. Its objects are kept in a dict (a
merge through loose files takes about three times as long). Its directory holds only what libgit2
insists on, and an `info/attributes` that outranks every other: a user's own `* merge=union` in
~/.config/git/attributes would otherwise decide merges here, and replicas would differ.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pygit2
from pygit2 import IndexEntry, Oid, Signature
from pygit2.enums import FileMode, MergeFileFlag, MergeFlag

_NAME = "file"
"""Every commit's tree holds this one file, or none: a rename can't be mistaken for anything."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge made of the file: content (None: it is deleted) and executable bit."""

    content: bytes | None
    executable: bool


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A strategy has no answer for these heads, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Clash:
    """What git could not merge: three contents, of which both sides changed the same lines."""

    base: bytes | None
    """What the sides have in common, by git's recursive merge: of several bases a merged one."""
    sides: tuple[bytes, bytes]
    executable: bool
    """The merged executable bit, which does not clash."""


class ObjectStore:
    """Commits of one file, and git's merge of any two of them. Made by `object_store()`."""

    def __init__(self, directory: Path) -> None:
        self._objects = _Objects()
        self._odb = pygit2.Odb()
        self._odb.add_backend(self._objects, 1)
        self._repository = pygit2.Repository(directory)
        self._repository.set_odb(self._odb)

    def commit(
        self, content: bytes | None, *, executable: bool, parents: Sequence[Oid], time: int, name: str
    ) -> Oid:
        """A commit of the file (None: without it). Equal arguments give an equal id, everywhere."""
        tree = self._repository.TreeBuilder()
        if content is not None:
            mode = FileMode.BLOB_EXECUTABLE if executable else FileMode.BLOB
            tree.insert(_NAME, self._repository.create_blob(content), mode)
        who = Signature("codeconvoy", "codeconvoy@localhost", time, 0)
        return self._repository.create_commit(None, who, who, name, tree.write(), list(parents))

    def merge(self, ours: Oid, theirs: Oid) -> Merged | GaveUp:
        """git's recursive merge, with virtual bases where there are several."""
        index = self._repository.merge_commits(ours, theirs, flags=MergeFlag(0))
        if index.conflicts is not None:
            return GaveUp(_reason(*next(iter(index.conflicts))))
        for entry in index:
            return Merged(self._objects.content(entry.id), entry.mode == FileMode.BLOB_EXECUTABLE)
        return Merged(None, False)

    def clash(self, ours: Oid, theirs: Oid) -> Clash | GaveUp:
        """What is left of two commits for somebody else to merge, line by line."""
        index = self._repository.merge_commits(ours, theirs, flags=MergeFlag(0))
        if index.conflicts is None:
            return GaveUp("git merges these sides: there is no conflicting region")
        base, *sides = next(iter(index.conflicts))
        if any(side is None for side in sides):
            return GaveUp(_reason(base, *sides))
        modes = {entry.mode == FileMode.BLOB_EXECUTABLE for entry in sides}
        if base is None and len(modes) > 1:
            return GaveUp("both sides created the file, and only one of them made it executable")
        if len(modes) > 1:
            modes.discard(base.mode == FileMode.BLOB_EXECUTABLE)
        one, other = (self._objects.content(entry.id) for entry in sides)
        origin = None if base is None else self._objects.content(base.id)
        return Clash(origin, (one, other), modes.pop())

    def in_regions(self, base: bytes, ours: bytes, theirs: bytes) -> bytes:
        """git's merge of three texts, where they clash between markers that hold the base as well
        (`zdiff3`: what both sides have in common at the ends of a region is not in it)."""
        root = self.commit(base, executable=False, parents=(), time=0, name="base")
        one, other = (
            self.commit(text, executable=False, parents=(root,), time=1, name=name)
            for name, text in (("ours", ours), ("theirs", theirs))
        )
        flags = MergeFileFlag.STYLE_ZDIFF3 | MergeFileFlag.ACCEPT_CONFLICTS
        index = self._repository.merge_commits(one, other, flags=MergeFlag(0), file_flags=flags)
        return next(self._objects.content(entry.id) for entry in index)

    def marked(self, base: bytes | None, ours: bytes, theirs: bytes) -> bytes:
        """git's merge of two texts, where they clash between conflict markers."""
        merged = self._repository.merge_file_from_index(
            None if base is None else self._text("base", base),
            self._text("ours", ours),
            self._text("theirs", theirs),
        )
        assert not isinstance(merged, str)
        return _from_text(merged.contents)

    def _text(self, label: str, content: bytes) -> IndexEntry:
        """An entry of this content; libgit2 takes its path for the label of the markers."""
        return IndexEntry(label, self._repository.create_blob(_as_text(content)), FileMode.BLOB)


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A fresh store, gone with everything in it at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="convoy-merge-") as name:
        directory = Path(name)
        for part in ("objects", "refs", "info"):
            (directory / part).mkdir()
        (directory / "HEAD").write_text("ref: refs/heads/main\n")
        (directory / "info" / "attributes").write_text("* merge\n")
        yield ObjectStore(directory)


class _Objects(pygit2.OdbBackend):
    """A git object database in a dict. libgit2 calls these; a KeyError is its "not found"."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[bytes, tuple[int, bytes]] = {}

    def content(self, oid: Oid) -> bytes:
        """The bytes of an object."""
        return self._held[oid.raw][1]

    def read_cb(self, oid: Oid) -> tuple[int, bytes]:
        """Type and bytes of an object."""
        return self._held[oid.raw]

    def read_header_cb(self, oid: Oid) -> tuple[int, int]:
        """Type and size of an object."""
        kind, data = self._held[oid.raw]
        return kind, len(data)

    def read_prefix_cb(self, oid: Oid) -> tuple[int, bytes, Oid]:
        """As `read_cb`: nothing here is ever looked up by less than its whole id."""
        return *self._held[oid.raw], oid

    def write_cb(self, oid: Oid, data: bytes, kind: int) -> None:
        """Keep an object."""
        self._held[oid.raw] = kind, bytes(data)

    def exists_cb(self, oid: Oid) -> bool:
        """True where the object is held."""
        return oid.raw in self._held

    def refresh_cb(self) -> None:
        """Nothing to look at again."""


def _reason(base: IndexEntry | None, ours: IndexEntry | None, theirs: IndexEntry | None) -> str:
    """What a conflicting entry of the index means."""
    if ours is None or theirs is None:
        return "one side deleted the file and the other changed it"
    if base is None:
        return "both sides created the file, each with another content"
    return "both sides changed the same or adjacent lines, or the file is binary"


def _as_text(content: bytes) -> bytes:
    """The bytes as UTF-8, line for line: pygit2 decodes a merged text strictly and ends it at a NUL."""
    return content.decode("latin-1").replace("\0", "\u0100").encode()


def _from_text(text: str) -> bytes:
    """What `_as_text` was given."""
    return text.replace("\u0100", "\0").encode("latin-1")
