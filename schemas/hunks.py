"""Reads nothing, writes nothing: what an edit does to a file's bytes, made and applied.

A line ends with b"\\n" and nothing else, so that CRLF, a BOM, NUL, invalid UTF-8 and a missing
final newline survive. The differences are found by git's own xdiff (through libgit2).
"""

from hashlib import sha256

import pygit2
from pygit2.enums import DiffOption

from codeconvoy.schemas.errors import PatchRejected, TooLarge
from codeconvoy.schemas.events import Hunk, Patch
from codeconvoy.schemas.topics import MAX_FILE_BYTES

_HUNK_OVERHEAD = 8
"""About what one hunk costs in a record besides its lines, in bytes."""


def lines(content: bytes) -> list[bytes]:
    """The lines of the content, each with its b"\\n" (the last one maybe without)."""
    parts = content.split(b"\n")
    last = parts.pop()
    return [part + b"\n" for part in parts] + ([last] if last else [])


def diff(base: bytes, result: bytes) -> tuple[Hunk, ...]:
    """The hunks that turn `base` into `result`: in order, apart by at least one line, no context."""
    if base == result:
        return ()
    patch = pygit2.Patch.create_from(
        base, result, flag=DiffOption.FORCE_TEXT, context_lines=0, interhunk_lines=0
    )
    new = lines(result)
    hunks = []
    for hunk in patch.hunks:
        start = _index(hunk.old_start, hunk.old_lines)
        at = _index(hunk.new_start, hunk.new_lines)
        added = b"".join(new[at : at + hunk.new_lines])
        hunks.append(Hunk(start=start, removed=hunk.old_lines, lines=added))
    return tuple(hunks)


def _index(start: int, count: int) -> int:
    """The 0-based first line of a hunk's side. An empty side names the line *before* it, from 1."""
    return start - 1 if count else start


def make_patch(base: bytes | None, result: bytes | None, *, executable: bool = False) -> Patch:
    """The smallest patch that turns `base` into `result`; None is an absent file.

    Raises:
        TooLarge: the result is over `MAX_FILE_BYTES`.
    """
    before = None if base is None else sha256(base).hexdigest()
    if result is None:
        return Patch(base_sha256=before, result_sha256=None)
    if len(result) > MAX_FILE_BYTES:
        raise TooLarge(f"the file would have {len(result)} bytes, over the cap of {MAX_FILE_BYTES}")
    after = sha256(result).hexdigest()
    if base is not None:
        hunks = diff(base, result)
        if sum(len(hunk.lines) + _HUNK_OVERHEAD for hunk in hunks) <= len(result):
            return Patch(base_sha256=before, result_sha256=after, hunks=hunks, executable=executable)
    return Patch(base_sha256=before, result_sha256=after, content=result, executable=executable)


def apply(patch: Patch, base: bytes | None, base_sha256: str | None = None) -> bytes | None:
    """The content that the patch makes of `base`; None is an absent file.

    Args:
        patch: what to do.
        base: the content to do it to.
        base_sha256: its hash, where that is known already.

    Raises:
        PatchRejected: the patch was made for another base, contradicts itself, or does not give
            the bytes that it promised; the text says which.
    """
    if base is not None and base_sha256 is None:
        base_sha256 = sha256(base).hexdigest()
    if base_sha256 != patch.base_sha256:
        raise PatchRejected("base_sha256 is not the hash of the parent's content")
    if patch.content is not None and patch.hunks:
        raise PatchRejected("it holds both hunks and whole content")
    if patch.result_sha256 is None:
        if patch.content is not None or patch.hunks:
            raise PatchRejected("it deletes the file and holds content")
        return None
    if patch.content is not None:
        result = patch.content
    elif base is not None:
        result = _replace(patch.hunks, base)
    else:
        raise PatchRejected("there is no parent content and the patch holds none")
    if len(result) > MAX_FILE_BYTES:
        raise PatchRejected(f"the file would have {len(result)} bytes, over the cap of {MAX_FILE_BYTES}")
    if sha256(result).hexdigest() != patch.result_sha256:
        raise PatchRejected("the outcome does not hash to result_sha256")
    return result


def _replace(hunks: tuple[Hunk, ...], base: bytes) -> bytes:
    """The base with each hunk's lines put in place."""
    # Lines without their b"\n", for join puts it back faster than each line is given its own. The
    # last is what follows the last b"\n": a line only where it is not empty.
    rows = base.split(b"\n")
    count = len(rows) if rows[-1] else len(rows) - 1
    parts: list[bytes] = []
    done = 0
    for hunk in hunks:
        start = hunk.start
        if hunk.removed < 0 or start < 0 or start + hunk.removed > count:
            raise PatchRejected(f"the hunk at line {start} is outside of the base")
        if start < done:
            raise PatchRejected(f"the hunk at line {start} overlaps the one before it")
        if start > done:
            parts.append(b"\n".join(rows[done:start]))
            if start < len(rows):
                parts.append(b"\n")
        parts.append(hunk.lines)
        done = start + hunk.removed
    parts.append(b"\n".join(rows[done:]))
    return b"".join(parts)
