"""Reads nothing, writes nothing: the fact about a job, which the `jobs` log holds.

Facts come from clients (submitted, cancelled), from workers (task done or failed), from the
detector (what became of each edit, conflict and read) and from the orchestrator (dispatched,
deadline passed, finished). A fact that comes late or twice is ignored by the job's fold.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from codeconvoy.schemas.budget import Amounts
from codeconvoy.schemas.events import LineRange, Strategy, Tried, Usage
from codeconvoy.schemas.job_spec import JobSpec, TaskSpec


class JobStatus(StrEnum):
    """Where a job stands. All but the first two are ends."""

    RUNNING = "running"
    ENDING = "ending"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"
    BUDGET_EXHAUSTED = "budget_exhausted"
    TIMED_OUT = "timed_out"

    @property
    def ended(self) -> bool:
        """True where nothing that comes later changes the job."""
        return self not in (JobStatus.RUNNING, JobStatus.ENDING)


class VerdictKind(StrEnum):
    """What the fold says of an event (design section 5)."""

    ACCEPTED = "accepted"
    """An edit became the one head."""
    FORKED = "forked"
    """An edit is live, beside other heads."""
    DEFERRED = "deferred"
    """The file is held by a claim: judged when that ends."""
    DUPLICATE = "duplicate"
    INVALID = "invalid"
    STALE = "stale"
    """Built on a version that is no longer the head, and of no effect."""
    NOTED = "noted"
    """Not an edit; taken down."""
    OUTDATED = "outdated"
    """Was fresh when it was noted; the head has moved since."""


class _Fact(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of the parts of a fact: immutable, by keyword only."""


