"""Reads the projection in Redis; writes nothing: what every reader of the fleet's state calls.

The projection is a cache of the log: it is behind by a moment, and it can be lost and rebuilt.
Nobody decides from it what is true; agents read from it what they work on, and the log decides.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from codeconvoy.schemas.budget import Ledger
from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.job_facts import ImportedFile, JobStatus
from codeconvoy.schemas.job_state import JobState, TaskStatus
from codeconvoy.schemas.tasks import MustSee
from codeconvoy.schemas.topics import file_key, partition_of, split_file_key
from codeconvoy.workers import file_states, job_states
from codeconvoy.workers.engine.reads import in_parts
from codeconvoy.workers.engine.state import LIVE, Loaded, StateStore
from codeconvoy.workers.file_states import Content
from codeconvoy.workers.positions import Positions
from codeconvoy.workers.projector import empty_history

READ_ATTEMPTS = 10
"""Reads of a file between whose parts the projector wrote."""
BARRIER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a task and its job stand."""

    job: JobStatus
    round: int
    """The round that is waited for; 0 where the task is not known."""
    task: TaskStatus | None


@dataclass(frozen=True, slots=True)
class FileView:
    """Of a file, what a task needs: much less than its history."""

    path: str
    visible: str = ""
    """The event that readers see; empty where the file was never there."""
    heads: tuple[str, ...] = ()
    contents: Mapping[str, Content] = field(default_factory=dict)
    """By event, as far as they are remembered: what readers see, and what was asked for by name."""


Wanted = Mapping[str, Sequence[str]]
"""Paths, each with the events whose content is wanted besides what readers see."""


