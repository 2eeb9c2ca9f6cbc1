"""The job fold: the table of a task's life, and whole jobs from their submission to their end."""

import asyncio
import itertools
from collections.abc import Sequence

import msgspec
import pytest

from codeconvoy.orchestrator import orchestrator
from codeconvoy.orchestrator.job_file import check
from codeconvoy.schemas import job_fold
from codeconvoy.schemas.errors import IllegalCommand
from codeconvoy.schemas.events import ResolutionFailed, RoundVoided, Strategy
from codeconvoy.schemas.job_facts import (
    CancelRequested,
    Checked,
    DeadlinePassed,
    Emitted,
    EventJudged,
    Imported,
    ImportedFile,
    JobFact,
    JobFinished,
    JobStatus,
    JobSubmitted,
    Planned,
    Reviewed,
    TaskDispatched,
    TaskDone,
    TaskFailed,
    VerdictKind,
    Worked,
)
from codeconvoy.schemas.job_spec import Pipeline, StrategyOverride, TaskKind, TaskSpec, workspace_for
from codeconvoy.schemas.job_state import (
    MAX_REPAIRS,
    STAGES,
    TRANSITIONS,
    Happening,
    JobState,
    TaskStatus,
    transition,
)
from codeconvoy.schemas.job_step import Dispatch
from codeconvoy.schemas.tasks import (
    CheckWork,
    EditWork,
    Former,
    ImportWork,
    PublishWork,
    ResolveWork,
    RevertWork,
    ReviewWork,
    RunWork,
    TestWork,
)
from codeconvoy.schemas.test_paths import test_path_for
from codeconvoy.workers import job_states
from codeconvoy.workers.engine.bus import Record
from tests.job_world import CODEC, EDITS_ONLY, JOB, NO_TESTS, JobWorld, event_id, spec

TEST_OF_A = test_path_for("a.py", "tests/convoy")


# A task's life ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "happening"), list(itertools.product(TaskStatus, Happening)))
def test_a_task_goes_where_the_table_says_and_nowhere_else(status: TaskStatus, happening: Happening) -> None:
    if (status, happening) in TRANSITIONS:
        assert transition(status, happening) is TRANSITIONS[status, happening]
    else:
        with pytest.raises(IllegalCommand) as raised:
            transition(status, happening)
        assert (raised.value.state, raised.value.command) == (status, happening)


def test_the_table_ends_nowhere_but_in_the_states_that_are_not_open() -> None:
    left = {status for status, happening in TRANSITIONS if happening is not Happening.SENT}
    assert left == {status for status in TaskStatus if status.open}
    assert {to for (_, happening), to in TRANSITIONS.items() if happening is Happening.SENT} == {
        TaskStatus.DISPATCHED
    }


# Whole jobs ---------------------------------------------------------------------------------------


def test_a_job_from_its_submission_to_its_branch() -> None:
    world = JobWorld(spec())
    assert world.doing() == ["ImportWork"]
    world.imports("a.py", "b.py", absent=[TEST_OF_A])
    assert world.doing() == ["EditWork", "EditWork"]
    for path in ("a.py", "b.py"):
        world.writes(world.one(EditWork, path))
        world.votes(path=path)
        world.tests(path)
    task, work = world.one(PublishWork)
    assert work.branch == f"convoy/{JOB}"
    assert work.imports == tuple(
        f"import of {path}" if path in ("a.py", "b.py") else "" for path in work.paths
    )
    assert {"a.py", "b.py", TEST_OF_A} <= set(work.paths)
    assert task.must_see[0].offset == world.offset, "it must see all that was written"
    world.publishes()
    world.ended(JobStatus.SUCCEEDED, "2 of 2 units done")
    tally = world.state.tally
    assert (tally.edits, tally.approvals, tally.tests_written, tally.tests_run) == (6, 2, 2, 2)


def test_a_file_that_needs_no_change_is_done() -> None:
    world = JobWorld(spec())
    world.imports("a.py")
    world.writes_nothing(world.one(EditWork))
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)


def test_a_task_is_done_only_when_its_word_and_all_verdicts_are_there() -> None:
    world = JobWorld(spec(tasks=(TaskSpec(role="generator", path="a.py", also=("b.py",)),), files=()))
    world.imports("a.py", "b.py")
    task, _ = world.one(EditWork)
    events = [Emitted(path=path, event_id=path, is_edit=True, reads=1) for path in ("a.py", "b.py")]
    world.done(task, Worked(events=tuple(events)))
    world.say(world.verdict(task, events[0]), world.verdict(task, events[1], VerdictKind.DEFERRED))
    world.read("a.py", "b.py")
    world.read("b.py", "a.py")
    world.read("b.py", "a.py")
    assert world.doing() == []
    assert world.state.tasks[task.task_id].status is TaskStatus.REPORTED
    world.say(world.verdict(task, events[1], VerdictKind.FORKED, ("x", "b.py")))
    assert world.state.tasks[task.task_id].status is TaskStatus.DONE
    assert world.doing() == [], "a fork of its files is open"
    world.forks("b.py", "", conflict="c")
    world.settles("b.py", "merge", conflict="c")
    assert world.doing() == ["ReviewWork"]


def test_a_rejected_change_goes_back_with_the_reasons_and_is_looked_at_again() -> None:
    world = JobWorld(spec(pipeline=NO_TESTS))
    world.imports("a.py")
    world.writes(world.one(EditWork))
    world.votes(approved=False)
    task, work = world.one(EditWork)
    assert (task.round, work.feedback, work.base) == (2, ("review: it is wrong",), "")
    (second,) = world.writes((task, work))
    assert world.one(ReviewWork)[1].version == second
    world.votes()
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)


