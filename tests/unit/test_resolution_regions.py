"""git's merge with holes: which regions are left, what they may become, and what is no work for it."""

import pytest

from codeconvoy.workers.resolution.object_store import GaveUp
from codeconvoy.workers.resolution.regions import (
    MAX_REGION_BYTES,
    MAX_REGIONS,
    PartialMerge,
    Region,
    partial_merge,
)
from tests.fork_histories import Version, fork_of, history_of

BASE = b"one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n"


def merge(base: bytes | None, *sides: bytes | None) -> PartialMerge:
    found = partial_merge(*fork_of(base, *sides))
    assert isinstance(found, PartialMerge), found
    return found


def gave_up(base: bytes | None, *sides: bytes | None) -> str:
    found = partial_merge(*fork_of(base, *sides))
    assert isinstance(found, GaveUp), found
    return found.reason


def test_what_git_merged_stays_and_what_it_could_not_is_a_region() -> None:
    ours = BASE.replace(b"two\n", b"TWO\n").replace(b"nine\n", b"NINE\n")
    theirs = BASE.replace(b"two\n", b"zwei\ndeux\n").replace(b"five\n", b"FIVE\n")
    found = merge(BASE, ours, theirs)
    assert found.regions == (Region(1, b"two\n", (b"TWO\n", b"zwei\ndeux\n")),)
    assert found.texts == (b"one\n", b"three\nfour\nFIVE\nsix\nseven\neight\nNINE\n")
    assert found.sides == (ours, theirs)
    assert found.assembled({1: b"2\n"}) == b"one\n2\nthree\nfour\nFIVE\nsix\nseven\neight\nNINE\n"


def test_sides_are_in_the_order_of_their_ids_whatever_the_order_asked_for() -> None:
    history, heads = fork_of(b"a\n", b"A\n", b"B\n")
    assert partial_merge(history, heads) == partial_merge(history, heads[::-1])
    found = partial_merge(history, heads)
    assert isinstance(found, PartialMerge) and found.regions[0].sides == (b"A\n", b"B\n")


def test_lines_that_look_like_markers_are_lines() -> None:
    odd = b"<<<<<<< x\n=======\n|||||||\n>>>>>>> y\n"
    found = merge(odd + b"a\n", odd + b"b\n" + odd, odd + b"c\n")
    assert found.texts == (odd, b"")
    assert found.regions == (Region(1, b"a\n", (b"b\n" + odd, b"c\n")),)


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "region"),
    [
        (b"a\r\nb\r\n", b"a\r\nB\r\n", b"a\r\nC\r\n", Region(1, b"b\r\n", (b"B\r\n", b"C\r\n"))),
        (b"a\nb", b"a\nB", b"a\nC\n", Region(1, b"b", (b"B", b"C\n"))),
        (b"a\n\xff\n", b"a\n\xfe\n", b"a\n\xfd", Region(1, b"\xff\n", (b"\xfe\n", b"\xfd"))),
        (None, b"a\nb\n", b"a\nc\n", Region(1, b"", (b"b\n", b"c\n"))),
        (b"a\nb\n", b"a\n", b"a\nc\n", Region(1, b"b\n", (b"", b"c\n"))),
    ],
    ids=["crlf", "no newline", "bytes", "both created", "one side removed lines"],
)
def test_bytes_survive(base: bytes | None, ours: bytes, theirs: bytes, region: Region) -> None:
    found = merge(base, ours, theirs)
    assert found.regions == (region,)
    assert found.assembled({1: region.sides[0]}) == ours
    assert found.assembled({1: region.sides[1]}) == theirs


def test_a_replacement_reaches_not_beyond_its_region() -> None:
    found = merge(b"a\nb\n", b"A\nb\n", b"B\nb\n")
    assert found.assembled({1: b"no newline"}) == b"no newline\nb\n"
    assert found.assembled({1: b""}) == b"b\n"
    assert merge(b"a\nb\n", b"a\nB\n", b"a\nC\n").assembled({1: b"no newline"}) == b"a\nno newline"


