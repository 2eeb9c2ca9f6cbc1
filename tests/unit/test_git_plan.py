"""Reads nothing, writes nothing: which commits follow from which histories, case by case."""

import msgspec
import pytest

from codeconvoy.schemas.events import EventType
from codeconvoy.schemas.file_history import Entry
from codeconvoy.schemas.job_state import GIT_ROLE
from codeconvoy.workers.git.plan import Commit, ImportPlan, import_parent, plan_commits
from tests.git_repos import entry, forgotten, history_of

IMPORTED = entry(0, "i", (), b"0", event_type=EventType.FILE_IMPORTED)


def plan(*entries: Entry, imported: str = "i", path: str = "a.py") -> tuple[Commit, ...]:
    history = history_of(path, *entries)
    return plan_commits({path: history}, {path: imported})


def events(commits: tuple[Commit, ...]) -> list[tuple[str, tuple[str, ...]]]:
    return [(commit.trailers.event, commit.trailers.joins) for commit in commits]


def test_nothing_happened() -> None:
    assert plan(IMPORTED) == ()
    assert plan_commits({"a.py": history_of("a.py")}, {"a.py": ""}) == ()


def test_a_commit_for_each_change() -> None:
    commits = plan(IMPORTED, entry(1, "b", ("i",), b"1"), entry(2, "c", ("b",), None))
    assert events(commits) == [("b", ()), ("c", ())]
    assert [commit.content for commit in commits] == [b"1", None]
    first = commits[0]
    assert first.subject == "generator: summary of b (a.py)"
    assert (first.role, first.timestamp) == ("generator", 1_700_000_000_001)
    assert (first.trailers.task, first.trailers.job, first.trailers.parents) == ("task-b", "job", ("i",))


def test_a_resolution_names_what_it_joined() -> None:
    commits = plan(
        IMPORTED,
        entry(1, "b", ("i",), b"1"),
        entry(2, "c", ("i",), b"2", shown=False),
        entry(3, "d", ("c",), b"3", shown=False),
        entry(4, "r", ("b", "d"), b"13"),
    )
    assert events(commits) == [("b", ()), ("r", ("c", "d"))]


def test_who_comes_to_the_same_content_is_named_with_it() -> None:
    commits = plan(
        IMPORTED,
        entry(1, "b", ("i",), b"1"),
        entry(2, "c", ("i",), b"1", shown=False),
        entry(3, "r", ("b", "c"), b"1"),
    )
    assert events(commits) == [("b", ("c", "r"))]


def test_dead_edits_and_open_forks_make_no_commit() -> None:
    dead = entry(1, "b", ("i",), None, live=False, shown=False)
    assert plan(IMPORTED, dead, entry(2, "c", ("i",), b"1", shown=False)) == ()


def test_a_file_that_the_ref_does_not_have() -> None:
    created = entry(0, "b", (), b"1", event_type=EventType.CODE_GENERATED)
    assert events(plan(created, imported="")) == [("b", ())]


def test_the_work_of_an_earlier_job_that_the_ref_lacks_comes_along() -> None:
    assert events(plan(IMPORTED, entry(1, "earlier", ("i",), b"1"))) == [("earlier", ())]


def test_only_what_holds_the_ref_s_content_is_published() -> None:
    before = (IMPORTED, entry(1, "earlier", ("i",), b"1"))
    user = entry(2, "u", ("i",), b"2", event_type=EventType.FILE_IMPORTED, shown=False)
    # The fork is open: publishing what is visible would undo the user's commit.
    assert plan(*before, user, imported="u") == ()
    joined = entry(3, "r", ("earlier", "u"), b"12")
    assert events(plan(*before, user, joined, imported="u")) == [("r", ("earlier",))]


def test_an_import_that_is_forgotten_still_gives_what_is_remembered() -> None:
    history = history_of("a.py", IMPORTED, entry(1, "b", ("i",), b"1"), entry(2, "c", ("b",), b"2"))
    commits = plan_commits({"a.py": forgotten(history, "i")}, {"a.py": "i"})
    assert events(commits) == [("b", ()), ("c", ())]


def test_tests_come_after_what_they_may_cover() -> None:
    histories = {
        path: history_of(path, entry(0, path, (), b"1", event_type=kind))
        for path, kind in {
            "a_test.py": EventType.TEST_WRITTEN,
            "b.py": EventType.CODE_GENERATED,
            "c.py": EventType.CODE_GENERATED,
        }.items()
    }
    commits = plan_commits(histories, dict.fromkeys(reversed(histories), ""))
    assert [commit.path for commit in commits] == ["b.py", "c.py", "a_test.py"]


HISTORY = history_of("a.py", IMPORTED, entry(1, "b", ("i",), b"1"), entry(2, "c", ("b",), b"2"))


@pytest.mark.parametrize(
    ("content", "committed", "expected"),
    [
        # The ref holds what readers see.
        (b"2", "", ImportPlan("c")),
        # The ref is where it was at the last import.
        (b"0", "", ImportPlan("i")),
        # The user changed it since the last import, knowing nothing of the workspace.
        (b"x", "", ImportPlan("", "i", needed=True)),
        (None, "", ImportPlan("", "i", needed=True)),
        # A published commit was merged, and the user went on from it.
        (b"1", "b", ImportPlan("b")),
        (b"x", "b", ImportPlan("", "b", needed=True)),
        (b"0", "b", ImportPlan("", "b", needed=True)),
        # It names an event that is not remembered.
        (b"x", "z", ImportPlan("", "i", needed=True)),
    ],
)
def test_what_an_import_builds_on(content: bytes | None, committed: str, expected: ImportPlan) -> None:
    assert import_parent(HISTORY, content, False, committed) == expected


def test_a_changed_mode_is_a_change() -> None:
    assert import_parent(HISTORY, b"2", True) == ImportPlan("", "i", needed=True)


def test_a_file_that_was_never_known() -> None:
    assert import_parent(history_of("n"), b"x", False) == ImportPlan("", needed=True)
    assert import_parent(history_of("n"), None, False) == ImportPlan("")


def test_a_file_that_only_the_workspace_has() -> None:
    created = history_of("n", entry(0, "b", (), b"1", event_type=EventType.CODE_GENERATED))
    assert import_parent(created, None, False) == ImportPlan("")
    assert import_parent(created, b"x", False) == ImportPlan("", needed=True)


def test_a_tombstone_is_the_absence_of_the_file() -> None:
    deleted = history_of("n", IMPORTED, entry(1, "b", ("i",), None))
    assert import_parent(deleted, None, True) == ImportPlan("b")


def test_a_dead_import_is_no_parent() -> None:
    dead = entry(1, "d", ("i",), None, event_type=EventType.FILE_IMPORTED, live=False, shown=False)
    assert import_parent(history_of("a.py", IMPORTED, dead), b"x", False, "d").parent == "i"


def test_a_deletion_that_was_imported_is_not_imported_again() -> None:
    gone = msgspec.structs.replace(
        entry(2, "gone", ("i",), None, event_type=EventType.FILE_DELETED, shown=False), role=GIT_ROLE
    )
    history = history_of(
        "a.py", IMPORTED, entry(1, "b", ("i",), b"1"), gone, entry(3, "r", ("b", "gone"), b"1")
    )
    assert import_parent(history, None, False) == ImportPlan("gone")
    assert import_parent(history, b"back", False) == ImportPlan("", "gone", needed=True)
