"""Reads `jobs`, writes `tasks.<role>`, `jobs` and `events`: drives every job from submission to end.

The job fold decides; this carries its commands out. A record on the jobs topic may come from any
language, so a submission is checked here once more: a bad one ends as failed with the message.

Names and texts in those records may be of any length. A task that fits into no record fails, with the
reason, as if its worker had said so; what else is to be written fits, since the fold keeps its texts
short.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from codeconvoy.schemas import ids, job_fold
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import BadInput, Unencodable
from codeconvoy.schemas.events import TYPE_OF, Event, ResolutionFailed
from codeconvoy.schemas.job_facts import (
    DeadlinePassed,
    DispatchedRound,
    FactPayload,
    JobFact,
    JobFinished,
    JobStatus,
    JobSubmitted,
    TaskDispatched,
    TaskFailed,
)
from codeconvoy.schemas.job_spec import JobSpec
from codeconvoy.schemas.job_state import JobState
from codeconvoy.schemas.job_step import (
    MAX_REASON_CHARS,
    Command,
    Dispatch,
    RecordEvent,
    Say,
)
from codeconvoy.schemas.tasks import Task
from codeconvoy.schemas.topics import Topics, file_key
from codeconvoy.workers import job_states
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.engine.reads import ReadFields, batches
from codeconvoy.workers.records import decoded
from codeconvoy.workers.tracing import TRACEPARENT, Headers, carried, context_in, trace_of

NAME = "orchestrator"
GRACE_SECONDS = 30
"""What a task's dispatch may take beyond the task's own deadline."""
ROUNDS_AT_ONCE = 500
"""Of which one fact says the deadline."""
logger = logging.getLogger(__name__)


class Orchestrator:
    """The orchestrator, as a fold."""

    name = NAME

    def __init__(self, codec: Codec, topics: Topics, check: Callable[[JobSpec], None]) -> None:
        """`check` raises BadInput for a job that can't be run here."""
        self._codec, self._topics, self._check = codec, topics, check
        self.topic = topics.jobs

    def empty(self, key: str) -> JobState:
        """See `FoldConsumer`."""
        return JobState(job_id=key)

    async def load(self, keys: Sequence[str], read: ReadFields) -> Mapping[str, JobState]:
        """See `FoldConsumer`."""
        return await job_states.load_all(keys, read)

    def dump(self, key: str, before: JobState | None, after: JobState) -> Mapping[str, bytes | None]:
        """See `FoldConsumer`."""
        return job_states.dump(before, after)

    def weigh(self, state: JobState) -> int:
        """See `FoldConsumer`."""
        return job_states.weight_of(state)

    def together(self, outputs: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """See `FoldConsumer`."""
        return outputs

    def wait(self, state: JobState) -> int | None:
        """The earliest wait that runs out."""
        return state.next_wait

    def due(self, key: str, state: JobState, now: int) -> Sequence[Outgoing]:
        """What has begun to wait is given its deadline, and waits that have run out become facts. They
        count once they are folded."""
        facts = [*self._deadlines(state, now), *self._passed(state, now)]
        return carried(facts, _own_context(state))

    def _deadlines(self, job: JobState, now: int) -> Iterator[Outgoing]:
        if job.spec is None or job.ended:
            return
        if not job.deadline and job.status is JobStatus.RUNNING:
            begun = TaskDispatched(task_id="", round=0, deadline=now + 1000 * job.spec.deadline_seconds)
            yield self._fact(job.job_id, begun, now, "", 0)
        deadline = now + 1000 * (job.spec.task_deadline_seconds + GRACE_SECONDS)
        for some in batches(job.without_deadline(), ROUNDS_AT_ONCE):
            (task_id, round_), *also = some
            rounds = tuple(DispatchedRound(task_id=task_id, round=round_) for task_id, round_ in also)
            sent = TaskDispatched(task_id=task_id, round=round_, deadline=deadline, also=rounds)
            yield self._fact(job.job_id, sent, now, task_id, round_, job.tasks[task_id].sent)

    def _passed(self, job: JobState, now: int) -> Iterator[Outgoing]:
        for when, task_id, round_ in job.waits() if job.next_deadline <= now else ():
            if when <= now:
                passed = DeadlinePassed(task_id=task_id, round=round_)
                yield self._fact(job.job_id, passed, now, task_id, round_, when)

    def step(self, state: JobState, record: Record, now: int) -> tuple[JobState, Sequence[Outgoing]]:
        """See `FoldConsumer`."""
        fact = decoded(self._codec, record, JobFact)
        after, commands = job_fold.fold(state, fact)
        outputs: Sequence[Outgoing] | None = None
        if isinstance(fact.payload, JobSubmitted) and state.spec is None:
            if submitted := context_in(record.headers):
                after = msgspec.structs.replace(after, trace=submitted[TRACEPARENT].decode())
            outputs = self._refusal(after, fact.payload, now)
        if outputs is None:
            outputs = [output for command in commands for output in self._carry_out(after, command, now)]
        return after, carried(outputs, _cause(after, record))

    def _refusal(self, job: JobState, submitted: JobSubmitted, now: int) -> Sequence[Outgoing] | None:
        """The end of a job that can't be run here."""
        try:
            self._check(submitted.spec)
        except BadInput as bad:
            refused = JobFinished(status=JobStatus.FAILED, reason=str(bad)[:MAX_REASON_CHARS])
            return [self._fact(job.job_id, refused, now, "refused")]
        return None

    def _carry_out(self, job: JobState, command: Command, now: int) -> Sequence[Outgoing]:
        match command:
            case Dispatch(task=task):
                return self._dispatch(job, task, now)
            case Say(payload=payload):
                return (self._fact(job.job_id, payload, now, "said"),)
            case RecordEvent():
                return self._event(command, now)

    def _dispatch(self, job: JobState, task: Task, now: int) -> Sequence[Outgoing]:
        key = file_key(task.workspace, task.path or task.job_id)
        try:
            queued = Outgoing(self._topics.tasks(task.role), key, self._codec.encode(task))
        except (Unencodable, BadInput) as error:
            failed = TaskFailed(
                task_id=task.task_id,
                round=task.round,
                agent_id=NAME,
                reason=f"the task can't be put on its queue: {error}"[:MAX_REASON_CHARS],
            )
            return (self._fact(job.job_id, failed, now, task.task_id, task.round),)
        return (queued,)

    def _fact(self, job_id: str, payload: FactPayload, now: int, *identity: str | int) -> Outgoing:
        fact = JobFact(
            fact_id=ids.derived("fact", job_id, type(payload).__name__, *identity),
            job_id=job_id,
            timestamp=now,
            source=NAME,
            payload=payload,
        )
        return Outgoing(self._topics.jobs, job_id, self._codec.encode(fact))

    def _event(self, command: RecordEvent, now: int) -> Sequence[Outgoing]:
        task, payload = command.task, command.payload
        event_type = TYPE_OF[type(payload)]
        event_id = ids.event_id(task.task_id, task.round, command.path, event_type)
        if isinstance(payload, ResolutionFailed):
            # A task may lose in several conflicts: each is given back by a fact of its own.
            event_id = ids.derived("resolution-failed", payload.conflict_id, payload.attempt)
        event = Event(
            event_id=event_id,
            event_type=event_type,
            workspace=task.workspace,
            file_path=command.path,
            job_id=task.job_id,
            task_id=task.task_id,
            round=task.round,
            agent_id=NAME,
            role=NAME,
            timestamp=now,
            payload=payload,
        )
        try:
            value = self._codec.encode(event)
        except Unencodable as error:
            # No event has ever named such a file, so none is to be voided.
            logger.error("%s about %.200r is left out: %s", event_type, command.path, error)
            return ()
        return (Outgoing(self._topics.events, file_key(task.workspace, command.path), value),)


def _own_context(job: JobState) -> Headers:
    """The trace context of a job's submission; empty where it had none."""
    return {TRACEPARENT: job.trace.encode()} if job.trace else {}


def _cause(job: JobState, record: Record) -> Headers:
    """The context for what is written because of a record: the record's own where that is of the job's
    trace. Another job's work, a person or a client of another kind may have moved this job too: what it
    does then still belongs to its own trace."""
    if not job.trace:
        return context_in(record.headers)
    own, context = _own_context(job), context_in(record.headers)
    return context if trace_of(context) == trace_of(own) else own
