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

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import msgspec

from codeconvoy.schemas import ids
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import (
    TASKED,
    ConflictDetected,
    ConflictResolved,
    Event,
    Policy,
    ResolutionFailed,
    Strategy,
    Tried,
)
from codeconvoy.schemas.file_fold import MAX_ATTEMPTS, Judged, fold, lowest_common_ancestor
from codeconvoy.schemas.file_history import Claim, FileHistory
from codeconvoy.schemas.hunks import make_patch
from codeconvoy.schemas.job_facts import VerdictKind
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers import file_states
from codeconvoy.workers.conflicts import DETECTOR, outcome_of, overlaps_of, pair_of, policy_of
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.engine.reads import ReadFields
from codeconvoy.workers.projector import empty_history
from codeconvoy.workers.records import decoded
from codeconvoy.workers.report import Author, Pen, Report
from codeconvoy.workers.resolution.strategies import CLAIMS, ClaimNeeded, Outcome, Resolved
from codeconvoy.workers.tracing import OFF, Tracing

NAME = DETECTOR
MAX_REASON = 2_000
"""Characters of a reason that are kept of what somebody else wrote."""
IMMEDIATE_SECONDS = 60
"""Deadline of a claim whose resolution is written together with it: never reached in practice."""


class DetectorState(msgspec.Struct, frozen=True, kw_only=True):
    """A file's history, and the conflict on which something was written that has not come back yet."""

    history: FileHistory
    awaited: str = ""
    """Its id. Nothing is decided meanwhile: a decision that an edit has overtaken would be followed
    by the next one before its own resolution is back, which overtakes that in turn, for ever."""


class Detector:
    """The conflict detector, as a fold."""

    name = NAME

    def __init__(self, codec: Codec, topics: Topics, tracing: Tracing = OFF) -> None:
        self._tracing = tracing
        self._codec, self._pen = codec, Pen(codec, topics)
        self.topic = topics.events

    def empty(self, key: str) -> DetectorState:
        """See `FoldConsumer`."""
        return DetectorState(history=empty_history(key))

    async def load(self, keys: Sequence[str], read: ReadFields) -> Mapping[str, DetectorState]:
        """See `FoldConsumer`."""
        histories, awaited = await asyncio.gather(
            file_states.load_own(keys, read), read([_awaited_field(key) for key in keys])
        )
        return {
            key: DetectorState(
                history=histories[key] or empty_history(key), awaited=field.decode() if field else ""
            )
            for key, field in zip(keys, awaited, strict=True)
        }

    def dump(
        self, key: str, before: DetectorState | None, after: DetectorState
    ) -> Mapping[str, bytes | None]:
        """See `FoldConsumer`."""
        changes = file_states.dump(key, before.history if before else None, after.history)
        if after.awaited != (before.awaited if before else ""):
            changes[_awaited_field(key)] = after.awaited.encode() or None
        return changes

    def weigh(self, state: DetectorState) -> int:
        """See `FoldConsumer`."""
        return file_states.weight_of(state.history)

    def together(self, outputs: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """See `FoldConsumer`."""
        return self._pen.together(outputs)

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
        return self._pen.event(Author.of(state.history, claim.heads), event_id, payload, now)

    def step(
        self, state: DetectorState, record: Record, now: int
    ) -> tuple[DetectorState, Sequence[Outgoing]]:
        """See `FoldConsumer`."""
        event = decoded(self._codec, record, Event)
        before = state.history
        history, judged = fold(before, event)
        if judged[0][1].kind is VerdictKind.DUPLICATE:
            return state, ()
        report = Report(self._pen, before, history, event, record, now)
        report.tell(judged)
        awaited = _awaited_after(state.awaited, event)
        if not awaited:
            awaited = self._act(report, event, judged)
        return DetectorState(history=history, awaited=awaited), report.outputs

    def _act(self, report: Report, event: Event, judged: tuple[Judged, ...]) -> str:
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

    def _open(self, report: Report) -> str:
        """A fork that nobody works on: try what answers at once, else claim the file."""
        history = report.after
        heads = history.heads
        policy = policy_of(history, heads)
        with self._resolving(history):
            outcome = outcome_of(history, heads, policy.strategies, policy.default, ())
            if isinstance(outcome, ClaimNeeded) and len(heads) > 2:
                heads = pair_of(history)
                outcome = outcome_of(history, heads, policy.strategies, policy.default, ())
            return self._claim(report, tuple(sorted(heads)), outcome, 1, policy)

    def _next(self, report: Report, claim: Claim, reason: str) -> str:
        tried = (*claim.tried, Tried(strategy=claim.strategy, reason=reason[:MAX_REASON]))
        policy = policy_of(report.after, claim.heads)
        # The last attempt that the fold allows must settle it, or the claim would never end.
        remaining = claim.remaining if claim.attempt + 1 < MAX_ATTEMPTS else ()
        with self._resolving(report.after):
            outcome = outcome_of(report.after, claim.heads, remaining, claim.default, tried)
            return self._claim(report, claim.heads, outcome, claim.attempt + 1, policy)

    def _resolving(self, history: FileHistory) -> AbstractContextManager[object]:
        """Tells how long the strategies take that answer at once."""
        told = {"convoy.workspace": history.workspace, "convoy.path": history.path}
        return self._tracing.span("convoy.resolve", told)

    def _claim(
        self, report: Report, heads: tuple[str, ...], outcome: Outcome, attempt: int, policy: Policy
    ) -> str:
        """Write CONFLICT_DETECTED, and its resolution where there is one already: both, or neither."""
        history, now = report.after, report.now
        conflict_id = ids.conflict_id(history.workspace, history.path, heads)
        base = lowest_common_ancestor(history, heads)
        seconds = {**dict.fromkeys(TASKED, policy.rework_seconds), Strategy.HUMAN: policy.human_seconds}
        detected = ConflictDetected(
            conflict_id=conflict_id,
            heads=heads,
            base=base,
            overlaps=overlaps_of(history, heads, base),
            strategy=outcome.strategy,
            attempt=attempt,
            deadline=now + 1000 * seconds.get(outcome.strategy, IMMEDIATE_SECONDS),
            remaining=outcome.remaining if isinstance(outcome, ClaimNeeded) else (),
            default=policy.default,
            tried=outcome.tried,
        )
        author = Author.of(history, heads)
        event_id = ids.derived("conflict-detected", conflict_id, attempt)
        written = self._pen.event(author, event_id, detected, now)
        if isinstance(outcome, Resolved):
            resolved = self._resolution(author, history, outcome, detected, policy, now)
            written = [*written, *resolved] if written and resolved else []
        self._tracing.note(
            {
                "convoy.conflict.id": conflict_id,
                "convoy.conflict.heads": len(heads),
                "convoy.conflict.attempt": attempt,
                "convoy.conflict.strategy": str(outcome.strategy),
                "convoy.conflict.resolved": isinstance(outcome, Resolved),
            }
        )
        report.outputs.extend(self._tracing.stamped(written))
        return conflict_id if written else ""

    def _resolution(
        self,
        author: Author,
        history: FileHistory,
        outcome: Resolved,
        detected: ConflictDetected,
        policy: Policy,
        now: int,
    ) -> list[Outgoing]:
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
        return self._pen.event(author, event_id, resolved, now, candidate.parents, policy)


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


def _awaited_field(key: str) -> str:
    return f"a:{key}"
