"""Reads nothing, writes nothing: what is remembered of a job, the state of the job fold.

A job is cut into units, one a file (and one for each test that is written side by side). A unit
goes through the stages of the pipeline; each stage is one or several tasks. The life of a task is
the table `TRANSITIONS`.

What there may be thousands of in a job (tasks, units, files) is kept so that one more fact costs the
same in a large job as in a small one, and has a number, under which it is stored on its own.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from codeconvoy.schemas.budget import Ledger
from codeconvoy.schemas.errors import IllegalCommand
from codeconvoy.schemas.events import Strategy
from codeconvoy.schemas.job_facts import Emitted, Imported, JobStatus, Planned, Published, Result
from codeconvoy.schemas.job_spec import JobSpec
from codeconvoy.schemas.persistent import PersistentHeap, PersistentMap, PersistentQueue
from codeconvoy.schemas.tasks import Former, Task

MAX_REPAIRS = 8
"""Times that a task is done again because what it had read moved."""
STAGES = 4
"""Stages that a unit goes through at most between two rounds of its author."""
NEVER = 2**63 - 1
"""Later than any deadline."""
GIT_ROLE = "git"
RUNNER_ROLE = "runner"


class TaskStatus(StrEnum):
    """Where a task stands."""

    DISPATCHED = "dispatched"
    """On its role's queue, or being worked on."""
    REPORTED = "reported"
    """Its own word is there; verdicts of its events are missing."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def open(self) -> bool:
        """True while something is still to come."""
        return self is TaskStatus.DISPATCHED or self is TaskStatus.REPORTED


class Happening(StrEnum):
    """What can happen to a task."""

    SENT = "sent"
    DID = "did"
    JUDGED = "judged"
    REFUSED = "refused"
    GAVE_UP = "gave_up"
    CANCEL = "cancel"


TRANSITIONS: Mapping[tuple[TaskStatus, Happening], TaskStatus] = {
    (TaskStatus.DISPATCHED, Happening.DID): TaskStatus.REPORTED,
    (TaskStatus.DISPATCHED, Happening.SENT): TaskStatus.DISPATCHED,
    (TaskStatus.DISPATCHED, Happening.GAVE_UP): TaskStatus.FAILED,
    (TaskStatus.DISPATCHED, Happening.CANCEL): TaskStatus.CANCELLED,
    (TaskStatus.REPORTED, Happening.JUDGED): TaskStatus.DONE,
    (TaskStatus.REPORTED, Happening.REFUSED): TaskStatus.FAILED,
    (TaskStatus.REPORTED, Happening.SENT): TaskStatus.DISPATCHED,
    (TaskStatus.REPORTED, Happening.CANCEL): TaskStatus.CANCELLED,
    (TaskStatus.DONE, Happening.SENT): TaskStatus.DISPATCHED,
    (TaskStatus.FAILED, Happening.SENT): TaskStatus.DISPATCHED,
}
"""(state, happening) -> state. SENT again is the next round. What is not here is illegal."""


def transition(status: TaskStatus, happening: Happening) -> TaskStatus:
    """The next state of a task.

    Raises:
        IllegalCommand: the table has no such step.
    """
    try:
        return TRANSITIONS[status, happening]
    except KeyError:
        raise IllegalCommand(status, happening) from None


class Stage(StrEnum):
    """Where a unit stands in the pipeline."""

    GENERATE = "generate"
    REVIEW = "review"
    TEST = "test"
    RUN = "run"
    REVERT = "revert"
    DONE = "done"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """True where the unit has come to its end."""
        return self is Stage.DONE or self is Stage.FAILED


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the parts of a job's state: immutable, by keyword only."""


