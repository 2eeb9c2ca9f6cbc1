"""Reads nothing, writes nothing: merging three contents as the command `convoy merge` does."""

import pytest

from codeconvoy.schemas.events import Strategy
from codeconvoy.workers.resolution.standalone import merge_files

BASE = b"a\nb\nc\n"


def test_clean() -> None:
    result = merge_files(BASE, b"A\nb\nc\n", b"a\nb\nC\n", "file.txt")
    assert (result.clean, result.content, result.strategy) == (True, b"A\nb\nC\n", Strategy.THREE_WAY)


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "expected"),
    [
        (BASE, b"a\nX\nc\n", b"a\nY\nc\n", b"a\n<<<<<<< ours\nX\n=======\nY\n>>>>>>> theirs\nc\n"),
        (BASE, b"a\n\xff\nc\n", b"a\nY\nc\n", b"a\n<<<<<<< ours\n\xff\n=======\nY\n>>>>>>> theirs\nc\n"),
        (None, b"X\n", b"Y\n", b"<<<<<<< ours\nX\n=======\nY\n>>>>>>> theirs\n"),
        (b"\0", b"\0ours", b"\0theirs", b"\0ours"),
        (
            b"a\n" + b"-" * 8000 + b"\n\0\n",
            b"X\n" + b"-" * 8000 + b"\n\0\n",
            b"Y\n" + b"-" * 8000 + b"\n\0\n",
            b"<<<<<<< ours\nX\n=======\nY\n>>>>>>> theirs\n" + b"-" * 8000 + b"\n\0\n",
        ),
    ],
    ids=["text", "bytes", "create", "binary", "late NUL"],
)
def test_not_clean(base: bytes | None, ours: bytes, theirs: bytes, expected: bytes) -> None:
    result = merge_files(base, ours, theirs, "file.txt")
    assert (result.clean, result.content, result.strategy) == (False, expected, None)
    assert [tried.strategy for tried in result.tried] == [Strategy.THREE_WAY]


def test_slow_strategies_are_passed_over() -> None:
    strategies = [Strategy.THREE_WAY, Strategy.REWORK, Strategy.LAST_WRITER_WINS]
    result = merge_files(BASE, b"X\n", b"Y\n", "file.txt", strategies)
    assert (result.clean, result.content, result.strategy) == (True, b"Y\n", Strategy.LAST_WRITER_WINS)


def test_a_clean_merge_that_breaks_the_file_is_not_clean() -> None:
    base = b"def f(): pass\n\n\n1\n2\nf()\n"
    ours = base.replace(b"f()", b"g()")
    theirs = base.replace(b"1\n", b"1\nf()\n")
    result = merge_files(base, ours, theirs, "file.py")
    assert not result.clean
    assert result.content == b"def g(): pass\n\n\n1\nf()\n2\ng()\n"
    assert [tried.reason for tried in result.tried] == ["F821: Undefined name `f`"]
