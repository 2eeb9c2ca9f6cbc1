"""Reads nothing, writes nothing: a job being folded, and the commands that come out of it.

`Step` is one call of the job fold: it holds the job as it is by now, and what is to be done. It is
never seen outside of that call.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
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
    TaskState,
    TaskStatus,
    Unit,
    is_undated,
    is_waited_for,
    transition,
)
from codeconvoy.schemas.persistent import Draft
from codeconvoy.schemas.tasks import (
    CheckWork,
    EditWork,
    Former,
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
MAX_END_CHARS = 10_000
"""Of the reason that a job ends with: it goes into the job's last fact."""


class Dispatch(NamedTuple):
    """Put a task on its role's queue. It is given its deadline by a fact, which the state asks for."""

    task: Task


class RecordEvent(NamedTuple):
    """Append a fact about a file that follows from the job's."""

    path: str
    task: Task
    payload: RoundVoided | ResolutionFailed


class Say(NamedTuple):
    """Append a fact to the job's own log."""

    payload: FactPayload


Command = Dispatch | RecordEvent | Say

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
    compiled = _compiled(glob)
    return compiled is not None and compiled.match_file(path)


@lru_cache(maxsize=1_000)
def _compiled(glob: str) -> GitIgnoreSpec | None:
    try:
        return GitIgnoreSpec.from_lines([glob])
    except ValueError:
        return None


