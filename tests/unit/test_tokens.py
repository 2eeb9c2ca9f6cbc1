"""How many tokens a text has, about: one guess for limits, budgets, usage and the map."""

import pytest

from codeconvoy.workers.llm import tokens


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        ((), 0),
        (("",), 0),
        (("a",), 1),
        (("abc",), 1),
        (("abcd",), 2),
        (("ab", "cd"), 2),
        (("äö",), 2),
        (("\udc80",), 1),
    ],
)
def test_three_bytes_are_a_token_and_part_of_one_counts(texts: tuple[str, ...], count: int) -> None:
    assert tokens.estimate(*texts) == count


@pytest.mark.parametrize("text", ["", "x", "naïve", "日本語", "a" * 1_000])
def test_room_holds_what_is_estimated_at_no_more(text: str) -> None:
    count = tokens.estimate(text)
    assert len(text.encode()) <= tokens.room(count)
    assert count == 0 or len(text.encode()) > tokens.room(count - 1)
