"""Reads the projection in Redis; writes nothing: what every reader of the fleet's state calls.

The projection is a cache of the log: it is behind by a moment, and it can be lost and rebuilt.
Nobody decides from it what is true; agents read from it what they work on, and the log decides.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.file_history import Entry, FileHistory
from codeconvoy.schemas.job_facts import JobStatus
from codeconvoy.schemas.job_state import JobState, TaskStatus
from codeconvoy.schemas.tasks import MustSee
from codeconvoy.schemas.topics import file_key, partition_of, split_file_key
from codeconvoy.workers import file_states
from codeconvoy.workers.engine.state import LIVE, StateStore
from codeconvoy.workers.projector import empty_history, job_field, load_job, status_field, task_field
from codeconvoy.workers.roles.role import Version

READ_ATTEMPTS = 10
"""Reads of a file between whose two halves the projector wrote."""
READS_AT_ONCE = 32
_REMEDY = "Is `convoy projector` running? `convoy doctor` tells"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a task and its job stand."""

    job: JobStatus
    round: int
    """The round that is waited for; 0 where the task is not known."""
    task: TaskStatus | None


class Projection(Protocol):
    """Files and jobs, as the projector last saw them."""

    async def histories(self, workspace: str, paths: Sequence[str]) -> Mapping[str, FileHistory]:
        """The history of each of the paths (an empty one for a path that was never written).

        Raises:
            Unavailable: the projection is being rebuilt.
        """
        ...

    async def visible(
        self, workspace: str, paths: Sequence[str], known: Mapping[str, Version]
    ) -> Mapping[str, Version]:
        """What readers see of each of the paths; much cheaper than the histories. What is `known`
        already, and has not moved, is taken from there.

        Raises:
            Unavailable: the projection is being rebuilt.
        """
        ...

    async def paths(self, workspace: str) -> Sequence[str]:
        """All paths of a workspace that have a history, sorted."""
        ...

    async def passed(self, points: Sequence[MustSee]) -> bool:
        """True when the projector has passed all of these offsets of the events log."""
        ...

    async def job(self, job_id: str) -> JobState | None:
        """A job, or None where the projection has not heard of it."""
        ...

    async def standing(self, job_id: str, task_id: str) -> Standing | None:
        """Where a task and its job stand, or None where the projection has not heard of the job."""
        ...

    async def jobs(self) -> Sequence[JobState]:
        """All jobs, the latest first."""
        ...

    async def conflicts(self) -> Sequence[FileHistory]:
        """All files that have more than one head."""
        ...


