"""One budget, many workers, a real Redis: never overshot, also when Redis forgets it all in the middle."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from codeconvoy.orchestrator.fleet import now_ms
from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.schemas.budget import Amounts, Ledger
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import BusError, OverBudget, Unavailable
from codeconvoy.schemas.job_facts import JobFact, JobSubmitted
from codeconvoy.schemas.job_spec import Budget
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.budget_log import JobBudgetLog
from codeconvoy.workers.engine.bus import Bus, Outgoing
from codeconvoy.workers.engine.fold_consumer import FoldLimits
from codeconvoy.workers.engine.fold_engine import FoldEngine
from codeconvoy.workers.engine.health import Health
from codeconvoy.workers.engine.metrics import EngineMetrics, Families
from codeconvoy.workers.engine.state import RedisStore
from codeconvoy.workers.llm.budget import BudgetedProvider, Budgets, MeteredProvider, worst_of
from codeconvoy.workers.llm.budget_state import BudgetState
from codeconvoy.workers.llm.cells import RunCells
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.provider import Call, Origin, Reply, Stop
from codeconvoy.workers.llm.retry import ATTEMPTS, RetryingProvider
from codeconvoy.workers.projection import StoredProjection
from codeconvoy.workers.projector import JOBS, JobProjector
from tests.contract.worlds import World, run
from tests.job_world import spec
from tests.unit.test_model_chain import USAGE, request

CODEC = Codec.create()
WORKERS = 32
JOB = "the-job"
SECONDS = 120.0
WORST = ATTEMPTS * worst_of(request(), None).tokens


@dataclass
class Model:
    """A model whose replies cost between nothing and half of what one may; it knows what it was paid."""

    random: Random = field(default_factory=lambda: Random(3))
    tokens: int = 0
    calls: int = 0
    at: dict[int, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    """What happens while the call of this number runs."""
    name: str = "model"

    async def call(self, request: Call) -> Reply:
        cost = self.random.randint(0, WORST // 2 // ATTEMPTS)
        self.tokens, self.calls = self.tokens + cost, self.calls + 1
        if (happens := self.at.get(self.calls)) is not None:
            await happens()
        await asyncio.sleep(self.random.random() * 0.05)
        return Reply("done", msgspec.structs.replace(USAGE, tokens_in=cost, tokens_out=0), Stop.FINISHED)

    async def close(self) -> None:
        """There is nothing to close."""


@dataclass
class Ground:
    """A job on a log, its projection in Redis, and the workers of a fleet, each with clients of its own."""

    world: World
    bus: Bus
    redis: Redis
    topics: Topics
    budget: Budget
    model: Model = field(default_factory=Model)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    @property
    def store(self) -> RedisStore:
        return RedisStore(self.redis, self.topics.prefix, JOBS)

    @property
    def cells(self) -> RunCells[BudgetState]:
        return RunCells(self.redis, f"{self.topics.prefix}:budget", BudgetState, 600)

    def log(self) -> JobBudgetLog:
        projection = StoredProjection(self.store, self.store, self.topics.partitions)
        return JobBudgetLog(self.bus, CODEC, self.topics, projection, now_ms, "worker/1")

    def worker(self, metrics: ModelMetrics) -> BudgetedProvider:
        metered = MeteredProvider(self.model, "m", None, metrics)
        return BudgetedProvider(RetryingProvider(metered), None, Budgets(self.cells, self.log(), metrics))

    async def race(self, calls: int) -> int:
        """Every worker makes so many calls, or as many as it may; a call that has to wait comes again. How
        many were refused."""
        metrics = ModelMetrics(self.registry)

        async def work(number: int) -> int:
            provider = self.worker(metrics)
            origin = Origin("w", JOB, f"task {number}", 1, self.budget)
            for _ in range(calls):
                while True:
                    try:
                        await provider.call(replace(request(deadline=20.0), origin=origin))
                        break
                    except Unavailable:
                        await asyncio.sleep(0.05)
                    except OverBudget:
                        return 1
            return 0

        return sum(await asyncio.gather(*map(work, range(WORKERS))))

    async def lose(self) -> None:
        """Redis forgets all that this fleet ever wrote there."""
        async for key in self.redis.scan_iter(f"{{{self.topics.prefix}*"):
            await self.redis.delete(key)

    async def ledger(self) -> Ledger:
        return await self.log().ledger(JOB)

    def counted(self, what: str) -> float:
        return self.registry.get_sample_value("convoy_budget_total", {"what": what}) or 0.0


@asynccontextmanager
async def ground(
    world: World, redis_url: str, budget: Budget, *, is_projected: bool = True
) -> AsyncIterator[Ground]:
    bus, redis, topics = world.another(), open_redis(redis_url), Topics(world.name("fleet"), 2)
    place = Ground(world, bus, redis, topics, budget)
    settings = {one.name: one.config for one in topics.settings(())}
    await bus.create_topics(settings, topics.partitions)
    submitted = JobSubmitted(spec=spec(budget=budget))
    fact = JobFact(fact_id="f", job_id=JOB, timestamp=now_ms(), source="t", payload=submitted)
    await bus.appender("client").append(Outgoing(topics.jobs, JOB, CODEC.encode(fact)))
    stop = asyncio.Event()
    projecting = [asyncio.create_task(project(place, stop))] if is_projected else []
    try:
        yield place
    finally:
        stop.set()
        await asyncio.gather(*projecting)
        await bus.close()
        await redis.aclose()


async def project(place: Ground, stop: asyncio.Event) -> None:
    """The projector of jobs, started anew whenever Redis was lost under it."""
    while not stop.is_set():
        engine = FoldEngine(
            JobProjector(CODEC, place.topics),
            place.bus,
            place.store,
            group=place.topics.group(JOBS),
            instance="1",
            codec=CODEC,
            dead_letters=place.topics.dead_letters,
            now=now_ms,
            metrics=EngineMetrics(Families(CollectorRegistry()), JOBS),
            health=Health(time.monotonic),
            limits=FoldLimits(poll_seconds=0.01, tick_seconds=0.05),
        )
        try:
            await engine.run(stop)
        except (BusError, Unavailable):
            await asyncio.sleep(0.05)


def test_32_workers_on_one_budget_spend_all_of_it_and_no_more(world: World, redis_url: str) -> None:
    budget = Budget(tokens=20 * WORST)

    async def go() -> None:
        async with ground(world, redis_url, budget) as place:
            refused = await place.race(calls=12)
            assert budget.tokens - WORST < place.model.tokens <= budget.tokens
            assert refused > 0
            state = await place.cells.look(JOB)
            assert state is not None and not state.held
            assert state.spent.tokens == place.model.tokens
            ledger = await place.ledger()
            assert (ledger.total.tokens, ledger.calls) == (place.model.tokens, place.model.calls)
            assert (place.counted("opened"), place.counted("rebuilt")) == (1, 0)

    run(go(), SECONDS)


def test_a_budget_that_redis_lost_is_read_from_the_log_and_not_overshot(world: World, redis_url: str) -> None:
    budget = Budget(tokens=60 * WORST)

    async def go() -> None:
        async with ground(world, redis_url, budget) as place:
            place.model.at = dict.fromkeys((40, 90, 140), place.lose)
            await place.race(calls=8)
            assert place.model.calls > 140, "the job goes on"
            assert place.model.tokens <= budget.tokens
            assert place.counted("rebuilt") >= 2
            assert (await place.ledger()).total.tokens == place.model.tokens
            state = await place.cells.look(JOB)
            assert state is not None
            held = sum(hold.worst.tokens for hold in state.held.values())
            assert state.spent.tokens <= place.model.tokens <= state.spent.tokens + held

    run(go(), SECONDS)


def test_a_budget_of_an_earlier_run_of_redis_is_not_believed(world: World, redis_url: str) -> None:
    """A server that was started again from a disk, or a replica, may know less than was decided."""
    budget = Budget(tokens=3 * WORST)

    async def go() -> None:
        async with ground(world, redis_url, budget) as place:
            origin, provider = Origin("w", JOB, "t", 1, budget), place.worker(ModelMetrics(place.registry))
            await provider.call(replace(request(), origin=origin))
            [key] = [key async for key in place.redis.scan_iter(f"{{{place.topics.prefix}:budget:*")]
            old = await place.redis.get(key)
            await provider.call(replace(request(), origin=origin))
            assert isinstance(old, bytes)
            await place.redis.set(key, b"0" * 40 + old[40:])
            await provider.call(replace(request(), origin=origin))
            state = await place.cells.look(JOB)
            assert state is not None and state.spent.tokens == place.model.tokens
            assert place.model.calls == 3 and place.counted("rebuilt") == 1

    run(go(), SECONDS)


def test_nothing_is_admitted_while_the_projection_is_away(world: World, redis_url: str) -> None:
    budget = Budget(tokens=3 * WORST)

    async def go() -> None:
        async with ground(world, redis_url, budget, is_projected=False) as place:
            origin, provider = Origin("w", JOB, "t", 1, budget), place.worker(ModelMetrics(place.registry))
            calling = asyncio.create_task(provider.call(replace(request(), origin=origin)))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await asyncio.shield(calling)
            calling.cancel()
            await asyncio.wait([calling])
            assert place.model.calls == 0
            assert (await place.cells.look(JOB) or BudgetState()).spent == Amounts()

    run(go(), SECONDS)
