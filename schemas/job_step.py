"""Reads nothing, writes nothing: a job being folded, and the commands that come out of it.

`Step` is the working copy of one call of the job fold: it is made from a frozen `JobState`,
changed in place, and frozen again. It is never seen outside of that call.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from pathspec import GitIgnoreSpec

from codeconvoy.schemas.events import Policy, ResolutionFailed, RoundVoided
from codeconvoy.schemas.job_facts import (
    Checked,
    Emitted,
    FactPayload,
    Imported,
    JobStatus,
    Planned,
    Published,
    Result,
    Reviewed,
    TaskDone,
    Tested,
    Worked,
)
from codeconvoy.schemas.job_spec import JobSpec
from codeconvoy.schemas.job_state import (
    FileStatus,
    Happening,
    JobState,
    OpenConflict,
    Stage,
    Tally,
    TaskState,
    TaskStatus,
    Unit,
    transition,
)
from codeconvoy.schemas.tasks import (
    CheckWork,
    EditWork,
    ImportWork,
    MustSee,
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

MAX_FEEDBACK = 5
MAX_FEEDBACK_CHARS = 20_000
"""So many reasons, and so much of each, travel with a task: it must fit into a record."""
MAX_REASON_CHARS = 2_000


class Dispatch(NamedTuple):
    """Put a task on its role's queue, and say so on the job log with a deadline."""

    task: Task


class SetDeadline(NamedTuple):
    """Say on the job log until when to wait: for a task's round, or the job (task id empty)."""

    task_id: str
    round: int
    seconds: int


class RecordEvent(NamedTuple):
    """Append a fact about a file that follows from the job's."""

    path: str
    task: Task
    payload: RoundVoided | ResolutionFailed


class Say(NamedTuple):
    """Append a fact to the job's own log."""

    payload: FactPayload


Command = Dispatch | SetDeadline | RecordEvent | Say

_ANSWERS: Mapping[type[Work], type[Result]] = {
    EditWork: Worked,
    TestWork: Worked,
    ResolveWork: Worked,
    RevertWork: Worked,
    ReviewWork: Reviewed,
    PlanWork: Planned,
    ImportWork: Imported,
    RunWork: Tested,
    CheckWork: Checked,
    PublishWork: Published,
}
"""What each kind of work is answered with."""


def answers(work: Work, result: Result) -> bool:
    """True where the result is of the kind that the work asks for."""
    return isinstance(result, _ANSWERS[type(work)])


def emitted(result: Result) -> tuple[Emitted, ...]:
    """The events that a task's word speaks of: it is done when they are judged."""
    match result:
        case Worked(events=events):
            return events
        case Reviewed(event=event) | Tested(event=event):
            return (event,)
        case Imported(files=files):
            return tuple(
                Emitted(path=file.path, event_id=file.event_id, is_edit=True)
                for file in files
                if file.written
            )
        case _:
            return ()


def touched(work: Work) -> tuple[str, ...]:
    """The files besides its own that a task reads or writes by its kind of work."""
    match work:
        case EditWork(also=also):
            return also
        case TestWork(test_path=test_path):
            return (test_path,)
        case RunWork(subjects=subjects):
            return subjects
        case CheckWork(paths=paths) | PublishWork(paths=paths):
            return paths
        case _:
            return ()


def policy_for(spec: JobSpec, path: str) -> Policy:
    """How forks of a file are resolved in a job: the first override that matches, or the job's own."""
    chosen = next((o.strategies for o in spec.overrides if _matches(o.glob, path)), spec.strategies)
    return Policy(
        strategies=chosen,
        rework_seconds=spec.task_deadline_seconds,
        human_seconds=spec.human.deadline_seconds,
        default=spec.human.default,
    )


def _matches(glob: str, path: str) -> bool:
    """A glob that is none matches nothing: the job is refused with a message when it is checked."""
    try:
        return GitIgnoreSpec.from_lines([glob]).match_file(path)
    except ValueError:
        return False