def test_what_is_rejected_to_the_end_is_set_back_and_the_job_says_so() -> None:
    world = JobWorld(spec(pipeline=NO_TESTS, max_rounds=2))
    world.imports("a.py")
    for _ in range(2):
        world.writes(world.one(EditWork))
        world.votes(approved=False)
    task, work = world.one(RevertWork)
    assert (task.path, work.reason) == ("a.py", "review: it is wrong")
    world.reverts()
    assert world.stages == {"a.py": "failed"}
    world.publishes()
    world.ended(JobStatus.FAILED, "a.py: review: it is wrong")


def test_some_units_done_and_others_not_is_partial() -> None:
    world = JobWorld(spec(pipeline=NO_TESTS, max_rounds=1))
    world.imports("a.py", "b.py")
    world.writes(world.one(EditWork, "a.py"))
    world.votes(approved=False)
    world.reverts()
    world.writes(world.one(EditWork, "b.py"))
    world.votes()
    world.publishes()
    world.ended(JobStatus.PARTIAL, "1 of 2 units done; a.py: review")


def test_a_fork_that_was_joined_without_an_open_conflict_is_over() -> None:
    """The detector's resolution was overtaken, and joined the file's heads all the same."""
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py")
    world.writes(world.one(EditWork), kind=VerdictKind.FORKED, heads=("theirs", "ours"))
    assert world.stages == {"a.py": "generate"}, "two heads"
    world.settles("a.py", "merge", conflict="one that this job was not told of")
    assert world.stages == {"a.py": "done"}
    assert world.state.tally.resolved == {}
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)


def test_a_revert_that_can_not_be_done_says_so() -> None:
    world = JobWorld(spec(pipeline=NO_TESTS, max_rounds=1))
    world.imports("a.py")
    world.writes(world.one(EditWork))
    world.votes(approved=False)
    world.fail(world.one(RevertWork)[0], "disk full")
    world.publishes()
    world.ended(JobStatus.PARTIAL, "could not be set back: disk full")


def test_a_task_that_fails_is_tried_again_only_if_that_may_help() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py", "b.py")
    for round_ in (1, 2, 3):
        task, _ = world.one(EditWork, "a.py")
        assert task.round == round_
        world.fail(task, "503", retryable=True)
    world.fail(world.one(EditWork, "b.py")[0], "refuses")
    world.publishes()
    world.ended(JobStatus.FAILED, "a.py: generator: 503")


def test_edits_of_others_stay_when_one_author_fails() -> None:
    world = JobWorld(spec(pipeline=Pipeline(generate=("one", "two"), review=(), test=())))
    world.imports("a.py")
    one, two = world.open(EditWork)
    world.writes(one)
    world.fail(two[0])
    world.publishes()
    world.ended(JobStatus.PARTIAL, "a.py: two: no")


@pytest.mark.parametrize("kind", [VerdictKind.INVALID, VerdictKind.STALE])
def test_a_refused_edit_goes_again_on_the_head_and_names_what_it_replaces(kind: VerdictKind) -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY, together=True))
    world.imports("a.py")
    assert world.one(EditWork)[1].base == "import of a.py"
    (dead,) = world.writes(world.one(EditWork), kind=kind)
    task, work = world.one(EditWork)
    assert (task.round, work.base, work.reworks) == (2, "", dead)
    assert str(kind) in work.feedback[0]
    world.writes((task, work))
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)


def test_a_task_that_goes_again_names_its_edit_and_where_that_is_on_the_log() -> None:
    """Also of one that had to wait: it is where it arrived, not where it was judged."""
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py")
    task, _ = world.one(EditWork)
    assert task.former is None
    event = Emitted(path="a.py", event_id="own", is_edit=True)
    elsewhere = Emitted(path="b.py", event_id="other", is_edit=True)
    world.done(task, Worked(events=(elsewhere, event)))
    world.say(world.verdict(task, elsewhere), world.verdict(task, event, VerdictKind.DEFERRED))
    at = world.offset
    world.say(world.verdict(task, event, VerdictKind.INVALID))
    again, _ = world.one(EditWork)
    assert again.former == Former(event_id="own", partition=0, offset=at, moved=True)
    world.fail(again, retryable=True)
    third, _ = world.one(EditWork)
    assert third.former == Former(event_id="own", partition=0, offset=at, moved=False), "it still is its last"


def test_an_edit_that_is_always_refused_fails() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py")
    for _ in range(3):
        world.writes(world.one(EditWork), kind=VerdictKind.STALE)
    world.publishes()
    world.ended(JobStatus.FAILED, "stale")


# What was read has moved --------------------------------------------------------------------------


def test_a_test_of_a_version_that_moved_is_written_again_and_run_again() -> None:
    world = JobWorld(spec(pipeline=Pipeline(review=())))
    world.imports("a.py")
    world.writes(world.one(EditWork))
    (written,) = world.writes(world.one(TestWork), reads=1)
    assert world.doing() == [], "whether what it read is still there is not known"
    world.read(written, "a.py", fresh=False)
    task, work = world.one(TestWork)
    assert (task.round, world.state.tally.stale) == (2, 1)
    assert "has changed" in work.feedback[-1]
    (again,) = world.writes((task, work), reads=1)
    world.read(again, "a.py")
    world.runs()
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)


def two_files_of_which_one_is_done() -> tuple[JobWorld, str, str]:
    """The world, and the events of the test file and of its run; `b.py` is still being edited."""
    world = JobWorld(spec(pipeline=Pipeline(review=())))
    world.imports("a.py", "b.py")
    world.writes(world.one(EditWork, "a.py"))
    (written,) = world.writes(world.one(TestWork))
    run = world.runs()
    assert world.stages == {"a.py": "done", "b.py": "generate"}
    return world, written, run


