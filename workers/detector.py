"""Reads `events`, writes `events` and `jobs`: finds forks and stale reads, and gets them resolved.

For each event of a file it folds (as everybody does), reports every verdict to the job of the
event, and then

    a fork and no claim        CONFLICT_DETECTED, with CONFLICT_RESOLVED in the same transaction
                               where a strategy has an answer at once
    a strategy that gave up,   the next strategy of the conflict; in the end its default, which
    or a deadline that passed  always has an answer
    an event with a read set   READ_NOTED, keyed by each file that was read
    a noted version that has   CONTEXT_STALE, keyed by the reader's file, and a word to its job
    moved, or had already

It never waits for a model or a person: those answer with events.
"""

from collections.abc import Mapping, Sequence

import msgspec

from codeconvoy.schemas import ids
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import (
    TYPE_OF,
    ConflictDetected,
    ConflictResolved,
    ContextStale,
    Event,
    EventType,
    LineRange,
    Payload,
    Policy,
    Read,
    ReadNoted,
    ResolutionFailed,
    Strategy,
    Tried,
)
from codeconvoy.schemas.file_fold import MAX_ATTEMPTS, Judged, Verdict, fold, lowest_common_ancestor
from codeconvoy.schemas.file_history import Claim, Edit, Entry, FileHistory, Reader
from codeconvoy.schemas.hunks import make_patch
from codeconvoy.schemas.job_facts import (
    EventJudged,
    FactPayload,
    FileForked,
    FileSettled,
    JobFact,
    ReadJudged,
    VerdictKind,
)
from codeconvoy.schemas.job_spec import DEFAULT_STRATEGIES
from codeconvoy.schemas.job_state import GIT_ROLE
from codeconvoy.schemas.topics import Topics, file_key
from codeconvoy.workers import file_states
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.engine.reads import ReadFields
from codeconvoy.workers.projector import empty_history
from codeconvoy.workers.records import decoded
from codeconvoy.workers.resolution.overlap import overlapping
from codeconvoy.workers.resolution.strategies import (
    CLAIMS,
    WRITER_WINS,
    ClaimNeeded,
    Outcome,
    Resolved,
    resolve,
)

NAME = "detector"
MAX_REASON = 2_000
"""Characters of a reason that are kept of what somebody else wrote."""
IMMEDIATE_SECONDS = 60
"""Deadline of a claim whose resolution is written together with it: never reached in practice."""
UNREPORTED = frozenset(
    {
        EventType.CONFLICT_DETECTED,
        EventType.RESOLUTION_FAILED,
        EventType.CONTEXT_STALE,
        EventType.ROUND_VOIDED,
    }
)
"""What the jobs hear of in other words."""


class DetectorState(msgspec.Struct, frozen=True, kw_only=True):
    """A file's history, and the conflict on which something was written that has not come back yet."""

    history: FileHistory
    awaited: str = ""
    """Its id. Nothing is decided meanwhile: a decision that an edit has overtaken would be followed
    by the next one before its own resolution is back, which overtakes that in turn, for ever."""


