"""Reads the settings, writes nothing itself: the whole fleet as one table, and its wiring.

    process        engine   reads              writes
    orchestrator   fold     jobs               tasks.<role>, jobs, events
    projector      fold ×2  events; jobs       the projection in Redis
    detector       fold     events             events, jobs
    worker git     pool     tasks.git          events, jobs, git branches
    worker runner  pool     tasks.runner       events, jobs
    worker ROLE    pool     tasks.<role>       events, jobs

Every process is one of these, in a consumer group of its own. They share nothing but the bus;
Redis holds what each of them folded, and can be lost.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from redis.exceptions import RedisError

from codeconvoy.orchestrator.job_file import check
from codeconvoy.orchestrator.orchestrator import Orchestrator
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import BadInput, BusError, Unavailable
from codeconvoy.schemas.job_state import GIT_ROLE, RUNNER_ROLE
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.agent_worker import AgentWorker
from codeconvoy.workers.budget_log import JobBudgetLog
from codeconvoy.workers.desk import Desk
from codeconvoy.workers.detector import Detector
from codeconvoy.workers.engine.attempts import RedisAttempts
from codeconvoy.workers.engine.bus import Bus
from codeconvoy.workers.engine.fold_consumer import FoldConsumer
from codeconvoy.workers.engine.fold_engine import FoldEngine
from codeconvoy.workers.engine.health import Health
from codeconvoy.workers.engine.metrics import EngineMetrics, Families
from codeconvoy.workers.engine.pool_engine import Handler, PoolEngine, PoolLimits
from codeconvoy.workers.engine.state import RedisStore, StateStore
from codeconvoy.workers.git_worker import GitWorker
from codeconvoy.workers.llm.chain import Chain
from codeconvoy.workers.llm.kept import KEEP, Keep, RedisPrompts
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.provider import Credentials
from codeconvoy.workers.llm.recorded import TTL_SECONDS
from codeconvoy.workers.mapper import Mapper, RedisMaps
from codeconvoy.workers.moves import Hints, RedisMoves
from codeconvoy.workers.projection import StoredProjection
from codeconvoy.workers.projector import FILES, JOBS, FileProjector, JobProjector
from codeconvoy.workers.redact import BY_SHAPE, Redactor
from codeconvoy.workers.roles.agents import make_agent, map_tokens
from codeconvoy.workers.roles.role import Role
from codeconvoy.workers.runner_worker import RunnerWorker
from codeconvoy.workers.tracing import OFF, Tracing

SERVICE_ROLES = (GIT_ROLE, RUNNER_ROLE)
"""Roles that need no agent: git in and out, and running tests."""
SERVICE_SLOTS = {GIT_ROLE: 4, RUNNER_ROLE: 4}
COLLECT_AFTER = (50_000, 20, 100)
"""Python's cyclic garbage collector: new objects, and collections of each younger generation."""
STATES_VERSION = 3
"""Of the folds' rules and of how their states are laid out. A process takes no state of another version:
it folds its own from the log, in silence. What Redis holds of others can be deleted."""
RESTART_SECONDS = (0.5, 10.0)
"""First and longest pause before an engine that lost its place starts anew."""

logger = logging.getLogger(__name__)


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def state_name(name: str) -> str:
    """Under which name the states of a fold are stored."""
    return f"{name}.{STATES_VERSION}"