class Step:
    """One call of the fold at work."""

    def __init__(self, job: JobState) -> None:
        self.job = job
        self.commands: list[Command] = []
        self._owned: dict[str, dict[str, Any]] = {}

    def finish(self) -> tuple[JobState, tuple[Command, ...]]:
        """The folded job, and the commands."""
        return msgspec.structs.replace(self.job, **self._owned), tuple(self.commands)

    def change(self, **fields: Any) -> None:
        """Replace plain fields of the job."""
        self.job = msgspec.structs.replace(self.job, **fields)

    def _view(self, name: str) -> dict[str, Any]:
        return self._owned[name] if name in self._owned else getattr(self.job, name)

    def _own(self, name: str) -> dict[str, Any]:
        if name not in self._owned:
            self._owned[name] = dict(getattr(self.job, name))
        return self._owned[name]

    @property
    def spec(self) -> JobSpec:
        """What was asked for."""
        assert self.job.spec is not None, "a job without a spec is not folded"
        return self.job.spec

    @property
    def tasks(self) -> Mapping[str, TaskState]:
        """Tasks by id."""
        return self._view("tasks")

    @property
    def units(self) -> Mapping[str, Unit]:
        """Units by id."""
        return self._view("units")

    @property
    def conflicts(self) -> Mapping[str, OpenConflict]:
        """Open conflicts by path."""
        return self._view("conflicts")

    @property
    def origins(self) -> Mapping[str, str]:
        """Task ids by event id."""
        return self._view("origins")

    def watchers(self, path: str) -> tuple[str, ...]:
        """The units that wait for a file."""
        found: tuple[str, ...] = self._view("watchers").get(path, ())
        return found

    def file(self, path: str) -> FileStatus:
        """What was last heard of a file."""
        status: FileStatus | None = self._view("files").get(path)
        return status or FileStatus()

    def is_news(self, path: str, partition: int, offset: int) -> bool:
        """True where a record of this file's log is a later one than what was last heard of the file."""
        known = self.file(path)
        return offset > known.offset or partition != known.partition

    def put_file(self, path: str, status: FileStatus) -> None:
        """Take down what was heard of a file."""
        self._own("files")[path] = status

    def put_origin(self, event_id: str, task_id: str) -> None:
        """Take down which task an event comes from."""
        self._own("origins")[event_id] = task_id

    def put_conflict(self, path: str, conflict: OpenConflict | None) -> None:
        """A conflict was opened, has moved on, or (None) was settled."""
        if conflict is None:
            self._own("conflicts").pop(path, None)
        else:
            self._own("conflicts")[path] = conflict

    def put_task(self, task_id: str, state: TaskState) -> None:
        """Replace a task, and keep count of the open ones."""
        before = self.tasks.get(task_id)
        was_open = before is not None and before.status.open
        self._own("tasks")[task_id] = state
        if was_open != state.status.open:
            self.change(open_tasks=self.job.open_tasks + (1 if state.status.open else -1))
        if before is not None and was_open and not state.status.open:
            role = state.task.role
            ended = self._own("ended_by_role")
            ended[role] = ended.get(role, 0) + 1

    def put_unit(self, unit: Unit) -> None:
        """Replace a unit, and keep count of the open ones."""
        before = self.units.get(unit.unit_id)
        was_open = before is not None and not before.stage.ended
        self._own("units")[unit.unit_id] = unit
        if was_open != (not unit.stage.ended):
            self.change(open_units=self.job.open_units + (-1 if unit.stage.ended else 1))

    def watch(self, path: str, unit_id: str) -> None:
        """Let a unit be told of what happens to a file."""
        watching = self.watchers(path)
        if unit_id not in watching:
            self._own("watchers")[path] = (*watching, unit_id)

    def count(self, **more: int) -> None:
        """Add to the tally."""
        tally: Tally = self.job.tally
        new = {name: getattr(tally, name) + number for name, number in more.items()}
        self.change(tally=msgspec.structs.replace(tally, **new))

    def ended_in_role(self, role: str) -> int:
        """Tasks of a role that have ended."""
        number: int = self._view("ended_by_role").get(role, 0)
        return number

    def must_see(self, paths: Iterable[str]) -> tuple[MustSee, ...]:
        """What a task that reads these files must find in the projection, a point a partition."""
        points: dict[int, int] = {}
        for path in paths:
            status = self.file(path)
            if status.offset >= 0:
                points[status.partition] = max(points.get(status.partition, -1), status.offset)
        return tuple(MustSee(partition=p, offset=o) for p, o in sorted(points.items()))

    def send(
        self,
        task_id: str,
        role: str,
        path: str,
        work: Work,
        *,
        unit: str = "",
        goal: str = "",
        reads: tuple[str, ...] = (),
    ) -> None:
        """Dispatch a task: its first round, or the next one if it was dispatched before."""
        before = self.tasks.get(task_id)
        task = Task(
            task_id=task_id,
            job_id=self.job.job_id,
            workspace=self.spec.workspace,
            role=role,
            path=path,
            round=before.task.round + 1 if before else 1,
            goal=goal or self.spec.goal,
            reads=reads,
            must_see=self.must_see({path, *reads, *touched(work)}),
            consistency=self.spec.consistency,
            policy=policy_for(self.spec, path),
            deadline_seconds=self.spec.task_deadline_seconds,
            priority=self.spec.priority,
            work=work,
        )
        status = transition(before.status, Happening.SENT) if before else TaskStatus.DISPATCHED
        repairs = before.repairs if before else 0
        self.put_task(task_id, TaskState(task=task, unit=unit, status=status, repairs=repairs))
        self.commands.append(Dispatch(task))

    def send_again(self, state: TaskState, why: str, *, base: str | None = None) -> None:
        """The next round of a task, told why the last one was not enough."""
        self.count(reworks=1)
        why = why[:MAX_FEEDBACK_CHARS]
        task = state.task
        dead = next((e.event_id for e in state.events if e.is_edit), None) if state.refusal else None
        work = task.work
        if isinstance(work, EditWork):
            feedback = (*work.feedback, why)[-MAX_FEEDBACK:]
            work = msgspec.structs.replace(
                work, feedback=feedback, reworks=dead, base=work.base if base is None else base
            )
        elif isinstance(work, TestWork):
            work = msgspec.structs.replace(work, feedback=(*work.feedback, why)[-MAX_FEEDBACK:], reworks=dead)
        self.send(task.task_id, task.role, task.path, work, unit=state.unit, goal=task.goal, reads=task.reads)

    def can_retry(self, state: TaskState) -> bool:
        """True while a task has rounds left (setting a file back always gets a few more)."""
        extra = 3 if isinstance(state.task.work, RevertWork) else 0
        return state.task.round < self.spec.max_rounds + state.repairs + extra

    def void(self, state: TaskState, reason: str) -> None:
        """Give up a round: edits of it that come later are dead."""
        task = state.task
        if not isinstance(task.work, EditWork | TestWork | ResolveWork | RevertWork):
            return
        paths = {task.path, *touched(task.work)}
        for path in sorted(paths):
            payload = RoundVoided(task_id=task.task_id, round=task.round, reason=reason)
            self.commands.append(RecordEvent(path, task, payload))

    def give_back(self, path: str, task: Task, work: ResolveWork, reason: str) -> None:
        """Nobody of this job resolves a conflict on a file, the author of `task` neither: its next
        strategy's turn."""
        failed = ResolutionFailed(
            conflict_id=work.conflict_id,
            attempt=work.attempt,
            strategy=work.strategy,
            reason=reason[:MAX_REASON_CHARS],
        )
        self.commands.append(RecordEvent(path, task, failed))

    def report(self, state: TaskState, done: TaskDone) -> TaskState:
        """A round's own word: what it wrote waits for its verdicts."""
        events = emitted(done.result)
        for event in events:
            self.put_origin(event.event_id, state.task.task_id)
        state = msgspec.structs.replace(
            state,
            status=transition(state.status, Happening.DID),
            deadline=0,
            events=events,
            pending=tuple(event.event_id for event in events),
            unread=sum(event.reads for event in events),
            answered=(),
            result=done.result,
            refusal="",
            stale=False,
        )
        self.put_task(state.task.task_id, state)
        return state

    def end_unit(self, unit: Unit, stage: Stage, reason: str = "") -> None:
        """A unit has come to its end."""
        self.put_unit(msgspec.structs.replace(unit, stage=stage, tasks=(), reason=reason or unit.reason))

    def ends(self, status: JobStatus, reason: str) -> None:
        """Decide how the job will end, once."""
        if self.job.ends_as is None:
            self.change(ends_as=status, reason=reason)
