"""What becomes of a model's reply: edits that match exactly, or the flaw in words."""

import pytest

from codeconvoy.workers.llm.edit_format import Problem, propose
from codeconvoy.workers.llm.text import decode, encode
from codeconvoy.workers.roles.role import FileEdit

BASE = b"import os\n\n\ndef one():\n    return 1\n\n\ndef two():\n    return 2\n"


def block(path: str, search: str, replacement: str) -> str:
    return f"{path}\n<<<<<<< SEARCH\n{search}=======\n{replacement}>>>>>>> REPLACE\n"


def whole(path: str, content: str) -> str:
    return f"{path}\n<<<<<<< WHOLE\n{content}>>>>>>> WHOLE\n"


def result(reply: str, base: bytes | None = BASE, path: str = "a.py") -> bytes | None:
    proposal = propose(reply, {path: base})
    assert not proposal.flaws, proposal.flaws
    (edit,) = proposal.files
    assert edit.path == path
    return edit.content


def flaw(reply: str, base: bytes | None = BASE) -> tuple[Problem, str]:
    proposal = propose(reply, {"a.py": base})
    assert not proposal.files
    (found,) = proposal.flaws
    return found.problem, found.text


def test_two_blocks_against_one_base() -> None:
    reply = (
        "SUMMARY: rename both\nSome words.\n\n"
        + block("a.py", "def two():\n", "def deux():\n")
        + block("a.py", "def one():\n    return 1\n", "def un():\n    return 1\n")
    )
    assert result(reply) == BASE.replace(b"one", b"un").replace(b"two", b"deux")
    assert propose(reply, {"a.py": BASE}).summary == "rename both"


def test_a_second_block_may_leave_its_path_to_the_first() -> None:
    second = block("", "def two():\n", "def deux():\n").lstrip("\n")
    assert result(block("a.py", "def one():\n", "def un():\n") + second) == BASE.replace(
        b"one", b"un"
    ).replace(b"two", b"deux")


@pytest.mark.parametrize("label", ["`a.py`", "**a.py**", "./a.py", "a.py:", "a.py\n```python"])
def test_what_models_put_around_a_path(label: str) -> None:
    assert result(block(label, "import os\n", "import sys\n") + "```\n") == BASE.replace(b"os", b"sys")


@pytest.mark.parametrize("base", [b"a\r\nb\r\nc\r\n", b"\xef\xbb\xbfa\r\nb\r\nc", b"a\rb\rc\r", b"a\nb\nc"])
def test_line_ends_mark_and_final_newline_survive(base: bytes) -> None:
    end = decode(base).usual_end.encode()
    assert result(block("a.py", "b\n", "b1\nb2\n"), base) == base.replace(b"b", b"b1" + end + b"b2")
    assert result(block("a.py", "c\n", "c\nd\n"), base) == base.replace(b"c", b"c" + end + b"d")
    content = decode(base).shown
    assert result(whole("a.py", content + "d\n"), base) == base.replace(b"c", b"c" + end + b"d")


def test_mixed_line_ends_change_only_where_lines_change() -> None:
    base = b"a\r\nb\nc\r\nd\n"
    assert result(block("a.py", "a\nb\nc\nd\n", "a\nb\nX\nd\n"), base) == b"a\r\nb\nX\r\nd\n"


def test_latin_1_survives_and_what_it_can_not_hold_is_refused() -> None:
    base = "x = 'é'\n".encode("latin-1")
    assert result(block("a.py", "x = 'é'\n", "x = 'ü'\n"), base) == "x = 'ü'\n".encode("latin-1")
    assert flaw(block("a.py", "x = 'é'\n", "x = '→'\n"), base)[0] is Problem.ENCODING


def test_a_search_that_is_not_there_is_told_the_nearest_lines() -> None:
    problem, text = flaw(block("a.py", "def two():\n    return 3\n", "def two():\n    return 4\n"))
    assert problem is Problem.NO_MATCH
    assert "Block 1 ('a.py')" in text and "    8 | def two():" in text and "    9 |     return 2" in text


def test_a_search_must_not_be_like_the_file_but_in_it() -> None:
    problem, text = flaw(block("a.py", "def too():\n", "def deux():\n"))
    assert problem is Problem.NO_MATCH and "| def two():" in text
    assert flaw(block("a.py", "one():\n", "un():\n"))[0] is Problem.NO_MATCH