def test_a_run_on_versions_that_moved_after_the_unit_was_done_is_run_again() -> None:
    world, _, run = two_files_of_which_one_is_done()
    world.read(run, "a.py", fresh=False)
    assert world.one(RunWork)[0].round == 2
    world.runs()
    assert world.stages["a.py"] == "done"


def test_tests_written_for_what_moved_after_the_unit_was_done_are_written_again() -> None:
    world, written, _ = two_files_of_which_one_is_done()
    world.read(written, "a.py", fresh=False)
    assert world.one(TestWork)[0].round == 2


def test_a_run_that_was_replaced_is_not_run_again_however_often_it_is_told_that_its_file_moved() -> None:
    world, written, run = two_files_of_which_one_is_done()
    world.read(written, "a.py", fresh=False)
    world.read(run, "a.py", fresh=False)
    world.tests("a.py")
    assert world.stages["a.py"] == "done"
    world.read(run, "a.py", fresh=False)
    world.read(run, "a.py")
    assert (world.stages["a.py"], world.doing()) == ("done", ["EditWork"])


def test_repairs_are_bounded() -> None:
    world, _, run = two_files_of_which_one_is_done()
    for _ in range(MAX_REPAIRS):
        world.read(run, "a.py", fresh=False)
        run = world.runs()
    world.read(run, "a.py", fresh=False)
    assert world.doing() == ["EditWork"], "only the other file's"


def test_a_verdict_on_an_earlier_rounds_event_marks_nothing_stale() -> None:
    world, _, run = two_files_of_which_one_is_done()
    world.read(run, "a.py", fresh=False)
    task, _ = world.one(RunWork)
    world.runs()
    old = Emitted(path=TEST_OF_A, event_id=run, is_edit=False)
    world.say(world.verdict(task, old, VerdictKind.OUTDATED))
    assert world.stages["a.py"] == "done"


def test_an_approval_of_a_version_that_moved_does_not_count() -> None:
    world = JobWorld(spec(pipeline=NO_TESTS))
    world.imports("a.py")
    world.writes(world.one(EditWork))
    world.visible["a.py"] = "another job's"
    world.votes(kind=VerdictKind.STALE)
    task, work = world.one(ReviewWork)
    assert (work.version, task.round) == ("another job's", 1), "a new review, not the old one once more"
    world.votes()
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)


def approved_and_then_outdated() -> JobWorld:
    world = JobWorld(spec(pipeline=NO_TESTS))
    world.imports("a.py", "b.py")
    world.writes(world.one(EditWork, "a.py"))
    vote = world.votes(path="a.py")
    assert world.stages["a.py"] == "done"
    outdate(world, vote, "another job's")
    return world


def outdate(world: JobWorld, vote: str, visible: str) -> None:
    """Another job's edit lands on what was approved."""
    world.visible["a.py"] = visible
    task = world.state.tasks[world.state.origins[vote]].task
    world.say(world.verdict(task, Emitted(path="a.py", event_id=vote, is_edit=False), VerdictKind.OUTDATED))


def test_an_approval_that_is_outdated_later_is_asked_for_again_for_what_there_is_now() -> None:
    world = approved_and_then_outdated()
    assert world.one(ReviewWork)[1].version == "another job's"
    world.votes(approved=False)
    assert world.doing() == ["EditWork", "EditWork"]


def test_a_word_on_an_earlier_vote_that_comes_late_asks_for_no_further_review() -> None:
    world = JobWorld(spec(pipeline=Pipeline(review=("r1", "r2"), test=())))
    world.imports("a.py", "b.py")
    world.writes(world.one(EditWork, "a.py"))
    votes = [world.votes(), world.votes()]
    outdate(world, votes[0], "another job's")
    world.votes()
    world.votes()
    outdate(world, votes[1], "another job's")
    assert world.stages["a.py"] == "done"


def test_what_changes_faster_than_it_is_reviewed_is_not_called_approved() -> None:
    world = approved_and_then_outdated()
    for number in range(MAX_REPAIRS + STAGES * 3):
        if not world.open(ReviewWork):
            break
        outdate(world, world.votes(path="a.py"), f"version {number}")
    assert world.stages["a.py"] == "failed"
    world.writes_nothing(world.one(EditWork, "b.py"))
    world.publishes()
    world.ended(JobStatus.PARTIAL, "faster than it can be reviewed")


# Reviews ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quorum", "passes"), [(1, True), (2, True), (3, False)])
def test_a_quorum_of_approvals_is_needed(quorum: int, passes: bool) -> None:
    pipeline = Pipeline(review=("r1", "r2", "r3"), test=(), quorum=quorum)
    world = JobWorld(spec(pipeline=pipeline))
    world.imports("a.py")
    world.writes(world.one(EditWork))
    world.votes()
    world.votes(approved=False)
    assert world.doing() == ["ReviewWork"], "all are heard"
    world.votes()
    assert world.doing() == (["PublishWork"] if passes else ["EditWork"])


def test_when_nobody_could_review_the_author_is_not_asked_for_another_version() -> None:
    world = JobWorld(spec(pipeline=NO_TESTS))
    world.imports("a.py")
    world.writes(world.one(EditWork))
    world.fail(world.one(ReviewWork)[0], "no key")
    assert world.doing() == ["RevertWork"]
    world.reverts()
    world.publishes()
    world.ended(JobStatus.FAILED, "reviewer: no key")


# Tests --------------------------------------------------------------------------------------------


