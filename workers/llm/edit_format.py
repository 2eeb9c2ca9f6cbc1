"""Reads nothing, writes nothing: how a model writes edits down, and what becomes of them.

Text blocks and not JSON, since code inside JSON strings lowers its quality (aider's published
runs). The line before a block is the file's path; a block is one of

    <<<<<<< SEARCH        <<<<<<< WHOLE         <<<<<<< DELETE
    lines of the base     the new content       >>>>>>> DELETE
    =======               >>>>>>> WHOLE
    their replacement
    >>>>>>> REPLACE

or the whole reply is the line `NO CHANGES`. All blocks are against the stated base, whole lines
of which each search must match exactly once: nothing is guessed, since fuzzy matching hardly ever
fired in those runs. A reply counts as a whole: one flaw, and none of its blocks is applied.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from enum import StrEnum
from itertools import pairwise

from codeconvoy.schemas.errors import ConvoyError
from codeconvoy.workers.llm.text import EMPTY, Region, Text, decode, encode, trimmed
from codeconvoy.workers.roles.role import FileEdit

MAX_REPLY_CHARS = 2 * 1024 * 1024
MAX_BLOCKS = 500
MAX_NEAREST_LINES = 40
MAX_NEAREST_CHARS = 300
"""Of each line, both when lines are compared and when they are shown."""
MAX_FLAWS = 8
"""Flaws that one re-ask names; the others come up again if they stay."""
MAX_SUMMARY_CHARS = 200

_OPEN = re.compile(r"<<<<<<< (SEARCH|WHOLE|DELETE)\s*\Z")
_CLOSE = re.compile(r">>>>>>> (REPLACE|WHOLE|DELETE)\s*\Z")
_DIVIDER = re.compile(r"=======\s*\Z")
_NO_CHANGES = re.compile(r"NO CHANGES\.?\s*\Z")
_SUMMARY = re.compile(r"SUMMARY:\s*(.*)")
_CLOSED_BY = {"SEARCH": "REPLACE", "WHOLE": "WHOLE", "DELETE": "DELETE"}


class Problem(StrEnum):
    """Kinds of flaws of a model's answer, as they are counted."""

    MALFORMED = "malformed"
    OUTSIDE_TASK = "outside_task"
    NO_MATCH = "no_match"
    SEVERAL_MATCHES = "several_matches"
    OVERLAP = "overlap"
    ENCODING = "encoding"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    REFUSED = "refused"
    EMPTIED = "emptied"
    SYNTAX = "syntax"
    DROPPED = "dropped"
    """Definitions that the task does not speak of."""
    INVALID = "invalid"
    """Another validator objected."""
    REPEATED = "repeated"
    """The same wrong answer once more."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One flaw of an answer: what the re-ask says of it."""

    problem: Problem
    block: str
    """Names the block; empty where the flaw is the whole reply's."""
    reason: str
    nearest: str = ""
    """The lines of the base that come nearest to what was searched for, with their numbers."""

    @property
    def text(self) -> str:
        """The flaw in words, for the model."""
        head = f"{self.block}: {self.reason}" if self.block else self.reason
        return f"{head}\nThe nearest lines of the file are:\n{self.nearest}" if self.nearest else head


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a reply comes to: either flaws, or the files that change (none: nothing needs to)."""

    files: tuple[FileEdit, ...] = ()
    summary: str = ""
    flaws: tuple[Mismatch, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a reply."""

    number: int
    path: str
    kind: str
    """SEARCH, WHOLE or DELETE."""
    body: tuple[str, ...]

    @property
    def name(self) -> str:
        """How a re-ask names it."""
        return f"Block {self.number} ({self.path[:200]!r})"

    def divisions(self) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Each (search, replacement) that the body can be read as: its own text may hold dividers."""
        for i, line in enumerate(self.body):
            if _DIVIDER.match(line):
                yield self.body[:i], self.body[i + 1 :]


class _Flawed(ConvoyError):
    """Carries one flaw from where it was found to `propose`, within this module only."""

    def __init__(self, problem: Problem, block: str, reason: str, nearest: str = "") -> None:
        super().__init__(reason)
        self.flaw = Mismatch(problem, block, reason, nearest)


def propose(reply: str, base: Mapping[str, bytes | None]) -> Proposal:
    """Read a reply and apply it to the base.

    Args:
        reply: what the model wrote.
        base: the files that the task may write, at the versions that the model was shown; None is
            an absent file. Any other path in the reply is a flaw.
    """
    try:
        blocks = _parsed(reply)
    except _Flawed as flawed:
        return Proposal(flaws=(flawed.flaw,))
    files: list[FileEdit] = []
    flaws: list[Mismatch] = []
    for path in dict.fromkeys(block.path for block in blocks):
        try:
            edit = _edited(path, [block for block in blocks if block.path == path], base)
        except _Flawed as flawed:
            flaws.append(flawed.flaw)
        else:
            files += [] if edit.content == base[path] else [edit]
    if flaws:
        return Proposal(flaws=tuple(flaws[:MAX_FLAWS]))
    return Proposal(tuple(files), summary_of(reply))


def blocks_of(reply: str) -> tuple[Block, ...]:
    """The blocks of a reply; none where it can't be read."""
    try:
        return _parsed(reply)
    except _Flawed:
        return ()


