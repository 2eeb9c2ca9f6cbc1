"""Reads and writes fields of a partition's hash: how a job is laid out in Redis.

    j:JOB           the header: what there is one of, and how many of the rest
    o:JOB PART      the job's spec, what its import, its planner and git have answered, and its ledger
    k:JOB NUMBER    where each task stands, and w:JOB NUMBER what it is about and has written: the one
                    changes often, the other is large
    u:JOB NUMBER    each unit
    f:JOB NUMBER    each file

and in the projection alone, for workers, who ask for one task at a time, and often:

    s:JOB           the job's status
    t:TASK          the task's round and status

So what a fact writes does not grow with the size of its job.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import msgspec

from codeconvoy.schemas.budget import Ledger
from codeconvoy.schemas.errors import TornState
from codeconvoy.schemas.job_facts import (
    Emitted,
    Imported,
    ImportedFile,
    JobStatus,
    Planned,
    Published,
    Result,
)
from codeconvoy.schemas.job_spec import JobSpec
from codeconvoy.schemas.job_state import FileStatus, JobState, Tally, TaskState, TaskStatus, Unit, restored
from codeconvoy.schemas.persistent import PersistentMap
from codeconvoy.schemas.tasks import Former, Task
from codeconvoy.workers.engine.reads import ReadFields

_HEADER, _PART, _TASK, _WORK, _UNIT, _FILE = "j:", "o:", "k:", "w:", "u:", "f:"
_PARTS: Mapping[str, type[msgspec.Struct]] = {
    "spec": JobSpec,
    "imported": Imported,
    "planned": Planned,
    "published": Published,
    "ledger": Ledger,
}

TASK_BYTES, FILE_BYTES = 1_500, 300
"""About what a task, and a unit or file, takes in memory (measured)."""

S = TypeVar("S", bound=msgspec.Struct)
_pack = msgspec.msgpack.encode


class _Header(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A job without what has fields of its own."""

    status: JobStatus
    submitted_at: int
    deadline: int
    ends_as: JobStatus | None
    reason: str
    ended_by_role: Mapping[str, int]
    open_tasks: int
    open_units: int
    open_conflicts: int
    tally: Tally
    facts: int
    updated_at: int
    tasks: int
    """How many there are; likewise:"""
    units: int
    files: int
    trace: str = ""