def test_a_regression_goes_back_to_the_author_with_the_output() -> None:
    world = JobWorld(spec())
    world.imports("a.py")
    world.writes(world.one(EditWork))
    world.votes()
    world.writes(world.one(TestWork))
    world.runs("regressed")
    task, work = world.one(EditWork)
    assert task.round == 2
    assert "output" in work.feedback[-1]
    world.writes((task, work))
    world.votes()
    world.tests()
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)


def test_tests_that_fail_on_the_base_too_are_written_again_and_at_last_dropped() -> None:
    world = JobWorld(spec(max_rounds=2))
    world.imports("a.py", TEST_OF_A)
    world.writes(world.one(EditWork, "a.py"))
    world.votes()
    for _ in range(2):
        world.writes(world.one(TestWork))
        world.runs("failed")
    assert world.one(RevertWork)[0].path == TEST_OF_A
    world.reverts()
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)
    assert "dropped" in world.state.units["a.py"].reason


def test_tests_that_could_not_be_executed_are_named() -> None:
    world = JobWorld(spec())
    world.imports("a.py")
    world.writes(world.one(EditWork))
    world.votes()
    world.writes(world.one(TestWork))
    world.runs("not_executed")
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)
    assert "not executed" in world.state.units["a.py"].reason


def test_no_tests_and_no_test_file_is_the_end_of_the_stage() -> None:
    world = JobWorld(spec())
    world.imports("a.py")
    world.writes(world.one(EditWork))
    world.votes()
    world.writes_nothing(world.one(TestWork))
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)


@pytest.mark.parametrize("kind", [TestWork, RunWork])
def test_a_unit_whose_tests_fail_to_be_made_has_failed(kind: type[TestWork] | type[RunWork]) -> None:
    world = JobWorld(spec())
    world.imports("a.py")
    world.writes(world.one(EditWork))
    world.votes()
    if kind is RunWork:
        world.writes(world.one(TestWork))
    world.fail(world.one(kind)[0], "no disk")
    world.publishes()
    world.ended(JobStatus.PARTIAL, "no disk")


def test_tests_written_side_by_side_with_the_edits_are_run() -> None:
    tasks = (
        TaskSpec(role="generator", path="a.py"),
        TaskSpec(role="tester", path="a.py", kind=TaskKind.TEST, goal="test it"),
    )
    world = JobWorld(spec(files=(), tasks=tasks, pipeline=EDITS_ONLY))
    world.imports("a.py", absent=[TEST_OF_A])
    assert world.doing() == ["EditWork", "TestWork"]
    assert world.one(TestWork)[0].goal == "test it"
    (written,) = world.writes(world.one(TestWork), reads=1)
    world.read(written, "a.py")
    run = world.runs()
    task, _ = world.one(EditWork)
    edit = Emitted(path="a.py", event_id="edit", is_edit=True)
    world.done(task, Worked(events=(edit,)))
    verdict = world.verdict(task, edit)
    world.read(written, "a.py", fresh=False)
    world.read(run, "a.py", fresh=False)
    world.say(verdict)
    assert world.doing() == ["TestWork"]
    (again,) = world.writes(world.one(TestWork), reads=1)
    world.read(again, "a.py")
    world.runs()
    world.publishes()
    world.ended(JobStatus.SUCCEEDED, "2 of 2")


def test_a_test_task_whose_tests_were_dropped_is_not_called_done() -> None:
    task = TaskSpec(role="tester", path="a.py", kind=TaskKind.TEST)
    world = JobWorld(spec(files=(), tasks=(task,), max_rounds=1))
    world.imports("a.py")
    world.writes(world.one(TestWork))
    world.runs("regressed")
    world.reverts()
    world.publishes()
    world.ended(JobStatus.FAILED, "tests dropped")


# Waits --------------------------------------------------------------------------------------------


def test_a_task_nobody_answers_is_voided_sent_again_and_at_last_fails() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py")
    for round_ in (1, 2, 3):
        task, _ = world.one(EditWork)
        assert task.round == round_
        assert world.deadline()
        voided = world.recorded[-1].payload
        assert voided == RoundVoided(task_id=task.task_id, round=round_, reason=voided.reason)  # type: ignore[union-attr]
    world.publishes()
    world.ended(
        JobStatus.FAILED,
        "is `convoy worker generator` running, and does all that it calls answer? `convoy doctor` tells",
    )
    assert len(world.recorded) == 3


def test_what_is_dispatched_together_is_given_its_deadline_by_one_fact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(orchestrator, "ROUNDS_AT_ONCE", 3)
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py", "b.py", "c.py", "d.py")
    said = [fact.payload for fact in world.log if isinstance(fact.payload, TaskDispatched)]
    assert [1 + len(fact.also) for fact in said] == [1, 1, 3, 1], "the job, its import, and the edits"
    assert said[0] == TaskDispatched(task_id="", round=0, deadline=world.state.deadline)
    assert len({fact.deadline for fact in said[1:]}) == 1, "the clock stands still here"
    edits = [task.task_id for task, _ in world.open(EditWork)]
    assert [said[2].task_id, *(one.task_id for one in said[2].also), said[3].task_id] == edits
    assert {world.state.tasks[task_id].deadline for task_id in edits} == {said[2].deadline}
    assert world.state.without_deadline() == []