class JobSubmitted(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.JobSubmitted"):
    """A client asks for a job."""

    spec: JobSpec
    submitted_by: str = ""


class CancelRequested(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.CancelRequested"):
    """Somebody asks for the job to end now."""

    requested_by: str
    reason: str = ""


class DispatchedRound(_Fact, frozen=True, kw_only=True):
    """A round of a task."""

    task_id: str
    round: int


class TaskDispatched(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.TaskDispatched"):
    """A task was put on its role's queue; when `deadline` passes it is given up. Or the job was begun
    (`task_id` empty)."""

    task_id: str
    round: int
    deadline: int
    """Milliseconds since the epoch, by the orchestrator's clock."""
    also: tuple[DispatchedRound, ...] = ()
    """Further rounds of tasks, with the same deadline."""


class DeadlinePassed(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.DeadlinePassed"):
    """A wait was too long: of a task's round, or of the job (`task_id` empty)."""

    task_id: str = ""
    round: int = 0


class ImportedFile(_Fact, frozen=True, kw_only=True):
    """One file that came in from git: the event that holds the content at the job's ref."""

    path: str
    event_id: str
    """Empty where the path is absent at the ref (it may be created)."""
    visible: str = ""
    """The event that readers of the workspace see; another one where earlier jobs went on from it."""
    written: bool = True
    """True where this task wrote the event, False where the workspace had it already."""


class SkippedFile(_Fact, frozen=True, kw_only=True):
    """A file that the job named and that can't be edited, with the reason."""

    path: str
    reason: str


class Imported(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.Imported"):
    """The repository was read at `commit`."""

    commit: str
    files: tuple[ImportedFile, ...]
    skipped: tuple[SkippedFile, ...] = ()


class Planned(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.Planned"):
    """A planner's answer."""

    tasks: tuple[TaskSpec, ...]


class Emitted(_Fact, frozen=True, kw_only=True):
    """One event that a task wrote in the same transaction as its word on the job log."""

    path: str
    event_id: str
    is_edit: bool
    reads: int = 0
    """Entries of the event's read set: as many READ_NOTED answers will follow."""


class Worked(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.Worked"):
    """An agent edited files (or found nothing to edit: no events)."""

    events: tuple[Emitted, ...] = ()
    summary: str = ""


class Reviewed(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.Reviewed"):
    """A reviewer voted on one version."""

    event: Emitted
    version: str
    approved: bool
    lens: str
    comments: tuple[str, ...] = ()


class Tested(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.Tested"):
    """A test file was run on the versions in the event's read set."""

    event: Emitted
    outcome: str
    """As in `TestExecuted`."""
    detail: str = ""


class Checked(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.Checked"):
    """The job's check command was run on the final tree."""

    passed: bool
    executed: bool
    exit_code: int
    detail: str = ""


class Published(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.Published"):
    """The result was written to git."""

    branch: str
    commit: str
    base_commit: str
    commits: int


Result = Imported | Planned | Worked | Reviewed | Tested | Checked | Published


class TaskDone(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.TaskDone"):
    """A task's own word that a round is done, with what came out of it."""

    task_id: str
    round: int
    agent_id: str
    result: Result
    usage: Usage | None = None
    seconds: float = 0.0


class TaskFailed(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.TaskFailed"):
    """A task's own word that a round could not be done."""

    task_id: str
    round: int
    agent_id: str
    reason: str
    retryable: bool = False
    over_budget: bool = False
    """The job's budget leaves nothing for this task, and never will."""


class CallBegun(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.CallBegun"):
    """A model is about to be called for a job with a budget: nothing was sent before this was written."""

    call_id: str
    task_id: str
    round: int
    worst: Amounts
    """The most that all attempts of the call can cost."""


class CallEnded(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.CallEnded"):
    """A call that has begun is over; a call of which this never comes counts in full."""

    call_id: str
    spent: Amounts
    """An attempt whose outcome is not known counts in full."""


class Judgement(_Fact, frozen=True, kw_only=True):
    """The fold's verdict on an event of this job."""

    event_id: str
    task_id: str
    round: int
    path: str
    verdict: VerdictKind
    reason: str = ""
    heads: tuple[str, ...] = ()
    """The file's heads after the event, in log order."""
    visible: str = ""
    """The event whose content readers see, after the event."""
    partition: int = -1
    offset: int = -1
    """Where the event stands on the events log: what a successor must have seen."""


class EventJudged(Judgement, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.EventJudged"):
    """The fold's verdict on an event of this job."""

    also: tuple[Judgement, ...] = ()
    """Further ones, reached after it and told together with it."""

    @staticmethod
    def of(judgements: Sequence[Judgement]) -> "EventJudged":
        """One fact that says all of these, of which there is at least one."""
        first, *others = judgements
        return EventJudged(**msgspec.structs.asdict(first), also=tuple(others))

    @property
    def judgements(self) -> tuple[Judgement, ...]:
        """All that it says, in order."""
        fields = Judgement.__struct_fields__
        return Judgement(**{name: getattr(self, name) for name in fields}), *self.also


class ReadJudged(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.ReadJudged"):
    """Whether one entry of an event's read set is (still) the head of the file that was read."""

    reader_event: str
    read_path: str
    version: str
    fresh: bool
    head: str = ""


class FileForked(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.FileForked"):
    """A conflict was opened, or goes to its next strategy, on a file where this job has a head."""

    path: str
    conflict_id: str
    heads: tuple[str, ...]
    base: str | None
    overlaps: tuple[LineRange, ...]
    strategy: Strategy
    attempt: int
    deadline: int
    loser_task: str
    """The task of the later head: its job has the work reconciled, where an agent does that."""
    loser_role: str
    own: str = ""
    """The head that holds the loser's work."""
    tried: tuple[Tried, ...] = ()
    partition: int = -1
    offset: int = -1


class FileSettled(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.FileSettled"):
    """A conflict on a file where this job had a head is over."""

    path: str
    head: str
    """The version that readers see."""
    conflict_id: str
    strategy: Strategy
    forked: bool = False
    """True while heads are left, to be joined next, of which only some hold this job's work."""
    partition: int = -1
    offset: int = -1


class JobFinished(_Fact, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.JobFinished"):
    """The job ended. Nothing that comes later changes it."""

    status: JobStatus
    reason: str
    branch: str = ""
    commit: str = ""


FactPayload = (
    JobSubmitted
    | CancelRequested
    | TaskDispatched
    | DeadlinePassed
    | TaskDone
    | TaskFailed
    | EventJudged
    | ReadJudged
    | FileForked
    | FileSettled
    | JobFinished
    | CallBegun
    | CallEnded
)


class JobFact(_Fact, frozen=True, kw_only=True):
    """An immutable fact about one job."""

    fact_id: str
    job_id: str
    timestamp: int
    """Milliseconds since the epoch. Information only."""
    source: str
    """The process that wrote it: its role and instance."""
    payload: FactPayload
