"""Reads Redis and watermarks, writes nothing: how far a fold engine has come."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, TopicPartition
from redis import Redis

from codeconvoy.orchestrator.fleet import state_name
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.state import OFFSET, state_key
from codeconvoy.workers.projection import StoredProjection
from codeconvoy.workers.projector import JOBS
from tests.bench.events import event_id, path_of
from tests.bench.figures import Wrong
from tests.bench.fleet_parts import fleet_on
from tests.bench.ground import Ground
from tests.bench.load import SEED, WORKSPACE

STILL_SECONDS = 60.0
"""Without a step forward, after which there is none to come."""
SAMPLE = 100
PAUSE = 0.005


def ends_of(ground: Ground, topics: Topics) -> Mapping[int, int]:
    """The offset after the last one of each partition of the events log."""
    consumer = Consumer({"bootstrap.servers": ground.kafka, "group.id": "bench-ends", "log_level": 2})
    try:
        return {
            number: consumer.get_watermark_offsets(TopicPartition(topics.events, number), timeout=10.0)[1]
            for number in range(topics.partitions)
        }
    finally:
        consumer.close()


class Positions:
    """Watches the offsets M of a fold's partitions."""

    def __init__(self, redis: Redis, topics: Topics, name: str) -> None:
        self._redis, self._numbers = redis, range(topics.partitions)
        self._keys = [hash_of(topics, name, number) for number in self._numbers]

    def now(self) -> Mapping[int, int]:
        """M of each partition."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for key in self._keys:
                pipeline.hget(key, OFFSET)
            found = pipeline.execute()
        return {number: int(raw or 0) for number, raw in zip(self._numbers, found, strict=True)}


@dataclass(frozen=True, slots=True)
class Passed:
    """A stretch of the log that was folded while somebody watched."""

    events: int
    seconds: float

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds if self.seconds else 0.0


def wait_projected(
    ground: Ground, topics: Topics, name: str, ends: Mapping[int, int], check: Callable[[], None]
) -> Passed:
    """Wait until a fold stands at these offsets. The clock starts when it is first seen to have moved, and
    what it had done by then does not count: neither start nor join of the process is in it.

    Raises:
        RuntimeError: it stands still before that; or `check` raises.
    """
    with Redis.from_url(ground.redis) as redis:
        positions = Positions(redis, topics, name)
        total, start = sum(ends.values()), sum(positions.now().values())
        moved_at, moved_to, now, step_at = 0.0, start, start, time.monotonic()
        while now < total:
            time.sleep(PAUSE)
            check()
            found, before = positions.now(), now
            now = sum(min(found[number], end) for number, end in ends.items())
            if now > before:
                step_at = time.monotonic()
            if not moved_at and now > start:
                moved_at, moved_to = time.monotonic(), now
            if time.monotonic() > step_at + STILL_SECONDS:
                raise RuntimeError(f"{name} has stood at {now} of {total} for {STILL_SECONDS:.0f} s")
        return Passed(now - moved_to, time.monotonic() - moved_at if moved_at else 0.0)


def check_shown(
    ground: Ground, topics: Topics, name: str, files: int, number_of: Callable[[int], int]
) -> None:
    """See that files have had each of their events once, up to this number, and show the last: some of
    them, drawn at random.

    Raises:
        Wrong: one does not.
    """
    drawn = random.Random(SEED).sample(range(files), min(files, SAMPLE))
    wanted = {path_of(file): number_of(file) for file in drawn}

    async def read() -> Mapping[str, FileHistory]:
        async with fleet_on(ground.kafka, ground.redis, topics) as fleet:
            projection = StoredProjection(fleet.store(name), fleet.store(JOBS), topics.partitions)
            return await projection.histories(WORKSPACE, list(wanted))

    histories = asyncio.run(read())
    for file in drawn:
        history, number = histories[path_of(file)], number_of(file)
        if (history.visible, history.next_seq) != (event_id(file, number), number + 1):
            raise Wrong(
                f"{name}: {history.path} has had {history.next_seq} events of {number + 1} and shows "
                f"{history.visible or 'nothing'}, not {event_id(file, number)}"
            )


def hash_of(topics: Topics, name: str, partition: int) -> str:
    """The Redis key of the hash that holds what a fold made of a partition."""
    return state_key(topics.prefix, state_name(name), partition)
