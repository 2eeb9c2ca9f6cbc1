"""Reads and writes a broker and stores in memory: the whole fleet, from the engines' real code.

Only the ends are stubs: agents, git, the runner, and what can fail. Each slot is a place where a
process runs; one that dies is started anew, as a supervisor does.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from codeconvoy.orchestrator.job_file import check
from codeconvoy.orchestrator.orchestrator import NAME as ORCHESTRATOR
from codeconvoy.orchestrator.orchestrator import Orchestrator
from codeconvoy.schemas import ids
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import Aborted, BusError, Unavailable
from codeconvoy.schemas.job_facts import CancelRequested, FactPayload, JobFact, JobSubmitted
from codeconvoy.schemas.job_state import GIT_ROLE, RUNNER_ROLE
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.agent_worker import AgentWorker
from codeconvoy.workers.desk import Desk
from codeconvoy.workers.detector import NAME as DETECTOR
from codeconvoy.workers.detector import Detector
from codeconvoy.workers.engine.attempts import MemoryAttempts
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.engine.fold_engine import FoldConsumer, FoldEngine, FoldLimits
from codeconvoy.workers.engine.health import Health
from codeconvoy.workers.engine.memory_broker import MemoryBroker
from codeconvoy.workers.engine.memory_bus import MemoryBus
from codeconvoy.workers.engine.metrics import EngineMetrics, Families
from codeconvoy.workers.engine.pool_engine import Handler, PoolEngine, PoolLimits
from codeconvoy.workers.engine.state import MemoryStore
from codeconvoy.workers.projection import StoredProjection
from codeconvoy.workers.projector import FILES, JOBS, FileProjector, JobProjector
from codeconvoy.workers.roles.role import Role, RoleKind
from tests.simulation.loop import SimulationLoop
from tests.simulation.plans import Plan
from tests.simulation.process import CURRENT, Killed, SimProcess, Weather
from tests.simulation.stubs import Branches, StubAgent, StubGit, StubRunner

EPOCH = 1_700_000_000_000
"""Milliseconds since the epoch at the start of every simulation."""
RESTART_SECONDS = 8.0
PROJECTOR = "projector"
CODEC = Codec.create()


class Engine(Protocol):
    """Either engine."""

    async def run(self, stop: asyncio.Event) -> None:
        """Turn until told to stop."""
        ...


@dataclass(slots=True, eq=False)
class Run:
    """One delivery of one task, as the handler saw it."""

    role: str
    record: Record
    process: SimProcess
    start: int
    """Ticks: a count of what happened, which tells the order of what happened at one time."""
    end: int = -1
    outputs: int | None = None
    """Records that it gave; None while it has not ended well."""
    cancelled: bool = False
    """It was told to end; from then on its outcome does not count."""


@dataclass(slots=True)
class Slot:
    """A place where processes of one kind run, one after the other."""

    kind: str
    number: int
    process: SimProcess | None = None
    closing: bool = False
    incarnations: int = 0


@dataclass(frozen=True, slots=True)
class Engines:
    """The classes of the engines: a test of the tests plants its bugs here."""

    fold: type[FoldEngine[Any]] = FoldEngine
    pool: type[PoolEngine] = PoolEngine


@dataclass(slots=True)
class SimFleet:
    """Everything that there is in one simulation."""

    plan: Plan
    loop: SimulationLoop
    engines: Engines
    topics: Topics = field(init=False)
    random: Random = field(init=False)
    weather: Weather = field(init=False)
    broker: MemoryBroker = field(init=False)
    bus: MemoryBus = field(init=False)
    stores: Mapping[str, MemoryStore] = field(init=False)
    roles: Mapping[str, Role] = field(init=False)
    slots: list[Slot] = field(default_factory=list)
    attempts: dict[str, MemoryAttempts] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    branches: Branches = field(default_factory=Branches)
    problems: list[str] = field(default_factory=list)
    closing: bool = False
    ticks: int = 0
    _supervisors: list["asyncio.Task[None]"] = field(default_factory=list)
    _nonces: int = 0

    def __post_init__(self) -> None:
        plan = self.plan
        self.random = Random(f"fleet {plan.seed}")
        self.weather = Weather(Random(f"weather {plan.seed}"))
        self.topics = Topics("sim", plan.partitions)
        broker_random = Random(f"broker {plan.seed}")
        self.broker = MemoryBroker(broker_random, max_delay=plan.max_delay, abort_rate=plan.abort_rate)
        self.bus = MemoryBus(self.broker)
        self.stores = {name: MemoryStore() for name in (FILES, JOBS, DETECTOR, ORCHESTRATOR)}
        kinds = dict.fromkeys(plan.editors, RoleKind.EDIT)
        kinds |= {"reviewer": RoleKind.REVIEW, "tester": RoleKind.TEST}
        self.roles = {name: Role(name, kind, "a stub", "stub") for name, kind in kinds.items()}

    # The fleet ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Create the topics, and start a process of every kind."""
        names = (*self.roles, GIT_ROLE, RUNNER_ROLE)
        settings = {item.name: item.config for item in self.topics.settings(names)}
        await self.bus.create_topics(settings, self.topics.partitions)
        for kind in (ORCHESTRATOR, PROJECTOR, DETECTOR, *names):
            for _ in range(2 if self.plan.twins else 1):
                self.add(kind)

    def add(self, kind: str) -> None:
        """One more process of a kind."""
        slot = Slot(kind, len(self.slots))
        self.slots.append(slot)
        self._supervisors.append(self.loop.create_task(self._supervise(slot)))

    def remove(self, slot: Slot) -> None:
        """Stop a slot's process in good order, for ever."""
        slot.closing = True
        if slot.process is not None:
            slot.process.stop.set()

    async def stop(self, seconds: float) -> None:
        """Stop everything in good order."""
        self.closing = True
        for slot in self.slots:
            self.remove(slot)
        _, pending = await asyncio.wait(self._supervisors, timeout=seconds)
        if pending:
            still = [slot.kind for slot in self.slots if slot.process is not None]
            self.problems.append(f"not stopped after {seconds} s: {still}")

    async def abandon(self) -> None:
        """Kill everything."""
        for slot in self.slots:
            slot.closing = True
            if slot.process is not None:
                slot.process.kill(0.0)
        await asyncio.wait(self._supervisors)

    async def _supervise(self, slot: Slot) -> None:
        while not slot.closing:
            slot.incarnations += 1
            again = slot.process is not None and self.random.random() < 0.5
            suffix = "" if again or slot.incarnations == 1 else f".{slot.incarnations}"
            process = SimProcess(slot.kind, f"{slot.kind}-{slot.number}{suffix}", self.weather)
            process.bus = self.bus.another(process.point)
            slot.process = process
            context = copy_context()
            context.run(CURRENT.set, process)
            main = self.loop.create_task(self._main(process), context=context)
            await asyncio.wait([main])
            error = None if main.cancelled() else main.exception()
            if error is not None and not isinstance(error, Killed):
                self.problems.append(f"{process.instance} died of {error!r}")
            if not slot.closing:
                await asyncio.sleep(self.random.random() * RESTART_SECONDS)
        slot.process = None

    async def _main(self, process: SimProcess) -> None:
        makers = self._makers(process)
        await asyncio.gather(*(self._restarting(process, make) for make in makers))

    async def _restarting(self, process: SimProcess, make: Callable[[], Engine]) -> None:
        """As `orchestrator.fleet` does: an engine that lost its place starts anew."""
        while not process.stop.is_set():
            try:
                await make().run(process.stop)
                return
            except (BusError, Unavailable):
                if process.dead:
                    raise Killed(process.instance) from None
                await asyncio.sleep(0.5)

    # Its processes --------------------------------------------------------------------------------

    def _makers(self, process: SimProcess) -> list[Callable[[], Engine]]:
        topics = self.topics
        match process.kind:
            case "orchestrator":
                consumers: list[FoldConsumer[Any]] = [
                    Orchestrator(CODEC, topics, partial(check, roles=self.roles))
                ]
            case "projector":
                consumers = [FileProjector(CODEC, topics), JobProjector(CODEC, topics)]
            case "detector":
                consumers = [Detector(CODEC, topics)]
            case _:
                return [partial(self._pool, process)]
        return [partial(self._fold, process, consumer) for consumer in consumers]

    def _fold(self, process: SimProcess, consumer: FoldConsumer[Any]) -> Engine:
        self._nonces += 1
        return self.engines.fold(
            consumer,
            process.bus,
            process.store(self.stores[consumer.name]),
            group=self.topics.group(consumer.name),
            instance=process.instance,
            codec=CODEC,
            dead_letters=self.topics.dead_letters,
            now=self.now,
            metrics=EngineMetrics(Families(CollectorRegistry()), consumer.name),
            health=Health(self.loop.time),
            limits=FoldLimits(batch=self.random.choice((1, 5, 500)), states=self.random.choice((1, 3, 4000))),
            nonce=str(self._nonces),
        )

    def _pool(self, process: SimProcess) -> Engine:
        return self.engines.pool(
            RecordingHandler(self, process, self._handler(process)),
            process.bus,
            topic=self.topics.tasks(process.kind),
            group=self.topics.group(f"worker.{process.kind}"),
            instance=process.instance,
            codec=CODEC,
            dead_letters=self.topics.dead_letters,
            now=self.now,
            metrics=EngineMetrics(Families(CollectorRegistry()), process.kind),
            health=Health(self.loop.time),
            attempts=self.attempts.setdefault(process.kind, MemoryAttempts()),
            limits=PoolLimits(
                slots=self.random.choice((1, 4)),
                look_ahead=self.random.choice((2, 400)),
                poll_seconds=0.2,
                drain_seconds=self.random.choice((0.5, 5.0)),
                deaths=1_000,
            ),
        )

    def _handler(self, process: SimProcess) -> Handler:
        files, jobs = process.store(self.stores[FILES]), process.store(self.stores[JOBS])
        projection = StoredProjection(files, jobs, self.topics.partitions)
        desk = Desk(CODEC, self.topics, projection, process.bus.reader(), self.now, process.instance)
        if process.kind == GIT_ROLE:
            return StubGit(desk, CODEC, self.plan.repository, self.branches)
        if process.kind == RUNNER_ROLE:
            return StubRunner(desk, CODEC, self.random)
        role = self.roles[process.kind]
        return AgentWorker(role, StubAgent(role.kind, role.name, self.random, self.plan.moods), desk, CODEC)

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return EPOCH + int(self.loop.time() * 1000)

    # The client -----------------------------------------------------------------------------------

    async def submit_all(self) -> None:
        """Hand in the jobs, and cancel those that somebody cancels."""
        facts: list[tuple[float, str, FactPayload]] = []
        for job in self.plan.jobs:
            facts.append((job.at, job.job_id, JobSubmitted(spec=job.spec)))
            if job.cancel_at is not None:
                facts.append((job.at + job.cancel_at, job.job_id, CancelRequested(requested_by="somebody")))
        producer = await self.bus.producer("client")
        for at, job_id, payload in sorted(facts, key=lambda fact: fact[:2]):
            await asyncio.sleep(max(0.0, at - self.loop.time()))
            fact = JobFact(
                fact_id=ids.derived("client", job_id, type(payload).__name__),
                job_id=job_id,
                timestamp=self.now(),
                source="client",
                payload=payload,
            )
            while True:
                try:
                    await producer.transaction([Outgoing(self.topics.jobs, job_id, CODEC.encode(fact))])
                    break
                except Aborted:
                    continue