def test_a_round_without_a_deadline_can_not_have_passed_it() -> None:
    """Two that took over may both have said so, before the round was given a new one."""
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py", "b.py")
    world.writes(world.one(EditWork, "a.py"))
    task, _ = world.one(EditWork, "b.py")
    passed = DeadlinePassed(task_id=task.task_id, round=1)
    state, timestamp = world.state, world.state.tasks[task.task_id].deadline
    for number in range(3):
        fact = JobFact(fact_id=f"{number}", job_id=JOB, timestamp=timestamp, source="o", payload=passed)
        state, commands = job_fold.fold(state, fact)
        assert commands == ()
        assert state.without_deadline() == [(task.task_id, 1)]
        assert state.tasks[task.task_id].sent == world.state.facts, "it waits from the first on"


def test_a_queue_that_moves_is_waited_for() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py", "b.py")
    world.writes(world.one(EditWork, "a.py"))
    before = world.one(EditWork, "b.py")[0]
    assert world.deadline()
    assert world.one(EditWork, "b.py")[0] == before, "it had no turn yet"
    assert world.state.tasks[before.task_id].deadline > world.now
    assert world.deadline()
    assert world.one(EditWork, "b.py")[0].round == 2


def test_a_deadline_that_is_told_twice_does_not_end_the_longer_wait() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py", "b.py")
    world.writes(world.one(EditWork, "a.py"))
    task, _ = world.one(EditWork, "b.py")
    assert world.deadline()
    world.say(DeadlinePassed(task_id=task.task_id, round=1))
    assert world.one(EditWork, "b.py")[0].round == 1


def test_the_first_done_of_a_round_wins_and_that_of_a_voided_round_is_late() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py")
    late, _ = world.one(EditWork)
    world.deadline()
    world.done(late, Worked(events=(Emitted(path="a.py", event_id="late", is_edit=True),)))
    assert world.one(EditWork)[0].round == 2
    world.writes(world.one(EditWork))
    assert world.doing() == ["PublishWork"]


def test_a_job_that_takes_too_long_publishes_what_there_is() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY, deadline_seconds=5))
    world.imports("a.py", "b.py")
    world.writes(world.one(EditWork, "a.py"))
    world.deadline()
    assert world.doing() == ["PublishWork"]
    assert [type(event.payload) for event in world.recorded] == [RoundVoided]
    world.publishes()
    world.ended(JobStatus.TIMED_OUT, "not done after 5 s")
    assert world.state.published is not None


def test_a_cancelled_job_voids_what_runs_and_publishes_what_there_is() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py", "b.py")
    world.writes(world.one(EditWork, "a.py"))
    world.cancel()
    assert [event.file_path for event in world.recorded] == ["b.py"]
    world.cancel()
    world.publishes()
    world.ended(JobStatus.CANCELLED, "cancelled by me")


def test_a_job_cancelled_before_its_import_ends_at_once() -> None:
    world = JobWorld(spec())
    world.cancel()
    world.ended(JobStatus.CANCELLED)


# Conflicts ----------------------------------------------------------------------------------------


def forked_job() -> tuple[JobWorld, str]:
    """A job with a forked file, and the task that made the later head."""
    world = JobWorld(spec(pipeline=Pipeline(generate=("one", "two"), test=())))
    world.imports("a.py", "b.py")
    for found in world.open(EditWork, "b.py"):
        world.writes_nothing(found)
    one, two = world.open(EditWork, "a.py")
    world.writes(one)
    world.writes(two, kind=VerdictKind.FORKED, heads=("h1", "h2"))
    return world, two[0].task_id


def test_a_conflict_is_reworked_by_the_later_author_before_the_file_goes_on() -> None:
    world, loser = forked_job()
    assert world.doing() == [], "a fork is open"
    world.forks("a.py", loser, role="two")
    task, work = world.one(ResolveWork)
    assert (task.role, task.path, work.heads, work.own) == ("two", "a.py", ("h1", "h2"), "h2")
    assert task.must_see[0].offset == world.offset
    (merge,) = world.writes((task, work))
    assert world.doing() == [], "the conflict is over when the detector says so"
    world.settles("a.py", merge)
    assert world.one(ReviewWork)[1].version == merge
    world.votes()
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)
    assert world.state.tally.resolved == {"rework": 1}
    assert world.state.tally.forks == 1


def test_a_conflict_is_merged_by_the_role_of_the_pipeline() -> None:
    world, loser = forked_job()
    world.forks("a.py", loser, role="two", strategy=Strategy.SEMANTIC)
    task, work = world.one(ResolveWork)
    assert (task.role, task.path, work.heads, work.strategy) == (
        "merger",
        "a.py",
        ("h1", "h2"),
        Strategy.SEMANTIC,
    )
    (merge,) = world.writes((task, work))
    world.settles("a.py", merge, strategy=Strategy.SEMANTIC)
    assert world.one(ReviewWork)[1].version == merge
    assert world.state.tally.resolved == {"semantic": 1}


def test_another_job_of_the_conflict_asks_no_merger() -> None:
    world, _ = forked_job()
    world.forks("a.py", "another job's task", strategy=Strategy.SEMANTIC)
    assert not world.open(ResolveWork)


def test_what_a_merger_gives_back_is_the_authors_and_each_is_asked_once() -> None:
    world, loser = forked_job()
    world.forks("a.py", loser, role="two", strategy=Strategy.SEMANTIC)
    merge = world.one(ResolveWork)[0]
    world.fail(merge, "no usable answer in 2 tries")
    payload = world.recorded[-1].payload
    assert isinstance(payload, ResolutionFailed)
    assert (payload.attempt, payload.strategy) == (1, Strategy.SEMANTIC)
    world.forks("a.py", loser, role="two", attempt=2)
    task, work = world.one(ResolveWork)
    assert (task.role, work.strategy) == ("two", Strategy.REWORK)
    assert task.task_id != merge.task_id
    world.forks("a.py", loser, role="two", strategy=Strategy.SEMANTIC)
    assert len(world.open(ResolveWork)) == 1, "the first attempt is over"


