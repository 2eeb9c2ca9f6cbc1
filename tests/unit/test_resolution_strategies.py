"""Reads nothing, writes nothing: which strategy decides, and what is said of those that did not."""

from collections.abc import Sequence

import pytest

from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.events import Strategy, Tried
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.workers.resolution.strategies import (
    CLAIMS,
    STRATEGIES,
    WRITER_WINS,
    Candidate,
    ClaimNeeded,
    Resolved,
    resolve,
)
from tests.fork_histories import Version, fork_of, history_of

BASE = b"one\ntwo\nthree\nfour\nfive\n"
CLASH = fork_of(BASE, b"1\ntwo\nthree\nfour\nfive\n", b"I\ntwo\nthree\nfour\nfive\n")
APART = fork_of(BASE, b"1\ntwo\nthree\nfour\nfive\n", b"one\ntwo\nthree\nfour\n5\n")


def refuses(path: str, candidate: bytes | None, sides: Sequence[bytes]) -> tuple[str, ...]:
    return ("not this", "nor that")


def test_every_strategy_is_immediate_or_a_claim_or_not_there_yet() -> None:
    assert not CLAIMS & set(STRATEGIES)
    assert set(STRATEGIES) >= WRITER_WINS
    assert set(Strategy) - CLAIMS - set(STRATEGIES) == {Strategy.STRUCTURAL}


def test_a_clean_merge_is_taken() -> None:
    history, heads = APART
    outcome = resolve(history, heads[::-1], [Strategy.THREE_WAY, Strategy.HUMAN])
    assert outcome == Resolved(
        Strategy.THREE_WAY,
        Candidate(b"1\ntwo\nthree\nfour\n5\n", False, heads, (), "git merged 2 heads"),
        (),
    )


def test_equal_heads_collapse_before_any_strategy_is_asked() -> None:
    history, heads = fork_of(BASE, b"same\n", b"same\n", b"same\n")
    outcome = resolve(history, heads, [Strategy.HUMAN], validate=refuses)
    assert isinstance(outcome, Resolved)
    assert (outcome.strategy, outcome.candidate.content, outcome.tried) == (Strategy.IDENTICAL, b"same\n", ())


@pytest.mark.parametrize("content", [b"same\n", None])
def test_equal_heads_collapse_when_their_base_is_forgotten(content: bytes | None) -> None:
    versions = {
        "base": Version(BASE, forgotten=True),
        "x": Version(content, ["base"]),
        "y": Version(content, ["base"]),
    }
    outcome = resolve(history_of(versions), ("x", "y"), [Strategy.THREE_WAY])
    assert isinstance(outcome, Resolved)
    assert (outcome.strategy, outcome.candidate.content) == (Strategy.IDENTICAL, content)


def test_equal_content_of_another_mode_is_not_identical() -> None:
    versions = {
        "base": Version(BASE),
        "x": Version(b"same\n", ["base"]),
        "y": Version(b"same\n", ["base"], executable=True),
    }
    outcome = resolve(history_of(versions), ("x", "y"), [Strategy.THREE_WAY])
    assert isinstance(outcome, Resolved)
    assert outcome.strategy is Strategy.THREE_WAY
    assert outcome.candidate.executable


def test_a_slow_strategy_ends_the_search_and_names_what_remains() -> None:
    strategies = [Strategy.THREE_WAY, Strategy.REWORK, Strategy.LAST_WRITER_WINS, Strategy.HUMAN]
    outcome = resolve(*CLASH, strategies)
    assert isinstance(outcome, ClaimNeeded)
    assert outcome.strategy is Strategy.REWORK
    assert outcome.remaining == (Strategy.LAST_WRITER_WINS, Strategy.HUMAN)
    assert [tried.strategy for tried in outcome.tried] == [Strategy.THREE_WAY]