@dataclass(frozen=True, slots=True)
class Fleet:
    """What every process of a fleet is made of."""

    bus: Bus
    redis: Redis
    redis_prefix: str
    codec: Codec
    topics: Topics
    roles: Mapping[str, Role]
    credentials: Credentials
    cache: Path
    now: Callable[[], int] = now_ms
    redact: Redactor = BY_SHAPE
    """Knows the secrets of this process."""
    tracing: Tracing = OFF
    keep: Keep = KEEP
    """How long prompts and replies are kept."""

    def store(self, name: str) -> RedisStore:
        """Where the fold engine of this name keeps its states."""
        return RedisStore(self.redis, self.redis_prefix, state_name(name))

    def projection(self) -> StoredProjection:
        """The projection, for readers."""
        return StoredProjection(self.store(FILES), self.store(JOBS), self.topics.partitions)

    def prompts(self) -> RedisPrompts:
        """Where the conversations with models are kept."""
        return RedisPrompts(self.redis, self.redis_prefix, self.keep)

    def all_roles(self) -> tuple[str, ...]:
        """Every role that has a queue, sorted."""
        return tuple(sorted({*self.roles, *SERVICE_ROLES}))

    def desk(self, agent_id: str, hints: Hints) -> Desk:
        """What a worker works with."""
        return Desk(
            self.codec,
            self.topics,
            self.projection(),
            self.bus.reader(),
            self.now,
            agent_id,
            self.redact,
            self.tracing,
            hints,
        )

    def moves(self) -> RedisMoves:
        """Where the projector says which files have moved."""
        return RedisMoves(self.redis, self.redis_prefix)

    def chain(self, agent_id: str, metrics: ModelMetrics) -> Chain:
        """What stands around the model calls of a worker; copies of them are kept if any are wanted."""
        return Chain(
            self.redis,
            self.redis_prefix,
            metrics,
            time.monotonic,
            self.tracing,
            JobBudgetLog(self.bus, self.codec, self.topics, self.projection(), self.now, agent_id),
            self.redact,
            self.prompts() if self.keep.seconds else None,
            self.now,
        )

    async def prepare(self) -> None:
        """Create the topics that are missing, and check those that are there.

        Raises:
            BadInput: a topic has another partition count than the settings say.
            Unavailable: the broker can't be reached.
        """
        settings = {item.name: item.config for item in self.topics.settings(self.all_roles())}
        await self.bus.create_topics(settings, self.topics.partitions)
        counts = await self.bus.partition_counts(list(settings))
        if (wrong := wrong_partitions(self.topics, counts)) is not None:
            raise wrong


def wrong_partitions(topics: Topics, counts: Mapping[str, int]) -> BadInput | None:
    """What to tell where a topic has another partition count than the settings say."""
    for name, count in counts.items():
        if count != topics.partitions:
            return BadInput(
                "partitions",
                f"topic {name} has {count} partitions, the settings say {topics.partitions}",
                f"Set CONVOY_PARTITIONS={count}, or use another CONVOY_PREFIX: a changed count "
                "would split the history of files",
            )
    return None


@dataclass(frozen=True, slots=True)
class Process:
    """One process: its name, and what it runs until it is told to stop."""

    name: str
    instance: str
    health: Health
    run: Callable[[asyncio.Event], Awaitable[None]]


def make_process(fleet: Fleet, kind: str, role: str, instance: str, registry: CollectorRegistry) -> Process:
    """The process of a kind (`orchestrator`, `projector`, `detector`, `worker`).

    Raises:
        BadInput: no such kind or role, or the role can't be done as it is declared.
    """
    health, families = Health(time.monotonic), Families(registry)
    codec, topics = fleet.codec, fleet.topics
    folds: Mapping[str, Callable[[], tuple[FoldConsumer[Any], ...]]] = {
        "orchestrator": lambda: (Orchestrator(codec, topics, partial(check, roles=fleet.roles)),),
        "projector": lambda: (FileProjector(codec, topics), JobProjector(codec, topics)),
        "detector": lambda: (Detector(codec, topics, fleet.tracing),),
    }
    if kind == "worker":
        metrics, hints = ModelMetrics(registry), Hints()
        chain = fleet.chain(f"{role}/{instance}", metrics)
        pool = _pool(fleet, role, instance, families, health, chain, hints)
        listen: Engine = partial(_beside, partial(fleet.moves().listen, hints))
        engines = [pool, chain.watch] if role in SERVICE_ROLES else [pool, chain.watch, listen]
        return Process(role, instance, health, partial(_run_all, engines))
    if kind not in folds:
        raise BadInput("process", f"{kind!r} is none", f"Use one of {', '.join(folds)} or worker ROLE")
    engines = [_fold(fleet, consumer, instance, families, health) for consumer in folds[kind]()]
    return Process(kind, instance, health, partial(_run_all, engines))


Engine = Callable[[asyncio.Event], Awaitable[None]]


def _fold(
    fleet: Fleet, consumer: FoldConsumer[Any], instance: str, families: Families, health: Health
) -> Engine:
    metrics = EngineMetrics(families, consumer.name)
    store: StateStore = fleet.store(consumer.name)
    stored = fleet.moves().publish if consumer.name == FILES else None

    def make() -> FoldEngine[Any]:
        return FoldEngine(
            consumer,
            fleet.bus,
            store,
            group=fleet.topics.group(consumer.name),
            instance=instance,
            codec=fleet.codec,
            dead_letters=fleet.topics.dead_letters,
            now=fleet.now,
            metrics=metrics,
            health=health,
            tracing=fleet.tracing,
            stored=stored,
        )

    return partial(_restarting, consumer.name, make, health)