@pytest.mark.parametrize("strategy", [Strategy.REWORK, Strategy.SEMANTIC])
@pytest.mark.parametrize("how", ["fails", "is refused", "is late"])
def test_a_rework_that_comes_to_nothing_gives_the_conflict_back(how: str, strategy: Strategy) -> None:
    world, loser = forked_job()
    world.forks("a.py", loser, strategy=strategy)
    found = world.one(ResolveWork)
    if how == "fails":
        world.fail(found[0], "x" * 10_000)
    elif how == "is refused":
        world.writes(found, kind=VerdictKind.INVALID)
    else:
        world.deadline()
    assert world.doing() == []
    payload = world.recorded[-1].payload
    assert isinstance(payload, ResolutionFailed)
    assert (payload.conflict_id, payload.attempt, payload.strategy) == ("conflict", 1, strategy)
    assert len(payload.reason) <= 2000
    world.forks("a.py", loser, attempt=2, strategy=Strategy.HUMAN)
    world.settles("a.py", "theirs", strategy=Strategy.HUMAN)
    assert world.doing() == ["ReviewWork"]


def test_a_job_does_not_end_while_a_conflict_of_its_files_is_open() -> None:
    world, loser = forked_job()
    world.forks("a.py", loser, strategy=Strategy.HUMAN)
    assert world.doing() == []
    assert not world.state.ended
    world.settles("a.py", "merge")
    world.votes()
    assert world.doing() == ["PublishWork"]


def test_a_cancelled_job_gives_back_the_conflict_it_was_at() -> None:
    world, loser = forked_job()
    world.forks("a.py", loser)
    world.cancel()
    kinds = [type(event.payload) for event in world.recorded]
    assert kinds == [RoundVoided, ResolutionFailed]


@pytest.mark.parametrize("strategy", [Strategy.REWORK, Strategy.SEMANTIC])
@pytest.mark.parametrize("ended", [False, True])
def test_a_conflict_does_not_wait_for_a_job_that_ends_or_has_ended(ended: bool, strategy: Strategy) -> None:
    world, loser = forked_job()
    world.cancel()
    if ended:
        world.publishes()
    world.forks("a.py", loser, conflict="c1", strategy=strategy)
    world.settles("a.py", "m", conflict="c1")
    world.forks("a.py", loser, conflict="c2", strategy=strategy)
    assert not world.open(ResolveWork)
    given_back = [event for event in world.recorded if isinstance(event.payload, ResolutionFailed)]
    assert [event.payload.conflict_id for event in given_back] == ["c1", "c2"]  # type: ignore[union-attr]
    assert len({event.event_id for event in given_back}) == 2, "the second is no duplicate of the first"


def test_a_fork_of_other_jobs_on_a_file_is_not_waited_for() -> None:
    world = JobWorld(spec(pipeline=NO_TESTS))
    world.imports("a.py")
    world.writes(world.one(EditWork))
    task, work = world.one(ReviewWork)
    vote = Emitted(path="a.py", event_id="vote", is_edit=False)
    world.visible["a.py"] = work.version
    world.done(task, msgspec.structs.replace(reviewed(work.version), event=vote))
    world.say(world.verdict(task, vote, VerdictKind.NOTED, heads=("theirs", "another's")))
    assert world.doing() == ["PublishWork"]


def reviewed(version: str) -> Reviewed:
    event = Emitted(path="a.py", event_id="vote", is_edit=False)
    return Reviewed(event=event, version=version, approved=True, lens="l")


# Beginnings ---------------------------------------------------------------------------------------


def test_a_planner_plans_and_what_it_names_besides_is_imported() -> None:
    world = JobWorld(spec(planner="planner", pipeline=EDITS_ONLY))
    world.imports("a.py")
    plan = (
        TaskSpec(role="generator", path="a.py", goal="first", reads=("z.py",)),
        TaskSpec(role="generator", path="new.py"),
    )
    world.plans(*plan)
    _, work = world.one(ImportWork)
    assert (work.paths, work.files, work.ref) == (("new.py", "z.py"), (), "c0ffee")
    world.imports("z.py", absent=["new.py"])
    first = world.one(EditWork, "a.py")
    assert (first[0].goal, first[0].reads) == ("first", ("z.py",))
    world.writes(first)
    world.writes(world.one(EditWork, "new.py"))
    assert set(world.one(PublishWork)[1].paths) == {"a.py", "new.py", "z.py"}
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)


def test_an_import_that_fails_ends_the_job() -> None:
    world = JobWorld(spec())
    world.fail(world.one(ImportWork)[0], "ref: there is no 'main'")
    world.ended(JobStatus.FAILED, "there is no 'main'")


def test_a_planner_that_fails_ends_the_job() -> None:
    world = JobWorld(spec(planner="planner"))
    world.imports("a.py")
    world.fail(world.waiting()[0], "no idea")
    world.publishes()
    world.ended(JobStatus.FAILED, "no idea")


def test_a_plan_without_a_task_ends_the_job() -> None:
    world = JobWorld(spec(planner="planner"))
    world.imports("a.py")
    world.plans()
    world.publishes()
    world.ended(JobStatus.FAILED, "nothing to do")


def test_a_bad_job_from_any_language_ends_as_failed_with_the_message() -> None:
    world = JobWorld(spec(), check=lambda job: check(job, {}))
    world.ended(JobStatus.FAILED, "there is no role 'generator'")
    assert world.queue == []


def test_a_job_from_any_language_need_not_name_its_workspace() -> None:
    world = JobWorld(spec(workspace=""))
    assert world.one(ImportWork)[0].workspace == workspace_for("/repo", "HEAD")


