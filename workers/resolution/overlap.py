"""Reads nothing, writes nothing: which lines of a base were changed by several sides.

For people and for counting. Whether a merge is clean is for git to say.
"""

from collections.abc import Sequence

from codeconvoy.schemas.events import LineRange
from codeconvoy.schemas.hunks import diff

MAX_RANGES = 1000
"""More are not listed: the ranges travel in an event, and nobody reads that many."""


def overlapping(base: bytes, sides: Sequence[bytes]) -> tuple[LineRange, ...]:
    """The base's lines that several sides changed differently: in order, apart, the first `MAX_RANGES`.

    Replacing neighbouring lines is no overlap. An insertion overlaps with what another side
    inserts at the same point or does to the lines beside it; where nothing but insertions meet,
    the range is empty: start = end = the line that they stand before.
    """
    changes = sorted(
        {(hunk.start, hunk.start + hunk.removed, hunk.lines) for side in sides for hunk in diff(base, side)}
    )
    ranges: list[LineRange] = []
    reach, inserted = -1, -1
    # The hunks of one side never touch, so what meets here comes from different sides.
    for start, end, _ in changes:
        if start < reach or (start == reach and start in (end, inserted)):
            shared = LineRange(start=start, end=max(start, min(end, reach)))
            if ranges and shared.start <= ranges[-1].end:
                shared = LineRange(start=ranges[-1].start, end=max(ranges.pop().end, shared.end))
            ranges.append(shared)
        reach = max(reach, end)
        inserted = start if start == end else inserted
    return tuple(ranges[:MAX_RANGES])
