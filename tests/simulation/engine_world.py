"""Reads and writes a broker and stores in memory: the two engines alone, around small stubs.

Tasks → pool engine → events → fold engine → counts and states; the fold also writes events of its
own. Some tasks are slow, some wait, some can't be read, some break what they touch. So one seed costs
little, and what it shows is the engines' own doing.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence

from codeconvoy.schemas.errors import Flaw, Unavailable, Undecodable
from codeconvoy.schemas.topics import MAX_RECORD_BYTES, Topics, partition_of
from codeconvoy.workers.engine.bus import Outgoing, Record, TopicPartition
from codeconvoy.workers.engine.dead_letter import skip_mark
from codeconvoy.workers.engine.fold_consumer import FoldLimits
from codeconvoy.workers.engine.pool_engine import Earlier, PoolLimits
from codeconvoy.workers.engine.state import OFFSET
from tests.simulation.counting import EFFECTS, NAME, Counting, fields_of
from tests.simulation.engine_plans import KEYS, EnginePlan, Mood, TaskPlan
from tests.simulation.loop import SimulationLoop
from tests.simulation.process import Killed, SimProcess
from tests.simulation.refold import DUE, committed, records_of
from tests.simulation.world import LOOK_SECONDS, Engine, Engines, World

WORKER = "worker"
TOPIC_LIMIT = 100
"""Bytes that the events topic takes."""
UNKNOWN = b"unknown"
WENT_ON = "it went on over a record that it can't read"
DEATHS = 3
"""Processes that may die of a task alone."""


class EngineWorld(World):
    """Workers and counters."""

    def __init__(self, plan: EnginePlan, loop: SimulationLoop, engines: Engines) -> None:
        topics = Topics("sim", plan.partitions)
        super().__init__("engines", plan.seed, loop, engines, topics, plan.storm, {NAME: topics.events})
        self.plan = plan
        self.counting = Counting(topics.events, topics.jobs, KEYS)
        self.group = topics.group(f"worker.{WORKER}")
        self.tasks = topics.tasks(WORKER)
        self._seen: dict[TopicPartition, int] = {}
        self._effects: set[int] = set()
        self._skipped: set[tuple[str, int, int]] = set()
        self._submitted = False

    async def start(self) -> None:
        """See `World`."""
        names: dict[str, dict[str, str]] = {
            self.tasks: {},
            self.topics.jobs: {},
            self.topics.dead_letters: {},
        }
        limits = {self.topics.events: {"max.message.bytes": str(TOPIC_LIMIT)}}
        await self.bus.create_topics(names | limits, self.topics.partitions)
        for kind, count in ((WORKER, self.plan.workers), (NAME, self.plan.counters)):
            for _ in range(count):
                self.add(kind)

    def makers(self, process: SimProcess) -> list[Callable[[], Engine]]:
        """See `World`."""
        random = self.random

        def worker() -> Engine:
            limits = PoolLimits(
                slots=random.choice(self.plan.slots),
                look_ahead=random.choice(self.plan.look_ahead),
                poll_seconds=0.5,
                idle_poll_seconds=2.0,
                drain_seconds=random.choice((0.5, 5.0)),
                retry_seconds=self.plan.retry_seconds,
                retry_limit_seconds=max(4.0, self.plan.retry_seconds),
                deaths=DEATHS,
            )
            return self.pool(process, StubHandler(self, process), limits)

        def counter() -> Engine:
            limits = FoldLimits(
                batch=random.choice((1, 5, 500)), states=random.choice((1, 3, 4000)), poll_seconds=2.0
            )
            return self.fold(process, self.counting, limits)

        return [worker if process.kind == WORKER else counter]

    # The client, and the operator -----------------------------------------------------------------

    async def work(self) -> None:
        """See `World`."""
        producer = await self.bus.producer("client")
        tasks = [(task.at, self.tasks, task) for task in self.plan.tasks]
        foreign = [(task.at, self.topics.events, task) for task in self.plan.foreign]
        for at, topic, task in sorted(tasks + foreign, key=lambda one: one[0]):
            await asyncio.sleep(max(0.0, at - self.loop.time()))
            word = task.mood if task.mood in (Mood.GARBAGE, Mood.UNKNOWN) else "task"
            await self.write(producer, [Outgoing(topic, task.key, f"{word} {task.number}".encode())])
        self._submitted = True
        await self._skip()

    async def _skip(self) -> None:
        """As an operator does: skip, everywhere, what stops a partition, as soon as it shows."""
        producer = await self.bus.producer("operator")
        while to_skip := self.unknown - self._skipped:
            await asyncio.sleep(LOOK_SECONDS)
            stopped = {at for health in self.health.values() for at in health.stopped}
            for topic, number, offset in sorted(to_skip):
                at = TopicPartition(topic, number)
                if passed := self._passed(at) > offset:
                    self.problems.append(f"{WENT_ON}: {at}, offset {offset}")
                if passed or at in stopped:
                    await self.write(producer, [skip_mark(self.topics.dead_letters, topic, number, offset)])
                    self._skipped.add((topic, number, offset))
                    if topic == self.tasks:
                        self.deliveries.skipped.add((WORKER, number, offset))

    @property
    def unknown(self) -> set[tuple[str, int, int]]:
        """Where the records stand that a later version may read."""
        return {
            (record.topic, record.partition, record.offset)
            for topic in (self.tasks, self.topics.events)
            for record in records_of(self.broker, topic)
            if record.value.startswith(UNKNOWN)
        }

    def _passed(self, at: TopicPartition) -> int:
        """How far the consumer of a partition has come, for good."""
        if at.topic == self.tasks:
            found = self.broker.committed(self.group, at)
            return found.offset if found else 0
        return int(self.stores[NAME].snapshot().get(at.partition, {}).get(OFFSET, b"0"))

    # What has become of it ------------------------------------------------------------------------

    def effects(self) -> set[int]:
        """The tasks that have taken effect for good."""
        for number in range(self.topics.partitions):
            at = TopicPartition(self.topics.events, number)
            log = self.broker.logs[at]
            end = min([len(log.entries), *log.first_of_open])
            for record in committed(self.broker, at, self._seen.get(at, 0)):
                word, _, rest = record.value.decode().partition(" ")
                if word in EFFECTS:
                    self._effects.add(int(rest))
            self._seen[at] = end
        return self._effects

    def is_done(self) -> bool:
        """All tasks were submitted and are committed."""
        return self._submitted and all(
            self.broker.is_committed(self.group, record.at, record.offset)
            for record in records_of(self.broker, self.tasks)
        )

    def is_open(self) -> bool:
        """Something waits for a fact about time, for the operator, or for a worker."""
        waits = any(
            field.startswith(DUE) for fields in self.stores[NAME].snapshot().values() for field in fields
        )
        return waits or bool(self.unknown - self._skipped) or bool(list(self.behind()))

    def behind(self) -> Iterator[str]:
        """Where the workers do not stand at the end of their queue."""
        for number in range(self.topics.partitions):
            at = TopicPartition(self.tasks, number)
            found, end = self.broker.committed(self.group, at), len(self.broker.logs[at].entries)
            if end and (found is None or found.offset != end or found.metadata):
                yield f"{at}: {found}, should be {end}"

    def ends(self) -> Sequence[str]:
        """See `World`."""
        return [f"{len(self.effects())} of {len(self.plan.tasks)} tasks"]


class StubHandler:
    """Does a task, as its mood is."""

    def __init__(self, world: EngineWorld, process: SimProcess) -> None:
        self._world, self._process = world, process
        self._store = process.store(world.stores[NAME])
        self._failed: dict[int, int] = {}

    async def handle(self, record: Record, earlier: Earlier) -> Sequence[Outgoing]:
        """See `Handler`."""
        task = self._task(record)
        await self._process.point("handler.begun")
        await asyncio.sleep(task.seconds if task.mood is Mood.SLOW else 0)
        match task.mood:
            case Mood.AWAY:
                failed = self._failed[task.number] = self._failed.get(task.number, 0) + 1
                self._wait_unless(failed > task.failures)
            case Mood.BEHIND:
                await earlier()
                await self._see_predecessor(task)
            case Mood.PATIENT:
                self._wait_unless(self._world.effects() >= self._world.plan.unhurried)
            case Mood.POISON:
                raise ValueError("a bug of the handler")
            case Mood.KILLER:
                self._process.kill(self._world.random.random() * 5)
                raise Killed("a task that kills")
        await self._process.point("handler.done")
        return self._outputs(task)

    def _task(self, record: Record) -> TaskPlan:
        word, _, number = record.value.decode().partition(" ")
        if word == "unknown":
            raise Undecodable(Flaw.UNKNOWN_SCHEMA, "of a later version")
        if word != "task":
            raise Undecodable(Flaw.NO_MARKER, "garbage")
        return self._world.plan.tasks[int(number)]

    def _wait_unless(self, there: bool) -> None:
        if not there:
            raise Unavailable("something", "it is away", "Wait")

    async def _see_predecessor(self, task: TaskPlan) -> None:
        """As the desk does: wait until the projection shows what this task has to see."""
        before = self._world.plan.before(task)
        if before is None:
            return
        partition = partition_of(task.key, self._world.topics.partitions)
        found = await self._store.load(partition, fields_of(task.key)[1:])
        self._wait_unless(int(found.fields[0] or b"-1") >= before.number)

    def _outputs(self, task: TaskPlan) -> Sequence[Outgoing]:
        events = self._world.topics.events
        value = f"done {task.number}".encode()
        if task.mood is Mood.HUGE:
            value = value.ljust(MAX_RECORD_BYTES + 1)
        elif task.mood is Mood.REFUSED:
            value = value.ljust(TOPIC_LIMIT + 1)
        outputs = [Outgoing(events, task.key, value)]
        if task.also:
            outputs.append(Outgoing(events, task.also, f"also {task.number}".encode()))
        return outputs

    def gave_up(self, record: Record, reason: str) -> Sequence[Outgoing]:
        """See `Handler`."""
        word, _, number = record.value.decode().partition(" ")
        if word != "task":
            return ()
        return [Outgoing(self._world.topics.events, record.key, f"gave-up {number}".encode())]

    async def close(self) -> None:
        """See `Handler`."""
