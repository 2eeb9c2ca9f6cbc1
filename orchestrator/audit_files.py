"""Reads records of the events log, writes nothing: folds every file anew, and holds the outcome
against what else is said of it.

Besides the fold it keeps a small account of its own (which edits are live, of which parents, tasks
and rounds), so that it does not take the fold's word for everything.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from codeconvoy.orchestrator.audit_branches import BranchAudit
from codeconvoy.orchestrator.audit_jobs import Claims
from codeconvoy.orchestrator.audit_report import Check, Counts, Findings, Unreadable
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import (
    TYPE_OF,
    ConflictDetected,
    ConflictResolved,
    EditPayload,
    Event,
    EventType,
    ReadNoted,
    ReviewSubmitted,
    TestExecuted,
    TestWritten,
)
from codeconvoy.schemas.file_fold import Verdict, fold
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.job_facts import Judgement, VerdictKind
from codeconvoy.schemas.topics import Topics, file_key, partition_of
from codeconvoy.workers import file_states
from codeconvoy.workers.engine.bus import Record
from codeconvoy.workers.projector import empty_history
from codeconvoy.workers.report import UNREPORTED

_LIVE = (VerdictKind.ACCEPTED, VerdictKind.FORKED)
_EDITS = frozenset(TYPE_OF[kind] for kind in get_args(EditPayload))


@dataclass(frozen=True, slots=True)
class _Arrival:
    """What stays known of an event when the history has forgotten it."""

    kind: EventType
    job_id: str
    task_id: str
    round: int
    parents: tuple[str, ...]
    note: str
    """The strategy of a CONFLICT_RESOLVED, the reading event of a READ_NOTED."""


@dataclass(slots=True)
class _File:
    """One file, and the audit's own account of it."""

    history: FileHistory
    arrived: dict[str, _Arrival] = field(default_factory=dict)
    """By event id."""
    live: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Live edits, with their parents."""
    missing: dict[str, str] = field(default_factory=dict)
    """Parents that were not on the log yet when an edit named them."""
    by_round: dict[tuple[str, int], str] = field(default_factory=dict)
    """The live edit of a task's round."""
    last_round: dict[str, int] = field(default_factory=dict)
    """The latest live round of each task."""
    deferred: set[str] = field(default_factory=set)
    """Edits that are to be judged once more."""
    branches: list[BranchAudit] = field(default_factory=list)


