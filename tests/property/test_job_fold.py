"""The job fold in random worlds: whatever is answered, in whatever order, every job ends."""

import asyncio
from collections.abc import Mapping, Sequence
from random import Random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from codeconvoy.schemas import job_facts, job_fold
from codeconvoy.schemas.events import Consistency
from codeconvoy.schemas.job_facts import (
    Checked,
    Emitted,
    EventJudged,
    FactPayload,
    Imported,
    ImportedFile,
    JobFact,
    JobStatus,
    Planned,
    Published,
    ReadJudged,
    Result,
    Reviewed,
    TaskDone,
    TaskFailed,
    VerdictKind,
    Worked,
)
from codeconvoy.schemas.job_spec import JobSpec, Pipeline, TaskKind, TaskSpec
from codeconvoy.schemas.job_state import MAX_REPAIRS, STAGES, JobState
from codeconvoy.schemas.job_step import RecordEvent
from codeconvoy.schemas.tasks import (
    CheckWork,
    EditWork,
    ImportWork,
    PlanWork,
    PublishWork,
    ReviewWork,
    RunWork,
    Task,
    TestWork,
)
from codeconvoy.workers import job_states
from tests.job_world import JOB, JobWorld, event_id, spec

FILES = ("a.py", "b.py")
EDITS = [VerdictKind.ACCEPTED] * 4 + [VerdictKind.FORKED, VerdictKind.INVALID, VerdictKind.STALE]
NOTES = [VerdictKind.NOTED] * 4 + [VerdictKind.STALE]


HAPPENINGS = ("answer", "deliver", "again", "old answer", "deadline", "conflict", "settle")
WEIGHTS = (30, 60, 4, 3, 1, 1, 4)
SEEDS = st.integers(0, 2**32)


@st.composite
def specs(draw: st.DrawFn) -> JobSpec:
    """Jobs of every shape: pipelines, planners, tasks side by side, a check, a short deadline."""
    pipeline = Pipeline(
        generate=draw(st.sampled_from([("g1",), ("g1", "g2")])),
        review=draw(st.sampled_from([(), ("r1",), ("r1", "r2")])),
        test=draw(st.sampled_from([(), ("tester",)])),
    )
    side_by_side = (
        TaskSpec(role="g1", path="a.py", also=("b.py",)),
        TaskSpec(role="tester", path="a.py", kind=TaskKind.TEST),
    )
    shape: dict[str, object] = draw(
        st.sampled_from([{}, {"tasks": side_by_side, "files": ()}, {"planner": "planner"}])
    )
    return spec(
        pipeline=pipeline,
        check=draw(st.sampled_from(["", "make test"])),
        max_rounds=draw(st.integers(1, 3)),
        together=draw(st.booleans()),
        consistency=draw(st.sampled_from(list(Consistency))),
        deadline_seconds=draw(st.sampled_from([100_000, 25])),
        **shape,
    )


