"""What the tests of faults complain of: that a fault test can fail."""

from collections.abc import Sequence

import pytest

from tests.fault_ledger import Word, wrong
from tests.gated_agent import Call

NAMES = {10: "scribe/test-0", 11: "scribe/test-1"}


def call(worker: int, began: int) -> Call:
    return Call("scribe", "a.py", "task", 1, worker, began)


def word(worker: int, seen: int) -> Word:
    return Word(NAMES[worker], True, seen)


@pytest.mark.parametrize(
    ("calls", "words", "crashed", "expected"),
    [
        ([call(10, 1)], [word(10, 2)], (), ""),
        ([call(10, 1), call(11, 2)], [word(11, 3)], (10,), ""),
        ([call(10, 1), call(11, 3)], [word(10, 2)], (10, 11), "called 1 times after it was committed"),
        ([call(10, 1), call(11, 2)], [word(11, 3)], (), "called again though"),
        ([call(10, 1), call(11, 2)], [word(10, 3)], (10,), "committed by scribe/test-0, called last by"),
        ([call(10, 1)], [], (), "committed 0 times"),
        ([call(10, 1)], [word(10, 2), word(10, 3)], (), "committed 2 times"),
    ],
)
def test_calls_in_vain_are_found(
    calls: Sequence[Call], words: list[Word], crashed: Sequence[int], expected: str
) -> None:
    found = wrong(calls, {("task", 1): words} if words else {}, crashed, NAMES.__getitem__)
    assert len(found) == bool(expected)
    assert expected in "".join(found)
