"""Reads what the file fold says of an event, writes `events` and `jobs`: what the detector tells of it."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from codeconvoy.schemas import ids
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import Unencodable
from codeconvoy.schemas.events import (
    TYPE_OF,
    ConflictResolved,
    ContextStale,
    Event,
    EventType,
    Payload,
    Policy,
    ReadNoted,
)
from codeconvoy.schemas.file_fold import Judged, Verdict
from codeconvoy.schemas.file_history import Claim, Entry, FileHistory, Reader
from codeconvoy.schemas.job_facts import (
    EventJudged,
    FactPayload,
    FileForked,
    FileSettled,
    JobFact,
    Judgement,
    ReadJudged,
    VerdictKind,
)
from codeconvoy.schemas.topics import Topics, file_key
from codeconvoy.workers.conflicts import DETECTOR, head_of, jobs_at_stake, loser_of, overlaps_of
from codeconvoy.workers.engine.bus import Outgoing, Record

UNREPORTED = frozenset(
    {
        EventType.CONFLICT_DETECTED,
        EventType.RESOLUTION_FAILED,
        EventType.CONTEXT_STALE,
        EventType.ROUND_VOIDED,
    }
)
"""What the jobs hear of in other words."""
AT_ONCE = 100
"""Verdicts that one fact tells a job of."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Author:
    """In whose name the detector writes an event."""

    workspace: str
    path: str
    job_id: str
    task_id: str
    round: int

    @staticmethod
    def of(history: FileHistory, heads: tuple[str, ...]) -> "Author":
        """The author of what is done about these heads: the later head's job."""
        later = max((history.entries[head] for head in heads), key=lambda entry: entry.seq)
        conflict_id = ids.conflict_id(history.workspace, history.path, heads)
        return Author(history.workspace, history.path, later.job_id, conflict_id, 1)


class Word(Outgoing, frozen=True, gc=False, kw_only=True):
    """A verdict that its job is to be told of. It has no value: `Pen.together` writes it."""

    judgement: Judgement
    now: int


@dataclass(frozen=True, slots=True)
class Pen:
    """Makes the detector's records.

    A record of a stranger may hold names so long that what is to be said of it fits into no record.
    That is left out, by every replica alike, and said in the process's own log; who waits for it has
    a deadline.
    """

    codec: Codec
    topics: Topics

    def event(
        self,
        author: Author,
        event_id: str,
        payload: Payload,
        now: int,
        parents: tuple[str, ...] = (),
        policy: Policy | None = None,
    ) -> list[Outgoing]:
        """An event about the author's file."""
        event = Event(
            event_id=event_id,
            event_type=TYPE_OF[type(payload)],
            workspace=author.workspace,
            file_path=author.path,
            job_id=author.job_id,
            task_id=author.task_id,
            round=author.round,
            agent_id=DETECTOR,
            role=DETECTOR,
            timestamp=now,
            parent_event_ids=parents,
            policy=policy,
            payload=payload,
        )
        return self._written(self.topics.events, file_key(author.workspace, author.path), event)

    def verdict(self, job_id: str, judgement: Judgement, now: int) -> Word:
        """A verdict that a job is to be told of."""
        return Word(self.topics.jobs, job_id, b"", judgement=judgement, now=now)

    def together(self, outputs: Sequence[Outgoing]) -> list[Outgoing]:
        """What is written of one transaction's outputs: verdicts for one job that follow on each other, in
        the same trace, are one fact. For whoever folds them, a record costs as much as a verdict."""
        runs: list[list[Word] | Outgoing] = []
        latest: dict[str, list[Word]] = {}
        for output in outputs:
            run = latest.get(output.key)
            if not isinstance(output, Word):
                latest.pop(output.key, None)
                runs.append(output)
            elif run is not None and len(run) < AT_ONCE and run[0].headers == output.headers:
                run.append(output)
            else:
                latest[output.key] = run = [output]
                runs.append(run)
        return [
            output for run in runs for output in ([run] if isinstance(run, Outgoing) else self._verdicts(run))
        ]

    def _verdicts(self, words: Sequence[Word]) -> list[Outgoing]:
        """One fact for all; one for each where that can't be written."""
        first, judged = words[0], EventJudged.of([word.judgement for word in words])
        fact = self._fact(first.key, judged, words[-1].now, (judged.event_id, judged.verdict))
        try:
            value = self.codec.encode(fact)
        except Unencodable as error:
            if judged.also:
                return [output for word in words for output in self._verdicts([word])]
            return self._left_out(first.key, fact, error)
        return [Outgoing(first.topic, first.key, value, first.headers)]

    def fact(self, job_id: str, payload: FactPayload, now: int, *identity: str | int) -> list[Outgoing]:
        """A word to a job."""
        return self._written(self.topics.jobs, job_id, self._fact(job_id, payload, now, identity))

    def _fact(self, job_id: str, payload: FactPayload, now: int, identity: Sequence[str | int]) -> JobFact:
        return JobFact(
            fact_id=ids.derived("fact", job_id, type(payload).__name__, *identity),
            job_id=job_id,
            timestamp=now,
            source=DETECTOR,
            payload=payload,
        )

    def _written(self, topic: str, key: str, record: Event | JobFact) -> list[Outgoing]:
        try:
            return [Outgoing(topic, key, self.codec.encode(record))]
        except Unencodable as error:
            return self._left_out(key, record, error)

    def _left_out(self, key: str, record: Event | JobFact, error: Unencodable) -> list[Outgoing]:
        what = type(record.payload).__name__
        logger.error("%s about %.200s is left out, it can't be written: %s", what, key, error)
        return []