class TaskState(_State, frozen=True, kw_only=True):
    """One logical task: its present round, and what is still missing of it."""

    number: int = -1
    """Of the task in its job, from 0."""
    task: Task
    unit: str
    """The unit that it works for; empty for the job's own (import, plan, check, publish)."""
    status: TaskStatus = TaskStatus.DISPATCHED
    sent: int = 0
    """The number of the fact that made it wait for an answer."""
    deadline: int = 0
    """Milliseconds since the epoch; 0 until a fact has set it."""
    mark: int = 0
    """Tasks of the role that had ended when the deadline was set: a queue that moves is no reason
    to give up a task that waits in it."""
    pending: frozenset[str] = frozenset()
    """Events of this round without a final verdict."""
    unread: int = 0
    """Entries of the read sets of this round's events that have not been answered."""
    answered: tuple[str, ...] = ()
    """`event path` of those that have."""
    events: tuple[Emitted, ...] = ()
    told: tuple[tuple[str, int], ...] = ()
    """Every event that any of its rounds spoke of, with the number of the fact that did so."""
    result: Result | None = None
    refusal: str = ""
    """Why an event of this round was refused, if one was."""
    stale: bool = False
    """What this round was built on has moved."""
    repairs: int = 0
    reason: str = ""
    edited: Former | None = None
    """Its latest edit of its own file, whatever became of it."""


class Unit(_State, frozen=True, kw_only=True):
    """One file on its way through the pipeline."""

    number: int = -1
    """Of the unit in its job, from 0."""
    unit_id: str
    path: str
    stage: Stage
    base: str
    """The event that holds the content at the job's ref; empty where the file was absent."""
    authors: tuple[str, ...] = ()
    """The generate tasks, in order."""
    tasks: tuple[str, ...] = ()
    """The tasks of the present stage."""
    test_path: str = ""
    tester: str = ""
    """The task that writes its tests."""
    reviewed: str = ""
    """The version that the reviewers approved."""
    cycles: int = 1
    """Times that the generate stage was gone through."""
    visits: int = 0
    """Counts the stages gone through: names their tasks."""
    alone: bool = False
    """A test written side by side with the edits: starts and ends with the test stage."""
    reason: str = ""


class OpenConflict(_State, frozen=True, kw_only=True):
    """A conflict on a file where this job has a head."""

    conflict_id: str
    strategy: Strategy
    attempt: int
    deadline: int


class FileStatus(_State, frozen=True, kw_only=True):
    """What the detector last said of a file, and who in the job waits for it."""

    number: int = -1
    """Of the file in its job, from 0."""
    path: str = ""
    visible: str = ""
    forked: bool = False
    partition: int = -1
    offset: int = -1
    conflict: OpenConflict | None = None
    watchers: tuple[str, ...] = ()
    """The units that are told of what happens to it."""


class Tally(_State, frozen=True, kw_only=True):
    """Counts of what happened, for people."""

    edits: int = 0
    """Live edits of this job's tasks, its imports among them, resolutions not."""
    forks: int = 0
    overlapping: int = 0
    """Forks in which two heads changed the same lines."""
    resolved: Mapping[str, int] = {}
    """Resolutions by strategy."""
    approvals: int = 0
    rejections: int = 0
    tests_written: int = 0
    tests_run: int = 0
    stale: int = 0
    reworks: int = 0