class RandomWorld(JobWorld):
    """A world that draws its answers. What follows from them comes later, in an order of its own."""

    def __init__(self, job: JobSpec, seed: int) -> None:
        self.random = Random(seed)
        self.later: list[FactPayload] = []
        """Verdicts on their way, each behind the word of its task."""
        self.conflicts: dict[str, str] = {}
        super().__init__(job)

    def likely(self, chance: float) -> bool:
        return self.random.random() < chance

    def step(self) -> None:
        """One thing happens."""
        match self.random.choices(HAPPENINGS, WEIGHTS)[0]:
            case "answer" if self.waiting():
                self.answer(self.random.choice(self.waiting()))
            case "deliver" if self.later:
                self.deliver(self.random.randrange(len(self.later)))
            case "again":
                self.say(self.random.choice([fact.payload for fact in self.log]))
            case "old answer":
                self.answer(self.random.choice(self.queue))
            case "deadline" if self.waiting() or self.likely(0.1):
                self.deadline()
            case "conflict":
                self.open_conflict(self.random.choice(FILES))
            case "settle" if self.conflicts:
                self.settle(self.random.choice(sorted(self.conflicts)))
            case _:
                pass

    def deliver(self, at: int) -> None:
        """What is on its way arrives: verdicts that follow on each other perhaps in one fact."""
        first = self.later.pop(at)
        judged = list(first.judgements) if isinstance(first, EventJudged) else []
        while judged and at < len(self.later) and self.likely(0.5):
            following = self.later[at]
            if not isinstance(following, EventJudged):
                break
            judged += following.judgements
            del self.later[at]
        self.say(EventJudged.of(judged) if judged else first)

    def open_conflict(self, path: str) -> None:
        if path not in self.conflicts:
            self.conflicts[path] = f"conflict {self.offset}"
            loser = self.random.choice([task.task_id for task in self.queue])
            self.forks(path, loser, conflict=self.conflicts[path])

    def settle(self, path: str) -> None:
        self.settles(path, f"merge {self.offset}", conflict=self.conflicts.pop(path))

    def answer(self, task: Task) -> None:
        """A worker's word, drawn; the verdicts on what it wrote are on their way."""
        if self.likely(0.1):
            self.fail(task, "no", retryable=self.likely(0.7))
            return
        result, emitted = self.result(task)
        self.say(TaskDone(task_id=task.task_id, round=task.round, agent_id="agent", result=result))
        for event in emitted:
            kind = self.random.choice(EDITS if event.is_edit else NOTES)
            if isinstance(task.work, ImportWork) and kind in (VerdictKind.INVALID, VerdictKind.STALE):
                kind = VerdictKind.ACCEPTED
            heads = ("theirs", event.event_id) if kind is VerdictKind.FORKED else ()
            self.later.append(self.verdict(task, event, kind, heads))
            if kind is VerdictKind.NOTED and self.likely(0.2):
                self.later.append(self.verdict(task, event, VerdictKind.OUTDATED))
            if event.reads:
                self.read_later(event)

    def read_later(self, event: Emitted) -> None:
        for fresh in [True, False] if self.likely(0.2) else [True]:
            self.later.append(
                ReadJudged(reader_event=event.event_id, read_path="a.py", version="v", fresh=fresh, head="v")
            )

    def result(self, task: Task) -> tuple[Result, tuple[Emitted, ...]]:
        """What a task may be answered with, and the events in it."""
        note = Emitted(path=task.path, event_id=event_id(task, "note"), is_edit=False)
        match task.work:
            case ImportWork(paths=paths):
                named = tuple(dict.fromkeys(FILES + paths))
                files = tuple(ImportedFile(path=path, event_id=event_id(task, path)) for path in named)
                emitted = tuple(Emitted(path=f.path, event_id=f.event_id, is_edit=True) for f in files)
                return Imported(commit="c0ffee", files=files), emitted
            case PlanWork():
                return Planned(tasks=(TaskSpec(role="g1", path="z.py"),)), ()
            case ReviewWork(version=version):
                yes = self.likely(0.6)
                vote = Reviewed(event=note, version=version, approved=yes, lens="l", comments=("because",))
                return vote, (note,)
            case RunWork():
                outcome = self.random.choice(["passed", "passed", "failed", "regressed", "not_executed"])
                run = msgspec.structs.replace(note, reads=1)
                return job_facts.Tested(event=run, outcome=outcome), (run,)
            case CheckWork():
                return Checked(passed=self.likely(0.7), executed=True, exit_code=0), ()
            case PublishWork(branch=branch):
                return Published(branch=branch, commit="c", base_commit="b", commits=1), ()
            case EditWork() | TestWork() as work if self.likely(0.8):
                path = work.test_path if isinstance(work, TestWork) else task.path
                reads = int(self.likely(0.5))
                edit = Emitted(path=path, event_id=event_id(task, path), is_edit=True, reads=reads)
                return Worked(events=(edit,)), (edit,)
            case _:
                return Worked(), ()

    def drain(self) -> None:
        """What is on its way arrives, and forks are joined; agents answer, or are gone for good."""
        gone = self.likely(0.3)
        for _ in range(2_000):
            if self.state.ended:
                return
            if self.later:
                self.deliver(0)
            elif self.conflicts:
                self.settle(min(self.conflicts))
            elif forked := [path for path, file in self.state.files.items() if file.forked]:
                self.open_conflict(forked[0])
            elif self.waiting() and not gone:
                self.answer(self.random.choice(self.waiting()))
            else:
                assert self.waiting(), f"nothing is to come but the job's own deadline: {self.stages}"
                self.deadline()
        raise AssertionError("the job does not end")