@dataclass(frozen=True, slots=True)
class Report:
    """What one event brings about: collects what is to be written."""

    pen: Pen
    before: FileHistory
    after: FileHistory
    event: Event
    record: Record
    now: int
    outputs: list[Outgoing] = field(default_factory=list)

    def tell(self, judged: tuple[Judged, ...]) -> None:
        """All there is to be said of the verdicts that the event brought about."""
        self._reads()
        # What has become outdated first: the verdict on what outdated it may be the last fact that a
        # job waits for, and it must not end with what was built on the old version unnoticed.
        for event_id, verdict in sorted(judged, key=lambda each: each[1].kind is not VerdictKind.OUTDATED):
            self._verdict(event_id, verdict)
        self._claims()

    def _reads(self) -> None:
        """Note the event's read set on the files that were read."""
        event = self.event
        for read in event.reads:
            payload = ReadNoted(
                version=read.event_id, reader_event=event.event_id, reader_path=event.file_path
            )
            author = Author(event.workspace, read.path, event.job_id, event.task_id, event.round)
            event_id = ids.derived("read-noted", event.event_id, read.path)
            self.outputs.extend(self.pen.event(author, event_id, payload, self.now))

    def _verdict(self, event_id: str, verdict: Verdict) -> None:
        """Tell the job of an event what became of it."""
        if verdict.kind is VerdictKind.OUTDATED:
            # Its entry may be forgotten by now; what it said is remembered as long as it matters.
            reader = next(reader for reader in self.before.readers if reader.noted_by == event_id)
            if reader.reader_event == event_id:
                self._event_judged(event_id, reader, verdict)
            else:
                self._read_judged(reader, self.before.visible, verdict.kind)
            return
        entry = self.after.entries[event_id]
        payload = self.event.payload
        if isinstance(payload, ReadNoted):
            self._read_judged(_reader_of(self.event, payload), payload.version, verdict.kind)
        elif entry.event_type not in UNREPORTED:
            self._event_judged(event_id, entry, verdict)

    def _event_judged(self, event_id: str, by: Entry | Reader, verdict: Verdict) -> None:
        if not by.job_id:
            return
        judgement = Judgement(
            event_id=event_id,
            task_id=by.task_id,
            round=by.round,
            path=self.after.path,
            verdict=verdict.kind,
            reason=verdict.reason,
            heads=self.after.heads,
            visible=self.after.visible,
            partition=self.record.partition,
            offset=self.record.offset,
        )
        self.outputs.append(self.pen.verdict(by.job_id, judgement, self.now))

    def _read_judged(self, reader: Reader, version: str, kind: VerdictKind) -> None:
        """Answer whether what was read is (still) what readers see."""
        fresh = kind is VerdictKind.NOTED
        payload = ReadJudged(
            reader_event=reader.reader_event,
            read_path=self.after.path,
            version=version,
            fresh=fresh,
            head=self.after.visible,
        )
        if not fresh:
            self._mark_stale(reader, version)
        self._tell({reader.job_id}, payload, reader.noted_by, kind)

    def _mark_stale(self, reader: Reader, version: str) -> None:
        """The mark on the reader's file."""
        payload = ContextStale(
            reader_event=reader.reader_event,
            read_path=self.after.path,
            read_version=version,
            head=self.after.visible,
        )
        author = Author(self.after.workspace, reader.reader_path, reader.job_id, reader.task_id, reader.round)
        event_id = ids.derived("context-stale", reader.reader_event, self.after.path)
        self.outputs.extend(self.pen.event(author, event_id, payload, self.now))

    def _claims(self) -> None:
        """Tell the jobs of the heads that a conflict was opened, has moved on, or is over."""
        claim, payload = self.after.claim, self.event.payload
        if claim is not None and claim.event_id == self.event.event_id:
            self._forked(claim)
        if isinstance(payload, ConflictResolved) and self.after.heads != self.before.heads:
            self._settled(payload)

    def _forked(self, claim: Claim) -> None:
        loser = loser_of(self.after, claim.heads, claim.strategy)
        payload = FileForked(
            path=self.after.path,
            conflict_id=claim.conflict_id,
            heads=claim.heads,
            base=claim.base,
            overlaps=overlaps_of(self.after, claim.heads, claim.base),
            strategy=claim.strategy,
            attempt=claim.attempt,
            deadline=claim.deadline,
            loser_task=loser.task_id if loser else "",
            loser_role=loser.role if loser else "",
            own=head_of(self.after, claim.heads, loser) if loser else "",
            tried=claim.tried,
            partition=self.record.partition,
            offset=self.record.offset,
        )
        self._tell(jobs_at_stake(self.after, claim.heads), payload, claim.conflict_id, claim.attempt)

    def _settled(self, resolved: ConflictResolved) -> None:
        """Heads were joined: also by a resolution that was overtaken, whose conflict was never opened. All
        who had a part in the fork are told, for this may have ended theirs."""
        at_stake = jobs_at_stake(self.after, self.after.heads)
        for job_id in sorted(jobs_at_stake(self.before, self.before.heads)):
            payload = FileSettled(
                path=self.after.path,
                head=self.after.visible,
                conflict_id=resolved.conflict_id,
                strategy=resolved.strategy,
                # A job whose work all heads hold by now is not told how it goes on.
                forked=job_id in at_stake,
                partition=self.record.partition,
                offset=self.record.offset,
            )
            self._tell({job_id}, payload, resolved.conflict_id)

    def _tell(self, jobs: Iterable[str], payload: FactPayload, *identity: str | int) -> None:
        for job_id in sorted(jobs):
            if job_id:
                self.outputs.extend(self.pen.fact(job_id, payload, self.now, *identity))


def _reader_of(event: Event, note: ReadNoted) -> Reader:
    return Reader(
        noted_by=event.event_id,
        reader_event=note.reader_event,
        reader_path=note.reader_path,
        job_id=event.job_id,
        task_id=event.task_id,
        round=event.round,
    )