class Step:
    """One call of the fold at work."""

    def __init__(self, job: JobState) -> None:
        self.job = job
        """Plain fields are changed here; what follows is put into it in the end."""
        self.commands: list[Command] = []
        self.tasks, self.units, self.files = Draft(job.tasks), Draft(job.units), Draft(job.files)
        self.origins = job.origins
        self.deadlines, self.undated = job.deadlines, job.undated
        self.open_tasks, self.open_units = job.open_tasks, job.open_units
        self.open_conflicts = job.open_conflicts
        self.ended_by_role, self.tally = job.ended_by_role, job.tally

    def finish(self, **fields: Any) -> tuple[JobState, tuple[Command, ...]]:
        """The folded job, with these fields too, and the commands."""
        while (first := self.deadlines.first) is not None and not self._stands(*first):
            self.deadlines = self.deadlines.without_first()
        while (sent := self.undated.first) is not None and not is_undated(self.tasks[sent[1]], sent[0]):
            self.undated = self.undated.without_first()
        job = msgspec.structs.replace(
            self.job,
            tasks=self.tasks.frozen(),
            units=self.units.frozen(),
            files=self.files.frozen(),
            origins=self.origins,
            deadlines=self.deadlines,
            undated=self.undated,
            open_tasks=self.open_tasks,
            open_units=self.open_units,
            open_conflicts=self.open_conflicts,
            ended_by_role=self.ended_by_role,
            tally=self.tally,
            **fields,
        )
        return job, tuple(self.commands)

    def _stands(self, deadline: int, task_id: str) -> bool:
        state = self.tasks[task_id]
        return is_waited_for(state) and state.deadline == deadline

    def change(self, **fields: Any) -> None:
        """Replace plain fields of the job."""
        self.job = msgspec.structs.replace(self.job, **fields)

    @property
    def spec(self) -> JobSpec:
        """What was asked for."""
        assert self.job.spec is not None, "a job without a spec is not folded"
        return self.job.spec

    def task_of(self, event_id: str) -> TaskState | None:
        """The task that an event comes from, if it is one of this job's."""
        task_id = self.origins.get(event_id)
        return self.tasks.get(task_id) if task_id is not None else None

    def file(self, path: str) -> FileStatus:
        """What was last heard of a file."""
        return self.files.get(path) or FileStatus(number=len(self.files), path=path)

    def is_news(self, path: str, partition: int, offset: int) -> bool:
        """True where a record of this file's log is a later one than what was last heard of the file."""
        known = self.file(path)
        return offset > known.offset or partition != known.partition

    def put_file(self, path: str, **heard: Any) -> None:
        """Take down what was heard of a file."""
        self.files.put(path, msgspec.structs.replace(self.file(path), **heard))

    def put_conflict(self, path: str, conflict: OpenConflict | None) -> None:
        """A conflict was opened, has moved on, or (None) was settled."""
        known = self.file(path).conflict
        self.put_file(path, conflict=conflict)
        self.open_conflicts += (conflict is not None) - (known is not None)

    def put_task(self, task_id: str, state: TaskState) -> None:
        """Replace a task, and keep count of the open ones and of what is waited for."""
        before = self.tasks.get(task_id)
        if state.number < 0:
            state = msgspec.structs.replace(state, number=before.number if before else len(self.tasks))
        self.tasks.put(task_id, state)
        was_open, is_open = before is not None and before.status.open, state.status.open
        self.open_tasks += is_open - was_open
        if was_open and not is_open:
            role = state.task.role
            self.ended_by_role = {**self.ended_by_role, role: self.ended_in_role(role) + 1}
        if is_waited_for(state) and (before is None or before.deadline != state.deadline):
            self.deadlines = self.deadlines.pushed((state.deadline, task_id))

    def wait_anew(self, task_id: str, state: TaskState) -> None:
        """Wait for an answer to a dispatched task, from now on."""
        sent = self.job.facts
        self.put_task(task_id, msgspec.structs.replace(state, sent=sent, deadline=0))
        self.undated = self.undated.pushed((sent, task_id))

    def put_unit(self, unit: Unit) -> None:
        """Replace a unit, and keep count of the open ones."""
        before = self.units.get(unit.unit_id)
        if unit.number < 0:
            unit = msgspec.structs.replace(unit, number=before.number if before else len(self.units))
        was_open = before is not None and not before.stage.ended
        self.units.put(unit.unit_id, unit)
        self.open_units += (not unit.stage.ended) - was_open

    def watch(self, path: str, unit_id: str) -> None:
        """Let a unit be told of what happens to a file."""
        watching = self.file(path).watchers
        if unit_id not in watching:
            self.put_file(path, watchers=(*watching, unit_id))

    def count(self, **more: int) -> None:
        """Add to the tally."""
        new = {name: getattr(self.tally, name) + number for name, number in more.items()}
        self.tally = msgspec.structs.replace(self.tally, **new)

    def ended_in_role(self, role: str) -> int:
        """Tasks of a role that have ended."""
        return self.ended_by_role.get(role, 0)

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
        former: Former | None = None,
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
            on_move=self.spec.on_move,
            deadline_seconds=self.spec.task_deadline_seconds,
            priority=self.spec.priority,
            budget=self.spec.budget,
            former=former,
            work=work,
        )
        status = transition(before.status, Happening.SENT) if before else TaskStatus.DISPATCHED
        repairs = before.repairs if before else 0
        self.wait_anew(
            task_id,
            TaskState(
                task=task,
                unit=unit,
                status=status,
                repairs=repairs,
                told=before.told if before else (),
                edited=before.edited if before else None,
            ),
        )
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
        former = state.edited
        if former is not None:
            former = msgspec.structs.replace(former, moved=bool(state.refusal) or state.stale)
        self.send(
            task.task_id,
            task.role,
            task.path,
            work,
            unit=state.unit,
            goal=task.goal,
            reads=task.reads,
            former=former,
        )

    def can_retry(self, state: TaskState) -> bool:
        """True while a task has rounds left (setting a file back always gets a few more). A job whose end
        is decided sends only its work to git again."""
        if self.job.ends_as is not None and not isinstance(state.task.work, PublishWork):
            return False
        extra = 3 if isinstance(state.task.work, RevertWork) else 0
        return state.task.round < self.spec.max_rounds + state.repairs + extra

    def void(self, state: TaskState, reason: str) -> None:
        """Give up a round: edits of it that come later are dead."""
        task = state.task
        if not isinstance(task.work, EditWork | TestWork | ResolveWork | RevertWork):
            return
        paths = {task.path, *touched(task.work)}
        for path in sorted(paths):
            payload = RoundVoided(task_id=task.task_id, round=task.round, reason=reason[:MAX_REASON_CHARS])
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
        """A task after a round's own word: what it wrote waits for its verdicts."""
        events, task_id = emitted(done.result), state.task.task_id
        self.origins = self.origins.updated({event.event_id: task_id for event in events})
        return msgspec.structs.replace(
            state,
            status=transition(state.status, Happening.DID),
            deadline=0,
            events=events,
            told=(*state.told, *((event.event_id, self.job.facts) for event in events)),
            pending=frozenset(event.event_id for event in events),
            unread=sum(event.reads for event in events),
            answered=(),
            result=done.result,
            refusal="",
            stale=False,
        )

    def end_unit(self, unit: Unit, stage: Stage, reason: str = "") -> None:
        """A unit has come to its end."""
        self.put_unit(msgspec.structs.replace(unit, stage=stage, tasks=(), reason=reason or unit.reason))

    def ends(self, status: JobStatus, reason: str) -> None:
        """Decide how the job will end, once."""
        if self.job.ends_as is None:
            self.change(ends_as=status, reason=reason[:MAX_END_CHARS])