class Detector:
    """The conflict detector, as a fold."""

    name = NAME

    def __init__(self, codec: Codec, topics: Topics) -> None:
        self._codec, self._topics = codec, topics
        self.topic = topics.events

    def empty(self, key: str) -> DetectorState:
        """See `FoldConsumer`."""
        return DetectorState(history=empty_history(key))

    async def load(self, key: str, read: ReadFields) -> DetectorState:
        """See `FoldConsumer`."""
        history = await file_states.load(key, read) or empty_history(key)
        (awaited,) = await read([_awaited_field(key)])
        return DetectorState(history=history, awaited=awaited.decode() if awaited else "")

    def dump(
        self, key: str, before: DetectorState | None, after: DetectorState
    ) -> Mapping[str, bytes | None]:
        """See `FoldConsumer`."""
        changes = file_states.dump(key, before.history if before else None, after.history)
        if after.awaited != (before.awaited if before else ""):
            changes[_awaited_field(key)] = after.awaited.encode() or None
        return changes

    def wait(self, state: DetectorState) -> int | None:
        """A claim's deadline."""
        return state.history.claim.deadline if state.history.claim else None

    def due(self, key: str, state: DetectorState, now: int) -> Sequence[Outgoing]:
        """A claim was held too long: that is a fact on the log, and the next strategy's turn."""
        claim = state.history.claim
        if claim is None or claim.deadline > now:
            return ()
        payload = ResolutionFailed(
            conflict_id=claim.conflict_id,
            attempt=claim.attempt,
            strategy=claim.strategy,
            reason="nobody resolved it before its deadline",
        )
        event_id = ids.derived("resolution-late", claim.conflict_id, claim.attempt)
        return (self._event(_Author.of(state.history, claim.heads), event_id, payload, now),)

    def step(
        self, state: DetectorState, record: Record, now: int
    ) -> tuple[DetectorState, Sequence[Outgoing]]:
        """See `FoldConsumer`."""
        event = decoded(self._codec, record, Event)
        before = state.history
        history, judged = fold(before, event)
        if judged[0][1].kind is VerdictKind.DUPLICATE:
            return state, ()
        report = _Report(self, before, history, event, record, now)
        report.reads()
        # What has become outdated first: the verdict on what outdated it may be the last fact that a
        # job waits for, and it must not end with what was built on the old version unnoticed.
        for verdict in sorted(judged, key=lambda judged: judged[1].kind is not VerdictKind.OUTDATED):
            report.verdict(verdict)
        report.claims()
        awaited = _awaited_after(state.awaited, event)
        if not awaited:
            awaited = self._act(report, event, judged)
        return DetectorState(history=history, awaited=awaited), report.outputs

    def _act(self, report: "_Report", event: Event, judged: tuple[Judged, ...]) -> str:
        """Open a conflict, or move one on. The id of the conflict then, or the empty string."""
        history = report.after
        if history.claim is None:
            return self._open(report) if history.forked else ""
        claim = history.claim
        match event.payload:
            case ResolutionFailed(conflict_id=claim.conflict_id, attempt=claim.attempt, reason=reason):
                return self._next(report, claim, reason)
            case ConflictResolved(conflict_id=claim.conflict_id) if judged[0][1].kind is VerdictKind.INVALID:
                return self._next(report, claim, f"its resolution was invalid: {judged[0][1].reason}")
            case _:
                return ""

    def _open(self, report: "_Report") -> str:
        """A fork that nobody works on: try what answers at once, else claim the file."""
        history = report.after
        heads = history.heads
        policy = _policy(history, heads)
        outcome = _resolve(history, heads, policy.strategies, policy.default, ())
        if isinstance(outcome, ClaimNeeded) and len(heads) > 2:
            heads = _pair(history)
            outcome = _resolve(history, heads, policy.strategies, policy.default, ())
        return self._claim(report, tuple(sorted(heads)), outcome, 1, policy)

    def _next(self, report: "_Report", claim: Claim, reason: str) -> str:
        tried = (*claim.tried, Tried(strategy=claim.strategy, reason=reason[:MAX_REASON]))
        policy = _policy(report.after, claim.heads)
        # The last attempt that the fold allows must settle it, or the claim would never end.
        remaining = claim.remaining if claim.attempt + 1 < MAX_ATTEMPTS else ()
        outcome = _resolve(report.after, claim.heads, remaining, claim.default, tried)
        return self._claim(report, claim.heads, outcome, claim.attempt + 1, policy)

    def _claim(
        self, report: "_Report", heads: tuple[str, ...], outcome: Outcome, attempt: int, policy: Policy
    ) -> str:
        """Write CONFLICT_DETECTED, and its resolution where there is one already."""
        history, now = report.after, report.now
        conflict_id = ids.conflict_id(history.workspace, history.path, heads)
        base = lowest_common_ancestor(history, heads)
        seconds = {Strategy.REWORK: policy.rework_seconds, Strategy.HUMAN: policy.human_seconds}
        detected = ConflictDetected(
            conflict_id=conflict_id,
            heads=heads,
            base=base,
            overlaps=_overlaps(history, heads, base),
            strategy=outcome.strategy,
            attempt=attempt,
            deadline=now + 1000 * seconds.get(outcome.strategy, IMMEDIATE_SECONDS),
            remaining=outcome.remaining if isinstance(outcome, ClaimNeeded) else (),
            default=policy.default,
            tried=outcome.tried,
        )
        author = _Author.of(history, heads)
        event_id = ids.derived("conflict-detected", conflict_id, attempt)
        report.outputs.append(self._event(author, event_id, detected, now))
        if isinstance(outcome, Resolved):
            resolved = self._resolution(author, history, outcome, detected, policy, now)
            report.outputs.append(resolved)
        return conflict_id

    def _resolution(
        self,
        author: "_Author",
        history: FileHistory,
        outcome: Resolved,
        detected: ConflictDetected,
        policy: Policy,
        now: int,
    ) -> Outgoing:
        candidate = outcome.candidate
        first = history.edit(candidate.parents[0])
        resolved = ConflictResolved(
            patch=make_patch(
                first.content if first else None, candidate.content, executable=candidate.executable
            ),
            conflict_id=detected.conflict_id,
            strategy=outcome.strategy,
            tried=outcome.tried,
            losers=candidate.losers,
            summary=candidate.summary,
        )
        event_id = ids.derived("resolution", detected.conflict_id, detected.attempt)
        return self._event(author, event_id, resolved, now, candidate.parents, policy)

    def _event(
        self,
        author: "_Author",
        event_id: str,
        payload: Payload,
        now: int,
        parents: tuple[str, ...] = (),
        policy: Policy | None = None,
    ) -> Outgoing:
        event = Event(
            event_id=event_id,
            event_type=TYPE_OF[type(payload)],
            workspace=author.workspace,
            file_path=author.path,
            job_id=author.job_id,
            task_id=author.task_id,
            round=author.round,
            agent_id=NAME,
            role=NAME,
            timestamp=now,
            parent_event_ids=parents,
            policy=policy,
            payload=payload,
        )
        key = file_key(author.workspace, author.path)
        return Outgoing(self._topics.events, key, self._codec.encode(event))

    def read_noted(self, event: Event, read: Read, now: int) -> Outgoing:
        """The note on a file that another file's event was built on."""
        payload = ReadNoted(version=read.event_id, reader_event=event.event_id, reader_path=event.file_path)
        author = _Author(event.workspace, read.path, event.job_id, event.task_id, event.round)
        return self._event(author, ids.derived("read-noted", event.event_id, read.path), payload, now)

    def context_stale(self, history: FileHistory, reader: Reader, now: int) -> Outgoing:
        """The mark on the reader's file."""
        payload = ContextStale(
            reader_event=reader.reader_event,
            read_path=history.path,
            read_version=reader.version,
            head=history.visible,
        )
        author = _Author(history.workspace, reader.reader_path, reader.job_id, reader.task_id, reader.round)
        event_id = ids.derived("context-stale", reader.reader_event, history.path)
        return self._event(author, event_id, payload, now)

    def fact(self, job_id: str, payload: FactPayload, now: int, *identity: str | int) -> Outgoing:
        """A word to a job."""
        fact = JobFact(
            fact_id=ids.derived("fact", job_id, type(payload).__name__, *identity),
            job_id=job_id,
            timestamp=now,
            source=NAME,
            payload=payload,
        )
        return Outgoing(self._topics.jobs, job_id, self._codec.encode(fact))