class StoredProjection:
    """The projection as the projector's two engines keep it."""

    def __init__(self, files: StateStore, jobs: StateStore, partitions: int) -> None:
        self._files, self._jobs, self._partitions = files, jobs, partitions

    async def histories(self, workspace: str, paths: Sequence[str]) -> Mapping[str, FileHistory]:
        """See `Projection`."""
        gate = asyncio.Semaphore(READS_AT_ONCE)

        async def one(path: str) -> FileHistory:
            async with gate:
                return await self._history(file_key(workspace, path))

        wanted = list(dict.fromkeys(paths))
        return dict(zip(wanted, await asyncio.gather(*map(one, wanted)), strict=True))

    async def _history(self, key: str) -> FileHistory:
        partition = partition_of(key, self._partitions)

        async def read(fields: Sequence[str]) -> Sequence[bytes | None]:
            return await self._fields(partition, fields)

        for _ in range(READ_ATTEMPTS):
            try:
                return await file_states.load(key, read) or empty_history(key)
            except file_states.TornRead:
                continue
        raise Unavailable("projection", f"{key!r} changes faster than it can be read", "Try again")

    async def visible(
        self, workspace: str, paths: Sequence[str], known: Mapping[str, Version]
    ) -> Mapping[str, Version]:
        """See `Projection`."""
        by_partition: dict[int, list[str]] = {}
        for path in dict.fromkeys(paths):
            partition = partition_of(file_key(workspace, path), self._partitions)
            by_partition.setdefault(partition, []).append(path)
        found: dict[str, Version] = {}
        for partition, some in by_partition.items():
            found.update(await self._visible(workspace, partition, some, known))
        return {path: found[path] for path in paths}

    async def _visible(
        self, workspace: str, partition: int, paths: Sequence[str], known: Mapping[str, Version]
    ) -> dict[str, Version]:
        """Two reads a partition: the headers, and the entries that are not known."""
        for _ in range(READ_ATTEMPTS):
            keys = [file_key(workspace, path) for path in paths]
            headers = await self._fields(partition, [file_states.header_field(key) for key in keys])
            found: dict[str, Version] = {}
            missing: list[tuple[str, str, str]] = []
            for path, key, raw in zip(paths, keys, headers, strict=True):
                event_id, seq = file_states.visible_in(raw)
                if not event_id:
                    found[path] = Version(path, "", None)
                elif path in known and known[path].event_id == event_id:
                    found[path] = known[path]
                else:
                    missing.append((path, event_id, file_states.entry_field(key, seq)))
            raws = await self._fields(partition, [field for _, _, field in missing]) if missing else ()
            try:
                for (path, event_id, _), raw in zip(missing, raws, strict=True):
                    found[path] = _version(path, file_states.entry_in(raw, event_id))
                return found
            except file_states.TornRead:
                continue
        raise Unavailable("projection", "files change faster than they can be read", "Try again")

    async def _fields(self, partition: int, fields: Sequence[str]) -> Sequence[bytes | None]:
        loaded = await self._files.load(partition, [LIVE, *fields])
        if loaded.fields[0] is None and loaded.offset:
            raise Unavailable("projection", "it is being rebuilt", "Wait a moment")
        return loaded.fields[1:]

    async def paths(self, workspace: str) -> Sequence[str]:
        """See `Projection`."""
        found: list[str] = []
        prefix = file_states.header_field(file_key(workspace, ""))
        for partition in range(self._partitions):
            async for field, _ in self._files.scan(partition, prefix):
                key = file_states.key_of_header(field)
                if key is not None:
                    found.append(split_file_key(key)[1])
        return sorted(set(found))

    async def passed(self, points: Sequence[MustSee]) -> bool:
        """See `Projection`."""
        for point in points:
            loaded = await self._files.load(point.partition, [LIVE])
            if loaded.offset <= point.offset or loaded.fields[0] is None:
                return False
        return True

    async def job(self, job_id: str) -> JobState | None:
        """See `Projection`."""
        partition = partition_of(job_id, self._partitions)

        async def read(fields: Sequence[str]) -> Sequence[bytes | None]:
            return (await self._jobs.load(partition, fields)).fields

        state = await load_job(job_id, read)
        return state if state.facts else None

    async def standing(self, job_id: str, task_id: str) -> Standing | None:
        """See `Projection`."""
        partition = partition_of(job_id, self._partitions)
        job, task = (await self._jobs.load(partition, [status_field(job_id), task_field(task_id)])).fields
        if job is None:
            return None
        if task is None:
            return Standing(JobStatus(job.decode()), 0, None)
        round_, status = task.decode().split(" ")
        return Standing(JobStatus(job.decode()), int(round_), TaskStatus(status))

    async def jobs(self) -> Sequence[JobState]:
        """See `Projection`."""
        found: list[JobState] = []
        for partition in range(self._partitions):
            async for field, _ in self._jobs.scan(partition, job_field("")):
                state = await self.job(field.removeprefix(job_field("")))
                if state is not None:
                    found.append(state)
        return sorted(found, key=lambda job: (job.submitted_at, job.job_id), reverse=True)

    async def conflicts(self) -> Sequence[FileHistory]:
        """See `Projection`."""
        keys: list[str] = []
        for partition in range(self._partitions):
            async for field, _ in self._files.scan(partition, file_states.OPEN_CONFLICT):
                keys.append(field.removeprefix(file_states.OPEN_CONFLICT))
        histories = [await self._history(key) for key in sorted(set(keys))]
        return [history for history in histories if history.forked]


def _version(path: str, entry: Entry) -> Version:
    edit = entry.edit
    content, executable = (edit.content, edit.executable) if edit else (None, False)
    return Version(path, entry.event_id, content, executable, entry.role, entry.summary)


async def wait_passed(projection: Projection, points: Sequence[MustSee], seconds: float) -> None:
    """Wait until the projector has passed these points.

    Raises:
        Unavailable: it has not, after so many seconds.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    pause = 0.005
    while not await projection.passed(points):
        if asyncio.get_running_loop().time() > deadline:
            raise Unavailable("projection", f"it is behind by more than {seconds:.0f} s", _REMEDY)
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.2)
