"""Reads and writes a broker and stores in memory: what both simulated worlds are made of.

Only the ends are stubs; the engines are the real ones. Each slot is a place where a process runs;
one that dies is started anew, as a supervisor does.
"""

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import Aborted, BusError, Unavailable
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.bus import Outgoing, Producer, TopicPartition
from codeconvoy.workers.engine.fold_consumer import FoldConsumer, FoldLimits, Stored
from codeconvoy.workers.engine.fold_engine import FoldEngine
from codeconvoy.workers.engine.health import Health
from codeconvoy.workers.engine.memory_bus import MemoryBus
from codeconvoy.workers.engine.metrics import EngineMetrics, Families
from codeconvoy.workers.engine.pool_engine import Handler, PoolEngine, PoolLimits
from codeconvoy.workers.engine.state import OFFSET
from tests.simulation.deliveries import Deliveries, RecordingHandler
from tests.simulation.loop import SimulationLoop
from tests.simulation.process import CURRENT, Killed, SimProcess, Weather
from tests.simulation.services import Notes, SimState, WatchedBroker

EPOCH = 1_700_000_000_000
"""Milliseconds since the epoch at the start of every simulation."""
RESTART_SECONDS = 8.0
STOP_SECONDS = 60.0
QUIET_LOOKS = 3
LOOK_SECONDS = 2.0
MANY = 30
"""Problems with which it is no use to go on."""
NEVER = "it never came to rest"
CODEC = Codec.create()


class Engine(Protocol):
    """Either engine."""

    async def run(self, stop: asyncio.Event) -> None:
        """Turn until told to stop."""
        ...


@dataclass(frozen=True, slots=True)
class Engines:
    """The classes of the engines: a test of the tests plants its bugs here."""

    fold: type[FoldEngine[Any]] = FoldEngine
    pool: type[PoolEngine] = PoolEngine


@dataclass(frozen=True, slots=True)
class Storm:
    """What strikes a world, and what its broker is like."""

    faults: int
    """Faults that strike while there is work."""
    calm_seconds: float
    """Mean time between two faults."""
    max_delay: float
    abort_rate: float


@dataclass(slots=True)
class Slot:
    """A place where processes of one kind run, one after the other."""

    kind: str
    number: int
    process: SimProcess | None = None
    closing: bool = False
    incarnations: int = 0


