"""Reads nothing, writes nothing: which lines several sides changed."""

import pytest

from codeconvoy.schemas.events import LineRange
from codeconvoy.workers.resolution.overlap import MAX_RANGES, overlapping

BASE = b"0\n1\n2\n3\n4\n5\n"


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ([], []),
        ([b"X\n1\n2\n3\n4\n5\n"], []),
        ([b"X\n1\n2\n3\n4\n5\n", b"0\n1\n2\n3\n4\nY\n"], []),
        ([b"0\nX\n2\n3\n4\n5\n", b"0\nX\n2\n3\n4\n5\n"], []),
        ([b"0\nX\n2\n3\n4\n5\n", b"0\nY\n2\n3\n4\n5\n"], [(1, 2)]),
        ([b"0\nX\nX\nX\n4\n5\n", b"0\n1\n2\nY\nY\n5\n"], [(3, 4)]),
        ([b"0\nX\n2\n3\n4\n5\n", b"0\n1\nY\n3\n4\n5\n"], []),
        ([b"0\n1\nX\n2\n3\n4\n5\n", b"0\n1\nY\n2\n3\n4\n5\n"], [(2, 2)]),
        ([b"0\n1\nX\n2\n3\n4\n5\n", b"0\n1\nY\n3\n4\n5\n"], [(2, 2)]),
        ([b"0\nY\n2\n3\n4\n5\n", b"0\n1\nX\n2\n3\n4\n5\n"], [(2, 2)]),
        ([BASE + b"X\n", BASE + b"Y\n"], [(6, 6)]),
        ([b"X\nX\n2\n3\n4\n5\n", b"0\nY\n2\n3\nY\n5\n", b"0\n1\n2\n3\nZ\n5\n"], [(1, 2), (4, 5)]),
        ([b"X\n", b"0\nY\n2\n3\nY\n5\n", b"0\n1\nZ\nZ\n4\n5\n"], [(1, 5)]),
        ([b"", b"X" + BASE], [(0, 1)]),
    ],
)
def test_overlaps(sides: list[bytes], expected: list[tuple[int, int]]) -> None:
    ranges = tuple(LineRange(start=start, end=end) for start, end in expected)
    assert overlapping(BASE, sides) == overlapping(BASE, sides[::-1]) == ranges


def test_of_an_empty_base() -> None:
    assert overlapping(b"", [b"a\n", b"b\n"]) == (LineRange(start=0, end=0),)
    assert overlapping(b"", [b"a\n", b""]) == ()


def test_no_more_ranges_than_an_event_should_carry() -> None:
    def content(mark: bytes) -> bytes:
        return b"".join(mark + b"\n%d\n" % number for number in range(MAX_RANGES + 1))

    assert len(overlapping(content(b"-"), [content(b"x"), content(b"y")])) == MAX_RANGES
