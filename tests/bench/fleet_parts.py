"""Reads addresses and topics, runs engines of ours: how a measurement gets what the fleet is made of."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from codeconvoy.orchestrator.fleet import Fleet, collect_rarely, make_process, now_ms
from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.attempts import RedisAttempts
from codeconvoy.workers.engine.health import Health
from codeconvoy.workers.engine.kafka_bus import KafkaBus
from codeconvoy.workers.engine.metrics import EngineMetrics, Families
from codeconvoy.workers.engine.pool_engine import Handler, PoolEngine, PoolLimits
from tests import fleets
from tests.bench.ground import Ground, run_until_terminated
from tests.bench.load import PARTITIONS
from tests.bench.stub_agents import installed
from tests.services import erase_prefix


@asynccontextmanager
async def fleet_on(kafka: str, redis_url: str, topics: Topics) -> AsyncIterator[Fleet]:
    """A fleet without roles of its own, on these topics."""
    bus, redis = KafkaBus({"bootstrap.servers": kafka}), open_redis(redis_url)
    try:
        yield Fleet(
            bus=bus,
            redis=redis,
            redis_prefix=topics.prefix,
            codec=Codec.create(),
            topics=topics,
            roles={},
            credentials={},
            cache=Path("unused"),
        )
    finally:
        await bus.close()
        await redis.aclose()


@contextmanager
def commands(ground: Ground, prefix: str, roles: str) -> Iterator[fleets.Fleet]:
    """A fleet of the commands that a user runs, with the product's own settings, and stubs in place of
    models. `roles` is the text of a roles file."""
    directory = ground.directory / prefix
    environment = {
        "CONVOY_PARTITIONS": str(PARTITIONS),
        "CONVOY_KAFKA_OPTIONS": "{}",
        **installed(directory / "installed"),
    }
    try:
        with fleets.Fleet(
            ground.kafka, ground.redis, prefix, directory, roles=roles, environment=environment
        ) as fleet:
            yield fleet
    finally:
        erase_prefix(ground.redis, prefix)


def run_process(kafka: str, redis_url: str, topics: Topics, kind: str) -> None:
    """In a child: the orchestrator, projector or detector, until SIGTERM."""

    async def run(stop: asyncio.Event) -> None:
        async with fleet_on(kafka, redis_url, topics) as fleet:
            await make_process(fleet, kind, "", "bench", CollectorRegistry()).run(stop)

    run_until_terminated(run)


async def run_pool(fleet: Fleet, role: str, handler: Handler, slots: int, stop: asyncio.Event) -> None:
    """Run a pool engine on the queue of a role, in a process that is set up as the fleet's are."""
    collect_rarely()
    group = fleet.topics.group(f"worker.{role}")
    engine = PoolEngine(
        handler,
        fleet.bus,
        topic=fleet.topics.tasks(role),
        group=group,
        instance="bench",
        codec=fleet.codec,
        dead_letters=fleet.topics.dead_letters,
        now=now_ms,
        metrics=EngineMetrics(Families(CollectorRegistry()), role),
        health=Health(time.monotonic),
        attempts=RedisAttempts(fleet.redis, fleet.redis_prefix, group),
        limits=PoolLimits(slots=slots),
    )
    await engine.run(stop)