def test_a_search_that_is_there_twice_names_the_lines() -> None:
    problem, text = flaw(block("a.py", "\n\n", "\n"))
    assert problem is Problem.SEVERAL_MATCHES and "2 times (lines 2, 6)" in text


def test_blocks_over_each_other_are_refused() -> None:
    one = block("a.py", "def one():\n    return 1\n", "def un():\n    return 11\n")
    assert flaw(one + block("a.py", "    return 1\n", "    return 12\n"))[0] is Problem.OVERLAP


def test_blocks_that_only_share_context_are_not_over_each_other() -> None:
    one = block("a.py", "import os\n\n\ndef one():\n", "import sys\n\n\ndef one():\n")
    two = block("a.py", "def one():\n    return 1\n", "def one():\n    return 11\n")
    assert result(one + two) == BASE.replace(b"os", b"sys").replace(b"return 1", b"return 11")


def test_a_divider_inside_the_content() -> None:
    base = b"Heading\n=======\n\ntext\n"
    assert result(block("a.py", "=======\n\ntext\n", "=======\n\nX\n"), base) == base.replace(b"text", b"X")
    assert result(block("a.py", "text\n", "Part\n=======\n"), base) == b"Heading\n=======\n\nPart\n=======\n"


def test_a_block_that_can_be_read_two_ways_is_refused() -> None:
    base = b"Heading\n=======\n\ntext\n"
    problem, text = flaw(block("a.py", "Heading\n=======\n", "Title\n=======\n"), base)
    assert problem is Problem.SEVERAL_MATCHES and "WHOLE" in text


def test_new_files() -> None:
    assert result(whole("a.py", "x = 1\n"), None) == b"x = 1\n"
    assert result(block("a.py", "", "x = 1\n"), None) == b"x = 1\n"
    assert flaw(block("a.py", "y\n", "x\n"), None)[0] is Problem.NO_MATCH
    assert flaw(block("a.py", "", "x\n"))[0] is Problem.NO_MATCH


def test_deletion_is_explicit() -> None:
    reply = "a.py\n<<<<<<< DELETE\n>>>>>>> DELETE\n"
    assert propose(reply, {"a.py": BASE}).files == (FileEdit("a.py", None),)
    assert flaw(reply, None)[0] is Problem.NO_MATCH


def test_one_flaw_and_nothing_of_the_reply_is_applied() -> None:
    good, bad = block("a.py", "import os\n", "import sys\n"), block("b.py", "nope\n", "x\n")
    proposal = propose(good + bad, {"a.py": BASE, "b.py": b"b\n"})
    assert not proposal.files and [found.problem for found in proposal.flaws] == [Problem.NO_MATCH]


@pytest.mark.parametrize("path", ["b.py", "../a.py", "/etc/passwd", "Here is the edit"])
def test_a_path_outside_the_task(path: str) -> None:
    problem, text = flaw(block(path, "import os\n", "import sys\n"))
    assert problem is Problem.OUTSIDE_TASK and "only: a.py" in text


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I changed it.",
        "a.py\n<<<<<<< SEARCH\nimport os\n=======\nimport sys\n",
        "a.py\n<<<<<<< SEARCH\nimport os\n>>>>>>> REPLACE\n",
        "<<<<<<< SEARCH\nimport os\n=======\n>>>>>>> REPLACE\n",
        "a.py\n<<<<<<< WHOLE\nx\n>>>>>>> WHOLE\ny\n>>>>>>> WHOLE\n",
        "a.py\n<<<<<<< SEARCH\n<<<<<<< SEARCH\n=======\n>>>>>>> REPLACE\n",
        whole("a.py", "x\n") + block("a.py", "import os\n", "import sys\n"),
        whole("a.py", "x\n") * 2,
        whole("a.py", "x\n") * 501,
    ],
)
def test_malformed(reply: str) -> None:
    assert flaw(reply)[0] is Problem.MALFORMED


def test_nothing_to_change() -> None:
    assert propose("NO CHANGES", {"a.py": BASE}).files == ()
    assert propose(block("a.py", "import os\n", "import os\n"), {"a.py": BASE}).files == ()


def test_no_regions_give_back_the_bytes() -> None:
    assert encode(decode(b"\xff\x00a\r\n\rb"), []) == b"\xff\x00a\r\n\rb"
