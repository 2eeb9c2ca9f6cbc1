"""Reads nothing, writes nothing: the fold of a file's log, where correctness lives.

`fold(history, event) -> (history, verdicts)` is pure and total. A partition is totally ordered,
so everyone who folds a file's events reaches the same verdicts without talking to anyone: the
log order is the agreement. The projector, the detector, the audit, time travel, the simulation
and the tests all call this one function.

The rules, in the order in which they are tried:

    id already seen                                    DUPLICATE  nothing changes
    an edit while a claim holds the file               DEFERRED   judged when the claim ends
    voided round, bad parents, patch does not apply    INVALID    nothing comes of it, nor of its children
    a `strong` edit that would fork                    STALE      likewise
    its parents are all the heads                      ACCEPTED   it is the head, and visible
    otherwise                                          FORKED     one more head; nothing is dropped
    a note on a version that is not visible any more   STALE
    a note on the visible version                      NOTED      OUTDATED when that moves
"""

from typing import NamedTuple

import msgspec

from codeconvoy.schemas.errors import PatchRejected
from codeconvoy.schemas.events import (
    ConflictDetected,
    ConflictResolved,
    Consistency,
    EditPayload,
    Event,
    ReadNoted,
    ReviewSubmitted,
    RoundVoided,
    TestExecuted,
)
from codeconvoy.schemas.file_history import (
    MAX_DEFERRED,
    MAX_HEADS,
    MAX_READERS,
    MAX_VOIDED,
    Claim,
    Edit,
    Entry,
    FileHistory,
    Reader,
    with_entry,
)
from codeconvoy.schemas.hunks import apply
from codeconvoy.schemas.job_facts import VerdictKind

MAX_ATTEMPTS = 16
"""Strategies that may be tried on one conflict."""


class Verdict(NamedTuple):
    """What the fold says of an event."""

    kind: VerdictKind
    reason: str = ""
    base: str | None = None
    """The lowest common ancestor of the heads, for FORKED."""
    heads: tuple[str, ...] = ()
    """The heads after the event, in log order, for ACCEPTED and FORKED."""


Judged = tuple[str, Verdict]
"""An event id and what is said of it."""


def fold(history: FileHistory, event: Event) -> tuple[FileHistory, tuple[Judged, ...]]:
    """The history after one more event of its file, and all verdicts that it brought about.

    The event's own verdict comes first. The end of a claim adds those of the events that had
    been deferred, and a moved head adds OUTDATED ones for what had been noted on it.
    """
    if event.event_id in history.entries:
        return history, ((event.event_id, Verdict(VerdictKind.DUPLICATE)),)
    if event.edit is not None:
        if history.claim is not None and not _resolves(history.claim, event):
            return _defer(history, event)
        return _judge_edit(history, event, history.next_seq)
    match event.payload:
        case ConflictDetected() as conflict:
            return _judge_conflict(history, event, conflict)
        case ReviewSubmitted(version=version) | TestExecuted(version=version):
            return _judge_note(history, event, version, event.event_id, event.file_path)
        case ReadNoted(version=version, reader_event=reader, reader_path=path):
            return _judge_note(history, event, version, reader, path)
        case RoundVoided(task_id=task_id, round=round_):
            return _noted(_void(history, task_id, round_), event)
        case _:
            return _noted(history, event)


def lowest_common_ancestor(history: FileHistory, heads: tuple[str, ...]) -> str | None:
    """The latest edit that all of the heads descend from, or None where nothing is remembered."""
    common = set.intersection(*(history.ancestors((head,)) for head in heads)) if heads else set()
    return max(common, key=lambda event_id: history.entries[event_id].seq, default=None)


def _resolves(claim: Claim, event: Event) -> bool:
    """True where the event is a resolution of just the heads that the claim is held for."""
    payload = event.payload
    return (
        isinstance(payload, ConflictResolved)
        and payload.conflict_id == claim.conflict_id
        and set(event.parent_event_ids) == set(claim.heads)
    )


def _void(history: FileHistory, task_id: str, round_: int) -> FileHistory:
    """Later edits of this round are dead."""
    voided = (*history.voided, (task_id, round_))
    gone = max(0, len(voided) - MAX_VOIDED)
    return msgspec.structs.replace(history, voided=voided[gone:], voided_from=history.voided_from + gone)


def _defer(history: FileHistory, event: Event) -> tuple[FileHistory, tuple[Judged, ...]]:
    if len(history.deferred) >= MAX_DEFERRED:
        verdict = Verdict(VerdictKind.INVALID, "too many edits wait for this file")
        return _entered(history, event, verdict), ((event.event_id, verdict),)
    verdict = Verdict(VerdictKind.DEFERRED, "a conflict of this file is being resolved")
    history = _entered(history, event, verdict)
    return msgspec.structs.replace(history, deferred=(*history.deferred, event)), ((event.event_id, verdict),)