def test_of_a_criss_cross_the_virtual_base_is_the_base() -> None:
    versions = {
        "base": Version(b"a\nx\nb\n"),
        "one": Version(b"A\nx\nb\n", ["base"]),
        "two": Version(b"a\nx\nB\n", ["base"]),
        "left": Version(b"A\nx\nB\n", ["one", "two"]),
        "right": Version(b"A\nx\nB\n", ["one", "two"]),
        "p": Version(b"A\nP\nB\n", ["left"]),
        "q": Version(b"A\nQ\nB\n", ["right"]),
    }
    found = partial_merge(history_of(versions), ("p", "q"))
    assert isinstance(found, PartialMerge)
    assert (found.texts, found.regions) == ((b"A\n", b"B\n"), (Region(1, b"x\n", (b"P\n", b"Q\n")),))


@pytest.mark.parametrize(
    ("modes", "base", "expected"),
    [((True, False), False, True), ((True, False), True, False), ((True, True), False, True)],
)
def test_a_mode_that_one_side_changed_is_merged(modes: tuple[bool, bool], base: bool, expected: bool) -> None:
    versions = {
        "base": Version(b"a\n", executable=base),
        "one": Version(b"b\n", ["base"], executable=modes[0]),
        "two": Version(b"c\n", ["base"], executable=modes[1]),
    }
    found = partial_merge(history_of(versions), ("one", "two"))
    assert isinstance(found, PartialMerge) and found.executable is expected


def test_what_is_no_work_for_regions() -> None:
    assert "deleted" in gave_up(b"a\n", None, b"b\n")
    assert "git merges" in gave_up(BASE, BASE.replace(b"one", b"1"), BASE.replace(b"nine", b"9"))
    assert "binary" in gave_up(b"a\0\n", b"b\0\n", b"c\0\n")
    many = b"".join(b"%d\n\n\n\n\n" % number for number in range(MAX_REGIONS + 1))
    reason = gave_up(
        many, many.replace(b"\n\n\n\n\n", b"a\n\n\n\n\n"), many.replace(b"\n\n\n\n\n", b"b\n\n\n\n\n")
    )
    assert f"{MAX_REGIONS + 1} conflicting regions" in reason
    assert "bytes" in gave_up(b"a\n", b"b" * MAX_REGION_BYTES, b"c\n")
    modes = {"one": Version(b"a\n", executable=True), "two": Version(b"b\n")}
    found = partial_merge(history_of(modes), ("one", "two"))
    assert isinstance(found, GaveUp) and "executable" in found.reason
    gone = {
        "old": Version(b"a\n"),
        "base": Version(b"a\n", ["old"], forgotten=True),
        "one": Version(b"b\n", ["base"]),
        "two": Version(b"c\n", ["base"]),
    }
    found = partial_merge(history_of(gone), ("one", "two"))
    assert isinstance(found, GaveUp) and "too old" in found.reason


TWO = merge(
    BASE,
    BASE.replace(b"two", b"TWO").replace(b"eight", b"EIGHT"),
    BASE.replace(b"two", b"zwei").replace(b"eight", b"acht"),
)
GOOD = b"one\n2\nthree\nfour\nfive\nsix\nseven\n8\n8\nnine\n"


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.replace(b"2\n", b"").replace(b"8\n", b""),
        GOOD.replace(b"2\n", b"three\nfour\n"),
        TWO.sides[0],
        TWO.sides[1],
    ],
    ids=["good", "emptied", "repeats", "one side", "the other side"],
)
def test_a_content_that_differs_in_the_regions_alone_is_such_a_merge(content: bytes) -> None:
    assert TWO.strays(content) == ""


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (GOOD.replace(b"one\n", b"ONE\n"), "before the first"),
        (GOOD.replace(b"nine\n", b"NINE\n"), "after the last"),
        (GOOD.replace(b"four\n", b"FOUR\n"), "between the conflicting regions 1 and 2"),
        (GOOD.replace(b"four\n", b""), "between the conflicting regions 1 and 2"),
        (GOOD.replace(b"2\n", b"2"), "between the conflicting regions 1 and 2"),
        (GOOD.replace(b"8\nnine\n", b"8nine\n"), "after the last"),
        (b"", "before the first"),
        (b"one\nnine\n", "between"),
        (b"one\n", "after the last"),
    ],
)
def test_any_other_content_is_not(content: bytes, where: str) -> None:
    assert where in TWO.strays(content)
