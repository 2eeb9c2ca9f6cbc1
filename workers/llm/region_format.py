"""Reads nothing, writes nothing: how a model fills the regions of a merge, and what becomes of it.

A region is filled by a block, or called a conflict by a line; each region once, nothing else counts:

    <<<<<<< REGION 1
    the lines that take its place
    >>>>>>> REGION 1
    CONFLICT 2: why its sides can't be reconciled
"""

import codecs
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from codeconvoy.schemas.errors import AgentError
from codeconvoy.schemas.hunks import lines as byte_lines
from codeconvoy.workers.llm.edit_format import (
    MAX_FLAWS,
    MAX_REPLY_CHARS,
    MAX_SUMMARY_CHARS,
    Mismatch,
    Problem,
)
from codeconvoy.workers.llm.text import decode
from codeconvoy.workers.resolution.regions import PartialMerge
from codeconvoy.workers.roles.role import Edits, FileEdit

MAX_REASON_CHARS = 500
HOW = """Answer with a block for each region, and nothing else that matters:

<<<<<<< REGION 1
the lines that take the place of region 1
>>>>>>> REGION 1

Rules: each region exactly once. A block holds only the lines of its region, not those before or after
it, with their indentation; it is empty where nothing shall be there. Use no code fences and no line
numbers. Before the first block write one line `SUMMARY: ` with how you reconciled the sides. Where the
sides of a region can't be reconciled, write instead of its block one line `CONFLICT 1: ` with the region's
number and the reason: then none of your answer is taken, and somebody else decides."""

_OPEN = re.compile(r"<<<<<<< REGION (\d{1,4})\s*\Z")
_CLOSE = re.compile(r">>>>>>> REGION (\d{1,4})\s*\Z")
_CONFLICT = re.compile(r"CONFLICT(?: (\d{1,4}))?:\s*(.*)")
_FENCE = "```"
_SUMMARY = re.compile(r"SUMMARY:\s*(.*)")


@dataclass(frozen=True, slots=True)
class Filling:
    """What an answer makes of the regions, by number."""

    lines: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    conflicts: Mapping[int, str] = field(default_factory=dict)
    """Why a region can't be filled; under 0 what is said of all of them."""
    summary: str = ""
    flaws: tuple[str, ...] = ()


def read_regions(path: str, merge: PartialMerge, reply: str) -> tuple[Edits | None, tuple[Mismatch, ...]]:
    """The merged file that a reply comes to, or its flaws.

    Raises:
        AgentError: it says that a region is a conflict.
    """
    return merged(path, merge, parse(reply))


def merged(path: str, merge: PartialMerge, filling: Filling) -> tuple[Edits | None, tuple[Mismatch, ...]]:
    """As `read_regions`, of an answer in any form."""
    numbers = range(1, len(merge.regions) + 1)
    given = [*filling.lines, *filling.conflicts]
    flaws = [*filling.flaws]
    flaws += [f"There is no region {number}." for number in given if number not in numbers and number]
    flaws += [
        f"Region {number} is answered twice." for number in filling.lines if number in filling.conflicts
    ]
    if 0 not in filling.conflicts:
        flaws += [f"Region {number} is not answered." for number in numbers if number not in given]
    flaws += [
        f"Region {number} is put into a code fence, which its sides do not have."
        for number, rows in filling.lines.items()
        if number in numbers and _is_fenced(rows) and not _has_fence(merge, number)
    ]
    if flaws:
        return None, tuple(Mismatch(Problem.MALFORMED, "", flaw) for flaw in flaws[:MAX_FLAWS])
    if filling.conflicts:
        number, reason = next(iter(filling.conflicts.items()))
        where = f"region {number}: " if number else ""
        said = f"the sides can't be reconciled: {where}{reason[:MAX_REASON_CHARS]}"
        raise AgentError(said, is_answer=True)
    try:
        content = content_of(merge, filling.lines)
    except UnicodeEncodeError as error:
        bad = error.object[error.start : error.end][:20]
        reason = f"{bad!a} can't be written in the file's encoding ({error.encoding})."
        return None, (Mismatch(Problem.ENCODING, "", reason),)
    return Edits((FileEdit(path, content),), filling.summary[:MAX_SUMMARY_CHARS]), ()


