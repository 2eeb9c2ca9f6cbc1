"""How the regions of a merge are filled: what counts as an answer, and which bytes come of it."""

from collections.abc import Mapping

import pytest

from codeconvoy.schemas.errors import AgentError
from codeconvoy.workers.llm.edit_format import Problem
from codeconvoy.workers.llm.region_format import content_of, read_regions
from codeconvoy.workers.resolution.regions import PartialMerge, partial_merge
from codeconvoy.workers.roles.role import Edits
from tests.fork_histories import fork_of

BASE = b"one\ntwo\nthree\nfour\nfive\nsix\n"
SIDES = (
    BASE.replace(b"two", b"TWO").replace(b"five", b"FIVE"),
    BASE.replace(b"two", b"2").replace(b"five", b"5"),
)


def merge(base: bytes, *sides: bytes) -> PartialMerge:
    found = partial_merge(*fork_of(base, *sides))
    assert isinstance(found, PartialMerge), found
    return found


MERGE = merge(BASE, *SIDES)
GOOD = "SUMMARY: both\n<<<<<<< REGION 1\nTWO 2\n>>>>>>> REGION 1\n<<<<<<< REGION 2\n>>>>>>> REGION 2\n"


@pytest.mark.parametrize(
    "reply",
    [GOOD, GOOD.replace("\n", "\r\n"), f"Sure!\n\n```\n{GOOD}```\nThat is all."],
    ids=["as asked", "crlf", "with talk around"],
)
def test_each_region_is_replaced_by_its_block(reply: str) -> None:
    answer, flaws = read_regions("a", MERGE, reply)
    assert isinstance(answer, Edits) and not flaws
    assert answer.summary == "both"
    assert [(file.path, file.content) for file in answer.files] == [("a", b"one\nTWO 2\nthree\nfour\nsix\n")]


@pytest.mark.parametrize(
    ("reply", "flaw"),
    [
        ("", "Region 1 is not answered"),
        (GOOD.replace("REGION 2", "REGION 3"), "no region 3"),
        (GOOD + "<<<<<<< REGION 1\nx\n>>>>>>> REGION 1\n", "Region 1 is answered twice"),
        (GOOD + "CONFLICT 1: no\n", "Region 1 is answered twice"),
        (GOOD.replace(">>>>>>> REGION 1\n", ""), "Region 1 is not closed"),
        (GOOD.replace(">>>>>>> REGION 1", ">>>>>>> REGION 2"), "Region 1 is not closed"),
        (GOOD + ">>>>>>> REGION 2\n", "closes no block"),
        (GOOD.replace("<<<<<<< REGION 1\nTWO 2\n", ""), "closes no block"),
        (GOOD.replace("TWO 2", "```text\nTWO 2\n```"), "code fence"),
        ("x" * 3_000_000, "characters long"),
    ],
)
def test_anything_else_is_malformed(reply: str, flaw: str) -> None:
    answer, flaws = read_regions("a", MERGE, reply)
    assert answer is None
    assert any(flaw in each.reason for each in flaws), flaws
    assert {each.problem for each in flaws} == {Problem.MALFORMED}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (GOOD.replace("<<<<<<< REGION 2\n>>>>>>> REGION 2", "CONFLICT 2: 5 is not FIVE"), "region 2: 5 is"),
        ("CONFLICT: nothing fits", "reconciled: nothing fits"),
        ("CONFLICT 1:\nCONFLICT 2: b", "region 1: no reason"),
    ],
)
def test_a_conflict_is_an_answer(reply: str, reason: str) -> None:
    with pytest.raises(AgentError, match="can't be reconciled") as caught:
        read_regions("a", MERGE, reply)
    assert reason in caught.value.reason and not caught.value.retryable


def filled(base: bytes, sides: tuple[bytes, bytes], lines: Mapping[int, list[str]]) -> bytes:
    return content_of(merge(base, *sides), lines)


@pytest.mark.parametrize(
    ("base", "sides", "lines", "expected"),
    [
        (b"a\r\nb\r\n", (b"a\r\nB\r\n", b"a\r\nC\r\n"), ["B", "new"], b"a\r\nB\r\nnew\r\n"),
        (b"a\nb\r\n", (b"a\nB\r\n", b"a\nC\n"), ["B", "C"], b"a\nB\r\nC\n"),
        (b"a\nb", (b"a\nB", b"a\nC"), ["B", "C"], b"a\nB\nC"),
        (b"a\nb", (b"a\nB\n", b"a\nC"), ["B", "C"], b"a\nB\nC\n"),
        (b"\xe4\nb\n", (b"\xe4\n\xf6\n", b"\xe4\nC\n"), ["\xf6", "\xfc"], b"\xe4\n\xf6\n\xfc\n"),
        ("ä\nb\n".encode(), ("ä\nö\n".encode(), "ä\nC\n".encode()), ["ü"], "ä\nü\n".encode()),
        (
            b"\xef\xbb\xbfa\nb\n",
            (b"\xef\xbb\xbfA\nb\n", b"\xef\xbb\xbfB\nb\n"),
            ["A B"],
            b"\xef\xbb\xbfA B\nb\n",
        ),
        (b"a\nb\nc\n", (b"a\nB\nc\n", b"a\nC\nc\n"), [], b"a\nc\n"),
    ],
    ids=["crlf", "own ends", "no newline", "newline added", "latin-1", "utf-8", "bom", "nothing"],
)
def test_bytes_are_written_as_the_file_has_them(
    base: bytes, sides: tuple[bytes, bytes], lines: list[str], expected: bytes
) -> None:
    assert filled(base, sides, {1: lines}) == expected


def test_what_the_encoding_of_the_file_can_not_hold_is_a_flaw() -> None:
    latin = merge(b"\xe4\nb\n", b"\xe4\nB\n", b"\xe4\nC\n")
    answer, (flaw,) = read_regions("a", latin, "<<<<<<< REGION 1\n中\n>>>>>>> REGION 1\n")
    assert answer is None and flaw.problem is Problem.ENCODING and "4e2d" in flaw.reason
