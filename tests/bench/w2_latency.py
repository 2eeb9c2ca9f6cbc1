"""Reads and writes a task queue, reads the projection: W2, how well one process hides slow calls.

The stub sleeps instead of asking a model, and notes when each call began and ended. The clock starts
with the first call and stops with the end of the last; the ideal is what the calls need when all slots
are always busy. A key's tasks must begin in the order of the log, each after the end of the one before.
"""

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from time import monotonic

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.tasks import EditWork, Task
from codeconvoy.schemas.topics import Topics, file_key, partition_of
from codeconvoy.workers.engine.bus import Outgoing, Record, TopicPartition
from codeconvoy.workers.engine.pool_engine import Earlier
from codeconvoy.workers.file_states import header_field
from codeconvoy.workers.moves import Hints
from codeconvoy.workers.projector import FILES
from tests.bench import load
from tests.bench.events import Log, path_of
from tests.bench.figures import Figure, Wrong
from tests.bench.fleet_parts import fleet_on, run_pool, run_process
from tests.bench.ground import Ground, check_alive, children, in_child
from tests.bench.projected import ends_of, wait_projected

ROLE, DONE = "generator", "done"
TARGET = 1.03
FILES_READ, EVENTS_READ, SNAPSHOTS, AT_ONCE = 100, 10, 400, 100