def test_what_was_tried_is_continued() -> None:
    before = (Tried(strategy=Strategy.REWORK, reason="out of rounds"),)
    outcome = resolve(*CLASH, [Strategy.STRUCTURAL, Strategy.HUMAN], tried=before)
    assert isinstance(outcome, ClaimNeeded)
    assert outcome.strategy is Strategy.HUMAN
    assert outcome.remaining == ()
    assert outcome.tried == (
        *before,
        Tried(strategy=Strategy.STRUCTURAL, reason="this version has no such strategy"),
    )


def test_a_candidate_that_something_speaks_against_is_not_taken() -> None:
    outcome = resolve(*APART, [Strategy.THREE_WAY, Strategy.REWORK], validate=refuses)
    assert outcome == ClaimNeeded(
        Strategy.REWORK, (), (Tried(strategy=Strategy.THREE_WAY, reason="not this; nor that"),)
    )


def test_a_merge_that_does_not_parse_is_not_taken() -> None:
    """Each side drops one of the two statements of a block."""
    base = b"if a:\n    b()\n# 1\n# 2\n    c()\nd()\n"
    sides = base.replace(b"    b()\n", b""), base.replace(b"    c()\n", b"")
    outcome = resolve(*fork_of(base, *sides, path="a.py"), [Strategy.THREE_WAY, Strategy.HUMAN])
    assert isinstance(outcome, ClaimNeeded)
    (tried,) = outcome.tried
    assert "does not parse" in tried.reason
    outcome = resolve(*fork_of(base, *sides, path="a.txt"), [Strategy.THREE_WAY, Strategy.HUMAN])
    assert isinstance(outcome, Resolved)


@pytest.mark.parametrize(
    ("strategy", "winner", "losers"),
    [
        (Strategy.FIRST_WRITER_WINS, b"second by name\n", ("a", "c")),
        (Strategy.LAST_WRITER_WINS, b"first by name\n", ("b", "c")),
    ],
)
def test_writers_win_by_log_order(strategy: Strategy, winner: bytes, losers: tuple[str, ...]) -> None:
    versions = {
        "base": Version(BASE),
        "b": Version(b"second by name\n", ["base"], executable=True),
        "c": Version(None, ["base"]),
        "a": Version(b"first by name\n", ["base"], executable=True),
    }
    outcome = resolve(history_of(versions), ("a", "b", "c"), [strategy], validate=refuses)
    assert isinstance(outcome, Resolved)
    assert outcome.strategy is strategy
    assert (outcome.candidate.content, outcome.candidate.executable) == (winner, True)
    assert outcome.candidate.losers == losers
    assert outcome.candidate.parents == ("a", "b", "c")


def test_a_deletion_can_win() -> None:
    history, heads = fork_of(BASE, None, b"other\n")
    outcome = resolve(history, heads, [Strategy.FIRST_WRITER_WINS])
    assert isinstance(outcome, Resolved)
    assert outcome.candidate.content is None


@pytest.mark.parametrize("default", sorted(WRITER_WINS))
def test_when_none_is_left_the_default_decides(default: Strategy) -> None:
    outcome = resolve(*CLASH, [Strategy.THREE_WAY], default=default)
    assert isinstance(outcome, Resolved)
    assert outcome.strategy is default
    assert [tried.strategy for tried in outcome.tried] == [Strategy.THREE_WAY]


@pytest.mark.parametrize(
    ("history", "heads", "default", "field"),
    [
        (CLASH[0], ("side0",), Strategy.FIRST_WRITER_WINS, "heads"),
        (CLASH[0], ("side0", "side0"), Strategy.FIRST_WRITER_WINS, "heads"),
        (CLASH[0], ("side0", "unknown"), Strategy.FIRST_WRITER_WINS, "heads"),
        (CLASH[0], CLASH[1], Strategy.HUMAN, "default"),
    ],
)
def test_bad_input(history: FileHistory, heads: tuple[str, ...], default: Strategy, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        resolve(history, heads, [], default=default)
    assert caught.value.field == field
