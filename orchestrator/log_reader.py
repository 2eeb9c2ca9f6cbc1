"""Reads partitions of `events` and `jobs` from their beginning; writes nothing: the log itself, for
whoever asks what is true.

Nothing here looks at Redis. A partition is read up to the high watermark that was taken at the
start, in batches, so that memory does not grow with the log.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import TypeVar

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import Unavailable, Undecodable
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.job_facts import JobFact
from codeconvoy.schemas.topics import Topics, file_key, partition_of
from codeconvoy.workers.engine.bus import Reader, Record, TopicPartition
from codeconvoy.workers.records import decoded

BATCH = 1_000
READ_SECONDS = 1.0
STALL_SECONDS = 30.0
"""Twice a transaction's time-out: one that was left open has been aborted by then."""

R = TypeVar("R", Event, JobFact)

Progress = Callable[[int], None]
"""Is told how many more offsets were passed."""


Skipped = Callable[[], Awaitable[Collection[tuple[str, int, int]]]]
"""Answers every (topic, partition, offset) that an operator has skipped."""


def ignore_progress(passed: int) -> None:
    """Nobody watches."""


async def nothing_skipped() -> Collection[tuple[str, int, int]]:
    """Nobody has skipped anything."""
    return ()


class LogReader:
    """Reads the two logs of a fleet."""

    def __init__(
        self,
        reader: Reader,
        codec: Codec,
        topics: Topics,
        progress: Progress = ignore_progress,
        skipped: Skipped = nothing_skipped,
    ) -> None:
        """`skipped` is asked when a record is met that this version can't read."""
        self._reader, self._codec, self.topics = reader, codec, topics
        self._progress, self._skipped = progress, skipped

    async def ends(self, topic: str) -> Mapping[int, int]:
        """The offset after the last one, of each partition.

        Raises:
            Unavailable: the broker can't be reached.
        """
        numbers = range(self.topics.partitions)
        return {
            number: (await self._reader.watermarks(TopicPartition(topic, number)))[1] for number in numbers
        }

    async def records(self, at: TopicPartition, start: int, end: int) -> AsyncIterator[Record]:
        """The records of a partition with start <= offset < end, in order.

        Raises:
            Unavailable: the log does not go on before `end`: a transaction is open, or records
                were deleted.
        """
        low, _ = await self._reader.watermarks(at)
        position = max(start, low)
        self._progress(position - start)
        clock = asyncio.get_running_loop().time
        moved = clock()
        while position < end:
            found = await self._reader.read(at, position, BATCH, READ_SECONDS)
            for record in found:
                if record.offset < end:
                    yield record
            passed = max(await self._reader.position(at), found[-1].offset + 1 if found else 0)
            if passed > position:
                self._progress(min(passed, end) - position)
                position, moved = passed, clock()
            elif clock() - moved > STALL_SECONDS:
                raise Unavailable(
                    "Kafka",
                    f"{at.topic}/{at.partition} can't be read beyond {position}, it ends at {end}",
                    "A transaction may be open: try again in a minute",
                )

    async def file_events(self, workspace: str, path: str) -> AsyncIterator[tuple[Record, Event]]:
        """Every event of a file up to now, in log order.

        Raises:
            Unavailable: as `records`.
            Undecodable: one of them is of a schema that this version does not know.
        """
        async for record, event in self._of_key(self.topics.events, file_key(workspace, path), Event):
            yield record, event

    async def job_facts(self, job_id: str) -> AsyncIterator[tuple[Record, JobFact]]:
        """Every fact about a job up to now, in log order.

        Raises:
            Unavailable: as `records`.
            Undecodable: one of them is of a schema that this version does not know.
        """
        async for record, fact in self._of_key(self.topics.jobs, job_id, JobFact):
            yield record, fact

    async def _of_key(self, topic: str, key: str, kind: type[R]) -> AsyncIterator[tuple[Record, R]]:
        at = TopicPartition(topic, partition_of(key, self.topics.partitions))
        _, end = await self._reader.watermarks(at)
        async for record in self.records(at, 0, end):
            if record.key == key and (value := await self.value(record, kind)) is not None:
                yield record, value

    async def value(self, record: Record, kind: type[R]) -> R | None:
        """What a record holds; None for what all folds pass over: garbage for every version, and what an
        operator has skipped.

        Raises:
            Undecodable: a newer version may be able to read it.
        """
        try:
            return decoded(self._codec, record, kind)
        except Undecodable as undecodable:
            point = (record.topic, record.partition, record.offset)
            if undecodable.is_garbage or point in await self._skipped():
                return None
            raise