class FilesAudit:
    """Re-folds the files of one partition."""

    def __init__(
        self,
        partition: int,
        topics: Topics,
        codec: Codec,
        findings: Findings,
        counts: Counts,
        claims: Claims,
        *,
        unreadable: Unreadable,
        branches: Sequence[BranchAudit] = (),
        judged_below: int,
        only: Collection[str] | None = None,
        job: str = "",
    ) -> None:
        """`judged_below` is the offset below which every verdict must have been reported; `only`
        names file keys (None: all), and `job` whose reports are looked at (empty: everybody's)."""
        self._partition, self._topics, self._codec = partition, topics, codec
        self._findings, self._counts, self._claims = findings, counts, claims
        self._unreadable, self._judged_below = unreadable, judged_below
        self._only, self._job = only, job
        self._files: dict[str, _File] = {}
        for branch in branches:
            for path in branch.publication.imports:
                key = file_key(branch.publication.workspace, path)
                if partition_of(key, topics.partitions) == partition:
                    self._file(key).branches.append(branch)

    def _file(self, key: str) -> _File:
        if key not in self._files:
            self._files[key] = _File(empty_history(key))
        return self._files[key]

    def feed(self, record: Record) -> None:
        """One more record of the partition.

        Raises:
            Undecodable: a newer version wrote it; nothing after it can be folded.
        """
        key = record.key
        if self._only is not None and key not in self._only:
            return
        file = self._file(key)
        self._try_branches(file, record.offset)
        event = self._unreadable.read(self._codec, record, Event, self._findings, self._counts)
        if event is None:
            return
        self._in_place(record, event)
        file.history, judged = fold(file.history, event)
        if judged[0][1].kind is VerdictKind.DUPLICATE:
            self._counts.redelivered += 1
            return
        self._arrived(file, key, record, event)
        for event_id, verdict in judged:
            self._judged(file, key, event_id, verdict)
            self._reported(file, record, event_id, verdict)

    def _in_place(self, record: Record, event: Event) -> None:
        home = partition_of(record.key, self._topics.partitions)
        if record.partition != home:
            what = f"offset {record.offset} is on partition {record.partition}, its key belongs on {home}"
            self._findings.add(Check.MISPLACED, record.key, what, event.event_id)

    def _arrived(self, file: _File, key: str, record: Record, event: Event) -> None:
        """Count an event that is new to the fold, and see that it comes when it may."""
        counts, event_id = self._counts, event.event_id
        counts.events += 1
        if event_id in file.arrived:
            what = f"it is on the log twice, and the copy at {record.offset} was judged again"
            self._findings.add(Check.DOUBLED, key, what, event_id)
        if event_id in file.missing:
            child = file.missing.pop(event_id)
            self._findings.add(Check.ORDER, key, f"{child} names it as parent and comes first", event_id)
        parents = event.parent_event_ids
        if event.edit is not None:
            file.missing |= {parent: event_id for parent in parents if parent not in file.arrived}
        note = ""
        match event.payload:
            case ConflictResolved(strategy=strategy):
                note = str(strategy)
            case ReadNoted(reader_event=reader):
                note = reader
            case ConflictDetected(attempt=1, overlaps=overlaps):
                counts.conflicts += 1
                counts.overlapping += bool(overlaps)
            case ReviewSubmitted():
                counts.reviews += 1
            case TestWritten():
                counts.tests_written += 1
            case TestExecuted(outcome=outcome):
                counts.tests_run += outcome != "not_executed"
        file.arrived[event_id] = _Arrival(
            event.event_type, event.job_id, event.task_id, event.round, parents, note
        )
        self._claims.written.pop(event_id, None)

    def _judged(self, file: _File, key: str, event_id: str, verdict: Verdict) -> None:
        """Keep account of one verdict."""
        kind = verdict.kind
        if file.arrived[event_id].kind not in _EDITS:
            self._counts.stale += kind in (VerdictKind.STALE, VerdictKind.OUTDATED)
            return
        self._counts.edits[str(kind)] += 1
        if kind is VerdictKind.FORKED and file.arrived[event_id].kind is not EventType.CONFLICT_RESOLVED:
            self._counts.forks += 1
        if kind is VerdictKind.DEFERRED:
            file.deferred.add(event_id)
            return
        if event_id in file.deferred:
            file.deferred.discard(event_id)
            self._counts.edits[str(VerdictKind.DEFERRED)] -= 1
        if kind in _LIVE:
            self._took_effect(file, key, event_id)

    def _took_effect(self, file: _File, key: str, event_id: str) -> None:
        """Keep account of a live edit: after its parents, once, once a round, and rounds in order."""
        arrival = file.arrived[event_id]
        task, round_ = arrival.task_id, arrival.round
        if event_id in file.live:
            self._findings.add(Check.DOUBLED, key, "it took effect twice", event_id)
        file.live[event_id] = arrival.parents
        for parent in arrival.parents:
            if parent not in file.live:
                self._findings.add(Check.ORDER, key, f"it is live, its parent {parent} is not", event_id)
        if arrival.kind is EventType.CONFLICT_RESOLVED:
            self._counts.resolved[arrival.note] += 1
        other = file.by_round.setdefault((task, round_), event_id)
        if other != event_id:
            what = f"round {round_} of task {task} has two live edits, the other is {other}"
            self._findings.add(Check.DOUBLED, key, what, event_id)
        latest = file.last_round.get(task, round_)
        if round_ < latest:
            what = f"round {round_} of task {task} took effect after round {latest}"
            self._findings.add(Check.ORDER, key, what, event_id)
        file.last_round[task] = max(round_, latest)

    def _reported(self, file: _File, record: Record, event_id: str, verdict: Verdict) -> None:
        """See that the event's job was told of the verdict, and of nothing else."""
        arrival = file.arrived[event_id]
        if not arrival.job_id or arrival.kind in UNREPORTED or (self._job and arrival.job_id != self._job):
            return
        if arrival.kind is EventType.READ_NOTED:
            self._read_reported(file, record, event_id, verdict)
            return
        told = self._claims.verdicts.pop((event_id, verdict.kind), None)
        due = Judgement(
            event_id=event_id,
            task_id=arrival.task_id,
            round=arrival.round,
            path=file.history.path,
            verdict=verdict.kind,
            reason=verdict.reason,
            heads=file.history.heads,
            visible=file.history.visible,
            partition=record.partition,
            offset=record.offset,
        )
        where = f"job {arrival.job_id}"
        if told is None:
            if record.offset < self._judged_below:
                what = f"{file.history.path} at {record.offset}: {verdict.kind} was not reported"
                self._findings.add(Check.VERDICT, where, what, event_id)
        elif told != due:
            names = [name for name in due.__struct_fields__ if getattr(told, name) != getattr(due, name)]
            what = f"{file.history.path}: {verdict.kind} was reported with another {', '.join(names)}"
            self._findings.add(Check.VERDICT, where, what, event_id)

    def _read_reported(self, file: _File, record: Record, event_id: str, verdict: Verdict) -> None:
        """See that the reader's job was told whether what was read is (still) what readers see."""
        arrival, fresh = file.arrived[event_id], verdict.kind is VerdictKind.NOTED
        answer = (arrival.note, file.history.path, fresh)
        if answer not in self._claims.reads and record.offset < self._judged_below:
            what = f"that a read of {file.history.path} is {'fresh' if fresh else 'stale'} was not reported"
            self._findings.add(Check.VERDICT, f"job {arrival.job_id}", what, event_id)

    def _try_branches(self, file: _File, offset: int) -> None:
        path = file.history.path
        for branch in file.branches:
            if branch.is_due(self._partition, offset) and branch.has_begun(path, file.arrived):
                branch.try_history(file.history)

    def finish(self) -> None:
        """See that nothing was lost, once everything was fed."""
        for key, file in self._files.items():
            self._counts.files += bool(file.history.entries)
            for branch in file.branches:
                branch.try_history(file.history)
            reached: set[str] = set()
            stack = list(file.history.heads)
            while stack:
                event_id = stack.pop()
                if event_id not in reached:
                    reached.add(event_id)
                    stack.extend(file.live.get(event_id, ()))
            for event_id in file.live.keys() - reached:
                what = "it was accepted, and is not an ancestor of any head"
                self._findings.add(Check.LOST, key, what, event_id)
            for event_id in reached - file.live.keys():
                self._findings.add(Check.ORDER, key, "it is in the result, and is not live", event_id)

    def fields(self) -> Iterator[tuple[str, Mapping[str, bytes], bool]]:
        """For each file its key, the fields that the projection holds of it, and whether it may be
        without them (nothing is known of it)."""
        for key, file in self._files.items():
            yield key, file_states.fields_of(file.history, key), not file.history.entries