def _is_fenced(rows: Sequence[str]) -> bool:
    return len(rows) > 1 and rows[0].startswith(_FENCE) and rows[-1].strip() == _FENCE


def _has_fence(merge: PartialMerge, number: int) -> bool:
    return any(_FENCE.encode() in side for side in merge.regions[number - 1].sides)


def parse(reply: str) -> Filling:
    """What a reply says of the regions."""
    if len(reply) > MAX_REPLY_CHARS:
        return Filling(flaws=(f"The reply is over {MAX_REPLY_CHARS} characters long.",))
    rows = reply.replace("\r\n", "\n").split("\n")
    filled: dict[int, tuple[str, ...]] = {}
    conflicts: dict[int, str] = {}
    summary, flaws, i = "", list[str](), 0
    while i < len(rows):
        if opened := _OPEN.match(rows[i]):
            number, end = int(opened[1]), _end(rows, i)
            if end is None:
                flaws.append(f"Region {number} is not closed by >>>>>>> REGION {number}.")
                break
            if number in filled:
                flaws.append(f"Region {number} is answered twice.")
            filled[number] = tuple(rows[i + 1 : end])
            i = end
        elif said := _CONFLICT.match(rows[i]):
            conflicts[int(said[1] or 0)] = said[2].strip() or "no reason is given"
        elif (said := _SUMMARY.match(rows[i])) and not summary:
            summary = said[1].strip()
        elif _CLOSE.match(rows[i]):
            flaws.append(f"Line {i + 1}, {rows[i].strip()!r}, closes no block.")
        i += 1
    return Filling(filled, conflicts, summary, tuple(flaws))


def _end(rows: Sequence[str], start: int) -> int | None:
    """The line that closes the block which opens on line `start`."""
    number = _OPEN.match(rows[start])
    assert number is not None
    for i in range(start + 1, len(rows)):
        if _OPEN.match(rows[i]):
            return None
        if closed := _CLOSE.match(rows[i]):
            return i if closed[1] == number[1] else None
    return None


def content_of(merge: PartialMerge, filled: Mapping[int, Sequence[str]]) -> bytes:
    """The merged file. Lines that a side has keep their ends, new ones get the end that most have.

    Raises:
        UnicodeEncodeError: a line holds what the file's encoding can't hold.
    """
    replacements: dict[int, bytes] = {}
    for region in merge.regions:
        known = {
            shown(merge, line).removesuffix("\n"): line
            for side in region.sides
            for line in byte_lines(side)
            if line.endswith(b"\n")
        }
        usual, encoding = decode(merge.sides[0]).usual_end, encoding_of(merge)
        rows = [known.get(row) or (row + usual).encode(encoding) for row in filled[region.number]]
        text = b"".join(rows)
        if region.number == 1 and not merge.texts[0] and any(map(_marked, merge.sides)) and not _marked(text):
            text = codecs.BOM_UTF8 + text
        replacements[region.number] = text
    content = merge.assembled(replacements)
    if not merge.texts[-1] and not any(side.endswith(b"\n") for side in merge.sides):
        content = content.removesuffix(b"\n").removesuffix(b"\r")
    return content


def encoding_of(merge: PartialMerge) -> str:
    """UTF-8, or Latin-1, which can hold any bytes, where a side is not UTF-8."""
    encodings = {decode(side).encoding for side in merge.sides}
    return "latin-1" if "latin-1" in encodings else "utf-8"


def shown(merge: PartialMerge, part: bytes) -> str:
    """A part of the file as a model is shown it: every line ends with a newline."""
    text = part.removeprefix(codecs.BOM_UTF8).decode(encoding_of(merge), "replace").replace("\r\n", "\n")
    return text if not text or text.endswith("\n") else text + "\n"


def _marked(content: bytes) -> bool:
    return content.startswith(codecs.BOM_UTF8)