class Projection(Protocol):
    """Files and jobs, as the projector last saw them."""

    async def histories(self, workspace: str, paths: Sequence[str]) -> Mapping[str, FileHistory]:
        """The history of each of the paths (an empty one for a path that was never written).

        Raises:
            Unavailable: the projection is being rebuilt.
        """
        ...

    async def views(
        self, workspace: str, wanted: Wanted, points: Sequence[MustSee], known: Mapping[str, FileView]
    ) -> Mapping[str, FileView]:
        """What a task needs of each of the paths, read where the projection has passed these points of
        the events log. Contents that are `known` already are taken from there.

        Raises:
            Unavailable: the projection is too far behind, or is being rebuilt.
        """
        ...

    async def visible(self, workspace: str, paths: Sequence[str]) -> Mapping[str, str]:
        """The event that readers see of each of the paths, empty where the file was never there.
        Each partition's as of one moment."""
        ...

    async def contents(self, workspace: str, versions: Mapping[str, str]) -> Mapping[str, Content]:
        """What these events made of these paths (event by path), as far as that is remembered."""
        ...

    async def paths(self, workspace: str) -> Sequence[str]:
        """All paths of a workspace that have a history, sorted."""
        ...

    async def imported(self, job_id: str) -> Sequence[ImportedFile] | None:
        """The files that a job was told of when its repository was read; None before that."""
        ...

    async def job(self, job_id: str) -> JobState | None:
        """A job, or None where the projection has not heard of it."""
        ...

    async def standing(self, job_id: str, task_id: str) -> Standing | None:
        """Where a task and its job stand, or None where the projection has not heard of the job."""
        ...

    async def goal(self, job_id: str, role: str, path: str) -> str:
        """What a job asks of a role for a file; empty where the projection has not heard of the job."""
        ...

    async def ledger(self, job_id: str, after: int) -> Ledger:
        """What a job has spent, read where the projection has passed this offset of the jobs log.

        Raises:
            Unavailable: the projection is too far behind, or is being rebuilt.
        """
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
        self._positions = Positions(partial(self._look, files))
        self._job_positions = Positions(partial(self._look, jobs))

    async def histories(self, workspace: str, paths: Sequence[str]) -> Mapping[str, FileHistory]:
        """See `Projection`."""
        key_of = {path: file_key(workspace, path) for path in paths}
        found = await self._histories_of(key_of.values())
        return {path: found[key] for path, key in key_of.items()}

    async def _histories_of(self, keys: Iterable[str]) -> Mapping[str, FileHistory]:
        by_partition: dict[int, list[str]] = {}
        for key in keys:
            by_partition.setdefault(partition_of(key, self._partitions), []).append(key)
        found = await asyncio.gather(
            *(self._histories(number, some) for number, some in by_partition.items())
        )
        return {key: history for histories in found for key, history in histories.items()}

    async def _histories(self, partition: int, keys: Sequence[str]) -> Mapping[str, FileHistory]:
        """Of files of one partition, by key."""

        async def read(fields: Sequence[str]) -> Sequence[bytes | None]:
            return (await self._loaded({partition: fields}))[partition].fields[1:]

        found: dict[str, FileHistory] = {}
        for _ in range(READ_ATTEMPTS):
            left = [key for key in keys if key not in found]
            loaded = await file_states.load(left, in_parts(read))
            found |= {key: history or empty_history(key) for key, history in loaded.items()}
            if len(found) == len(keys):
                return found
        torn = next(key for key in keys if key not in found)
        raise Unavailable("projection", f"{torn!r} changes faster than it can be read", "Try again")

    async def views(
        self, workspace: str, wanted: Wanted, points: Sequence[MustSee], known: Mapping[str, FileView]
    ) -> Mapping[str, FileView]:
        """See `Projection`."""
        await self._positions.passed(points, BARRIER_SECONDS)
        after: dict[int, int] = {}
        for point in points:
            after[point.partition] = max(after.get(point.partition, -1), point.offset)
        paths = list(wanted)
        for _ in range(READ_ATTEMPTS):
            # Two reads: the headers with what was asked for by name, and of what readers see the rest.
            held = {path: dict(known[path].contents) if path in known else {} for path in paths}
            named = [(path, name) for path in paths for name in wanted[path] if name not in held[path]]
            headers, values = await self._read(workspace, paths, named, after)
            _keep(held, named, values)
            seen = dict(zip(paths, map(file_states.seen_in, headers), strict=True))
            rest = [(path, file.visible) for path, file in seen.items() if _lacks(held[path], file.visible)]
            if rest:
                _keep(held, rest, (await self._read(workspace, (), rest, after))[1])
            if not any(_lacks(held[path], file.visible) for path, file in seen.items()):
                return {
                    path: FileView(
                        path, file.visible, file.heads, _only(held[path], file.visible, wanted[path])
                    )
                    for path, file in seen.items()
                }
        raise Unavailable("projection", "files change faster than they can be read", "Try again")

    async def _read(
        self,
        workspace: str,
        headers: Sequence[str],
        contents: Sequence[tuple[str, str]],
        after: Mapping[int, int],
    ) -> tuple[Sequence[bytes | None], Sequence[bytes | None]]:
        """Headers of files, and contents of files by event, where the projection has passed an offset in
        each partition. A partition's are of one moment."""
        key_of = {path: file_key(workspace, path) for path in (*headers, *(path for path, _ in contents))}
        asked = [(key_of[path], file_states.header_field(key_of[path])) for path in headers]
        asked += [(key_of[path], file_states.content_field(key_of[path], event)) for path, event in contents]
        deadline = _now() + BARRIER_SECONDS
        while True:
            values, positions = await self._fields(asked)
            behind = [
                MustSee(partition=number, offset=after[number])
                for number, position in positions.items()
                if position <= after.get(number, -1)
            ]
            if not behind:
                return values[: len(headers)], values[len(headers) :]
            # It was lost since it was seen to be there.
            await self._positions.passed(behind, max(0.0, deadline - _now()))

    @staticmethod
    async def _look(store: StateStore, partitions: Sequence[int]) -> Mapping[int, int]:
        """Where a projection stands; nowhere while it is being rebuilt."""
        found = await store.load_all(dict.fromkeys(partitions, (LIVE,)))
        return {
            number: loaded.offset if loaded.fields[0] is not None else 0 for number, loaded in found.items()
        }

    async def _loaded(self, wanted: Mapping[int, Sequence[str]]) -> Mapping[int, Loaded]:
        """Fields by partition, with the projection's position as of the same moment."""
        found = await self._files.load_all({number: (LIVE, *names) for number, names in wanted.items()})
        for number, loaded in found.items():
            if loaded.fields[0] is None and loaded.offset:
                raise Unavailable("projection", "it is being rebuilt", "Wait a moment")
            self._positions.saw(number, loaded.offset)
        return found

    async def _fields(
        self, asked: Sequence[tuple[str, str]]
    ) -> tuple[Sequence[bytes | None], Mapping[int, int]]:
        """Fields of files, given with the keys of the files, and the projection's position in each of their
        partitions. A partition's are of one moment."""
        partitions = [partition_of(key, self._partitions) for key, _ in asked]
        wanted: dict[int, list[str]] = {number: [] for number in partitions}
        for number, (_, name) in zip(partitions, asked, strict=True):
            wanted[number].append(name)
        found = await self._loaded(wanted)
        values = {number: iter(loaded.fields[1:]) for number, loaded in found.items()}
        positions = {number: loaded.offset for number, loaded in found.items()}
        return [next(values[number]) for number in partitions], positions

    async def visible(self, workspace: str, paths: Sequence[str]) -> Mapping[str, str]:
        """See `Projection`."""
        keys = [file_key(workspace, path) for path in paths]
        values, _ = await self._fields([(key, file_states.header_field(key)) for key in keys])
        return {path: file_states.seen_in(raw).visible for path, raw in zip(paths, values, strict=True)}

    async def contents(self, workspace: str, versions: Mapping[str, str]) -> Mapping[str, Content]:
        """See `Projection`."""
        asked = [
            (key, file_states.content_field(key, event_id))
            for key, event_id in ((file_key(workspace, path), event) for path, event in versions.items())
        ]
        values, _ = await self._fields(asked)
        found = zip(versions, map(file_states.content_in, values), strict=True)
        return {path: content for path, content in found if content is not None}

    async def paths(self, workspace: str) -> Sequence[str]:
        """See `Projection`."""
        found: list[str] = []
        prefix = file_states.header_field(file_key(workspace, ""))
        for partition in range(self._partitions):
            async for name, _ in self._files.scan(partition, prefix):
                key = file_states.key_of_header(name)
                if key is not None:
                    found.append(split_file_key(key)[1])
        return sorted(set(found))

    async def imported(self, job_id: str) -> Sequence[ImportedFile] | None:
        """See `Projection`."""
        loaded = await self._jobs.load(
            partition_of(job_id, self._partitions), [job_states.imported_field(job_id)]
        )
        return job_states.imported_in(loaded.fields[0])

    async def job(self, job_id: str) -> JobState | None:
        """See `Projection`."""
        partition = partition_of(job_id, self._partitions)

        async def read(fields: Sequence[str]) -> Sequence[bytes | None]:
            return (await self._jobs.load(partition, fields)).fields

        state = await job_states.load(job_id, read)
        return state if state.facts else None

    async def standing(self, job_id: str, task_id: str) -> Standing | None:
        """See `Projection`."""
        partition = partition_of(job_id, self._partitions)
        job, task = (
            await self._jobs.load(
                partition, [job_states.status_field(job_id), job_states.task_field(task_id)]
            )
        ).fields
        if job is None:
            return None
        if task is None:
            return Standing(JobStatus(job.decode()), 0, None)
        round_, status = task.decode().split(" ")
        return Standing(JobStatus(job.decode()), int(round_), TaskStatus(status))

    async def goal(self, job_id: str, role: str, path: str) -> str:
        """See `Projection`."""
        fields = job_states.goal_fields(job_id)
        found = (await self._jobs.load(partition_of(job_id, self._partitions), fields)).fields
        return job_states.goal_in(found, role, path)

    async def ledger(self, job_id: str, after: int) -> Ledger:
        """See `Projection`."""
        partition, deadline = partition_of(job_id, self._partitions), _now() + BARRIER_SECONDS
        while True:
            loaded = await self._jobs.load(partition, [LIVE, job_states.ledger_field(job_id)])
            live, ledger = loaded.fields
            if live is not None and loaded.offset > after:
                return job_states.ledger_in(ledger)
            self._job_positions.saw(partition, loaded.offset if live is not None else 0)
            point = MustSee(partition=partition, offset=after)
            await self._job_positions.passed([point], max(0.0, deadline - _now()))

    async def jobs(self) -> Sequence[JobState]:
        """See `Projection`."""
        found: list[JobState] = []
        for partition in range(self._partitions):
            async for name, _ in self._jobs.scan(partition, job_states.job_field("")):
                state = await self.job(job_states.key_of(name))
                if state is not None:
                    found.append(state)
        return sorted(found, key=lambda job: (job.submitted_at, job.job_id), reverse=True)

    async def conflicts(self) -> Sequence[FileHistory]:
        """See `Projection`."""
        keys: list[str] = []
        for partition in range(self._partitions):
            async for name, _ in self._files.scan(partition, file_states.OPEN_CONFLICT):
                keys.append(name.removeprefix(file_states.OPEN_CONFLICT))
        histories = await self._histories_of(dict.fromkeys(keys))
        return [histories[key] for key in sorted(histories) if histories[key].forked]


def _now() -> float:
    """The event loop's time."""
    return asyncio.get_running_loop().time()


def _keep(
    held: Mapping[str, dict[str, Content]],
    asked: Sequence[tuple[str, str]],
    values: Sequence[bytes | None],
) -> None:
    """Put contents that were read where they belong."""
    for (path, event_id), value in zip(asked, values, strict=True):
        content = file_states.content_in(value)
        if content is not None:
            held[path][event_id] = content


def _lacks(held: Mapping[str, Content], visible: str) -> bool:
    """True while the content that readers see was not read."""
    return visible != "" and visible not in held


def _only(held: Mapping[str, Content], visible: str, wanted: Sequence[str]) -> Mapping[str, Content]:
    """What is to be known next time: no more than what was asked for."""
    return {event_id: held[event_id] for event_id in (visible, *wanted) if event_id in held}
