"""The pool engine's rules, each found by breaking it, in memory and on a real Kafka."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.dead_letters import DeadLetter
from codeconvoy.schemas.errors import Aborted, Flaw, Refused, Unavailable, Undecodable
from codeconvoy.schemas.topics import MAX_RECORD_BYTES
from codeconvoy.workers.engine.attempts import At, Attempt, MemoryAttempts
from codeconvoy.workers.engine.bus import (
    Bus,
    Committed,
    GroupToken,
    Outgoing,
    Producer,
    Reader,
    Record,
    TopicPartition,
)
from codeconvoy.workers.engine.dead_letter import HEADER, skip_mark
from codeconvoy.workers.engine.health import Health
from codeconvoy.workers.engine.metrics import EngineMetrics, Families
from codeconvoy.workers.engine.pool_engine import Earlier, PoolEngine, PoolLimits
from codeconvoy.workers.tracing import OFF, Headers, Tracing
from tests.contract.worlds import PARTITIONS, SECONDS, World, read_all, run

pytestmark = pytest.mark.parametrize("world", ["memory", "kafka-848"], indirect=True)

CODEC = Codec.create()
LIMITS = PoolLimits(slots=8, drain_seconds=0.3, retry_seconds=0.2, look_seconds=0.2, idle_poll_seconds=0.1)
BAD = b"bad"
NO_HEADERS: Headers = {}
SECRET = "the-password"
ERRORS = {
    "garbage": Undecodable(Flaw.TRUNCATED, "it ends too early"),
    "future": Undecodable(Flaw.UNKNOWN_SCHEMA, "version 9"),
    "bug": ZeroDivisionError(f"a handler's bug, {SECRET}"),
    "cancelled": asyncio.CancelledError(),
}
"""What a task of this name raises."""


@dataclass
class Work:
    """A handler whose tasks do what their value says."""

    target: str
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    beside: dict[str, set[str]] = field(default_factory=dict)
    """For each task, all that were in flight with it."""

    async def handle(self, record: Record, earlier: Earlier) -> Sequence[Outgoing]:
        value = record.value.decode()
        self.begun.append(value)
        self.running.add(value)
        for one in self.running:
            self.beside.setdefault(one, set()).update(self.running - {one})
        try:
            if value.startswith("later"):
                await earlier()
            await self._do(value)
        finally:
            self.running.discard(value)
            self.ended.append(value)
        content = b"x" * (MAX_RECORD_BYTES + 1) if value.startswith("huge") else record.value
        return [Outgoing(self.target, record.key, content)]

    async def _do(self, value: str) -> None:
        match value.partition("-")[0]:
            case "gate" | "stubborn" | "ends" as kind:
                await self._until_open(kind, self.gates.setdefault(value, asyncio.Event()))
            case "away" if self.begun.count(value) < 3:
                raise Unavailable("a model", "it is away", "Wait")
            case "busy" if self.begun.count(value) < 3:
                raise Unavailable("a budget", "others hold it", "Wait", retry_within=0.05)
            case kind if kind in ERRORS:
                raise ERRORS[kind]

    async def _until_open(self, kind: str, gate: asyncio.Event) -> None:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                if kind == "ends":  # it takes its time
                    await self.gates.setdefault("the end", asyncio.Event()).wait()
                if kind != "stubborn":
                    raise  # a stubborn task can't be cancelled, as a thread can't

    def gave_up(self, record: Record, reason: str) -> Sequence[Outgoing]:
        self.given_up.append(record.value.decode())
        return [Outgoing(self.target, record.key, b"gave up " + record.value)]

    async def close(self) -> None:
        for gate in self.gates.values():
            gate.set()


@dataclass
class Refusing:
    """A producer whose transactions are aborted as a test says."""

    inner: Producer
    aborts: Callable[[Sequence[Outgoing]], type[Aborted] | None]

    def check(self) -> None:
        self.inner.check()

    async def transaction(
        self,
        outputs: Sequence[Outgoing],
        offsets: Mapping[TopicPartition, Committed] | None = None,
        group: str = "",
        token: GroupToken | None = None,
    ) -> None:
        if (error := self.aborts(outputs)) is not None:
            raise error("as the test says")
        await self.inner.transaction(outputs, offsets, group, token)

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class Place:
    """Topics of one test, and engines on them."""

    world: World
    bus: Bus
    source: str
    target: str
    letters: str
    reader: Reader
    attempts: MemoryAttempts = field(default_factory=MemoryAttempts)
    aborts: Callable[[Sequence[Outgoing]], type[Aborted] | None] | None = None
    tracing: Tracing = OFF

    @asynccontextmanager
    async def engine(self, limits: PoolLimits = LIMITS) -> AsyncIterator[tuple[PoolEngine, Work, Health]]:
        """An engine that runs inside of the block, and is stopped in good order at its end."""
        bus, work, health = self.world.another(), Work(self.target), Health(time.monotonic)
        if self.aborts is not None:
            aborts, producer = self.aborts, bus.producer

            async def refusing(transactional_id: str, group: str = "") -> Producer:
                return Refusing(await producer(transactional_id, group), aborts)

            bus.producer = refusing  # type: ignore[method-assign]
        engine = PoolEngine(
            work,
            bus,
            topic=self.source,
            group=f"{self.source}.group",
            instance="one",
            codec=CODEC,
            dead_letters=self.letters,
            now=lambda: 0,
            metrics=EngineMetrics(Families(CollectorRegistry()), "test"),
            health=health,
            attempts=self.attempts,
            limits=limits,
            redact=lambda text: text.replace(SECRET, "***"),
            tracing=self.tracing,
        )
        stop = asyncio.Event()
        running = asyncio.create_task(engine.run(stop))
        try:
            yield engine, work, health
        finally:
            stop.set()
            await running
            await bus.close()

    async def send(self, *tasks: str, partition: int = 0, headers: Headers = NO_HEADERS) -> None:
        """Append tasks, `key/value` each."""
        outputs = [
            Outgoing(self.source, key, value.encode(), headers, partition)
            for key, _, value in (task.partition("/") for task in tasks)
        ]
        producer = await self.bus.producer(self.world.name("sender"))
        await producer.transaction(outputs)
        await producer.close()

    async def landed(self) -> list[str]:
        """The values of all committed outputs, partition by partition."""
        found: list[str] = []
        for number in range(PARTITIONS):
            records = await read_all(self.reader, TopicPartition(self.target, number))
            found += [record.value.decode() for record in records]
        return found

    async def letters_of(self) -> list[tuple[str, str]]:
        """Value and reason of each dead letter."""
        found = []
        for number in range(PARTITIONS):
            for record in await read_all(self.reader, TopicPartition(self.letters, number)):
                if "reason" in record.headers:
                    found.append((record.value.decode(), record.headers["reason"].decode()))
        return sorted(found)

    async def details(self) -> list[str]:
        """The detail of each dead letter."""
        numbers = range(PARTITIONS)
        found = [await read_all(self.reader, TopicPartition(self.letters, number)) for number in numbers]
        records = (record for records in found for record in records)
        return [CODEC.decode(record.headers[HEADER], DeadLetter).detail for record in records]

    async def until_landed(self, *values: str) -> None:
        """Wait until exactly these outputs are there, in any order."""
        await until(self.landed, lambda found: len(found) >= len(values), f"wanted {values}")
        assert Counter(await self.landed()) == Counter(values)


async def until(look: Callable[[], Awaitable[Any]], good: Callable[[Any], bool], why: str = "") -> Any:
    """Look until it is good."""
    deadline = time.monotonic() + SECONDS
    while not good(found := await look()):
        assert time.monotonic() < deadline, f"{why}; there is {found}"
        await asyncio.sleep(0.02)
    return found


async def until_true(condition: Callable[[], bool]) -> None:
    async def look() -> bool:
        return condition()

    await until(look, bool)


@asynccontextmanager
async def place_in(world: World) -> AsyncIterator[Place]:
    bus = world.another()
    source, target, letters = (world.name(kind) for kind in ("source", "target", "letters"))
    place = Place(world, bus, source, target, letters, bus.reader())
    await bus.create_topics({place.source: {}, place.target: {}, place.letters: {}}, PARTITIONS)
    try:
        yield place
    finally:
        await bus.close()


def test_a_key_keeps_its_order_while_others_go_on(world: World) -> None:
    async def go() -> None:
        async with place_in(world) as place:
            await place.send("a/gate-1", "a/2", "b/1", "a/3", "b/2", "c/1")
            async with place.engine() as (_, work, _):
                await until_true(lambda: {"1", "2"} <= set(work.ended) and len(work.ended) == 3)
                assert "3" not in work.begun
                work.gates["gate-1"].set()
                await place.until_landed("gate-1", "1", "2", "1", "2", "3")
                values = [v for v in await place.landed() if v in ("gate-1", "3")]
                assert values == ["gate-1", "3"]

    run(go())


def test_what_was_done_out_of_order_is_not_done_again(world: World) -> None:
    async def go() -> None:
        async with place_in(world) as place:
            await place.send("a/gate-1", *(f"k{n}/{n}" for n in range(50)), "b/gate-2", "c/last")
            done = [*map(str, range(50)), "last"]
            async with place.engine() as (_, work, _):
                await place.until_landed(*done)
                assert {"gate-1", "gate-2"} <= set(work.begun)
            async with place.engine() as (_, work, _):
                await until_true(lambda: len(work.begun) == 2)
                work.gates["gate-1"].set()
                work.gates["gate-2"].set()
                await place.until_landed(*done, "gate-1", "gate-2")
                assert sorted(work.begun) == ["gate-1", "gate-2"]

    run(go())


def test_a_task_begins_before_the_one_before_is_committed_and_can_wait_for_that(world: World) -> None:
    async def go() -> None:
        async with place_in(world) as place:
            aborting = True
            place.aborts = lambda outputs: Aborted if aborting and outputs else None
            await place.send("a/1", "a/later-2", "b/later-3")
            async with place.engine(replace(LIMITS, beat_seconds=0.01)) as (_, work, _):
                await until_true(lambda: "later-2" in work.begun and "later-3" in work.ended)
                assert sorted(work.ended) == ["1", "later-3"], "another key's results are not waited for"
                assert await place.landed() == []
                aborting = False
                await until_true(lambda: "later-2" in work.ended)
                assert "1" in await place.landed()

    run(go())


def test_a_retry_blocks_its_key_and_no_slot(world: World) -> None:
    async def go() -> None:
        async with place_in(world) as place:
            await place.send("a/away-1", "a/2", "b/3", "b/4", "c/5")
            async with place.engine(replace(LIMITS, slots=1)) as (_, work, _):
                await place.until_landed("away-1", "2", "3", "4", "5")
                assert work.begun.count("away-1") == 3
                assert work.begun.index("2") > work.begun.index("5")

    run(go())


def test_who_knows_when_to_look_again_is_believed(world: World) -> None:
    async def go() -> None:
        async with place_in(world) as place:
            await place.send("a/busy-1")
            async with place.engine(replace(LIMITS, retry_seconds=1_000, retry_limit_seconds=1_000)) as (
                _,
                work,
                _,
            ):
                await place.until_landed("busy-1")
                assert work.begun.count("busy-1") == 3

    run(go())


def test_the_result_of_an_earlier_assignment_is_dropped(world: World) -> None:
    """The broker would take it: it checks membership, not ownership."""

    async def go() -> None:
        async with place_in(world) as place:
            await place.send("a/stubborn-1", "a/2")
            async with place.engine() as (engine, work, _):
                await until_true(lambda: work.begun == ["stubborn-1"])
                at = TopicPartition(place.source, 0)
                await engine.lost([at])
                await engine.assigned({at: None})
                # What was read before is read again by whoever owns the partition now.
                engine._take_in([Record(place.source, 0, 0, "a", b"stubborn-1")])
                await place.send("b/3")
                await place.until_landed("3")
                assert work.begun.count("stubborn-1") == 1, "two of one key at once"
                work.gates["stubborn-1"].set()
                await place.until_landed("3", "stubborn-1")
                assert work.begun.count("stubborn-1") == 2, "the first one's result was written"

    run(go())


def test_an_abort_is_sent_again_without_a_second_call(world: World) -> None:
    aborted: list[int] = []

    def aborts(outputs: Sequence[Outgoing]) -> type[Aborted] | None:
        aborted.append(len(outputs))
        return Aborted if len(aborted) <= 4 else None

    async def go() -> None:
        async with place_in(world) as place:
            place.aborts = aborts
            await place.send("a/1", "b/2", "a/3")
            async with place.engine() as (_, work, _):
                await place.until_landed("1", "2", "3")
                assert sorted(work.begun) == ["1", "2", "3"]
                assert await place.letters_of() == []

    run(go())


def test_what_the_broker_does_not_take_now_is_written_once_it_does(world: World) -> None:
    """A partition without a leader, or a topic that may not be written to: no task is given up for that."""
    aborted: list[int] = []

    def aborts(outputs: Sequence[Outgoing]) -> type[Aborted] | None:
        if not outputs or len(aborted) > 5:
            return None
        aborted.append(len(outputs))
        return Aborted

    async def go() -> None:
        async with place_in(world) as place:
            place.aborts = aborts
            await place.send("a/1")
            async with place.engine(replace(LIMITS, beat_seconds=0.01)) as (_, work, _):
                await place.until_landed("1")
                assert (work.begun, work.given_up, await place.letters_of()) == (["1"], [], [])

    run(go())


def test_what_waits_for_a_retry_when_its_process_ends_is_no_suspect(world: World) -> None:
    async def go() -> None:
        async with place_in(world) as place:
            await place.send("a/away-1", "b/away-2", "c/gate-3")
            limits = replace(LIMITS, retry_seconds=1_000, retry_limit_seconds=1_000)
            async with place.engine(limits) as (_, work, _):
                await until_true(lambda: len(work.ended) == 2 and "gate-3" in work.begun)
            assert await place.attempts.begin([(0, offset) for offset in range(3)]) == {}

    run(go())


def test_a_task_that_takes_its_time_to_end_is_waited_for(world: World) -> None:
    """It was cancelled once: to do so again would cut short what it does at its end."""

    async def go() -> None:
        async with place_in(world) as place:
            await place.send("a/ends-1")
            async with place.engine(replace(LIMITS, drain_seconds=0.05)) as (engine, work, _):
                await until_true(lambda: work.begun == ["ends-1"])
                at = TopicPartition(place.source, 0)
                await engine.revoked([at])
                await engine.lost([at])
                assert work.running == {"ends-1"}
                work.gates["the end"].set()
                await until_true(lambda: work.ended == ["ends-1"])

    run(go())


def test_one_bad_output_does_not_hold_a_group_commit(world: World) -> None:
    """One that the broker refuses, one that is too large to be sent, and one whose task has a bug."""

    async def go() -> None:
        async with place_in(world) as place:
            place.aborts = lambda outputs: (
                Refused if (place.target, BAD) in [(one.topic, one.value) for one in outputs] else None
            )
            tasks = ["a/1", "b/bad", "b/2", "c/huge-1", "d/bug-1", "e/garbage-1", "f/3", "g/cancelled-1"]
            await place.send(*tasks)
            async with place.engine() as (_, work, _):
                told = [f"gave up {value}" for value in ("bad", "huge-1", "bug-1", "cancelled-1")]
                await place.until_landed("1", "2", "3", *told)
                assert len(work.begun) == len(tasks), "a task was done twice"
                assert await place.letters_of() == [
                    ("bad", "refused"),
                    ("bug-1", "poison"),
                    ("cancelled-1", "poison"),
                    ("garbage-1", "truncated"),
                    ("huge-1", "too_large"),
                ]
                assert "ZeroDivisionError: a handler's bug, ***" in await place.details()

    run(go())


def test_an_unknown_schema_stops_its_partition_until_it_is_skipped(world: World) -> None:
    async def go() -> None:
        async with place_in(world) as place:
            await place.send("a/gate-1", "a/2", "b/future-1", "b/3", "c/4")
            await place.send("z/5", partition=1)
            async with place.engine() as (_, work, health):
                await until_true(lambda: bool(health.stopped))
                await place.send("c/6")
                work.gates["gate-1"].set()
                landed = await until(place.landed, lambda found: {"gate-1", "2", "5"} <= set(found))
                assert not {"3", "6"} & set(landed), "it went on behind a record that it can't read"
                assert any("dlq skip" in problem for problem in health.problems())
                producer = await place.bus.producer(world.name("operator"))
                await producer.transaction([skip_mark(place.letters, place.source, 0, 2)])
                await producer.close()
                await place.until_landed("gate-1", "2", "3", "4", "5", "6")
                assert not health.stopped

    run(go())


def test_suspects_run_apart_and_only_a_death_alone_counts(world: World) -> None:
    """What an earlier process noted and left behind: a killer, a bystander, and one that is convicted."""

    async def go() -> None:
        async with place_in(world) as place:
            notes = (Attempt(2, 2, alone=True), Attempt(7, 2), Attempt(1, 1, alone=True), Attempt(0, 0))
            for offset, attempt in enumerate(notes):
                await place.attempts.note((0, offset), attempt)
            await place.send("a/convicted", "b/bystander", "c/gate-suspect", "d/gate-1", "e/2")
            async with place.engine() as (_, work, _):
                await until_true(lambda: "gate-1" in work.running and "2" in work.ended)
                work.gates["gate-1"].set()
                await until_true(lambda: "gate-suspect" in work.running)
                await place.send("f/3")
                work.gates["gate-suspect"].set()
                await place.until_landed("gave up convicted", "bystander", "gate-suspect", "gate-1", "2", "3")
                assert "convicted" not in work.begun
                assert not work.beside["bystander"] and not work.beside["gate-suspect"]
                assert "gate-1" in work.beside["2"], "one death in company is no reason to wait"
                assert await place.letters_of() == [("convicted", "poison")]
            async with place.engine() as (_, work, _):
                await place.send("a/4")
                await until_true(lambda: work.ended == ["4"])

    run(go())


def test_a_start_that_is_being_noted_is_taken_back_before_its_partition_is_given_up(world: World) -> None:
    """The next owner would take the note for one that a dead process has left."""

    class Slow(MemoryAttempts):
        def __init__(self) -> None:
            super().__init__()
            self.noted, self.answer = asyncio.Event(), asyncio.Event()

        async def begin(self, starts: Sequence[At]) -> Mapping[At, Attempt]:
            found = await super().begin(starts)
            self.noted.set()
            await self.answer.wait()
            return found

    async def go() -> None:
        async with place_in(world) as place:
            place.attempts = slow = Slow()
            await place.send("a/1")
            async with place.engine() as (_, work, _):
                await slow.noted.wait()
                asyncio.get_running_loop().call_later(0.1, slow.answer.set)
            assert work.begun == []
            assert await slow.begin([(0, 0)]) == {}, "nothing is held against it"

    run(go())


def test_notes_that_can_not_be_read_end_the_engine(world: World) -> None:
    """Nothing would begin any more, and nobody would know."""

    class Broken(MemoryAttempts):
        def __init__(self) -> None:
            super().__init__()
            self.asked = asyncio.Event()

        async def begin(self, starts: Sequence[At]) -> Mapping[At, Attempt]:
            self.asked.set()
            raise ValueError("this is no note")

    async def go() -> None:
        async with place_in(world) as place:
            place.attempts = broken = Broken()
            await place.send("a/1")
            with pytest.raises(ValueError, match="no note"):
                async with place.engine():
                    await broken.asked.wait()

    run(go())
