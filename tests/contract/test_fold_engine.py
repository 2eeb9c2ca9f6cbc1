"""The fold engine's rules, each found by breaking it, in memory and on a real Kafka and Redis."""

import asyncio
import operator
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
from prometheus_client import CollectorRegistry

from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import Flaw, PartitionLost, TornState, Undecodable
from codeconvoy.workers.engine.bus import Bus, Outgoing, Reader, Record, TopicPartition
from codeconvoy.workers.engine.dead_letter import skip_mark
from codeconvoy.workers.engine.fold_consumer import FoldLimits, Stored
from codeconvoy.workers.engine.fold_engine import FoldEngine
from codeconvoy.workers.engine.health import Health
from codeconvoy.workers.engine.metrics import EngineMetrics, Families
from codeconvoy.workers.engine.reads import ReadFields
from codeconvoy.workers.engine.state import OFFSET, MemoryStore, RedisStore, StateStore, Write
from codeconvoy.workers.tracing import OFF, Headers, Tracing
from tests.contract.test_pool_engine import NO_HEADERS, until, until_true
from tests.contract.worlds import PARTITIONS, World, read_all, run

pytestmark = pytest.mark.parametrize("world", ["memory", "kafka-848"], indirect=True)

CODEC = Codec.create()
LIMITS = FoldLimits(poll_seconds=0.05, tick_seconds=0.2, skip_check_seconds=0.2)


@dataclass
class Counting:
    """Counts the records of each key, and says each count."""

    topic: str
    target: str
    name: str = "counting"

    def empty(self, key: str) -> int:
        return 0

    async def load(self, keys: Sequence[str], read: ReadFields) -> Mapping[str, int]:
        found = await read(keys)
        if b"torn" in found:
            raise TornState("it does not fit together")
        return {key: int(raw or 0) for key, raw in zip(keys, found, strict=True)}

    def dump(self, key: str, before: int | None, after: int) -> Mapping[str, bytes | None]:
        return {key: str(after).encode()}

    def step(self, state: int, record: Record, now: int) -> tuple[int, Sequence[Outgoing]]:
        if record.value == b"garbage":
            raise Undecodable(Flaw.TRUNCATED, "it ends too early")
        if record.value == b"future":
            raise Undecodable(Flaw.UNKNOWN_SCHEMA, "version 9")
        return state + 1, [Outgoing(self.target, record.key, f"{record.key}{state + 1}".encode())]

    def weigh(self, state: int) -> int:
        return 1_000

    def together(self, outputs: Sequence[Outgoing]) -> Sequence[Outgoing]:
        return outputs

    def wait(self, state: int) -> int | None:
        return None

    def due(self, key: str, state: int, now: int) -> Sequence[Outgoing]:
        return ()


@dataclass
class Waiting(Counting):
    """Waits while its count is odd, until the same time always, which is over."""

    def wait(self, state: int) -> int | None:
        return -1 if state % 2 else None

    def due(self, key: str, state: int, now: int) -> Sequence[Outgoing]:
        return [Outgoing(self.topic, key, b"due", partition=0)]


@dataclass
class Interrupted:
    """A store that is interfered with at its next commit."""

    inner: StateStore
    before: Callable[[], None]

    async def take(self, partition: int, owner: str) -> int:
        return await self.inner.take(partition, owner)

    async def load(self, partition: int, fields: Sequence[str]) -> object:
        return await self.inner.load(partition, fields)

    async def commit(self, owner: str, writes: Sequence[Write]) -> None:
        self.before()
        await self.inner.commit(owner, writes)

    def scan(self, partition: int, prefix: str) -> AsyncIterator[tuple[str, bytes]]:
        return self.inner.scan(partition, prefix)


class Died(Exception):
    """The process, at this very moment."""