class JobState(_State, frozen=True, kw_only=True):
    """A job as its log says. Mappings are never changed in place."""

    job_id: str
    spec: JobSpec | None = None
    status: JobStatus = JobStatus.RUNNING
    submitted_at: int = 0
    deadline: int = 0
    ends_as: JobStatus | None = None
    """Decided: the status that the job will end with once its work is published."""
    reason: str = ""
    imported: Imported | None = None
    planned: Planned | None = None
    published: Published | None = None
    tasks: PersistentMap[TaskState] = msgspec.field(default_factory=PersistentMap)
    units: PersistentMap[Unit] = msgspec.field(default_factory=PersistentMap)
    files: PersistentMap[FileStatus] = msgspec.field(default_factory=PersistentMap)
    """By path."""
    ended_by_role: Mapping[str, int] = {}
    open_tasks: int = 0
    open_units: int = 0
    open_conflicts: int = 0
    tally: Tally = Tally()
    ledger: Ledger = Ledger()
    facts: int = 0
    updated_at: int = 0
    origins: PersistentMap[str] = msgspec.field(default_factory=PersistentMap)
    """The task that spoke last of each event of this job. Follows from what the tasks hold."""
    deadlines: PersistentHeap = msgspec.field(default_factory=PersistentHeap)
    """Of dispatched tasks, with their ids; the first one stands, later ones may be over. Likewise."""
    undated: PersistentQueue[tuple[int, str]] = PersistentQueue()
    """Dispatched tasks without a deadline, each after the number of the fact that sent it. Likewise."""
    trace: str = ""
    """The W3C `traceparent` of its submission. No rule of the fold looks at it."""

    @property
    def ended(self) -> bool:
        """True when nothing that comes later changes the job."""
        return self.status.ended

    @property
    def conflicts(self) -> Mapping[str, OpenConflict]:
        """The open conflicts by path. Looks at all files: for people."""
        return {path: file.conflict for path, file in self.files.items() if file.conflict is not None}

    @property
    def next_wait(self) -> int | None:
        """When the first wait runs out, in milliseconds since the epoch. Long ago, and another time for each,
        where one is still to be given its deadline."""
        if self.ended or self.spec is None:
            return None
        if self.status is JobStatus.RUNNING and not self.deadline:
            return -NEVER
        if self.undated.first is not None:
            return self.undated.first[0] - NEVER
        return self.next_deadline if self.next_deadline != NEVER else None

    @property
    def next_deadline(self) -> int:
        """The first deadline, in milliseconds since the epoch."""
        first = self.deadlines.first[0] if self.deadlines.first is not None else NEVER
        own = self.deadline if self.status is JobStatus.RUNNING and self.deadline else NEVER
        return min(first, own)

    def without_deadline(self) -> list[tuple[str, int]]:
        """The rounds that wait for an answer and have no deadline, as (task id, round)."""
        waiting = (task_id for sent, task_id in self.undated if is_undated(self.tasks[task_id], sent))
        return [(task_id, self.tasks[task_id].task.round) for task_id in dict.fromkeys(waiting)]

    def waits(self) -> list[tuple[int, str, int]]:
        """Every wait that has a deadline, as (milliseconds since the epoch, task id, round); the
        job's own has no task id. Looks at all tasks: for when one has run out."""
        if self.ended:
            return []
        waits = [
            (state.deadline, task_id, state.task.round)
            for task_id, state in self.tasks.items()
            if is_waited_for(state)
        ]
        if self.deadline and self.status is JobStatus.RUNNING:
            waits.append((self.deadline, "", 0))
        return waits


def is_waited_for(state: TaskState) -> bool:
    """True while a task's round has a deadline."""
    return state.deadline > 0 and state.status is TaskStatus.DISPATCHED


def is_undated(state: TaskState, sent: int) -> bool:
    """True while a task's round, sent by the fact of this number, is to be given its deadline."""
    return state.deadline == 0 and state.status is TaskStatus.DISPATCHED and state.sent == sent


def restored(
    job: JobState, tasks: Iterable[TaskState], units: Iterable[Unit], files: Iterable[FileStatus]
) -> JobState:
    """A job from its parts as they were stored, each kind in the order of its numbers."""
    by_id = {state.task.task_id: state for state in tasks}
    spoken = sorted((at, event, task_id) for task_id, state in by_id.items() for event, at in state.told)
    return msgspec.structs.replace(
        job,
        tasks=PersistentMap(by_id),
        units=PersistentMap({unit.unit_id: unit for unit in units}),
        files=PersistentMap({file.path: file for file in files}),
        origins=PersistentMap({event: task_id for _, event, task_id in spoken}),
        deadlines=PersistentHeap(
            (state.deadline, task_id) for task_id, state in by_id.items() if is_waited_for(state)
        ),
        undated=PersistentQueue(
            sorted((state.sent, task_id) for task_id, state in by_id.items() if is_undated(state, state.sent))
        ),
    )