def _judge_edit(history: FileHistory, event: Event, seq: int) -> tuple[FileHistory, tuple[Judged, ...]]:
    """Judge an edit that no claim holds back, and what its landing brings about."""
    verdict, edit = _verdict(history, event)
    if edit is None:
        return _entered(history, event, verdict, seq=seq), ((event.event_id, verdict),)
    before = history.visible
    shown = _shows(history, event, verdict)
    edit = msgspec.structs.replace(edit, shown=shown)
    history = _entered(history, event, verdict, edit=edit, seq=seq)
    history = msgspec.structs.replace(
        history, heads=verdict.heads, visible=event.event_id if shown else history.visible
    )
    judged: tuple[Judged, ...] = ((event.event_id, verdict),)
    if history.visible != before:
        history, outdated = _outdate(history, before)
        judged += outdated
    if history.claim is not None:
        history, released = _release(history)
        judged += released
    return history, judged


def _release(history: FileHistory) -> tuple[FileHistory, tuple[Judged, ...]]:
    """End the claim, and judge in order what had been deferred."""
    waiting = history.deferred
    history = msgspec.structs.replace(
        history, claim=None, deferred=(), deferred_from=history.deferred_from + len(waiting)
    )
    judged: tuple[Judged, ...] = ()
    for event in waiting:
        history, verdicts = _judge_edit(history, event, history.entries[event.event_id].seq)
        judged += verdicts
    return history, judged


def _verdict(history: FileHistory, event: Event) -> tuple[Verdict, Edit | None]:
    """What an edit is, and what it makes of the file if it is live."""
    flaw = _flaw_of_parents(history, event)
    if flaw:
        return Verdict(VerdictKind.INVALID, flaw), None
    payload = event.payload
    assert isinstance(payload, EditPayload)
    parents = event.parent_event_ids
    base = history.edit(parents[0]) if parents else None
    try:
        content = apply(payload.patch, base.content if base else None, base.sha256 if base else None)
    except PatchRejected as rejected:
        return Verdict(VerdictKind.INVALID, f"the patch does not apply: {rejected}"), None
    left = () if history.heads == parents else tuple(head for head in history.heads if head not in parents)
    heads = (*left, event.event_id)
    if len(heads) > 1 and event.consistency is Consistency.STRONG and not _joins(event):
        return Verdict(VerdictKind.STALE, "the head has moved, and the job is strong"), None
    if len(heads) > MAX_HEADS:
        return Verdict(VerdictKind.INVALID, f"the file has {MAX_HEADS} heads already"), None
    edit = Edit(
        parents=parents,
        live=True,
        content=content,
        sha256=payload.patch.result_sha256,
        executable=payload.patch.executable,
        policy=event.policy,
    )
    if len(heads) == 1:
        return Verdict(VerdictKind.ACCEPTED, heads=heads), edit
    lca = _base_with(history, event, heads)
    return Verdict(VerdictKind.FORKED, "the file has more than one head", lca, heads), edit


def _joins(event: Event) -> bool:
    """True for a resolution: it never makes a fork, though it may leave other heads."""
    return isinstance(event.payload, ConflictResolved)


def _base_with(history: FileHistory, event: Event, heads: tuple[str, ...]) -> str | None:
    """The lowest common ancestor of the heads, of which the last is the event itself."""
    sets = [history.ancestors((head,)) for head in heads[:-1]]
    common = set.intersection(history.ancestors(event.parent_event_ids), *sets)
    return max(common, key=lambda event_id: history.entries[event_id].seq, default=None)


def _flaw_of_parents(history: FileHistory, event: Event) -> str:
    """Why the event can't stand where it says it stands, or the empty string."""
    if (event.task_id, event.round) in history.voided:
        return "the round of its task was voided"
    parents = event.parent_event_ids
    if _joins(event):
        if len(parents) < 2 or list(parents) != sorted(set(parents)):
            return "a resolution names two or more parents, sorted by id"
    elif len(parents) > 1:
        return "an edit names at most one parent"
    for parent in parents:
        entry = history.entries.get(parent)
        if entry is None:
            return "parent unknown or too old"
        if entry.edit is None or not entry.edit.live:
            late = entry.verdict in (VerdictKind.ACCEPTED, VerdictKind.FORKED)
            return "parent too old" if late else f"its parent is {entry.verdict}, not live"
    return ""


def _shows(history: FileHistory, event: Event, verdict: Verdict) -> bool:
    """Readers see an edit when it is the one head, and a resolution when it joins what they see."""
    if verdict.kind is VerdictKind.ACCEPTED:
        return True
    return _joins(event) and history.visible in history.ancestors(event.parent_event_ids)


