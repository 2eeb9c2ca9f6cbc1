"""Drives the orchestrator with a job in memory: a tiny world that answers what it dispatches."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from codeconvoy.orchestrator.orchestrator import Orchestrator
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import Event, Strategy
from codeconvoy.schemas.job_facts import (
    CancelRequested,
    Checked,
    Emitted,
    EventJudged,
    FactPayload,
    FileForked,
    FileSettled,
    Imported,
    ImportedFile,
    JobFact,
    JobStatus,
    JobSubmitted,
    Planned,
    Published,
    ReadJudged,
    Result,
    Reviewed,
    TaskDone,
    TaskFailed,
    Tested,
    VerdictKind,
    Worked,
)
from codeconvoy.schemas.job_spec import JobSpec, Pipeline, TaskSpec
from codeconvoy.schemas.job_state import JobState, TaskStatus
from codeconvoy.schemas.tasks import (
    CheckWork,
    EditWork,
    ImportWork,
    PlanWork,
    PublishWork,
    ResolveWork,
    RevertWork,
    ReviewWork,
    RunWork,
    Task,
    TestWork,
    Work,
)
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.bus import Outgoing, Record

CODEC = Codec.create()
JOB = "job"
W = TypeVar("W", bound=Work)


def spec(**fields: object) -> JobSpec:
    """A job on every file, with one role in each stage."""
    given: dict[str, object] = {
        "repository": "/repo",
        "workspace": "w",
        "goal": "improve it",
        "files": ("*.py",),
        "max_rounds": 3,
        "task_deadline_seconds": 10,
        "deadline_seconds": 1000,
    }
    return JobSpec(**(given | fields))  # type: ignore[arg-type]


NO_TESTS = Pipeline(test=())
EDITS_ONLY = Pipeline(review=(), test=())


def accept(_: JobSpec) -> None:
    """A check that finds nothing wrong."""


class JobWorld:
    """One job: its log, its orchestrator, the queues of its tasks, and what its files look like."""

    def __init__(self, job: JobSpec | None = None, check: Callable[[JobSpec], None] = accept) -> None:
        self.topics = Topics()
        self.orchestrator = Orchestrator(CODEC, self.topics, check)
        self.state = JobState(job_id=JOB)
        self.log: list[JobFact] = []
        self.queue: list[Task] = []
        """Every task ever dispatched, in order."""
        self.recorded: list[Event] = []
        """What the orchestrator put on the events log."""
        self.visible: dict[str, str] = {}
        self.now = 1_000
        self.offset = 0
        self._folded = 0
        self._told = -1
        if job is not None:
            self.say(JobSubmitted(spec=job))

    # The log ------------------------------------------------------------------------------------

    def say(self, *payloads: FactPayload) -> None:
        """Append facts, and let the orchestrator read to the end."""
        for payload in payloads:
            fact_id = f"f{len(self.log)}"
            fact = JobFact(fact_id=fact_id, job_id=JOB, timestamp=self.now, source="test", payload=payload)
            self.log.append(fact)
            self.fold()

    def fold(self) -> None:
        """Let the orchestrator read to the end of the log."""
        while self._folded < len(self.log):
            record = Record(self.topics.jobs, 0, self._folded, JOB, CODEC.encode(self.log[self._folded]))
            self.state, outputs = self.orchestrator.step(self.state, record, self.now)
            self._folded += 1
            self._take(outputs)
            self._ask_due()
            self._check_counters()

    def _take(self, outputs: Sequence[Outgoing]) -> None:
        for output in outputs:
            if output.topic == self.topics.jobs:
                self.log.append(CODEC.decode(output.value, JobFact))
            elif output.topic == self.topics.events:
                self.recorded.append(CODEC.decode(output.value, Event))
            else:
                task = CODEC.decode(output.value, Task)
                assert output.topic == self.topics.tasks(task.role)
                self.queue.append(task)

    def _check_counters(self) -> None:
        state = self.state
        assert state.open_tasks == sum(task.status.open for task in state.tasks.values())
        assert state.open_units == sum(not unit.stage.ended for unit in state.units.values())
        assert state.open_conflicts == len(state.conflicts)
        if not state.without_deadline() and (state.deadline or state.status is not JobStatus.RUNNING):
            assert state.next_wait == min((when for when, _, _ in state.waits()), default=None)
        for values in (state.tasks.values(), state.units.values(), state.files.values()):
            assert [value.number for value in values] == list(range(len(values)))

    def deadline(self) -> bool:
        """Let the clock reach the next deadline. False where there is none."""
        when = self.orchestrator.wait(self.state)
        if when is None:
            return False
        self.now = max(self.now, when)
        self._ask_due()
        self.fold()
        return True

    def _ask_due(self) -> None:
        """What the engine asks for after each batch."""
        when = self.orchestrator.wait(self.state)
        if when is not None and when <= self.now and when != self._told:
            self._told = when
            self._take(self.orchestrator.due(JOB, self.state, self.now))

    # The queues ---------------------------------------------------------------------------------

    def waiting(self) -> list[Task]:
        """The dispatched rounds that wait for an answer."""
        states = self.state.tasks
        return [
            task
            for task in self.queue
            if states[task.task_id].status is TaskStatus.DISPATCHED
            and states[task.task_id].task.round == task.round
        ]

    def open(self, kind: type[W], path: str = "") -> list[tuple[Task, W]]:
        """Those of this kind of work (on this file)."""
        return [
            (task, task.work)
            for task in self.waiting()
            if isinstance(task.work, kind) and path in ("", task.path)
        ]

    def one(self, kind: type[W], path: str = "") -> tuple[Task, W]:
        """The one that waits of this kind."""
        found = self.open(kind, path)
        assert len(found) == 1, f"{len(found)} open tasks of kind {kind.__name__}: {self.doing()}"
        return found[0]

    def doing(self) -> list[str]:
        """The kinds of work that wait for an answer, sorted."""
        return sorted(type(task.work).__name__ for task in self.waiting())

    # Answers ------------------------------------------------------------------------------------

    def done(self, task: Task, result: Result) -> None:
        """A worker's word."""
        self.say(TaskDone(task_id=task.task_id, round=task.round, agent_id="agent", result=result))

    def fail(
        self, task: Task, reason: str = "no", *, retryable: bool = False, over_budget: bool = False
    ) -> None:
        """A worker's word that it can't."""
        self.say(
            TaskFailed(
                task_id=task.task_id,
                round=task.round,
                agent_id="agent",
                reason=reason,
                retryable=retryable,
                over_budget=over_budget,
            )
        )

    def verdict(
        self,
        task: Task,
        event: Emitted,
        kind: VerdictKind = VerdictKind.ACCEPTED,
        heads: tuple[str, ...] = (),
    ) -> EventJudged:
        """The detector's word on an event; an accepted one is what readers see from now on."""
        if event.is_edit and kind is VerdictKind.ACCEPTED:
            self.visible[event.path] = event.event_id
        visible = self.visible.get(event.path, "")
        self.offset += 1
        return EventJudged(
            event_id=event.event_id,
            task_id=task.task_id,
            round=task.round,
            path=event.path,
            verdict=kind,
            reason="" if kind in (VerdictKind.ACCEPTED, VerdictKind.NOTED) else f"test says {kind}",
            heads=heads or ((visible,) if visible else ()),
            visible=visible,
            partition=0,
            offset=self.offset,
        )

    def imports(self, *paths: str, absent: Sequence[str] = ()) -> None:
        """Answer the import: these files are at the ref, those are not."""
        task, _ = self.one(ImportWork)
        files = [ImportedFile(path=path, event_id=f"import of {path}") for path in paths]
        files += [ImportedFile(path=path, event_id="", written=False) for path in absent]
        self.done(task, Imported(commit="c0ffee", files=tuple(files)))
        for path in paths:
            event = Emitted(path=path, event_id=f"import of {path}", is_edit=True)
            self.say(self.verdict(task, event))

    def writes(
        self,
        found: tuple[Task, Work],
        *paths: str,
        kind: VerdictKind = VerdictKind.ACCEPTED,
        heads: tuple[str, ...] = (),
        reads: int = 0,
    ) -> tuple[str, ...]:
        """Answer a task with an edit of its file (or of these), and judge it. The event ids."""
        task, work = found
        named = paths or ((work.test_path,) if isinstance(work, TestWork) else (task.path,))
        ids = tuple(event_id(task, path) for path in named)
        events = tuple(
            Emitted(path=path, event_id=id_, is_edit=True, reads=reads)
            for path, id_ in zip(named, ids, strict=True)
        )
        self.done(task, Worked(events=events))
        self.say(*(self.verdict(task, event, kind, heads) for event in events))
        return ids

    def writes_nothing(self, found: tuple[Task, Work]) -> None:
        """Answer a task with no edit."""
        self.done(found[0], Worked())

    def votes(self, approved: bool = True, *, path: str = "", kind: VerdictKind = VerdictKind.NOTED) -> str:
        """Answer the first open review. The id of the vote."""
        task, work = self.open(ReviewWork, path)[0]
        event = Emitted(path=task.path, event_id=event_id(task, "vote"), is_edit=False)
        comments = () if approved else ("it is wrong",)
        vote = Reviewed(event=event, version=work.version, approved=approved, lens="l", comments=comments)
        self.done(task, vote)
        self.say(self.verdict(task, event, kind))
        return event.event_id

    def runs(self, outcome: str = "passed", path: str = "") -> str:
        """Answer the run of the tests. The id of the event; its one read is answered as fresh."""
        task, work = self.one(RunWork, path)
        event = Emitted(path=task.path, event_id=event_id(task, "run"), is_edit=False, reads=1)
        self.done(task, Tested(event=event, outcome=outcome, detail="output"))
        self.say(self.verdict(task, event, VerdictKind.NOTED))
        self.read(event.event_id, work.subjects[0])
        return event.event_id

    def read(self, reader: str, path: str, *, fresh: bool = True) -> None:
        """The detector's word on one entry of an event's read set."""
        version = self.visible.get(path, "")
        self.say(ReadJudged(reader_event=reader, read_path=path, version=version, fresh=fresh, head=version))

    def tests(self, path: str = "") -> None:
        """Write tests and run them, both well."""
        self.writes(self.one(TestWork, path))
        self.runs()

    def checks(self, *, passed: bool = True, executed: bool = True) -> None:
        """Answer the check."""
        task, _ = self.one(CheckWork)
        self.done(task, Checked(passed=passed, executed=executed, exit_code=0 if passed else 1, detail="log"))

    def plans(self, *tasks: TaskSpec) -> None:
        """Answer the planner's task."""
        self.done(self.one(PlanWork)[0], Planned(tasks=tasks))

    def reverts(self) -> None:
        """Answer the task that sets a file back."""
        self.writes(self.one(RevertWork))

    def publishes(self) -> None:
        """Answer the last task."""
        task, work = self.one(PublishWork)
        result = Published(branch=work.branch, commit="beef", base_commit=work.commit, commits=1)
        self.done(task, result)

    def cancel(self) -> None:
        """Somebody asks for the end."""
        self.say(CancelRequested(requested_by="me"))

    # Conflicts ----------------------------------------------------------------------------------

    def forks(
        self,
        path: str,
        loser: str,
        *,
        conflict: str = "conflict",
        strategy: Strategy = Strategy.REWORK,
        attempt: int = 1,
        role: str = "generator",
    ) -> None:
        """The detector's word that a conflict holds the file."""
        self.offset += 1
        self.say(
            FileForked(
                path=path,
                conflict_id=conflict,
                heads=("h1", "h2"),
                base=None,
                overlaps=(),
                strategy=strategy,
                attempt=attempt,
                deadline=self.now + 1000,
                loser_task=loser,
                loser_role=role,
                own="h2",
                partition=0,
                offset=self.offset,
            )
        )

    def settles(
        self, path: str, head: str, *, conflict: str = "conflict", strategy: Strategy = Strategy.REWORK
    ) -> None:
        """The detector's word that the conflict is over, and this is what readers see."""
        self.visible[path] = head
        self.offset += 1
        self.say(
            FileSettled(
                path=path,
                head=head,
                conflict_id=conflict,
                strategy=strategy,
                partition=0,
                offset=self.offset,
            )
        )

    # The end ------------------------------------------------------------------------------------

    def ended(self, status: JobStatus, reason: str = "") -> None:
        """Assert how the job ended."""
        assert (self.state.status, self.state.ended) == (status, True), self.doing()
        assert reason in self.state.reason, self.state.reason
        assert self.state.reason
        assert self.orchestrator.wait(self.state) is None

    @property
    def stages(self) -> Mapping[str, str]:
        """The stage of each unit."""
        return {unit_id: str(unit.stage) for unit_id, unit in self.state.units.items()}


def event_id(task: Task, what: str) -> str:
    """The id of the event that a round makes."""
    return f"{task.role} {task.task_id[:8]} {what} round {task.round}"


__all__ = [
    "CODEC",
    "EDITS_ONLY",
    "JOB",
    "NO_TESTS",
    "EditWork",
    "JobWorld",
    "ResolveWork",
    "event_id",
    "spec",
]