@dataclass
class Place:
    """A topic that is counted, where the counts are said, and the store."""

    world: World
    bus: Bus
    reader: Reader
    counting: Counting
    letters: str
    store: StateStore
    lose: Callable[[], Awaitable[None]]
    """Lose the whole store."""
    health: Health = field(default_factory=lambda: Health(time.monotonic))
    tracing: Tracing = OFF
    stored: Stored[int] | None = None

    def make(self, bus: Bus, store: object = None, limits: FoldLimits = LIMITS) -> FoldEngine[int]:
        return FoldEngine(
            self.counting,
            bus,
            self.store if store is None else store,  # type: ignore[arg-type]
            group=f"{self.counting.topic}.group",
            instance="one",
            codec=CODEC,
            dead_letters=self.letters,
            now=lambda: 0,
            metrics=EngineMetrics(Families(CollectorRegistry()), "test"),
            health=self.health,
            limits=limits,
            tracing=self.tracing,
            stored=self.stored,
        )

    @asynccontextmanager
    async def engine(self, limits: FoldLimits = LIMITS) -> AsyncIterator["asyncio.Task[None]"]:
        """An engine that runs inside of the block."""
        bus, stop = self.world.another(), asyncio.Event()
        running = asyncio.create_task(self.make(bus, limits=limits).run(stop))
        try:
            yield running
        finally:
            stop.set()
            await asyncio.wait([running])
            await bus.close()
        if (
            not running.cancelled()
            and (error := running.exception())
            and not isinstance(error, PartitionLost)
        ):
            raise error

    async def send(self, *records: str, partition: int = 0, headers: Headers = NO_HEADERS) -> None:
        """Append records, `key/value` each."""
        split = [record.partition("/") for record in records]
        topic = self.counting.topic
        outputs = [Outgoing(topic, k, v.encode(), headers, partition) for k, _, v in split]
        producer = await self.bus.producer(self.world.name("sender"))
        await producer.transaction(outputs)
        await producer.close()

    async def said(self, topic: str = "") -> list[str]:
        """The values of a topic's committed records, sorted; of the target without a topic."""
        found: list[str] = []
        for number in range(PARTITIONS):
            records = await read_all(self.reader, TopicPartition(topic or self.counting.target, number))
            found += [record.value.decode() for record in records]
        return sorted(found)

    async def until_said(self, *values: str) -> None:
        await until(self.said, lambda found: len(found) >= len(values), f"wanted {values}")
        assert await self.said() == sorted(values)

    async def until_stored(self, key: str, count: int, partition: int = 0) -> None:
        async def stored() -> int:
            return int((await self.store.load(partition, [key])).fields[0] or 0)

        await until(stored, lambda found: found == count, f"wanted {key}={count}")