def _outdate(history: FileHistory, before: str) -> tuple[FileHistory, tuple[Judged, ...]]:
    """The visible version moved: who built on another content is told so, once. All that are remembered
    have built on what was visible before."""
    if not history.readers or _same_content(history, before):
        return history, ()
    gone = Verdict(VerdictKind.OUTDATED, "the head has moved")
    judged = tuple((reader.noted_by, gone) for reader in history.readers)
    number = history.readers_from + len(history.readers)
    return msgspec.structs.replace(history, readers=(), readers_from=number), judged


def _same_content(history: FileHistory, version: str) -> bool:
    """True where a version holds what readers see now."""
    if version == history.visible:
        return True
    seen, visible = history.edit(version), history.edit(history.visible)
    return (
        seen is not None
        and visible is not None
        and (seen.sha256, seen.executable) == (visible.sha256, visible.executable)
    )


def _judge_note(
    history: FileHistory, event: Event, version: str, reader_event: str, reader_path: str
) -> tuple[FileHistory, tuple[Judged, ...]]:
    """Something was said of, or built on, one version of this file."""
    if not _same_content(history, version):
        verdict = Verdict(VerdictKind.STALE, "this version is not the head any more")
        return _entered(history, event, verdict), ((event.event_id, verdict),)
    reader = Reader(
        noted_by=event.event_id,
        reader_event=reader_event,
        reader_path=reader_path,
        job_id=event.job_id,
        task_id=event.task_id,
        round=event.round,
    )
    readers = (*history.readers, reader)
    gone = max(0, len(readers) - MAX_READERS)
    history = msgspec.structs.replace(
        history, readers=readers[gone:], readers_from=history.readers_from + gone
    )
    history, judged = _noted(history, event)
    # Who can't be told any more when the head moves is told now, to be on the safe side.
    dropped = Verdict(VerdictKind.OUTDATED, "too many have read this file to remember them all")
    return history, judged + tuple((reader.noted_by, dropped) for reader in readers[:gone])


def _judge_conflict(
    history: FileHistory, event: Event, conflict: ConflictDetected
) -> tuple[FileHistory, tuple[Judged, ...]]:
    """A conflict claims the file, if what it was found on still stands."""
    verdict = _verdict_of_conflict(history, conflict)
    if verdict.kind is VerdictKind.NOTED:
        claim = Claim(
            conflict_id=conflict.conflict_id,
            heads=conflict.heads,
            base=conflict.base,
            attempt=conflict.attempt,
            strategy=conflict.strategy,
            remaining=conflict.remaining,
            default=conflict.default,
            tried=conflict.tried,
            deadline=conflict.deadline,
            event_id=event.event_id,
        )
        history = msgspec.structs.replace(history, claim=claim)
    return _entered(history, event, verdict), ((event.event_id, verdict),)


def _verdict_of_conflict(history: FileHistory, conflict: ConflictDetected) -> Verdict:
    claim = history.claim
    if conflict.attempt > MAX_ATTEMPTS:
        return Verdict(VerdictKind.INVALID, "too many attempts on one conflict")
    if claim is not None:
        if claim.conflict_id == conflict.conflict_id and conflict.attempt > claim.attempt:
            return Verdict(VerdictKind.NOTED)
        return Verdict(VerdictKind.INVALID, "the file is claimed already")
    if len(set(conflict.heads)) < 2 or not set(conflict.heads) <= set(history.heads):
        return Verdict(VerdictKind.STALE, "the heads have moved")
    return Verdict(VerdictKind.NOTED)


def _noted(history: FileHistory, event: Event) -> tuple[FileHistory, tuple[Judged, ...]]:
    verdict = Verdict(VerdictKind.NOTED)
    return _entered(history, event, verdict), ((event.event_id, verdict),)


def _entered(
    history: FileHistory, event: Event, verdict: Verdict, *, edit: Edit | None = None, seq: int | None = None
) -> FileHistory:
    """The history with the event's entry; a deferred event keeps the place where it arrived."""
    known = history.entries.get(event.event_id)
    entry = Entry(
        seq=history.next_seq if seq is None else seq,
        slot=history.next_slot if known is None else known.slot,
        event_id=event.event_id,
        event_type=event.event_type,
        job_id=event.job_id,
        task_id=event.task_id,
        round=event.round,
        role=event.role,
        agent_id=event.agent_id,
        timestamp=event.timestamp,
        verdict=verdict.kind,
        reason=verdict.reason,
        edit=edit,
        summary=_summary(event),
    )
    return with_entry(history, entry)


def _summary(event: Event) -> str:
    """One line on the event, for people."""
    match event.payload:
        case ConflictResolved(strategy=strategy, summary=summary):
            return f"{strategy}: {summary}" if summary else str(strategy)
        case ConflictDetected(strategy=strategy, heads=heads):
            return f"{len(heads)} heads, tries {strategy}"
        case ReviewSubmitted(approved=approved):
            return "approved" if approved else "rejected"
        case TestExecuted(outcome=outcome):
            return outcome
        case _:
            return getattr(event.payload, "summary", "") or getattr(event.payload, "reason", "")