class _Author(msgspec.Struct, frozen=True):
    """In whose name the detector writes: the later head's job, for its own task."""

    workspace: str
    path: str
    job_id: str
    task_id: str
    round: int

    @staticmethod
    def of(history: FileHistory, heads: tuple[str, ...]) -> "_Author":
        """The author of what is done about these heads."""
        later = max((history.entries[head] for head in heads), key=lambda entry: entry.seq)
        conflict_id = ids.conflict_id(history.workspace, history.path, heads)
        return _Author(history.workspace, history.path, later.job_id, conflict_id, 1)


class _Report:
    """What one event brings about: collects what is to be written."""

    def __init__(
        self,
        detector: Detector,
        before: FileHistory,
        after: FileHistory,
        event: Event,
        record: Record,
        now: int,
    ) -> None:
        self.detector, self.before, self.after = detector, before, after
        self.event, self.record, self.now = event, record, now
        self.outputs: list[Outgoing] = []

    def reads(self) -> None:
        """Note the event's read set on the files that were read."""
        event = self.event
        self.outputs.extend(self.detector.read_noted(event, read, self.now) for read in event.reads)

    def verdict(self, judged: Judged) -> None:
        """Tell the job of an event what became of it."""
        event_id, verdict = judged
        if verdict.kind is VerdictKind.OUTDATED:
            # Its entry may be forgotten by now; what it said is remembered as long as it matters.
            reader = next(reader for reader in self.before.readers if reader.noted_by == event_id)
            if reader.reader_event == event_id:
                self._event_judged(event_id, reader, verdict)
            else:
                self._read_judged(reader, verdict.kind)
            return
        entry = self.after.entries[event_id]
        if isinstance(self.event.payload, ReadNoted):
            self._read_judged(_reader_of(self.event, self.event.payload), verdict.kind)
        elif entry.event_type not in UNREPORTED:
            self._event_judged(event_id, entry, verdict)

    def _event_judged(self, event_id: str, by: Entry | Reader, verdict: Verdict) -> None:
        payload = EventJudged(
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
        self._tell({by.job_id}, payload, event_id, verdict.kind)

    def _read_judged(self, reader: Reader, kind: VerdictKind) -> None:
        """Answer whether what was read is (still) what readers see."""
        fresh = kind is VerdictKind.NOTED
        payload = ReadJudged(
            reader_event=reader.reader_event,
            read_path=self.after.path,
            version=reader.version,
            fresh=fresh,
            head=self.after.visible,
        )
        if not fresh:
            self.outputs.append(self.detector.context_stale(self.after, reader, self.now))
        self._tell({reader.job_id}, payload, reader.noted_by, kind)

    def claims(self) -> None:
        """Tell the jobs of the heads that a conflict was opened, has moved on, or is over."""
        event, claim, was = self.event, self.after.claim, self.before.claim
        if claim is not None and claim.event_id == event.event_id:
            loser = reworkable(self.after, claim.heads)
            payload = FileForked(
                path=self.after.path,
                conflict_id=claim.conflict_id,
                heads=claim.heads,
                base=claim.base,
                overlaps=_overlaps(self.after, claim.heads, claim.base),
                strategy=claim.strategy,
                attempt=claim.attempt,
                deadline=claim.deadline,
                loser_task=loser.task_id if loser else "",
                loser_role=loser.role if loser else "",
                own=_head_of(self.after, claim.heads, loser) if loser else "",
                tried=claim.tried,
                partition=self.record.partition,
                offset=self.record.offset,
            )
            self._tell(_jobs(self.after, claim.heads), payload, claim.conflict_id, claim.attempt)
        if was is not None and claim is None and isinstance(event.payload, ConflictResolved):
            at_stake = _jobs(self.after, self.after.heads)
            for job_id in sorted(_jobs(self.before, was.heads)):
                settled = FileSettled(
                    path=self.after.path,
                    head=self.after.visible,
                    conflict_id=was.conflict_id,
                    strategy=event.payload.strategy,
                    # A job whose work all heads hold by now is not told how it goes on.
                    forked=job_id in at_stake,
                    partition=self.record.partition,
                    offset=self.record.offset,
                )
                self._tell({job_id}, settled, was.conflict_id)

    def _tell(self, jobs: set[str], payload: FactPayload, *identity: str | int) -> None:
        self.outputs.extend(
            self.detector.fact(job, payload, self.now, *identity) for job in sorted(jobs) if job
        )


def _pair(history: FileHistory) -> tuple[str, ...]:
    """The two heads to join first, where all at once is too much: agents and people join two at a
    time. One is what readers see, or grew from it; the others join it one by one, in log order, so
    that each agent finds its own edit on its side and nothing else."""
    trunk = next(
        (head for head in history.heads if history.visible in history.ancestors((head,))), history.heads[0]
    )
    others = [head for head in history.heads if head != trunk]
    return trunk, min(others, key=lambda head: history.entries[head].seq)


def reworkable(history: FileHistory, heads: tuple[str, ...]) -> Entry | None:
    """The agent's edit whose author is asked to reconcile: the latest that is a head itself, for
    that is all that its side holds; else the latest that the heads do not share. What came from
    git, or from the detector, has nobody behind it that could."""
    entries = (history.entries[event_id] for event_id in _apart(history, heads))
    return max(
        (entry for entry in entries if entry.role not in (NAME, GIT_ROLE)),
        key=lambda entry: (entry.event_id in heads and _is_plain(entry), entry.seq),
        default=None,
    )


def _is_plain(entry: Entry) -> bool:
    return entry.event_type is not EventType.CONFLICT_RESOLVED


def _apart(history: FileHistory, heads: tuple[str, ...]) -> set[str]:
    """The edits that went into some of the heads and not into all of them."""
    lines = [history.ancestors((head,)) for head in heads]
    return set[str]().union(*lines) - lines[0].intersection(*lines[1:])


def _jobs(history: FileHistory, heads: tuple[str, ...]) -> set[str]:
    """The jobs whose work is at stake: of the heads, and of the edits that only some of them hold."""
    return {history.entries[event_id].job_id for event_id in _apart(history, heads)}


def _reader_of(event: Event, note: ReadNoted) -> Reader:
    return Reader(
        noted_by=event.event_id,
        version=note.version,
        reader_event=note.reader_event,
        reader_path=note.reader_path,
        job_id=event.job_id,
        task_id=event.task_id,
        round=event.round,
    )


def _awaited_after(awaited: str, event: Event) -> str:
    """The conflict of which more is still to come, now that this event is back. Follows what is on
    the log, not what was decided: another version of this program may have decided it."""
    match event.payload:
        case ConflictDetected(strategy=strategy, conflict_id=conflict_id) if event.role == NAME:
            return "" if strategy in CLAIMS else conflict_id
        case ConflictResolved() if event.role == NAME:
            return ""
        case _:
            return awaited


def _head_of(history: FileHistory, heads: tuple[str, ...], entry: Entry) -> str:
    """The head that an edit went into (the latest of them)."""
    found = [head for head in heads if entry.event_id in history.ancestors((head,))]
    return max(found, key=lambda head: history.entries[head].seq)


def _policy(history: FileHistory, heads: tuple[str, ...]) -> Policy:
    """The policy of the latest head that states one."""
    edits = sorted((history.entries[head] for head in heads), key=lambda entry: entry.seq, reverse=True)
    found = (entry.edit.policy for entry in edits if entry.edit is not None and entry.edit.policy is not None)
    return next(found, Policy(strategies=DEFAULT_STRATEGIES))


def _resolve(
    history: FileHistory,
    heads: tuple[str, ...],
    strategies: tuple[Strategy, ...],
    default: Strategy,
    tried: tuple[Tried, ...],
) -> Outcome:
    if default not in WRITER_WINS:
        default = Strategy.FIRST_WRITER_WINS
    outcome = resolve(history, heads, strategies, default=default, tried=tried)
    if (
        isinstance(outcome, ClaimNeeded)
        and outcome.strategy is Strategy.REWORK
        and reworkable(history, heads) is None
    ):
        nobody = Tried(strategy=Strategy.REWORK, reason="no agent stands behind these heads")
        return _resolve(history, heads, outcome.remaining, default, (*outcome.tried, nobody))
    return outcome


def _overlaps(history: FileHistory, heads: tuple[str, ...], base: str | None) -> tuple[LineRange, ...]:
    """Lines of the base that several of the heads changed; none where there is no common base."""
    found = [history.edit(head) for head in heads]
    sides = [edit.content for edit in found if edit is not None and edit.content is not None]
    origin: Edit | None = history.edit(base) if base else None
    if origin is None or origin.content is None or len(sides) < 2:
        return ()
    return overlapping(origin.content, sides)


def _awaited_field(key: str) -> str:
    return f"a:{key}"
