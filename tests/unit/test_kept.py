"""Reads nothing, writes nothing: what a fold engine keeps in memory, and forgets first."""

from codeconvoy.workers.engine.kept import Kept
from codeconvoy.workers.file_states import weight_of
from tests.builders import FileLog


def names(kept: Kept[str]) -> set[str]:
    return {key for key in "abcd" if (0, key) in kept}


def test_what_was_not_used_for_longest_goes_first() -> None:
    kept = Kept[str](2, 1_000, len)
    for key in "abc":
        kept[0, key] = "xx"
    assert names(kept) == set("abc")  # a batch has what it needs, whatever the bounds
    kept.use((0, "a"))
    kept.shrink()
    assert names(kept) == {"a", "c"}


def test_bytes_are_bounded_too() -> None:
    kept = Kept[str](100, 10, len)
    kept[0, "a"], kept[0, "b"] = "x" * 4, "x" * 6
    kept.shrink()
    assert names(kept) == {"a", "b"}
    kept[0, "a"] = "x" * 5  # it has grown, and was used just now
    kept.shrink()
    assert names(kept) == {"a"} and kept.bytes == 5
    kept[0, "c"] = "x" * 11  # more than there may be, alone
    kept.shrink()
    assert len(kept) == 0 and kept.bytes == 0


def test_a_partition_that_is_taken_away_is_forgotten() -> None:
    kept = Kept[str](10, 100, len)
    kept[0, "a"], kept[1, "a"] = "x", "xx"
    kept.forget(1)
    assert (0, "a") in kept and (1, "a") not in kept and kept.bytes == 1


def test_a_history_weighs_as_much_as_its_versions() -> None:
    log = FileLog()
    log.edit("e0", b"x" * 10_000)
    for number in range(1, 20):
        log.edit(f"e{number}", b"x" * 10_000 + b"%d" % number, f"e{number - 1}")
    assert 200_000 < weight_of(log.history) < 250_000
    log.edit("e20", None, "e19")  # a tombstone has none, and its versions are still there
    assert weight_of(log.history) > 200_000
