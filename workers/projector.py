"""Reads `events` and `jobs`, writes the projection in Redis: what every reader of the state sees.

Two fold engines without outputs: the file fold over `events` and the job fold over `jobs`.
"""

from collections.abc import Mapping, Sequence

import msgspec

from codeconvoy.schemas import job_fold
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.file_fold import fold
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.job_facts import JobFact
from codeconvoy.schemas.job_state import JobState
from codeconvoy.schemas.topics import Topics, split_file_key
from codeconvoy.workers import file_states
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.engine.reads import ReadFields
from codeconvoy.workers.records import decoded

FILES = "files"
JOBS = "jobs"
"""The names of the two projections: parts of their Redis keys and groups."""


def empty_history(key: str) -> FileHistory:
    """The history of a file that was never seen."""
    workspace, path = split_file_key(key)
    return FileHistory(workspace=workspace, path=path)


class FileProjector:
    """The projection of files."""

    name = FILES

    def __init__(self, codec: Codec, topics: Topics) -> None:
        self._codec = codec
        self.topic = topics.events

    def empty(self, key: str) -> FileHistory:
        """See `FoldConsumer`."""
        return empty_history(key)

    async def load(self, key: str, read: ReadFields) -> FileHistory:
        """See `FoldConsumer`."""
        return await file_states.load(key, read) or empty_history(key)

    def dump(self, key: str, before: FileHistory | None, after: FileHistory) -> Mapping[str, bytes | None]:
        """See `FoldConsumer`."""
        return file_states.dump_view(key, before, after)

    def step(self, state: FileHistory, record: Record, now: int) -> tuple[FileHistory, Sequence[Outgoing]]:
        """See `FoldConsumer`."""
        return fold(state, decoded(self._codec, record, Event))[0], ()

    def wait(self, state: FileHistory) -> int | None:
        """The projection waits for nothing."""
        return None

    def due(self, key: str, state: FileHistory, now: int) -> Sequence[Outgoing]:
        """See `FoldConsumer`."""
        return ()


def job_field(job_id: str) -> str:
    """The name of a job's field."""
    return f"j:{job_id}"


def status_field(job_id: str) -> str:
    """The name of the field that holds a job's status alone."""
    return f"s:{job_id}"


def task_field(task_id: str) -> str:
    """The name of the field that holds a task's round and status alone."""
    return f"t:{task_id}"


def dump_job(state: JobState) -> dict[str, bytes | None]:
    """A job's field."""
    return {job_field(state.job_id): msgspec.msgpack.encode(state)}


def dump_job_view(before: JobState | None, after: JobState) -> dict[str, bytes | None]:
    """The fields of a job that differ in the projection: besides its own one, a small one for each
    task, since workers ask for one task at a time, and often."""
    changes = dump_job(after)
    changes[status_field(after.job_id)] = after.status.encode()
    for task_id, state in after.tasks.items():
        if before is None or before.tasks.get(task_id) is not state:
            changes[task_field(task_id)] = f"{state.task.round} {state.status}".encode()
    return changes


async def load_job(job_id: str, read: ReadFields) -> JobState:
    """A job from its field, or an empty one."""
    (raw,) = await read([job_field(job_id)])
    return msgspec.msgpack.decode(raw, type=JobState) if raw is not None else JobState(job_id=job_id)


class JobProjector:
    """The projection of jobs and their tasks."""

    name = JOBS

    def __init__(self, codec: Codec, topics: Topics) -> None:
        self._codec = codec
        self.topic = topics.jobs

    def empty(self, key: str) -> JobState:
        """See `FoldConsumer`."""
        return JobState(job_id=key)

    async def load(self, key: str, read: ReadFields) -> JobState:
        """See `FoldConsumer`."""
        return await load_job(key, read)

    def dump(self, key: str, before: JobState | None, after: JobState) -> Mapping[str, bytes | None]:
        """See `FoldConsumer`."""
        return dump_job_view(before, after)

    def step(self, state: JobState, record: Record, now: int) -> tuple[JobState, Sequence[Outgoing]]:
        """See `FoldConsumer`."""
        return job_fold.fold(state, decoded(self._codec, record, JobFact))[0], ()

    def wait(self, state: JobState) -> int | None:
        """The projection waits for nothing."""
        return None

    def due(self, key: str, state: JobState, now: int) -> Sequence[Outgoing]:
        """See `FoldConsumer`."""
        return ()