@asynccontextmanager
async def place_in(world: World, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    bus = world.another()
    names = [world.name(kind) for kind in ("source", "target", "letters")]
    await bus.create_topics({name: {} for name in names}, PARTITIONS)
    counting = Counting(names[0], names[1])
    if "memory" in request.node.callspec.id:
        memory = MemoryStore()

        async def forget() -> None:
            memory.lose()

        yield Place(world, bus, bus.reader(), counting, names[2], memory, forget)
    else:
        redis = open_redis(request.getfixturevalue("redis_url"))
        store = RedisStore(redis, world.prefix, counting.name)

        async def lose() -> None:
            await redis.delete(*map(store.key, range(PARTITIONS)))

        yield Place(world, bus, bus.reader(), counting, names[2], store, lose)
        await redis.aclose()
    await bus.close()


@pytest.mark.parametrize("step", ["before the state", "after the state"])
def test_a_crash_beside_the_state_doubles_no_output(
    world: World, step: str, request: pytest.FixtureRequest
) -> None:
    async def go() -> None:
        async with place_in(world, request) as place:
            await place.send("a/1", "b/1", "a/2")

            class Dying(Interrupted):
                async def commit(self, owner: str, writes: Sequence[Write]) -> None:
                    if any(write.changes for write in writes):
                        if step == "after the state":
                            await self.inner.commit(owner, writes)
                        raise Died

            bus = world.another()
            with pytest.raises(Died):
                await place.make(bus, Dying(place.store, lambda: None)).run(asyncio.Event())
            await bus.close()
            await place.until_said("a1", "b1", "a2")
            await place.send("a/3")
            async with place.engine():
                await place.until_said("a1", "b1", "a2", "a3")
                await place.until_stored("a", 3)
                await place.until_stored("b", 1)

    run(go())


def test_no_more_is_committed_until_the_last_state_is_stored(
    world: World, request: pytest.FixtureRequest
) -> None:
    """The next batch is folded meanwhile. Were it committed too, M could be two batches behind N."""

    async def go() -> None:
        async with place_in(world, request) as place:
            folded, held, release = list[bytes](), asyncio.Event(), asyncio.Event()

            @dataclass
            class Watched(Counting):
                def step(self, state: int, record: Record, now: int) -> tuple[int, Sequence[Outgoing]]:
                    folded.append(record.value)
                    return super().step(state, record, now)

            class Held(Interrupted):
                async def commit(self, owner: str, writes: Sequence[Write]) -> None:
                    if any(write.changes for write in writes):
                        held.set()
                        await release.wait()
                    await self.inner.commit(owner, writes)

            place.counting = Watched(place.counting.topic, place.counting.target)
            bus, stop = world.another(), asyncio.Event()
            engine = place.make(bus, Held(place.store, lambda: None), replace(LIMITS, batch=1))
            await place.send("a/1", "a/2")
            running = asyncio.create_task(engine.run(stop))
            await held.wait()
            await until_true(lambda: b"2" in folded)
            await place.until_said("a1")
            assert (await place.store.load(0, ["a"])).fields == (None,)
            release.set()
            await place.until_said("a1", "a2")
            stop.set()
            await running
            assert (await place.store.load(0, ["a"])).fields == (b"2",), "stored before the group is left"
            await bus.close()

    run(go())


def test_m_passes_the_marker_soon_after_the_records(world: World, request: pytest.FixtureRequest) -> None:
    """Readers wait for M to pass the end of the log: not until the next tick."""

    async def go() -> None:
        async with place_in(world, request) as place:
            at = TopicPartition(place.counting.topic, 0)
            async with place.engine(replace(LIMITS, tick_seconds=1_000.0)):
                for count in (1, 2, 3):
                    await place.send(f"a/{count}")
                    await place.until_stored("a", count)
                    _, end = await place.reader.watermarks(at)

                    async def position() -> int:
                        return (await place.store.load(0, [])).offset

                    await until(position, partial(operator.eq, end), f"wanted {end}")

    run(go())


def test_a_wait_that_is_over_is_told_with_what_began_it_and_each_one_once(
    world: World, request: pytest.FixtureRequest
) -> None:
    """Not at the next tick: a partition that is never idle has none."""

    async def go() -> None:
        async with place_in(world, request) as place:
            place.counting = Waiting(place.counting.topic, place.counting.target)
            async with place.engine(replace(LIMITS, tick_seconds=1_000.0)):
                await place.send("x/1")
                await place.until_said("x1", "x2")
                await place.send("x/3")
                await place.until_said("x1", "x2", "x3", "x4")
                await place.until_stored("x", 4)

    run(go())


@pytest.mark.parametrize("what", ["lost", "older", "somebody else's", "torn"])
def test_a_state_that_is_not_its_own_is_noticed_before_anything_is_said(
    world: World, what: str, request: pytest.FixtureRequest
) -> None:
    """A verdict from a lost or foreign state would be for good."""

    async def go() -> None:
        async with place_in(world, request) as place:
            await place.send("a/1", "b/1", "a/2")
            async with place.engine(replace(LIMITS, states=0, tick_seconds=60.0)) as running:
                await place.until_stored("a", 2)
                await place.until_stored("b", 1)
                if what == "lost":
                    await place.lose()
                else:
                    own = (await place.store.load(0, [])).owner
                    owner, bent = "another" if what == "somebody else's" else own, {"a": b"1"}
                    at = await place.store.take(0, owner)
                    if what == "torn":
                        bent = {"a": b"torn"}
                    await place.store.commit(owner, [Write(0, at, at - (what == "older"), bent)])
                await place.send("a/3")
                await asyncio.wait([running])
                assert isinstance(running.exception(), PartitionLost)
            assert await place.said() == ["a1", "a2", "b1"]
            if what in ("older", "somebody else's"):
                await place.lose()  # what is torn was given up
            async with place.engine():
                await place.until_said("a1", "a2", "b1", "a3")
                await place.until_stored("a", 3)
                await place.until_stored("b", 1)

    run(go())


def test_a_lost_store_is_rebuilt_in_silence(world: World, request: pytest.FixtureRequest) -> None:
    async def go() -> None:
        async with place_in(world, request) as place:
            await place.send(*(f"k{n % 7}/{n}" for n in range(50)))
            async with place.engine(replace(LIMITS, batch=8)):
                await place.until_stored("k0", 8)
                said = await until(place.said, lambda found: len(found) == 50)
            await place.lose()
            async with place.engine(replace(LIMITS, batch=8)):
                await place.until_stored("k0", 8)
                await place.send("k0/new")
                await place.until_said(*said, "k09")

    run(go())


def test_what_changed_is_told_once_it_is_stored_and_never_while_it_is_rebuilt(
    world: World, request: pytest.FixtureRequest
) -> None:
    async def go() -> None:
        async with place_in(world, request) as place:
            told: list[tuple[str, int | None, int]] = []

            async def tell(changes: Mapping[str, tuple[int | None, int]]) -> None:
                for key, (before, after) in changes.items():
                    raw = (await place.store.load(0, [key])).fields[0]
                    assert int(raw or 0) >= after, "a reader who is told finds it"
                    told.append((key, before, after))

            async def told_all() -> list[tuple[str, int | None, int]]:
                return told

            place.stored = tell
            await place.send("a/1", "b/1")
            async with place.engine():
                await until(told_all, lambda found: len(found) == 2, "two")
                await place.send("a/2", "a/garbage")
                await until(told_all, lambda found: len(found) > 2, "three")
            assert sorted(told) == [("a", 0, 1), ("a", 1, 2), ("b", 0, 1)]
            told.clear()
            await place.lose()
            async with place.engine():
                await place.until_stored("a", 2)
                await place.send("c/1")
                await until(told_all, lambda found: len(found) > 0, "news")
            assert told == [("c", 0, 1)]

    run(go())


def test_nothing_is_said_by_one_whose_store_is_lost_while_idle(
    world: World, request: pytest.FixtureRequest
) -> None:
    """Nobody else would notice, and readers would wait for ever."""

    async def go() -> None:
        async with place_in(world, request) as place:
            await place.send("a/1")
            async with place.engine() as running:
                await place.until_stored("a", 1)
                await place.lose()
                await asyncio.wait([running])
                assert isinstance(running.exception(), PartitionLost)

    run(go())


def test_garbage_is_passed_and_an_unknown_schema_stops_until_it_is_skipped(
    world: World, request: pytest.FixtureRequest
) -> None:
    async def go() -> None:
        async with place_in(world, request) as place:
            await place.send("a/1", "x/garbage", "a/2", "b/future", "a/3")
            await place.send("z/1", partition=1)
            async with place.engine():
                await place.until_said("a1", "a2", "z1")
                await until_true(lambda: bool(place.health.stopped))
                await place.send("z/2", partition=1)
                await place.until_said("a1", "a2", "z1", "z2")
                assert await place.said(place.letters) == ["garbage"]
                producer = await place.bus.producer(world.name("operator"))
                await producer.transaction([skip_mark(place.letters, place.counting.topic, 0, 3)])
                await producer.close()
                await place.until_said("a1", "a2", "a3", "z1", "z2")
                loaded = await place.store.load(0, ["x", "b", OFFSET])
                assert loaded.fields[:2] == (None, None), "what can't be read leaves no state"

    run(go())
