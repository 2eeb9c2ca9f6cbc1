"""Reads a fleet at rest, writes nothing: what must be true of it, whatever struck it on the way."""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

from codeconvoy.orchestrator.job_file import check
from codeconvoy.orchestrator.orchestrator import NAME as ORCHESTRATOR
from codeconvoy.orchestrator.orchestrator import Orchestrator
from codeconvoy.schemas.events import Event, ResolutionFailed
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.job_facts import (
    DeadlinePassed,
    EventJudged,
    JobFact,
    JobFinished,
    JobStatus,
    Judgement,
    TaskDispatched,
    TaskDone,
    TaskFailed,
    VerdictKind,
)
from codeconvoy.schemas.job_state import JobState
from codeconvoy.schemas.tasks import Task
from codeconvoy.workers.detector import NAME as DETECTOR
from codeconvoy.workers.detector import Detector, DetectorState
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.projector import FILES, JOBS, FileProjector, JobProjector
from codeconvoy.workers.report import Word
from tests.simulation.fleet import SimFleet
from tests.simulation.refold import MAX_SHOWN, Refold, differences, records_of, refold
from tests.simulation.world import CODEC

BY_THE_CLOCK = (DeadlinePassed, TaskDispatched)
"""What the orchestrator says when a state asks for it: whoever takes over may say it once more, and only
the fold of the first changes anything but a deadline."""


def problems(fleet: SimFleet) -> list[str]:
    """Everything that is wrong; empty if nothing is."""
    folded = Folded(fleet)
    found: list[str] = []
    for part in (
        _ends,
        _states,
        _outputs,
        _no_doubles,
        _ancestry,
        _verdicts,
        _nothing_open,
        _dead_letters,
        _answered,
        _published,
    ):
        found += [f"{part.__name__}: {problem}" for problem in part(fleet, folded)]
    return found


class Folded:
    """The logs of a fleet, read and folded once more."""

    def __init__(self, fleet: SimFleet) -> None:
        broker, topics = fleet.broker, fleet.topics
        self.folds: dict[str, Refold] = {
            FILES: refold(FileProjector(CODEC, topics), broker),
            JOBS: refold(JobProjector(CODEC, topics), broker),
            DETECTOR: refold(Detector(CODEC, topics), broker),
            ORCHESTRATOR: refold(Orchestrator(CODEC, topics, partial(check, roles=fleet.roles)), broker),
        }
        self.events = [CODEC.decode(record.value, Event) for record in records_of(broker, topics.events)]
        self.facts = [CODEC.decode(record.value, JobFact) for record in records_of(broker, topics.jobs)]

    @property
    def histories(self) -> list[FileHistory]:
        return list(self.folds[FILES].states.values())

    @property
    def jobs(self) -> dict[str, JobState]:
        return {key: state for (_, key), state in self.folds[JOBS].states.items()}


def _ends(fleet: SimFleet, folded: Folded) -> Iterator[str]:
    """Every job ended once, in good time, with a status and a reason."""
    said = Counter(fact.job_id for fact in folded.facts if isinstance(fact.payload, JobFinished))
    for plan in fleet.plan.jobs:
        job = folded.jobs.get(plan.job_id)
        if job is None or not job.ended or not job.reason:
            yield f"{plan.job_id} has not ended: {job and (job.status, job.reason)}"
        elif job.status is JobStatus.TIMED_OUT:
            yield f"{plan.job_id} timed out"
        if said[plan.job_id] != 1:
            yield f"{plan.job_id} was ended {said[plan.job_id]} times"


def _states(fleet: SimFleet, folded: Folded) -> Iterator[str]:
    """What the engines wrote piece by piece is, byte for byte, what one fold gives."""
    yield from differences(folded.folds, fleet.stores)


def _outputs(fleet: SimFleet, folded: Folded) -> Iterator[str]:
    """The detector and the orchestrator wrote what follows from the logs, each of it exactly once."""
    for name in (DETECTOR, ORCHESTRATOR):
        due = _identities(fleet, folded.folds[name].outputs)
        wrote = Counter(
            [("event", event.event_id) for event in folded.events if event.role == name and not _late(event)]
            + [
                identity
                for fact in folded.facts
                if fact.source == name and not isinstance(fact.payload, BY_THE_CLOCK)
                for identity in _said(fact)
            ]
        )
        if name == ORCHESTRATOR:
            wrote += Counter(("task", _identity(task)) for _, task in _queued(fleet))
        yield from (f"{name} wrote {n} times too often: {what}" for what, n in _some(wrote - due))
        yield from (f"{name} never wrote: {what}" for what, _ in _some(due - wrote))


def _late(event: Event) -> bool:
    """A claim's deadline that has passed: the clock's doing, not the log's."""
    return isinstance(event.payload, ResolutionFailed) and event.role == DETECTOR


def _some(counted: Counter[tuple[str, str]]) -> Iterable[tuple[tuple[str, str], int]]:
    return sorted(counted.items())[:MAX_SHOWN]


