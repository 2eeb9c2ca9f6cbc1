"""Reads a git repository at a commit, writes nothing: the files that a job works on.

Contents come from git's objects as they are: no filter, no line end conversion, no work tree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pygit2
from pygit2.enums import FileMode, ObjectType

from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.paths import normalise
from codeconvoy.schemas.topics import MAX_FILE_BYTES, MAX_FILES_PER_JOB
from codeconvoy.workers.git.globs import compile_globs, is_literal
from codeconvoy.workers.git.source import Source

_BINARY_BYTES = 8000
"""How far git looks for a NUL byte (`buffer_is_binary` in xdiff-interface.c)."""
_LFS = b"version https://git-lfs.github.com/spec/"
_LFS_BYTES = 1024
MAX_SKIPPED = 100
"""Skipped files that a selection lists; a job that skips more is not helped by the full list."""
_REMEDY = "Leave it out"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file as the commit holds it."""

    path: str
    content: bytes
    executable: bool


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that a glob matched and that can't be edited."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The files of a job, each part sorted by path."""

    files: tuple[SourceFile, ...]
    absent: tuple[str, ...]
    """Named paths that the commit does not have: they may be created."""
    skipped: tuple[Skipped, ...]
    """At most `MAX_SKIPPED` of them."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One leaf of the commit's tree: a file, symlink or submodule."""

    path: str
    oid: pygit2.Oid
    mode: int


class _Unfit(Exception):
    """Why a file can't be edited."""


def select(
    source: Source, globs: Sequence[str], exclude: Sequence[str] = (), paths: Sequence[str] = ()
) -> Selection:
    """The files that the globs match, without the excluded ones, and the paths.

    A file that can't be edited (symlink, submodule, LFS pointer, binary, over 512 KiB, unsafe
    path) is skipped with the reason; one that was named, as a path or by a glob without
    wildcards, is an error.

    Args:
        source: the repository at a commit.
        globs: as in a .gitignore (see `globs`).
        exclude: likewise; they take nothing from `paths`.
        paths: exact paths; one that the commit does not have is reported as absent.

    Raises:
        BadInput: a bad glob or path, a glob that matches nothing, a named file that can't be
            edited, or too many files.
    """
    tree = {entry.path: entry for entry in _leaves(source)}
    named = {normalise(path, f"paths[{i}]"): f"paths[{i}]" for i, path in enumerate(paths)}
    matched = _match(tuple(tree), globs, exclude, named)
    if len(matched | named.keys()) > MAX_FILES_PER_JOB:
        raise BadInput(
            "files",
            f"{len(matched | named.keys())} files are more than {MAX_FILES_PER_JOB}",
            "Narrow the globs, or make several jobs of it",
        )
    files: list[SourceFile] = []
    skipped: list[Skipped] = []
    absent: list[str] = []
    for path in sorted(matched | named.keys()):
        entry = tree.get(path)
        try:
            if entry is not None:
                files.append(_read(source.repo, entry))
            else:
                _check_creatable(path, tree)
                absent.append(path)
        except _Unfit as unfit:
            if path in named:
                raise BadInput(named[path], f"{path!r} {unfit}", _REMEDY) from unfit
            skipped.append(Skipped(path, str(unfit)))
    if matched and not files and not absent:
        raise BadInput(
            "files", f"none can be edited: {skipped[0].path!r} {skipped[0].reason}", "Choose other files"
        )
    return Selection(tuple(files), tuple(absent), tuple(skipped[:MAX_SKIPPED]))


def content_at(source: Source, path: str) -> SourceFile | None:
    """One file as the commit holds it, or None where it has no such file.

    Raises:
        BadInput: it is there and can't be edited.
    """
    try:
        found = source.repo[source.repo[source.commit].peel(pygit2.Tree).id]
        assert isinstance(found, pygit2.Tree)
        item = found[path]
    except KeyError:
        return None
    try:
        return _read(source.repo, _Entry(path, item.id, item.filemode))
    except _Unfit as unfit:
        raise BadInput("path", f"{path!r} {unfit}", _REMEDY) from unfit


def _match(
    tree: Sequence[str], globs: Sequence[str], exclude: Sequence[str], named: dict[str, str]
) -> set[str]:
    """The paths of the tree that globs match and excludes do not. Literal globs go to `named`."""
    unwanted = compile_globs(exclude, "exclude")
    matched: set[str] = set()
    for i, (glob, spec) in enumerate(zip(globs, compile_globs(globs, "files"), strict=True)):
        hits = {path for path in tree if spec.match_file(path)}
        if not hits:
            raise BadInput(f"files[{i}]", f"{glob!r} matches no file", "Check it against `git ls-files`")
        if is_literal(glob) and glob.lstrip("/") in hits:
            named[glob.lstrip("/")] = f"files[{i}]"
        matched |= hits
    kept = {path for path in matched if not any(spec.match_file(path) for spec in unwanted)}
    if globs and not kept and not named:
        raise BadInput("exclude", "it excludes every file that the globs match", "Narrow it")
    return kept


def _leaves(source: Source) -> Iterator[_Entry]:
    """All files, symlinks and submodules of the commit, by git's own order of trees."""
    pending = [("", source.repo[source.commit].peel(pygit2.Tree).id)]
    while pending:
        prefix, oid = pending.pop()
        tree = source.repo[oid]
        assert isinstance(tree, pygit2.Tree)
        for item in tree:
            path = prefix + (item.raw_name or b"").decode("utf-8", "surrogateescape")
            if item.filemode == FileMode.TREE:
                pending.append((f"{path}/", item.id))
            else:
                yield _Entry(path, item.id, item.filemode)


def _read(repo: pygit2.Repository, entry: _Entry) -> SourceFile:
    """The file, if it can be edited; its size is looked at before its content is loaded."""
    if entry.mode == FileMode.LINK:
        raise _Unfit("is a symlink")
    if entry.mode == FileMode.COMMIT:
        raise _Unfit("is a submodule")
    if entry.mode == FileMode.TREE:
        raise _Unfit("is a directory")
    try:
        if normalise(entry.path) != entry.path:
            raise _Unfit("is not spelled in a way that is safe everywhere")
    except BadInput as bad:
        raise _Unfit(f"is not a safe path ({bad.reason})") from bad
    try:
        kind, size = repo.odb.read_header(entry.oid)
    except (KeyError, pygit2.GitError) as error:
        raise _Unfit("is missing from this clone (a partial one?)") from error
    if kind != ObjectType.BLOB:
        raise _Unfit("is not a file")
    if size > MAX_FILE_BYTES:
        raise _Unfit(f"has {size:,} bytes, more than {MAX_FILE_BYTES:,}")
    blob = repo[entry.oid]
    assert isinstance(blob, pygit2.Blob)
    content = blob.data
    if b"\0" in content[:_BINARY_BYTES]:
        raise _Unfit("is binary")
    if size <= _LFS_BYTES and content.startswith(_LFS):
        raise _Unfit("is a Git LFS pointer")
    return SourceFile(entry.path, content, entry.mode == FileMode.BLOB_EXECUTABLE)


def _check_creatable(path: str, tree: dict[str, _Entry]) -> None:
    """A path can be made only where nothing else stands in its way."""
    parts = path.split("/")
    for depth in range(1, len(parts)):
        if (above := "/".join(parts[:depth])) in tree:
            raise _Unfit(f"is below {above!r}, which is not a directory")
    if any(other.startswith(f"{path}/") for other in tree):
        raise _Unfit("is a directory")
