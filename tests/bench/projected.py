"""Reads Redis and watermarks, writes nothing: how far a fold engine has come."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, TopicPartition
from redis import Redis

from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.state import OFFSET
from tests.bench.ground import Ground

SECONDS = 900.0
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
        self._keys = [f"{{{topics.prefix}:{name}:{number}}}" for number in self._numbers]

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
        return self.events / self.seconds


def wait_projected(
    ground: Ground, topics: Topics, name: str, ends: Mapping[int, int], check: Callable[[], None]
) -> Passed:
    """Wait until a fold stands at these offsets. The clock starts when it is first seen to have moved, and
    what it had done by then does not count: neither start nor join of the process is in it.

    Raises:
        RuntimeError: it does not get there; or `check` raises.
    """
    with Redis.from_url(ground.redis) as redis:
        positions = Positions(redis, topics, name)
        total, start = sum(ends.values()), sum(positions.now().values())
        deadline = time.monotonic() + SECONDS
        moved_at, moved_to, now = 0.0, start, start
        while now < total:
            time.sleep(PAUSE)
            check()
            found = positions.now()
            now = sum(min(found[number], end) for number, end in ends.items())
            if not moved_at and now > start:
                moved_at, moved_to = time.monotonic(), now
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} stands at {now} of {total} after {SECONDS:.0f} s")
        return Passed(now - moved_to, time.monotonic() - moved_at if moved_at else 0.0)