class World(ABC):
    """Everything that there is in one simulation."""

    def __init__(
        self,
        name: str,
        seed: int,
        loop: SimulationLoop,
        engines: Engines,
        topics: Topics,
        storm: Storm,
        folds: Mapping[str, str],
    ) -> None:
        """`folds`: the topic of each fold consumer, by its name."""
        self.name, self.seed, self.loop, self.engines = name, seed, loop, engines
        self.topics, self.storm, self.folds = topics, storm, folds
        self.random = Random(f"{name} {seed}")
        self.weather = Weather(Random(f"weather {seed}"))
        self.broker = WatchedBroker(
            Random(f"broker {seed}"), max_delay=storm.max_delay, abort_rate=storm.abort_rate
        )
        self.deliveries = Deliveries(self.broker, self.random)
        self.bus = MemoryBus(self.broker)
        self.stores = {consumer: SimState() for consumer in folds}
        self.notes: dict[str, Notes] = {}
        """Begun tasks, by kind of process."""
        self.health: dict[str, Health] = {}
        """What the newest engine of each instance says of itself."""
        self.slots: list[Slot] = []
        self.problems: list[str] = []
        self.closing = False
        self._supervisors: list[asyncio.Task[None]] = []
        self._nonces = 0
        self._families = Families(CollectorRegistry())

    # What a world is ------------------------------------------------------------------------------

    @abstractmethod
    async def start(self) -> None:
        """Create the topics, and start the processes."""

    @abstractmethod
    async def work(self) -> None:
        """Bring in all that is to be done."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether all that was brought in is done."""

    @abstractmethod
    def is_open(self) -> bool:
        """Whether something at rest still waits for what only time brings."""

    @abstractmethod
    def makers(self, process: SimProcess) -> list[Callable[[], Engine]]:
        """What makes the engines of a process."""

    @abstractmethod
    def ends(self) -> Sequence[str]:
        """How what was brought in ended, in short."""

    # Its life -------------------------------------------------------------------------------------

    async def rest(self, seconds: float) -> None:
        """Wait until everything is done and quiet, then stop all processes in good order."""
        if await self._until(seconds, self.is_done) and await self._quiet(seconds):
            await self.stop(STOP_SECONDS)
        else:
            self.problems.append(NEVER)
        await self.abandon()

    async def _until(self, seconds: float, done: Callable[[], bool]) -> bool:
        deadline = self.loop.time() + seconds
        while not done():
            if self.loop.time() > deadline or len(self.deliveries.problems) > MANY:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True

    async def _quiet(self, seconds: float) -> bool:
        """Wait until nothing is written any more, all of it is folded, and nothing is open."""
        before, looks = -1, 0
        deadline = self.loop.time() + seconds
        while looks < QUIET_LOOKS:
            if self.loop.time() > deadline:
                return False
            await asyncio.sleep(LOOK_SECONDS)
            size = sum(len(log.entries) for log in self.broker.logs.values())
            looks = looks + 1 if size == before and self._is_folded() else 0
            before = size
            if looks == QUIET_LOOKS and (self.is_open() or self._is_paused()):
                looks = 0
        return True

    def _is_folded(self) -> bool:
        """Every store stands at the end of its log."""
        for name, topic in self.folds.items():
            snapshot = self.stores[name].snapshot()
            for number in range(self.topics.partitions):
                end = len(self.broker.logs[TopicPartition(topic, number)].entries)
                if int(snapshot.get(number, {}).get(OFFSET, b"0")) != end:
                    return False
        return True

    def _is_paused(self) -> bool:
        return any(slot.process is not None and slot.process.is_paused for slot in self.slots)

    def heal(self) -> None:
        """End everything that strikes for a while."""
        self.weather.store_fails = self.weather.broker_fails = 0.0
        for at in self.broker.logs:
            self.bus.release(at)
        for slot in self.slots:
            if slot.process is not None:
                slot.process.resume()

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return EPOCH + int(self.loop.time() * 1000)

    async def write(self, producer: Producer, outputs: Sequence[Outgoing]) -> None:
        """Write as a client does: until it is there."""
        while True:
            try:
                await producer.transaction(outputs)
                break
            except Aborted:
                continue

    def digest(self) -> str:
        """Hex digest of all that is left: every record of every topic, and every state."""
        sha = hashlib.sha256()
        for at, log in self.broker.logs.items():
            for offset, entry in enumerate(log.entries):
                sha.update(f"{at} {offset} {entry.transaction.outcome} {entry.visible_at}".encode())
                if (record := entry.record) is not None:
                    sha.update(f"{record.key} {record.timestamp} {record.headers}".encode() + record.value)
        for name, store in self.stores.items():
            sha.update(f"{name} {store.snapshot()}".encode())
        return sha.hexdigest()

    # Its processes --------------------------------------------------------------------------------

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
            process.when_killed = self.deliveries.died
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
        await asyncio.gather(*(self._restarting(process, make) for make in self.makers(process)))

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

    def fold(
        self,
        process: SimProcess,
        consumer: FoldConsumer[Any],
        limits: FoldLimits,
        stored: Stored[Any] | None = None,
    ) -> Engine:
        """A fold engine of a process."""
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
            metrics=EngineMetrics(self._families, consumer.name),
            health=self._health_of(process),
            limits=limits,
            nonce=str(self._nonces),
            stored=stored,
        )

    def pool(self, process: SimProcess, handler: Handler, limits: PoolLimits) -> Engine:
        """The pool engine of a process: the kind of the process is its role."""
        group = self.topics.group(f"worker.{process.kind}")
        notes = self.notes.setdefault(process.kind, Notes())
        return self.engines.pool(
            RecordingHandler(self.deliveries, process, group, limits.slots, handler),
            process.bus,
            topic=self.topics.tasks(process.kind),
            group=group,
            instance=process.instance,
            codec=CODEC,
            dead_letters=self.topics.dead_letters,
            now=self.now,
            metrics=EngineMetrics(self._families, process.kind),
            health=self._health_of(process),
            attempts=process.attempts(notes),
            limits=limits,
        )

    def _health_of(self, process: SimProcess) -> Health:
        self.health[process.instance] = Health(self.loop.time)
        return self.health[process.instance]