def _pool(
    fleet: Fleet, role: str, instance: str, families: Families, health: Health, chain: Chain, hints: Hints
) -> Engine:
    metrics = EngineMetrics(families, role)
    agent_id = f"{role}/{instance}"
    slots = SERVICE_SLOTS[role] if role in SERVICE_ROLES else _role(fleet, role).concurrency
    if role not in SERVICE_ROLES:
        make_agent(_role(fleet, role), fleet.credentials)  # says now what is wrong with the role

    def handler() -> Handler:
        desk = fleet.desk(agent_id, hints)
        if role == GIT_ROLE:
            return GitWorker(desk, fleet.codec, fleet.cache)
        if role == RUNNER_ROLE:
            return RunnerWorker(desk, fleet.codec, fleet.cache)
        declared = _role(fleet, role)
        agent = make_agent(
            declared,
            fleet.credentials,
            wrap=chain.around,
            count=chain.count,
            switched=chain.switched,
            measure=chain.metrics.saw,
        )
        return AgentWorker(declared, agent, desk, fleet.codec, chain.metrics.moved, _mapper(fleet, declared))

    group = fleet.topics.group(f"worker.{role}")

    def make() -> PoolEngine:
        return PoolEngine(
            handler(),
            fleet.bus,
            topic=fleet.topics.tasks(role),
            group=group,
            instance=instance,
            codec=fleet.codec,
            dead_letters=fleet.topics.dead_letters,
            now=fleet.now,
            metrics=metrics,
            health=health,
            attempts=RedisAttempts(fleet.redis, fleet.redis_prefix, group),
            limits=PoolLimits(slots=slots),
            redact=fleet.redact,
            tracing=fleet.tracing,
        )

    return partial(_restarting, role, make, health)


def _mapper(fleet: Fleet, role: Role) -> Mapper | None:
    """What makes the repository's maps for a role, if its agent is shown one."""
    tokens = map_tokens(role)
    if not tokens:
        return None
    # As long as the replies to the prompts that hold them.
    ttl = int(role.options.get("reply_ttl_seconds", TTL_SECONDS))
    return Mapper(fleet.projection(), RedisMaps(fleet.redis, fleet.redis_prefix, ttl), tokens)


def _role(fleet: Fleet, role: str) -> Role:
    try:
        return fleet.roles[role]
    except KeyError:
        known = ", ".join(fleet.all_roles())
        raise BadInput("role", f"there is no role {role!r}", f"Roles are: {known}") from None


def collect_rarely() -> None:
    """What a process of a fleet asks of Python's garbage collector. The states in memory are many, live
    long, and hold no cycles: looking through them at Python's usual rate takes a third of a projector's
    time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


async def _run_all(engines: list[Engine], stop: asyncio.Event) -> None:
    """Run the engines of one process; when one ends with an error, the others are told to stop."""
    collect_rarely()

    async def one(engine: Engine) -> None:
        try:
            await engine(stop)
        finally:
            stop.set()

    await asyncio.gather(*(one(engine) for engine in engines))


async def _beside(work: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
    """Do work that never ends by itself until told to stop."""
    running, stopped = asyncio.ensure_future(work()), asyncio.ensure_future(stop.wait())
    both: set[asyncio.Future[Any]] = {running, stopped}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in both:
            one.cancel()
        await asyncio.wait(both)
    if not running.cancelled():
        running.result()


async def _restarting(
    name: str,
    make: Callable[[], FoldEngine[Any] | PoolEngine],
    health: Health,
    stop: asyncio.Event,
) -> None:
    """Run an engine, and start it anew when it lost its place: fenced, or its state or broker gone."""
    shortest, longest = RESTART_SECONDS
    pause = shortest
    while not stop.is_set():
        began = time.monotonic()
        try:
            await make().run(stop)
            return
        except (BusError, Unavailable, RedisError, OSError) as error:
            logger.warning("%s starts anew in %.1f s: %s", name, pause, error)
            health.turned(progressed=False, behind=True)
        pause = shortest if time.monotonic() - began > 60 else min(2 * pause, longest)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await stop.wait()