class _Standing(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Of a task, what changes often."""

    round: int
    status: TaskStatus
    deadline: int
    mark: int
    pending: tuple[str, ...]
    unread: int
    answered: tuple[str, ...]
    refusal: str
    stale: bool
    repairs: int
    reason: str
    sent: int = 0
    edited: Former | None = None


class _Work(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Of a task, what it is about and what it has written."""

    task: Task
    unit: str
    events: tuple[Emitted, ...]
    told: tuple[tuple[str, int], ...]
    result: Result | None


def job_field(job_id: str) -> str:
    """The name of a job's header field."""
    return _HEADER + job_id


def status_field(job_id: str) -> str:
    """The name of the field that holds a job's status alone."""
    return f"s:{job_id}"


def task_field(task_id: str) -> str:
    """The name of the field that holds a task's round and status alone."""
    return f"t:{task_id}"


def ledger_field(job_id: str) -> str:
    """The name of the field that holds a job's ledger alone."""
    return _field(_PART, job_id, "ledger")


def ledger_in(raw: bytes | None) -> Ledger:
    """The ledger that the field holds."""
    return msgspec.msgpack.decode(raw, type=Ledger) if raw is not None else Ledger()


def goal_fields(job_id: str) -> list[str]:
    """The names of the fields that say what is asked for."""
    return [_field(_PART, job_id, name) for name in ("spec", "planned")]


def goal_in(fields: Sequence[bytes | None], role: str, path: str) -> str:
    """What is asked of a role for a file, by the values of `goal_fields`; empty where they are missing."""
    if fields[0] is None:
        return ""
    spec = msgspec.msgpack.decode(fields[0], type=JobSpec)
    planned = msgspec.msgpack.decode(fields[1], type=Planned).tasks if fields[1] is not None else ()
    own = (task.goal for task in (*spec.tasks, *planned) if (task.role, task.path) == (role, path))
    return next((goal for goal in own if goal), spec.goal)


def imported_field(job_id: str) -> str:
    """The name of the field of what a job's import has answered."""
    return _field(_PART, job_id, "imported")


def imported_in(raw: bytes | None) -> Sequence[ImportedFile] | None:
    """The files that an import's field names."""
    found = _IMPORTS.decode(raw) if raw is not None else None
    return found.files if found is not None else None


def key_of(field: str) -> str:
    """The id of the job or task that a field is about."""
    return field.partition(":")[2].partition("\x1f")[0]


# Writing ------------------------------------------------------------------------------------------


def weight_of(job: JobState) -> int:
    """About how many bytes a job takes in memory."""
    return TASK_BYTES * (1 + len(job.tasks)) + FILE_BYTES * (len(job.units) + len(job.files))


def dump(before: JobState | None, after: JobState) -> dict[str, bytes | None]:
    """The fields that differ. With the same `after` they are the same bytes, whoever writes them."""
    return _dump(before, after, _changed_tasks(before, after))


def dump_view(before: JobState | None, after: JobState) -> dict[str, bytes | None]:
    """As `dump`, with what workers ask for."""
    tasks = _changed_tasks(before, after)
    changes = _dump(before, after, tasks)
    if before is None or not before.facts or before.status is not after.status:
        changes[status_field(after.job_id)] = after.status.encode()
    for old, state in tasks:
        if old is None or (old.task.round, old.status) != (state.task.round, state.status):
            changes[task_field(state.task.task_id)] = f"{state.task.round} {state.status}".encode()
    return changes


_ChangedTasks = Sequence[tuple[TaskState | None, TaskState]]


def _changed_tasks(before: JobState | None, after: JobState) -> _ChangedTasks:
    return _changed(after.tasks, before.tasks if before is not None else None)


def _dump(before: JobState | None, after: JobState, tasks: _ChangedTasks) -> dict[str, bytes | None]:
    was, job_id = before or JobState(job_id=after.job_id), after.job_id
    header = _Header(
        status=after.status,
        submitted_at=after.submitted_at,
        deadline=after.deadline,
        ends_as=after.ends_as,
        reason=after.reason,
        ended_by_role=after.ended_by_role,
        open_tasks=after.open_tasks,
        open_units=after.open_units,
        open_conflicts=after.open_conflicts,
        tally=after.tally,
        facts=after.facts,
        updated_at=after.updated_at,
        tasks=len(after.tasks),
        units=len(after.units),
        files=len(after.files),
        trace=after.trace,
    )
    changes: dict[str, bytes | None] = {job_field(job_id): _pack(header)}
    for name in _PARTS:
        part = getattr(after, name)
        if part is not getattr(was, name):
            changes[_field(_PART, job_id, name)] = _pack(part)
    for old, state in tasks:
        _task(changes, job_id, old, state)
    for _, unit in _changed(after.units, was.units):
        changes[_field(_UNIT, job_id, unit.number)] = _pack(unit)
    for _, file in _changed(after.files, was.files):
        changes[_field(_FILE, job_id, file.number)] = _pack(file)
    return changes


def _field(stem: str, job_id: str, what: str | int) -> str:
    return f"{stem}{job_id}\x1f{what}"


def _changed(after: PersistentMap[S], before: PersistentMap[S] | None) -> list[tuple[S | None, S]]:
    """What differs, as it was and as it is, where nothing ever goes."""
    return [(was, now) for was, now in after.changed_since(before).values() if now is not None]


def _task(changes: dict[str, bytes | None], job_id: str, old: TaskState | None, state: TaskState) -> None:
    """Add the fields of a task that differ."""
    standing = _Standing(
        round=state.task.round,
        status=state.status,
        deadline=state.deadline,
        mark=state.mark,
        pending=tuple(sorted(state.pending)),
        unread=state.unread,
        answered=state.answered,
        refusal=state.refusal,
        stale=state.stale,
        repairs=state.repairs,
        reason=state.reason,
        sent=state.sent,
        edited=state.edited,
    )
    changes[_field(_TASK, job_id, state.number)] = _pack(standing)
    if old is None or any(getattr(old, name) is not getattr(state, name) for name in _Work.__struct_fields__):
        work = _Work(
            task=state.task,
            unit=state.unit,
            events=state.events,
            told=state.told,
            result=state.result,
        )
        changes[_field(_WORK, job_id, state.number)] = _pack(work)


# Reading ------------------------------------------------------------------------------------------


async def load_all(job_ids: Sequence[str], read: ReadFields) -> Mapping[str, JobState]:
    """Jobs by id. There are few of them, and each is large."""
    return {job_id: await load(job_id, read) for job_id in job_ids}


async def load(job_id: str, read: ReadFields) -> JobState:
    """A job from its fields, or an empty one.

    Raises:
        TornState: some are missing.
    """
    (raw,) = await read([job_field(job_id)])
    if raw is None:
        return JobState(job_id=job_id)
    header = _HEADERS.decode(raw)
    while True:
        names = list(_names(job_id, header))
        found, *values = await read(names)
        latest = _HEADERS.decode(found) if found is not None else None
        if latest is None:
            return JobState(job_id=job_id)
        if (latest.tasks, latest.units, latest.files) == (header.tasks, header.units, header.files):
            if None in values[len(_PARTS) :]:
                raise TornState(f"of job {job_id!r} something is missing")
            return _job(job_id, latest, values)
        header = latest  # there are more by now: all that is asked for at once is of one moment


def _names(job_id: str, header: _Header) -> Iterable[str]:
    yield job_field(job_id)
    yield from (_field(_PART, job_id, name) for name in _PARTS)
    counts = ((_TASK, header.tasks), (_WORK, header.tasks), (_UNIT, header.units), (_FILE, header.files))
    for stem, count in counts:
        yield from (_field(stem, job_id, number) for number in range(count))


def _job(job_id: str, header: _Header, values: Sequence[bytes | None]) -> JobState:
    parts: dict[str, Any] = {
        name: msgspec.msgpack.decode(raw, type=kind)
        for (name, kind), raw in zip(_PARTS.items(), values, strict=False)
        if raw is not None
    }
    rest = iter([raw for raw in values[len(_PARTS) :] if raw is not None])
    standings, works = list(islice(rest, header.tasks)), list(islice(rest, header.tasks))
    units, files = list(islice(rest, header.units)), list(islice(rest, header.files))
    job = JobState(
        job_id=job_id,
        status=header.status,
        submitted_at=header.submitted_at,
        deadline=header.deadline,
        ends_as=header.ends_as,
        reason=header.reason,
        ended_by_role=header.ended_by_role,
        open_tasks=header.open_tasks,
        open_units=header.open_units,
        open_conflicts=header.open_conflicts,
        tally=header.tally,
        facts=header.facts,
        updated_at=header.updated_at,
        trace=header.trace,
        **parts,
    )
    tasks = [
        _state(number, _STANDINGS.decode(standing), _WORKS.decode(work))
        for number, (standing, work) in enumerate(zip(standings, works, strict=True))
    ]
    return restored(job, tasks, map(_UNITS.decode, units), map(_FILES.decode, files))


def _state(number: int, standing: _Standing, work: _Work) -> TaskState:
    return TaskState(
        number=number,
        task=work.task,
        unit=work.unit,
        status=standing.status,
        deadline=standing.deadline,
        mark=standing.mark,
        pending=frozenset(standing.pending),
        unread=standing.unread,
        answered=standing.answered,
        events=work.events,
        told=work.told,
        result=work.result,
        edited=standing.edited,
        refusal=standing.refusal,
        stale=standing.stale,
        repairs=standing.repairs,
        reason=standing.reason,
        sent=standing.sent,
    )


_IMPORTS: msgspec.msgpack.Decoder[Imported | None] = msgspec.msgpack.Decoder(Imported | None)
_HEADERS = msgspec.msgpack.Decoder(_Header)
_STANDINGS = msgspec.msgpack.Decoder(_Standing)
_WORKS = msgspec.msgpack.Decoder(_Work)
_UNITS = msgspec.msgpack.Decoder(Unit)
_FILES = msgspec.msgpack.Decoder(FileStatus)
