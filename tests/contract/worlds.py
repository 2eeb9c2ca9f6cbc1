"""Reads and writes a broker, in memory or a real one: where each test of the contract takes place."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from codeconvoy.workers.engine.bus import Bus, Reader, Record, TopicPartition

SECONDS = 60.0
PARTITIONS = 4


@dataclass
class World:
    """A broker, and a way to get the bus of one more process on it."""

    another: Callable[[], Bus]
    prefix: str
    names: Iterator[int] = field(default_factory=lambda: iter(range(1_000)))

    def name(self, kind: str) -> str:
        return f"{self.prefix}.{kind}{next(self.names)}"


@asynccontextmanager
async def bus_with_topic(world: World, **config: str) -> AsyncIterator[tuple[Bus, str]]:
    bus, topic = world.another(), world.name("topic")
    await bus.create_topics({topic: config}, PARTITIONS)
    try:
        yield bus, topic
    finally:
        await bus.close()


def run(test: Awaitable[None], seconds: float = SECONDS) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await test

    asyncio.run(bounded())


async def read_all(reader: Reader, at: TopicPartition) -> list[Record]:
    """Every committed record of a partition."""
    _, high = await reader.watermarks(at)
    found: list[Record] = []
    offset = 0
    deadline = time.monotonic() + SECONDS
    while offset < high:
        assert time.monotonic() < deadline, f"{offset} of {high}"
        found += await reader.read(at, offset, 50, 0.2)
        offset = await reader.position(at)
    return found