def summary_of(reply: str) -> str:
    """The text of the first `SUMMARY:` line before the first block, or nothing."""
    for line in reply.splitlines():
        if _OPEN.match(line):
            break
        if found := _SUMMARY.match(line):
            return found[1].strip()[:MAX_SUMMARY_CHARS]
    return ""


def _parsed(reply: str) -> tuple[Block, ...]:
    """The blocks of a reply; none where it says `NO CHANGES`."""
    if len(reply) > MAX_REPLY_CHARS:
        raise _Flawed(Problem.MALFORMED, "", f"The reply is over {MAX_REPLY_CHARS} characters long.")
    lines = reply.replace("\r\n", "\n").split("\n")
    blocks: list[Block] = []
    label, unchanged, i = "", False, 0
    while i < len(lines):
        line = lines[i]
        if opened := _OPEN.match(line):
            path = _path(label) or (blocks[-1].path if blocks else "")
            block, i = _block(lines, i, len(blocks) + 1, path, opened[1])
            blocks.append(block)
            label = ""
        elif _CLOSE.match(line):
            raise _Flawed(Problem.MALFORMED, "", f"Line {i + 1}, {line.strip()!r}, closes no block.")
        elif line.strip() and not line.lstrip().startswith("```") and not _SUMMARY.match(line):
            label, unchanged = line, unchanged or bool(_NO_CHANGES.match(line))
        i += 1
    if len(blocks) > MAX_BLOCKS:
        raise _Flawed(Problem.MALFORMED, "", f"The reply has over {MAX_BLOCKS} blocks.")
    if not blocks and not unchanged:
        raise _Flawed(Problem.MALFORMED, "", "The reply has neither a block nor the line NO CHANGES.")
    return tuple(blocks)


def _path(label: str) -> str:
    """The path on the line before a block, without what models put around it."""
    return label.strip().strip("`*").removesuffix(":").strip("`*").removeprefix("./").strip()


def _block(lines: Sequence[str], start: int, number: int, path: str, kind: str) -> tuple[Block, int]:
    """The block that opens on line `start`, and the line that closes it."""
    for i in range(start + 1, len(lines)):
        closed = _CLOSE.match(lines[i])
        if closed and closed[1] == _CLOSED_BY[kind]:
            block = Block(number, path, kind, tuple(lines[start + 1 : i]))
            _check(block)
            return block, i
        if closed or _OPEN.match(lines[i]):
            break
    name = Block(number, path, kind, ()).name
    raise _Flawed(Problem.MALFORMED, name, f"it is not closed by >>>>>>> {_CLOSED_BY[kind]}.")


def _check(block: Block) -> None:
    if not block.path:
        raise _Flawed(Problem.MALFORMED, block.name, "the line before it does not say the file's path.")
    if block.kind == "SEARCH" and not any(True for _ in block.divisions()):
        raise _Flawed(Problem.MALFORMED, block.name, "it has no ======= line.")