def test_a_glob_that_is_none_is_answered_and_does_not_stop_the_orchestrator() -> None:
    bad = StrategyOverride(glob="!", strategies=(Strategy.HUMAN,))
    world = JobWorld(spec(overrides=(bad,)), check=lambda job: check(job, {}))
    world.ended(JobStatus.FAILED, "overrides[0].glob")


def test_the_strategies_of_the_first_override_that_matches_travel_with_the_task() -> None:
    overrides = (
        StrategyOverride(glob="b.*", strategies=(Strategy.HUMAN,)),
        StrategyOverride(glob="*.py", strategies=(Strategy.REWORK,)),
    )
    world = JobWorld(spec(overrides=overrides, strategies=(Strategy.THREE_WAY,)))
    world.imports("a.py", "b.py")
    policies = {task.path: task.policy for task, _ in world.open(EditWork)}
    assert {path: policy and policy.strategies for path, policy in policies.items()} == {
        "a.py": (Strategy.REWORK,),
        "b.py": (Strategy.HUMAN,),
    }


@pytest.mark.parametrize("result", [Planned(tasks=()), Imported(commit="c", files=()), Worked()])
def test_an_answer_of_another_kind_than_asked_for_fails_its_task(result: Planned | Imported | Worked) -> None:
    world = JobWorld(spec())
    if isinstance(result, Imported):
        world.imports("a.py")
    world.done(world.waiting()[0], result)
    if world.open(PublishWork):
        world.publishes()
    world.ended(JobStatus.FAILED, "and answered")


# Ends ---------------------------------------------------------------------------------------------


def checked_job() -> JobWorld:
    world = JobWorld(spec(check="make test", pipeline=EDITS_ONLY))
    world.imports("a.py")
    world.writes(world.one(EditWork))
    assert world.doing() == ["CheckWork"]
    return world


def test_a_job_with_a_check_succeeds_when_it_passes() -> None:
    world = checked_job()
    world.checks()
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)


@pytest.mark.parametrize(
    ("passed", "executed", "reason"),
    [(False, True, "failed with exit status 1: log"), (False, False, "not run"), (True, False, "not run")],
)
def test_a_job_whose_check_fails_or_is_not_run_has_failed(passed: bool, executed: bool, reason: str) -> None:
    world = checked_job()
    world.checks(passed=passed, executed=executed)
    world.publishes()
    world.ended(JobStatus.FAILED, reason)


def test_a_check_that_says_nothing_has_failed_with_its_exit_status() -> None:
    world = checked_job()
    task, _ = world.one(CheckWork)
    world.done(task, Checked(passed=False, executed=True, exit_code=3, detail="\n"))
    world.publishes()
    world.ended(JobStatus.FAILED, "the check failed with exit status 3, without a word")


def test_a_check_that_can_not_be_done_fails_the_job() -> None:
    world = checked_job()
    world.fail(world.one(CheckWork)[0], "no disk")
    world.publishes()
    world.ended(JobStatus.FAILED, "no disk")


def test_the_tree_that_is_published_is_the_one_that_was_checked() -> None:
    world = JobWorld(spec(check="make test", pipeline=NO_TESTS))
    world.imports("a.py")
    world.writes(world.one(EditWork))
    vote = world.votes()
    assert world.doing() == ["CheckWork"]
    outdate(world, vote, "another job's")
    world.checks()
    assert world.doing() == ["ReviewWork"]
    world.votes()
    assert world.one(CheckWork)[0].round == 2
    world.checks()
    world.publishes()
    world.ended(JobStatus.SUCCEEDED)


def test_a_result_that_can_not_be_published_is_a_failure_with_both_reasons() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py")
    world.writes(world.one(EditWork))
    world.fail(world.one(PublishWork)[0], "push refused")
    world.ended(JobStatus.FAILED, "not published: push refused")


# Late, doubled and foreign facts ------------------------------------------------------------------


def test_every_fact_told_twice_is_told_once() -> None:
    """Each fact of a long job again, right after it and at the end."""
    world, loser = forked_job()
    world.forks("a.py", loser)
    world.writes(world.one(ResolveWork))
    world.settles("a.py", "merge")
    world.votes(approved=False)
    world.deadline()
    state, queue = JobState(job_id=JOB), 0
    for fact in world.log:
        state, commands = job_fold.fold(state, fact)
        queue += sum(isinstance(command, Dispatch) for command in commands)
        for earlier in world.log[: world.log.index(fact) + 1]:
            again, commands = job_fold.fold(state, earlier)
            assert commands == ()
            assert without_clock(again) == without_clock(state), earlier
    assert queue == len(world.queue)


def without_clock(state: JobState) -> JobState:
    """The state but for what only counts facts."""
    return msgspec.structs.replace(state, facts=0, updated_at=0)


def test_facts_of_an_unknown_job_change_nothing() -> None:
    world = JobWorld()
    world.say(
        TaskFailed(task_id="t", round=1, agent_id="a", reason="r"),
        DeadlinePassed(),
        TaskDispatched(task_id="", round=0, deadline=9),
    )
    assert (world.state.spec, len(world.state.tasks), world.queue) == (None, 0, [])


def test_nothing_changes_a_job_that_has_ended() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py")
    task, _ = world.one(EditWork)
    world.cancel()
    world.publishes()
    before = world.state
    world.done(task, Worked())
    world.say(DeadlinePassed(), JobSubmitted(spec=spec()), JobFinished(status=JobStatus.FAILED, reason="no"))
    assert without_clock(world.state) == without_clock(before)