@dataclass(frozen=True, slots=True)
class Calls:
    """What is to be done: so many tasks over so many keys, each of so many seconds."""

    tasks: int
    keys: int
    seconds: float
    slots: int

    @property
    def ideal(self) -> float:
        """Seconds, with every slot busy and no key's tasks side by side."""
        rounds = max(-(-self.tasks // self.slots), -(-self.tasks // self.keys))
        return rounds * self.seconds


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it was seen. Times are seconds of one clock."""

    task_id: str
    began: float
    ended: float


def measure(ground: Ground) -> Iterator[Figure]:
    """The figures of W2.

    Raises:
        Wrong: a task was lost or doubled, or overtook another one of its key.
    """
    for name, calls in (
        ("W2 400 calls of 0.5 s", Calls(400, 100, 0.5, 100)),
        ("W2 2,000 calls of 1 s", Calls(ground.count(2_000, 500), ground.count(2_000, 500), 1.0, 500)),
    ):
        seen, by_hand = _engine(ground, calls), in_child(_by_hand, calls)
        elapsed = _elapsed(seen)
        ground.say(f"{name}: {elapsed:.3f} s, ideal {calls.ideal:.1f} s, asyncio alone {by_hand:.3f} s")
        how = (
            f"{calls.tasks:,} tasks, {calls.keys:,} keys, {calls.slots} slots, one process; no order "
            f"violation; asyncio by hand, without Kafka: {by_hand:.3f} s"
        )
        yield Figure(name, elapsed, "s", "ideal", calls.ideal, TARGET, at_most=True, how=how)
    yield from _barrier(ground)


def _elapsed(calls: Sequence[Call]) -> float:
    return max(call.ended for call in calls) - min(call.began for call in calls)


# The engine -------------------------------------------------------------------------------------


class Sleeper:
    """A handler that takes its time, and notes when."""

    def __init__(self, topics: Topics, codec: Codec, calls: Calls, stop: asyncio.Event) -> None:
        self._codec, self._target = codec, topics.tasks(DONE)
        self._calls, self._stop = calls, stop
        self.seen: list[Call] = []

    async def handle(self, record: Record, earlier: Earlier) -> Sequence[Outgoing]:
        """See `Handler`."""
        began = monotonic()
        task = self._codec.decode(record.value, Task)
        await asyncio.sleep(self._calls.seconds)
        self.seen.append(Call(task.task_id, began, monotonic()))
        if len(self.seen) >= self._calls.tasks:
            self._stop.set()
        return [Outgoing(self._target, record.key, record.value)]

    def gave_up(self, record: Record, reason: str) -> Sequence[Outgoing]:
        """See `Handler`."""
        return ()

    async def close(self) -> None:
        """See `Handler`."""


def run_calls(kafka: str, redis_url: str, topics: Topics, calls: Calls) -> list[Call]:
    """In a child: the engine, until it has done all tasks."""

    async def run() -> list[Call]:
        stop = asyncio.Event()
        async with fleet_on(kafka, redis_url, topics) as fleet:
            sleeper = Sleeper(topics, fleet.codec, calls, stop)
            await run_pool(fleet, ROLE, sleeper, calls.slots, stop)
        return sleeper.seen

    return asyncio.run(run())


def _engine(ground: Ground, calls: Calls) -> list[Call]:
    codec = Codec.create()
    with ground.topics(ROLE, DONE) as topics:
        records = load.tasks(codec, calls.tasks, calls.keys, ROLE, mark="call")
        load.send(ground.kafka, topics.tasks(ROLE), records)
        seen: list[Call] = in_child(run_calls, ground.kafka, ground.redis, topics, calls)
        with load.sink(ground.kafka, topics.tasks(DONE)) as sink:
            values = sink.take(calls.tasks)
            surplus = sink.surplus(1.0)
    begun = sorted(seen, key=lambda call: call.began)
    late = load.out_of_order([call.task_id for call in begun])
    side_by_side = _side_by_side(begun)
    written = load.out_of_order([codec.decode(value, Task).task_id for value in values])
    if late or side_by_side or written or surplus or len(seen) != calls.tasks:
        raise Wrong(
            f"{len(seen)} calls of {calls.tasks}; begun out of order {late[:3]}, side by side "
            f"{side_by_side[:3]}; written out of order, lost or doubled {written[:3]}, {surplus} too many"
        )
    return seen


def _side_by_side(begun: Sequence[Call]) -> list[str]:
    """Calls that began before the one of their key before had ended."""
    busy_until: dict[str, float] = {}
    found = []
    for call in begun:
        key, _, _ = call.task_id.rpartition("/")
        if call.began < busy_until.get(key, 0.0):
            found.append(call.task_id)
        busy_until[key] = call.ended
    return found


def _by_hand(calls: Calls) -> float:
    """In a child: the same calls with nothing but asyncio; the seconds that they took."""
    order = [number % calls.keys for number in range(calls.tasks)]
    random.Random(load.SEED).shuffle(order)

    async def run() -> float:
        slots = asyncio.Semaphore(calls.slots)
        locks = [asyncio.Lock() for _ in range(calls.keys)]

        async def call(key: int) -> None:
            async with locks[key], slots:
                await asyncio.sleep(calls.seconds)

        began = monotonic()
        await asyncio.gather(*map(call, order))
        return monotonic() - began

    return asyncio.run(run())


# The projection barrier -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Barrier:
    """What waiting for the projection costs at rest. Times are seconds."""

    alone: list[float]
    """Of each snapshot, one after the other."""
    limit: list[float]
    """Of the two requests that it needs at least: a watermark, and a read of Redis."""
    together: float
    """Of all snapshots, many at once, divided by their number."""


def _barrier(ground: Ground) -> Iterator[Figure]:
    with ground.topics() as topics:
        log = Log(Codec.create())
        load.send(ground.kafka, topics.events, log.events(FILES_READ, 0, EVENTS_READ))
        with children((run_process, (ground.kafka, ground.redis, topics, "projector"))) as processes:
            wait_projected(ground, topics, FILES, ends_of(ground, topics), partial(check_alive, processes))
            barrier: Barrier = in_child(take_snapshots, ground.kafka, ground.redis, topics)
    limit = 1e3 * median(barrier.limit)
    how = (
        f"{SNAPSHOTS} snapshots of a file with {EVENTS_READ} events, at rest; limit: a watermark and an HMGET"
    )
    yield Figure("W2 barrier, p50", 1e3 * median(barrier.alone), "ms", "two requests", limit, how=how)
    yield Figure("W2 barrier, p99", 1e3 * quantiles(barrier.alone, n=100)[98], "ms")
    yield Figure(f"W2 barrier, {AT_ONCE} at once", 1e3 * barrier.together, "ms each")


def take_snapshots(kafka: str, redis_url: str, topics: Topics) -> Barrier:
    """In a child: what a worker does before a task, again and again."""

    async def run() -> Barrier:
        async with fleet_on(kafka, redis_url, topics) as fleet:
            desk = fleet.desk("generator/bench", Hints())
            store = fleet.store(FILES)
            gate = asyncio.Semaphore(AT_ONCE)
            alone: list[float] = []
            limit: list[float] = []

            async def snapshot(number: int) -> float:
                began = monotonic()
                async with gate:
                    task = _task(number % FILES_READ)
                    await desk.snapshot(task, [task.path])
                return monotonic() - began

            for number in range(SNAPSHOTS):
                alone.append(await snapshot(number))
                began, key = monotonic(), file_key(load.WORKSPACE, path_of(number % FILES_READ))
                partition = partition_of(key, topics.partitions)
                await desk.reader.watermarks(TopicPartition(topics.events, partition))
                await store.load(partition, [header_field(key)])
                limit.append(monotonic() - began)
            began = monotonic()
            await asyncio.gather(*map(snapshot, range(SNAPSHOTS)))
            return Barrier(alone, limit, (monotonic() - began) / SNAPSHOTS)

    return asyncio.run(run())


def _task(file: int) -> Task:
    return Task(
        task_id=f"task/{file}",
        job_id="job",
        workspace=load.WORKSPACE,
        role=ROLE,
        path=path_of(file),
        round=1,
        goal=load.GOAL,
        work=EditWork(),
    )