def _edited(path: str, blocks: Sequence[Block], base: Mapping[str, bytes | None]) -> FileEdit:
    """What the blocks of one path make of it."""
    first = blocks[0]
    if path not in base:
        files = ", ".join(sorted(base)[:20])
        raise _Flawed(Problem.OUTSIDE_TASK, first.name, f"this task may write only: {files}. Nothing else.")
    content = base[path]
    if (first.kind != "SEARCH" and len(blocks) > 1) or any(b.kind != "SEARCH" for b in blocks[1:]):
        raise _Flawed(Problem.MALFORMED, first.name, "a WHOLE or DELETE block must be the file's only one.")
    if first.kind == "DELETE":
        if content is None:
            raise _Flawed(Problem.NO_MATCH, first.name, "there is no such file to delete.")
        return FileEdit(path, None)
    text = EMPTY if content is None else decode(content)
    if first.kind == "WHOLE":
        regions = [trimmed(text, Region(0, len(text.lines), first.body))]
    else:
        regions = _regions(text, blocks)
    try:
        return FileEdit(path, encode(text, regions))
    except UnicodeEncodeError as error:
        bad = error.object[error.start : error.end][:20]
        reason = f"{bad!a} can't be written in the file's encoding ({text.encoding})."
        raise _Flawed(Problem.ENCODING, first.name, reason) from error


def _regions(text: Text, blocks: Sequence[Block]) -> list[Region]:
    """What the blocks replace, in the order of the file, none over another."""
    found = sorted(((_region(text, b), b) for b in blocks), key=lambda pair: (pair[0].start, pair[0].stop))
    for (one, _), (other, block) in pairwise(found):
        if other.start < one.stop:
            raise _Flawed(Problem.OVERLAP, block.name, "it changes lines that another block changes too.")
    return [region for region, _ in found]


def _region(text: Text, block: Block) -> Region:
    """Where the one reading of a block whose search is found exactly once applies."""
    found = [
        (places[0], search, replacement)
        for search, replacement in block.divisions()
        if len(places := _places(text.lines, search)) == 1
    ]
    if len(found) == 1:
        start, search, replacement = found[0]
        return trimmed(text, Region(start, start + len(search), replacement))
    search = next(search for search, _ in block.divisions())
    if found:
        reason = (
            "it can be read in more than one way: keep ======= lines of the file out of it, or use WHOLE."
        )
        raise _Flawed(Problem.SEVERAL_MATCHES, block.name, reason)
    if places := _places(text.lines, search):
        at = ", ".join(str(place + 1) for place in places[:10])
        reason = f"its search is found {len(places)} times (lines {at}): add lines around it."
        raise _Flawed(Problem.SEVERAL_MATCHES, block.name, reason)
    if not search:
        reason = "its search is empty, which is for new files only."
        raise _Flawed(Problem.NO_MATCH, block.name, reason)
    reason = "its search is not in the file. It must be whole lines, exactly as they are."
    raise _Flawed(Problem.NO_MATCH, block.name, reason, nearest_lines(text.lines, search))


def _places(lines: Sequence[str], search: Sequence[str]) -> list[int]:
    """Where the lines hold the search. An empty search is found in an empty file only."""
    if not search:
        return [] if lines else [0]
    size, wanted = len(search), tuple(search)
    starts = (i for i in range(len(lines) - size + 1) if lines[i] == wanted[0])
    return [i for i in starts if tuple(lines[i : i + size]) == wanted]


def nearest_lines(lines: Sequence[str], search: Sequence[str]) -> str:
    """The lines that come nearest to the search, numbered from 1; nothing where none is like it."""
    lines = [line[:MAX_NEAREST_CHARS] for line in lines]
    search = [line[:MAX_NEAREST_CHARS] for line in search[:MAX_NEAREST_LINES]]
    matcher = SequenceMatcher(None, lines, search, autojunk=False)
    match = matcher.find_longest_match()
    if match.size and any(line.strip() for line in lines[match.a : match.a + match.size]):
        start = match.a - match.b
    else:
        wanted = max(search, key=len)
        like = get_close_matches(wanted, lines, n=1)
        if not like:
            return ""
        start = lines.index(like[0]) - search.index(wanted)
    start = max(0, start - 2)
    stop = min(len(lines), start + min(len(search) + 4, MAX_NEAREST_LINES))
    return "\n".join(f"{i + 1:5} | {lines[i]}" for i in range(start, stop))
