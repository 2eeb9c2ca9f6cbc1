"""Reads a file's history and two heads, writes nothing: git's merge of them, with holes.

Where both sides changed the same lines there is a numbered region, for somebody to fill; the text
around the regions is what git merged, and stays. So a merge by regions changes nothing outside of
them, and what else claims to be such a merge can be checked (`PartialMerge.strays`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.hunks import lines
from codeconvoy.workers.resolution.mirror import clash_of
from codeconvoy.workers.resolution.object_store import GaveUp, object_store

MAX_REGIONS = 20
MAX_REGION_BYTES = 64 * 1024
"""Of all that base and sides hold in the regions: more is no work for hunk by hunk."""
_BINARY_PROBE = 8000
"""git takes a file for binary if there is a NUL in its first bytes, this many."""
_OPEN, _BASE, _DIVIDER, _CLOSE = b"<<<<<<<", b"|||||||", b"=======", b">>>>>>>"
_MARKERS = re.compile(rb"^(?:<{7}|>{7}|[|]{7}|={7})(?: .*)?\r?$", re.MULTILINE)
_ENDED, _UNENDED = b" ", b"!"


@dataclass(frozen=True, slots=True)
class Region:
    """Lines that both sides changed: what they were, and what each side made of them."""

    number: int
    """From 1, in the order of the file."""
    base: bytes
    sides: tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class PartialMerge:
    """What git merged of two sides, and the regions that it could not."""

    texts: tuple[bytes, ...]
    """The merged text before, between and after the regions: one more than there are regions."""
    regions: tuple[Region, ...]
    sides: tuple[bytes, bytes]
    """The whole sides, sorted by event id, as in each region."""
    executable: bool

    def assembled(self, replacements: Mapping[int, bytes]) -> bytes:
        """The file with a replacement for each region, by number. No replacement reaches beyond its
        region: one that lacks a final newline gets one, unless it ends the file."""
        parts = [self.texts[0]]
        for region, after in zip(self.regions, self.texts[1:], strict=True):
            replacement = replacements[region.number]
            last = region.number == len(self.regions) and not after
            if replacement and not last and not replacement.endswith(b"\n"):
                replacement += b"\n"
            parts += [replacement, after]
        return b"".join(parts)

    def refusal(self, content: bytes) -> str:
        """Why a content is not taken for this merge; nothing if it may be."""
        known = {line for side in self.sides for line in _MARKERS.findall(side)}
        marker = next((line for line in _MARKERS.findall(content) if line not in known), None)
        if marker is not None:
            return f"it keeps a conflict marker: {ascii(marker)[2:-1]}"
        return self.strays(content)

    def strays(self, content: bytes) -> str:
        """Where a content is not this merge with its regions replaced; nothing if it is."""
        first, *between = self.texts
        if not content.startswith(first):
            return "it changes lines before the first conflicting region"
        last = self.texts[-1]
        at, end = len(first), len(content) - len(last)
        if end < at or not content.endswith(last) or (last and not _starts_line(content, end, at)):
            return "it changes lines after the last conflicting region"
        for number, text in enumerate(between[:-1], start=1):
            found = content.find(text, at, end)
            while found >= 0 and not _starts_line(content, found, at):
                found = content.find(text, found + 1, end)
            if found < 0:
                return f"it changes lines between the conflicting regions {number} and {number + 1}"
            at = found + len(text)
        return ""


def partial_merge(history: FileHistory, heads: tuple[str, ...]) -> PartialMerge | GaveUp:
    """git's merge of two heads with the regions that it could not merge, or why that is no work for
    regions: deletions, modes that clash, binary files, too many or too large regions."""
    clash = clash_of(history, heads)
    if isinstance(clash, GaveUp):
        return clash
    if any(b"\0" in text[:_BINARY_PROBE] for text in (clash.base or b"", *clash.sides)):
        return GaveUp("the file is binary")
    with object_store() as store:
        marked = store.in_regions(*map(_masked, (clash.base or b"", *clash.sides)))
    texts, regions = _split(marked)
    if not regions:
        return GaveUp("git merges these sides: there is no conflicting region")
    if len(regions) > MAX_REGIONS:
        return GaveUp(f"there are {len(regions)} conflicting regions, at most {MAX_REGIONS} are merged so")
    size = sum(len(text) for region in regions for text in (region.base, *region.sides))
    if size > MAX_REGION_BYTES:
        return GaveUp(f"the conflicting regions hold {size} bytes, at most {MAX_REGION_BYTES} are merged so")
    return PartialMerge(texts, regions, clash.sides, clash.executable)


def _starts_line(content: bytes, at: int, earliest: int) -> bool:
    return at == earliest or content[at - 1 : at] == b"\n"


def _masked(content: bytes) -> bytes:
    """The lines behind a sign each, so that none looks like a marker, and all with a newline: the
    sign says which one had none."""
    return b"".join(
        _ENDED + line if line.endswith(b"\n") else _UNENDED + line + b"\n" for line in lines(content)
    )


def _unmasked(masked: list[bytes]) -> bytes:
    return b"".join(line[1:] if line.startswith(_ENDED) else line[1:-1] for line in masked)


def _split(marked: bytes) -> tuple[tuple[bytes, ...], tuple[Region, ...]]:
    """The texts around the regions of a masked merge, and the regions."""
    sections: list[list[bytes]] = [[]]
    for line in lines(marked):
        if line.startswith((_ENDED, _UNENDED)):
            sections[-1].append(line)
        else:
            assert line.startswith((_OPEN, _BASE, _DIVIDER, _CLOSE)), line
            sections.append([])
    texts = [_unmasked(section) for section in sections]
    regions = tuple(
        Region(number, base, (one, other)) for number, (one, base, other) in enumerate(_triples(texts), 1)
    )
    return tuple(texts[0::4]), regions


def _triples(texts: list[bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Of texts that come in fours (around, ours, base, theirs) the last three of each."""
    for start in range(1, len(texts), 4):
        one, base, other = texts[start : start + 3]
        yield one, base, other