def world_after(job: JobSpec, seed: int, steps: int) -> RandomWorld:
    world = RandomWorld(job, seed)
    for _ in range(steps):
        world.step()
    return world


@settings(max_examples=200)
@given(specs(), SEEDS, st.integers(0, 200), st.booleans())
def test_every_job_ends_with_a_status_and_a_reason_after_a_bounded_number_of_rounds(
    job: JobSpec, seed: int, steps: int, cancelled: bool
) -> None:
    world = world_after(job, seed, steps)
    if cancelled:
        world.cancel()
    world.drain()
    state = world.state
    assert state.ended
    assert state.reason
    limit = world_limit(state)
    assert all(task.task.round <= limit for task in state.tasks.values())
    assert all(unit.visits <= limit * STAGES for unit in state.units.values())
    assert state.status is not JobStatus.SUCCEEDED or all(
        unit.stage == "done" for unit in state.units.values()
    )
    folded_again(world.log, state)


def world_limit(state: JobState) -> int:
    """More rounds than this no task may take."""
    assert state.spec is not None
    return STAGES * state.spec.max_rounds + 2 * MAX_REPAIRS


def folded_again(log: list[JobFact], state: JobState) -> None:
    """Another replica comes to the same bytes, also from what was stored piece by piece on the way."""
    again, stored = JobState(job_id=JOB), JobState(job_id=JOB)
    fields: dict[str, bytes] = {}

    async def read(names: Sequence[str]) -> list[bytes | None]:
        return [fields.get(name) for name in names]

    for number, fact in enumerate(log):
        again, commands = job_fold.fold(again, fact)
        before = stored
        stored, same = job_fold.fold(stored, fact)
        assert commands == same
        fields.update(_written(job_states.dump_view(before, stored)))
        if number % 7 == 0:
            assert _written(job_states.dump_view(None, stored)) == fields
            loaded = asyncio.run(job_states.load(JOB, read))
            # What is over in these is only ever taken out when it comes first.
            like_it = msgspec.structs.replace(loaded, deadlines=stored.deadlines, undated=stored.undated)
            assert like_it == stored
            assert loaded.next_wait == stored.next_wait
            assert sorted(loaded.without_deadline()) == sorted(stored.without_deadline())
            stored = loaded
    for replica in (again, stored, state):
        assert _written(job_states.dump_view(None, replica)) == fields


def _written(changes: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """Nothing of a job is ever taken away."""
    assert None not in changes.values()
    return {name: value for name, value in changes.items() if value is not None}


@settings(max_examples=100)
@given(specs(), SEEDS, st.integers(0, 80))
def test_a_fact_told_again_at_any_later_time_changes_nothing(job: JobSpec, seed: int, steps: int) -> None:
    world = world_after(job, seed, steps)
    clock = {"facts": 0, "updated_at": 0}
    before = msgspec.structs.replace(world.state, **clock)
    for fact in world.log:
        again, commands = job_fold.fold(world.state, fact)
        # A conflict is given back once more by a job that has ended: the same event, a duplicate.
        assert all(world.state.ended and isinstance(command, RecordEvent) for command in commands)
        assert msgspec.structs.replace(again, **clock) == before, fact


@given(specs(), SEEDS, st.integers(0, 100))
def test_a_cancelled_job_asks_for_nothing_but_to_be_published(job: JobSpec, seed: int, steps: int) -> None:
    world = world_after(job, seed, steps)
    world.cancel()
    asked = len(world.queue)
    while world.later:
        world.deliver(0)
    for task in list(world.queue):
        if not isinstance(task.work, PublishWork):
            world.say(TaskFailed(task_id=task.task_id, round=task.round, agent_id="a", reason="late"))
    assert len(world.queue) == asked
    assert world.state.ended or world.doing() == ["PublishWork"]
