"""Reads records of the jobs log, writes nothing: folds every job anew and holds it to its word."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from codeconvoy.orchestrator.audit_report import Check, Counts, Findings, Unreadable
from codeconvoy.schemas import ids, job_fold
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.job_facts import (
    EventJudged,
    JobFact,
    JobFinished,
    Judgement,
    ReadJudged,
    TaskDone,
    VerdictKind,
)
from codeconvoy.schemas.job_state import GIT_ROLE, JobState, TaskStatus
from codeconvoy.schemas.job_step import emitted
from codeconvoy.schemas.tasks import PublishWork
from codeconvoy.schemas.topics import file_key
from codeconvoy.workers import job_states
from codeconvoy.workers.engine.bus import Record


@dataclass(frozen=True, slots=True)
class Publication:
    """A branch that a job says it has written."""

    job_id: str
    workspace: str
    repository: str
    branch: str
    base: str
    """Commit that the job started from."""
    commit: str
    imports: Mapping[str, str]
    """For each path the event that holds what the base has; empty: it has no such file."""
    seen: Mapping[int, int]
    """Offsets of the events log, by partition, that the publisher had to have seen."""
    begun_with: Mapping[str, Collection[str]] = field(default_factory=dict)
    """For each path the events that were on the log when the job's import was done."""


@dataclass(slots=True)
class Claims:
    """What the job logs say of events, to be held against the events log."""

    verdicts: dict[tuple[str, VerdictKind], Judgement] = field(default_factory=dict)
    reads: set[tuple[str, str, bool]] = field(default_factory=set)
    """(reader, path that was read, whether it is fresh)."""
    written: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Events that tasks say they wrote, to (job id, file key)."""


class JobsAudit:
    """Re-folds the jobs of one partition."""

    def __init__(
        self,
        codec: Codec,
        findings: Findings,
        counts: Counts,
        claims: Claims,
        *,
        unreadable: Unreadable,
        only: str = "",
    ) -> None:
        """`only` is one job's id; empty: all."""
        self._codec, self._findings, self._counts, self._claims = codec, findings, counts, claims
        self._unreadable, self._only = unreadable, only
        self.states: dict[str, JobState] = {}
        self._ended_with: dict[str, JobFinished] = {}
        self._done: set[tuple[str, str, int]] = set()

    def feed(self, record: Record) -> None:
        """One more record of the partition.

        Raises:
            Undecodable: a newer version wrote it; nothing after it can be folded.
        """
        if self._only and record.key != self._only:
            return
        fact = self._unreadable.read(self._codec, record, JobFact, self._findings, self._counts)
        if fact is None:
            self.states.setdefault(record.key, JobState(job_id=record.key))
            return
        self._counts.facts += 1
        before = self.states.get(record.key) or JobState(job_id=record.key)
        after, _ = job_fold.fold(before, fact)
        self.states[record.key] = after
        match fact.payload:
            case TaskDone() as done:
                self._task_done(before, after, done)
            case EventJudged() as judged:
                for judgement in judged.judgements:
                    self._judged(fact, judgement)
            case ReadJudged(reader_event=reader, read_path=path, fresh=fresh):
                self._claims.reads.add((reader, path, fresh))
            case JobFinished() as finished:
                self._finished(before, finished, fact.fact_id)

    def _task_done(self, before: JobState, after: JobState, done: TaskDone) -> None:
        was, now = before.tasks.get(done.task_id), after.tasks.get(done.task_id)
        for event in emitted(done.result):
            workspace = now.task.workspace if now else ""
            if workspace:
                self._claims.written[event.event_id] = (after.job_id, file_key(workspace, event.path))
        counted = was is not None and was.task.round == done.round and was.status is TaskStatus.DISPATCHED
        if not counted:
            return
        key = (after.job_id, done.task_id, done.round)
        if key in self._done:
            what = f"round {done.round} of task {done.task_id} was counted as done twice"
            self._findings.add(Check.DOUBLED, after.job_id, what, done.task_id)
        self._done.add(key)

    def _judged(self, fact: JobFact, judged: Judgement) -> None:
        known = self._claims.verdicts.setdefault((judged.event_id, judged.verdict), judged)
        if known != judged:
            what = f"two reports contradict each other on {judged.path}"
            self._findings.add(Check.VERDICT, fact.job_id, what, judged.event_id)

    def _finished(self, before: JobState, finished: JobFinished, fact_id: str) -> None:
        first = self._ended_with.setdefault(before.job_id, finished)
        if first is not finished:
            if first != finished:
                what = f"it ended as {first.status} and again as {finished.status}"
                self._findings.add(Check.DOUBLED, before.job_id, what, fact_id)
            return
        if not before.ended:
            # A submission that was refused: nothing of it was ever dispatched.
            if any(state.deadline for state in before.tasks.values()):
                what = f"it is said to be {finished.status}, and its facts do not say so"
                self._findings.add(Check.ENDED, before.job_id, what, fact_id)
        elif (before.status, before.reason) != (finished.status, finished.reason):
            what = f"it is said to be {finished.status}, its facts say {before.status}: {before.reason}"
            self._findings.add(Check.ENDED, before.job_id, what, fact_id)

    def finish(self) -> list[Publication]:
        """Count the jobs, see that ended ones have ended; answers what they published."""
        found: list[Publication] = []
        for job_id, job in self.states.items():
            if job.spec is None:
                continue
            self._counts.jobs[str(job.status)] += 1
            self._counts.tasks += len(job.tasks)
            if not job.ended:
                continue
            if job_id not in self._ended_with:
                self._findings.add(Check.ENDED, job_id, f"it is {job.status}, and no fact says so")
            for task_id, state in job.tasks.items():
                if state.status.open and (state.deadline or state.status is TaskStatus.REPORTED):
                    what = f"it is {job.status}, and the {state.task.role}'s task {task_id} is open"
                    self._findings.add(Check.ENDED, job_id, what, task_id)
            publication = _publication(job)
            if publication is not None:
                found.append(publication)
        return found

    def fields(self) -> Iterator[tuple[str, Mapping[str, bytes], bool]]:
        """For each job its id, the fields that the projection holds of it, and whether it may be
        without them (nothing is known of it)."""
        for job_id, job in self.states.items():
            view = job_states.dump_view(None, job)
            fields = {name: value for name, value in view.items() if value is not None}
            yield job_id, fields, not job.facts


def keys_of(job: JobState) -> frozenset[str]:
    """The file keys of everything that a job has to do with."""
    if job.spec is None:
        return frozenset()
    paths = {file.path for file in job.imported.files} if job.imported else set()
    paths |= {event.path for state in job.tasks.values() for event in state.events}
    paths |= job.files.keys()
    return frozenset(file_key(job.spec.workspace, path) for path in paths)


def _publication(job: JobState) -> Publication | None:
    published, spec = job.published, job.spec
    state = job.tasks.get(ids.task_id(job.job_id, "publish", GIT_ROLE, ""))
    if published is None or spec is None or state is None or not isinstance(state.task.work, PublishWork):
        return None
    work, imported = state.task.work, job.imported.files if job.imported else ()
    return Publication(
        job_id=job.job_id,
        workspace=spec.workspace,
        repository=work.repository,
        branch=published.branch,
        base=published.base_commit,
        commit=published.commit,
        imports=dict(zip(work.paths, work.imports, strict=True)),
        seen={point.partition: point.offset for point in state.task.must_see},
        begun_with={file.path: {file.event_id, file.visible} - {""} for file in imported},
    )
