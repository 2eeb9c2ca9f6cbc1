"""Reads `events` and `jobs`, writes the projection in Redis: what every reader of the state sees.

Two fold engines without outputs: the file fold over `events` and the job fold over `jobs`.
"""

from collections.abc import Mapping, Sequence

from codeconvoy.schemas import job_fold
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.file_fold import fold
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.job_facts import JobFact
from codeconvoy.schemas.job_state import JobState
from codeconvoy.schemas.topics import Topics, split_file_key
from codeconvoy.workers import file_states, job_states
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

    async def load(self, keys: Sequence[str], read: ReadFields) -> Mapping[str, FileHistory]:
        """See `FoldConsumer`."""
        found = await file_states.load_own(keys, read)
        return {key: history or empty_history(key) for key, history in found.items()}

    def dump(self, key: str, before: FileHistory | None, after: FileHistory) -> Mapping[str, bytes | None]:
        """See `FoldConsumer`."""
        return file_states.dump_view(key, before, after)

    def weigh(self, state: FileHistory) -> int:
        """See `FoldConsumer`."""
        return file_states.weight_of(state)

    def step(self, state: FileHistory, record: Record, now: int) -> tuple[FileHistory, Sequence[Outgoing]]:
        """See `FoldConsumer`."""
        return fold(state, decoded(self._codec, record, Event))[0], ()

    def together(self, outputs: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """See `FoldConsumer`."""
        return outputs

    def wait(self, state: FileHistory) -> int | None:
        """The projection waits for nothing."""
        return None

    def due(self, key: str, state: FileHistory, now: int) -> Sequence[Outgoing]:
        """See `FoldConsumer`."""
        return ()


class JobProjector:
    """The projection of jobs and their tasks."""

    name = JOBS

    def __init__(self, codec: Codec, topics: Topics) -> None:
        self._codec = codec
        self.topic = topics.jobs

    def empty(self, key: str) -> JobState:
        """See `FoldConsumer`."""
        return JobState(job_id=key)

    async def load(self, keys: Sequence[str], read: ReadFields) -> Mapping[str, JobState]:
        """See `FoldConsumer`."""
        return await job_states.load_all(keys, read)

    def dump(self, key: str, before: JobState | None, after: JobState) -> Mapping[str, bytes | None]:
        """See `FoldConsumer`."""
        return job_states.dump_view(before, after)

    def weigh(self, state: JobState) -> int:
        """See `FoldConsumer`."""
        return job_states.weight_of(state)

    def step(self, state: JobState, record: Record, now: int) -> tuple[JobState, Sequence[Outgoing]]:
        """See `FoldConsumer`."""
        return job_fold.fold(state, decoded(self._codec, record, JobFact))[0], ()

    def together(self, outputs: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """See `FoldConsumer`."""
        return outputs

    def wait(self, state: JobState) -> int | None:
        """The projection waits for nothing."""
        return None

    def due(self, key: str, state: JobState, now: int) -> Sequence[Outgoing]:
        """See `FoldConsumer`."""
        return ()