class RecordingHandler:
    """A worker's handler, with every delivery noted. Some of its work can't be cancelled, as a thread
    can't: then its outcome comes late, and comes nevertheless."""

    def __init__(self, fleet: SimFleet, process: SimProcess, inner: Handler) -> None:
        self._fleet, self._process, self._inner = fleet, process, inner

    async def handle(self, record: Record) -> Sequence[Outgoing]:
        fleet = self._fleet
        fleet.ticks += 1
        run = Run(self._process.kind, record, self._process, fleet.ticks)
        fleet.runs.append(run)
        work = asyncio.ensure_future(self._inner.handle(record))
        try:
            outputs = await self._unless_cancelled(run, work)
            run.outputs = len(outputs)
            return outputs
        finally:
            fleet.ticks += 1
            run.end = fleet.ticks

    def gave_up(self, record: Record, reason: str) -> Sequence[Outgoing]:
        return self._inner.gave_up(record, reason)

    async def _unless_cancelled(
        self, run: Run, work: "asyncio.Future[Sequence[Outgoing]]"
    ) -> Sequence[Outgoing]:
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            run.cancelled = True
            if self._process.dead or self._fleet.random.random() < 0.5:
                work.cancel()
                await asyncio.wait([work])
                raise
            return await work

    async def close(self) -> None:
        await self._inner.close()