def _identities(fleet: SimFleet, outputs: Iterable[Outgoing]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for output in outputs:
        if output.topic == fleet.topics.events:
            found["event", CODEC.decode(output.value, Event).event_id] += 1
        elif isinstance(output, Word):
            found[_verdict(output.key, output.judgement)] += 1
        elif output.topic == fleet.topics.jobs:
            found.update(_said(CODEC.decode(output.value, JobFact)))
        else:
            found["task", _identity(CODEC.decode(output.value, Task))] += 1
    return found


def _said(fact: JobFact) -> list[tuple[str, str]]:
    """What a fact says: which verdicts are told together is a matter of when they were reached."""
    if isinstance(fact.payload, EventJudged):
        return [_verdict(fact.job_id, one) for one in fact.payload.judgements]
    return [("fact", fact.fact_id)]


def _verdict(job_id: str, judgement: Judgement) -> tuple[str, str]:
    return "verdict", f"{job_id} {judgement.event_id} {judgement.verdict}"


def _identity(task: Task) -> str:
    return f"{task.role} {task.task_id} {task.round}"


def _queued(fleet: SimFleet) -> Iterator[tuple[Record, Task]]:
    for topic in sorted(fleet.broker.topics):
        if topic.startswith(fleet.topics.tasks("x")[:-1]):
            for record in records_of(fleet.broker, topic):
                yield record, CODEC.decode(record.value, Task)


def _no_doubles(fleet: SimFleet, folded: Folded) -> Iterator[str]:
    """No fact is on a log twice, and no round of a task took effect twice."""
    events = Counter(event.event_id for event in folded.events)
    yield from (f"event {event_id} is there {n} times" for event_id, n in events.items() if n > 1)
    words = Counter(
        (fact.payload.task_id, fact.payload.round)
        for fact in folded.facts
        if isinstance(fact.payload, TaskDone | TaskFailed)
    )
    yield from (f"task {task}, round {round_}, has {n} words" for (task, round_), n in words.items() if n > 1)
    live: Counter[tuple[str, int, str]] = Counter()
    for history in folded.histories:
        for entry in history.entries.values():
            if entry.edit is not None and entry.edit.live and entry.role not in (DETECTOR,):
                live[entry.task_id, entry.round, history.path] += 1
    yield from (f"{effect} took effect {n} times" for effect, n in live.items() if n > 1)


def _ancestry(fleet: SimFleet, folded: Folded) -> Iterator[str]:
    """No accepted work is lost: it is in the ancestry of the heads, after its parents."""
    for history in folded.histories:
        kept = history.ancestors(history.heads)
        for event_id, entry in history.entries.items():
            if entry.verdict not in (VerdictKind.ACCEPTED, VerdictKind.FORKED):
                continue
            if event_id not in kept:
                yield f"{history.path}: {event_id} ({entry.verdict}) is lost"
            parents = entry.edit.parents if entry.edit else ()
            if any(history.entries[parent].seq >= entry.seq for parent in parents):
                yield f"{history.path}: {event_id} stands before its parent"


def _verdicts(fleet: SimFleet, folded: Folded) -> Iterator[str]:
    """A task that its job takes for done has no refused event, and every event was judged."""
    final = {event_id: entry for h in folded.histories for event_id, entry in h.entries.items()}
    for job in folded.jobs.values():
        if job.status is not JobStatus.SUCCEEDED:
            continue
        for state in job.tasks.values():
            for event in state.events:
                entry = final.get(event.event_id)
                if entry is None:
                    yield f"{job.job_id} knows an event that no log holds: {event.event_id}"
                elif state.pending:
                    yield f"{job.job_id} succeeded while {event.event_id} waits for its verdict"


def _nothing_open(fleet: SimFleet, folded: Folded) -> Iterator[str]:
    """In the end every fork was joined and every claim has ended."""
    for state in folded.folds[DETECTOR].states.values():
        assert isinstance(state, DetectorState)
        history = state.history
        if history.forked or history.claim is not None or history.deferred or state.awaited:
            yield f"{history.path}: {len(history.heads)} heads, claim {history.claim}, {state.awaited!r}"


def _dead_letters(fleet: SimFleet, folded: Folded) -> Iterator[str]:
    """Nothing was given up."""
    for letter in records_of(fleet.broker, fleet.topics.dead_letters):
        yield f"a dead letter: {letter.headers['reason']!r} of {letter.headers['topic']!r}"


def _answered(fleet: SimFleet, folded: Folded) -> Iterator[str]:
    """Each queued task has its word on the job log, unless a worker found that nobody waits for it."""
    words = {
        (fact.payload.task_id, fact.payload.round)
        for fact in folded.facts
        if isinstance(fact.payload, TaskDone | TaskFailed)
    }
    void = {
        (run.record.topic, run.record.partition, run.record.offset)
        for run in fleet.deliveries.runs
        if run.outputs == 0
    }
    for record, task in _queued(fleet):
        at = (record.topic, record.partition, record.offset)
        if (task.task_id, task.round) not in words and at not in void:
            yield f"{_identity(task)} was done and never answered"


def _published(fleet: SimFleet, folded: Folded) -> Iterator[str]:
    """A branch holds only edits that count, each of them once."""
    live = {
        event_id
        for history in folded.histories
        for event_id, entry in history.entries.items()
        if entry.edit is not None and entry.edit.live
    }
    for job_id, commits in fleet.branches.commits.items():
        named = Counter(edit for commit in commits for edit in commit.trailers.edits)
        yield from (f"{job_id} publishes {edit}, which is not live" for edit in named.keys() - live)
        yield from (f"{job_id} publishes {edit} {n} times" for edit, n in named.items() if n > 1)