@pytest.mark.parametrize("status", [JobStatus.RUNNING, JobStatus.ENDING])
def test_a_job_does_not_finish_as_running(status: JobStatus) -> None:
    world = JobWorld(spec())
    world.say(JobFinished(status=status, reason="by somebody else"))
    world.fail(world.one(ImportWork)[0])
    world.ended(JobStatus.FAILED)


def test_a_task_always_fits_into_a_record() -> None:
    """However much its reviewers have to say, round after round."""
    world = JobWorld(spec(pipeline=NO_TESTS, max_rounds=8))
    world.imports("a.py")
    for _ in range(7):
        world.writes(world.one(EditWork))
        task, work = world.one(ReviewWork)
        event = Emitted(path="a.py", event_id=event_id(task, "vote"), is_edit=False)
        comments = ("é" * 2_000,) * 50
        vote = Reviewed(event=event, version=work.version, approved=False, lens="l", comments=comments)
        world.done(task, vote)
        world.say(world.verdict(task, event, VerdictKind.NOTED))
    assert world.one(EditWork)[0].round == 8


@pytest.mark.parametrize(
    "bad",
    [
        TaskSpec(role="No Role", path="a.py"),
        TaskSpec(role="generator", path="a.py", also=("b//c",)),
        TaskSpec(role="generator", path="/a.py"),
    ],
)
def test_a_task_that_can_not_be_written_fails_and_the_others_go_on(bad: TaskSpec) -> None:
    """A planner from any language may name what is none."""
    world = JobWorld(spec(planner="planner", files=("*.py",), pipeline=EDITS_ONLY))
    world.imports("a.py", "ok.py")
    world.plans(bad, TaskSpec(role="generator", path="ok.py"))
    if world.open(ImportWork):
        world.imports(absent=[path for path in (bad.path, *bad.also) if path != "a.py"])
    world.writes(world.one(EditWork, "ok.py"))
    world.publishes()
    world.ended(JobStatus.PARTIAL, "can't be put on its queue")
    assert world.stages == {bad.path: "failed", "ok.py": "done"}


def test_a_task_that_can_not_be_written_can_be_cancelled() -> None:
    """Its file can't be named in an event either."""
    world = JobWorld(spec(planner="planner", pipeline=EDITS_ONLY))
    world.imports("ok.py")
    world.plans(TaskSpec(role="generator", path="/a.py"), TaskSpec(role="generator", path="ok.py"))
    task, _ = world.one(ImportWork)
    result = Imported(commit="c", files=(ImportedFile(path="/a.py", event_id="", written=False),))
    for payload in (
        TaskDone(task_id=task.task_id, round=1, agent_id="a", result=result),
        CancelRequested(requested_by="me"),
    ):
        fact = JobFact(fact_id="f", job_id=JOB, timestamp=0, source="test", payload=payload)
        record = Record(world.topics.jobs, 0, len(world.log), JOB, CODEC.encode(fact))
        world.state, outputs = world.orchestrator.step(world.state, record, 0)
    voided = [output for output in outputs if output.topic == world.topics.events]
    assert [output.key for output in voided] == ["w:ok.py"]


def test_a_job_whose_texts_do_not_fit_ends_with_the_reason() -> None:
    """The goal fits into a task, but not together with what the reviewers say, nor twice."""
    world = JobWorld(spec(goal="g" * 1_030_000, pipeline=NO_TESTS))
    world.imports("a.py")
    world.writes(world.one(EditWork))
    task, work = world.one(ReviewWork)
    event = Emitted(path="a.py", event_id=event_id(task, "vote"), is_edit=False)
    vote = Reviewed(event=event, version=work.version, approved=False, lens="l", comments=("n" * 20_000,))
    world.done(task, vote)
    world.say(world.verdict(task, event, VerdictKind.NOTED))
    assert "over the cap" in world.state.units["a.py"].reason
    world.votes()
    assert world.stages == {"a.py": "failed"}
    world.ended(JobStatus.FAILED, "not published: the task can't be put on its queue: Task of")


def test_a_job_that_is_cancelled_with_a_book_ends() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py")
    world.say(CancelRequested(requested_by="me", reason="r" * 1_048_000))
    assert len(world.recorded) == 1
    world.publishes()
    world.ended(JobStatus.CANCELLED, "cancelled by me: rrr")


def test_the_stored_job_is_the_job() -> None:
    world, loser = forked_job()
    world.forks("a.py", loser)
    fields = job_states.dump(None, world.state)

    async def read(names: Sequence[str]) -> list[bytes | None]:
        return [fields.get(name) for name in names]

    assert asyncio.run(job_states.load(JOB, read)) == world.state


def test_verdicts_in_one_fact_count_as_if_they_came_one_by_one() -> None:
    def told(together: bool) -> JobWorld:
        world = JobWorld(spec(pipeline=Pipeline(review=("r",), test=())))
        world.imports("a.py", "b.py")
        edits = []
        for task, _ in world.open(EditWork):
            edit = Emitted(path=task.path, event_id=event_id(task, task.path), is_edit=True)
            world.say(
                TaskDone(task_id=task.task_id, round=1, agent_id="agent", result=Worked(events=(edit,)))
            )
            edits.append(world.verdict(task, edit))
        world.say(
            *([EventJudged.of([one for edit in edits for one in edit.judgements])] if together else edits)
        )
        return world

    one, many = told(together=True), told(together=False)
    assert len(one.log) < len(many.log)
    assert [task.task_id for task in one.queue] == [task.task_id for task in many.queue]
    assert one.state.files == many.state.files and one.state.tally == many.state.tally
    assert {task.role for task in one.waiting()} == {"r"} and len(one.waiting()) == 2
