"""What a job's failure leaves of a file that others work on too."""

from hypothesis import given
from hypothesis import strategies as st

from codeconvoy.schemas.events import FileImported
from codeconvoy.workers.git.undo import Undone, undone
from codeconvoy.workers.resolution.object_store import GaveUp
from tests.builders import FileLog

BASE = b"".join(b"line %d\n" % number for number in range(12))


def with_line(number: int, text: bytes, content: bytes = BASE) -> bytes:
    lines = content.splitlines(keepends=True)
    lines[number] = text + b"\n"
    return b"".join(lines)


A, B = with_line(1, b"by A"), with_line(8, b"by B")
BOTH = with_line(8, b"by B", A)


def imported() -> FileLog:
    log = FileLog()
    log.add(log.make("import", BASE, kind=FileImported, role="git", job="A"))
    return log


def test_what_an_earlier_job_has_done_stays() -> None:
    log = imported()
    log.edit("a", A, "import", job="A")
    log.edit("b1", BOTH, "a", job="B")
    log.edit("b2", with_line(9, b"by B too", BOTH), "b1", job="B")
    assert undone(log.history, "B") == Undone(A, False, "a")
    assert undone(log.history, "C") is None


def test_of_two_that_were_joined_one_is_taken_out() -> None:
    log = imported()
    log.edit("a", A, "import", job="A")
    log.edit("b", B, "import", job="B")
    log.add(log.resolution("both", BOTH, "a", "b"))
    assert undone(log.history, "B") == Undone(A, False, "a")
    assert undone(log.history, "A") == Undone(B, False, "b")


def test_what_others_have_built_on_it_stays_where_it_can_be_told_apart() -> None:
    log = imported()
    log.edit("b", B, "import", job="B")
    log.edit("a", BOTH, "b", job="A")
    assert undone(log.history, "B") == Undone(A, False, "")
    log.edit("b2", with_line(5, b"by B later", BOTH), "a", job="B")
    assert undone(log.history, "B") == Undone(A, False, "")


def test_two_that_did_not_see_each_other_both_stay() -> None:
    log = imported()
    log.edit("a", A, "import", job="A")
    log.edit("b", B, "import", job="B")
    log.add(log.resolution("ab", BOTH, "a", "b"))
    log.edit("c", with_line(4, b"by C"), "import", job="C")
    log.add(log.resolution("abc", with_line(4, b"by C", BOTH), "ab", "c"))
    assert undone(log.history, "B") == Undone(with_line(4, b"by C", A), False, "")


def test_what_can_not_be_told_apart_is_left_alone() -> None:
    log = imported()
    log.edit("b", B, "import", job="B")
    log.edit("a", with_line(8, b"by B, and then by A"), "b", job="A")
    assert isinstance(undone(log.history, "B"), GaveUp)


def test_a_file_that_the_job_has_made_goes() -> None:
    log = FileLog()
    log.edit("b", b"new\n", job="B")
    log.edit("b2", b"newer\n", "b", job="B")
    assert undone(log.history, "B") == Undone(None, False, "")
    log.edit("a", b"newer\nand more\n", "b2", job="A")
    assert isinstance(undone(log.history, "B"), GaveUp)


def test_a_file_that_the_job_has_deleted_comes_back() -> None:
    log = imported()
    log.edit("a", A, "import", job="A")
    log.edit("b", None, "a", job="B")
    assert undone(log.history, "B") == Undone(A, False, "a")


@given(st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 11)), max_size=12, unique_by=lambda e: e[1]))
def test_edits_of_different_lines_are_always_told_apart(edits: list[tuple[str, int]]) -> None:
    """Lines that stand alone: neighbours are one change to a merge."""
    content = b"".join(b"line %d\n.\n.\n.\n" % number for number in range(12))
    log, parent, without_b = FileLog(), "import", content
    log.add(log.make("import", content, kind=FileImported, role="git", job="A"))
    for number, (job, line) in enumerate(edits):
        content = with_line(4 * line, b"by %d" % number, content)
        if job == "A":
            without_b = with_line(4 * line, b"by %d" % number, without_b)
        log.edit(f"e{number}", content, parent, job=job)
        parent = f"e{number}"
    found = undone(log.history, "B")
    if any(job == "B" for job, _ in edits):
        assert isinstance(found, Undone) and found.content == without_b
    else:
        assert found is None
