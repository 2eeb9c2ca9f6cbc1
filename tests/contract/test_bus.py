"""One suite for both buses: what the engines rely on holds in memory and on a real Kafka."""

import asyncio
import gc
import random
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from codeconvoy.schemas.errors import Aborted, BusError, Fenced, Refused, TooLarge
from codeconvoy.schemas.topics import MAX_RECORD_BYTES, partition_of
from codeconvoy.workers.engine.bus import (
    Bus,
    Committed,
    Consumer,
    Outgoing,
    Record,
    TopicPartition,
)
from codeconvoy.workers.engine.limits import MAX_METADATA
from tests.contract.worlds import PARTITIONS, SECONDS, World, bus_with_topic, read_all, run


@dataclass
class Listener:
    """Notes what it is told; starts where the group left off."""

    told: list[tuple[str, tuple[TopicPartition, ...]]] = field(default_factory=list)
    committed: dict[TopicPartition, Committed | None] = field(default_factory=dict)
    owned: set[TopicPartition] = field(default_factory=set)
    on_revoke: Callable[[Sequence[TopicPartition]], Awaitable[None]] | None = None
    start: Mapping[TopicPartition, int] = field(default_factory=dict)

    async def assigned(
        self, committed: Mapping[TopicPartition, Committed | None]
    ) -> Mapping[TopicPartition, int]:
        self.told.append(("assigned", tuple(sorted(committed))))
        self.committed |= committed
        self.owned |= committed.keys()
        return {at: self.start.get(at, known.offset if known else 0) for at, known in committed.items()}

    async def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.told.append(("revoked", tuple(sorted(partitions))))
        if self.on_revoke:
            await self.on_revoke(partitions)
        self.owned -= set(partitions)

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.told.append(("lost", tuple(sorted(partitions))))
        self.owned -= set(partitions)


@dataclass
class Member:
    """A consumer that keeps what its polls brought until a test asks for it."""

    consumer: Consumer
    kept: list[Record] = field(default_factory=list)

    async def until(self, done: Callable[[], bool], *others: "Member") -> None:
        """Poll all of them until `done`."""
        deadline = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < deadline, "timed out"
            for one in (self, *others):
                one.kept += await one.consumer.poll(100, 0.05)

    async def records(self, count: int) -> list[Record]:
        """The next records, exactly so many."""
        deadline = time.monotonic() + SECONDS
        while len(self.kept) < count:
            assert time.monotonic() < deadline, f"{len(self.kept)} of {count}"
            self.kept += await self.consumer.poll(count - len(self.kept), 0.2)
        found, self.kept = self.kept[:count], self.kept[count:]
        return found

    async def nothing(self) -> None:
        """A few polls after everything was read bring nothing more."""
        for _ in range(3):
            self.kept += await self.consumer.poll(100, 0.1)
        assert self.kept == []


def outs(topic: str, *values: str, key: str = "k", partition: int | None = 0) -> list[Outgoing]:
    return [Outgoing(topic, key, value.encode(), partition=partition) for value in values]


def values(records: Sequence[Record]) -> list[str]:
    return [record.value.decode() for record in records]


async def joined(bus: Bus, group: str, topic: str, listener: Listener, client_id: str = "member") -> Member:
    member = Member(bus.consumer(group, [topic], listener, client_id))
    await member.until(lambda: bool(listener.owned))
    return member


def test_each_key_keeps_its_order_and_its_partition(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            producer = await bus.producer(world.name("p"))
            keys = ["a:x.py", "b:y.py", "ü", "", "21"]
            sent = [(random.Random(number).choice(keys), str(number)) for number in range(300)]
            for start in range(0, 300, 60):
                part = sent[start : start + 60]
                await producer.transaction([Outgoing(topic, key, value.encode()) for key, value in part])
            listener = Listener()
            member = await joined(bus, world.name("g"), topic, listener)
            found = await member.records(300)
            for key in keys:
                mine = [record for record in found if record.key == key]
                assert values(mine) == [value for name, value in sent if name == key]
                assert {record.partition for record in mine} == {partition_of(key, PARTITIONS)}
                assert [record.offset for record in mine] == sorted(record.offset for record in mine)

    run(test())


def test_what_was_appended_is_below_the_end_at_once_and_there_once(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            appender, reader, at = bus.appender("a"), bus.reader(), TopicPartition(topic, 1)
            for number in range(40):
                await appender.append(Outgoing(topic, "k", str(number).encode(), partition=1))
                assert (await reader.ends([at]))[at] >= number + 1
            await asyncio.gather(
                *(appender.append(Outgoing(topic, "k", b"more", {"h": b"1"}, 1)) for _ in range(40))
            )
            found = await read_all(reader, at)
            assert values(found) == [*map(str, range(40)), *["more"] * 40]
            assert found[-1].headers == {"h": b"1"} and found[-1].key == "k"
            await appender.close()

    run(test())


def test_what_was_appended_does_not_depend_on_transactions_around_it(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            appender, producer = bus.appender("a"), await bus.producer(world.name("p"))
            for _ in range(3):
                await producer.transaction([Outgoing(topic, "k", b"with", partition=0)])
                await appender.append(Outgoing(topic, "k", b"alone", partition=0))
            assert values(await read_all(bus.reader(), TopicPartition(topic, 0))) == ["with", "alone"] * 3
            await appender.append(Outgoing(topic, "21", b"by key"))
            at = TopicPartition(topic, partition_of("21", PARTITIONS))
            assert values(await read_all(bus.reader(), at))[-1] == "by key"

    run(test())


def test_what_can_not_be_appended_is_refused(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world, **{"max.message.bytes": "2000"}) as (bus, topic):
            appender = bus.appender("a")
            with pytest.raises(TooLarge):
                await appender.append(Outgoing(topic, "k", bytes(MAX_RECORD_BYTES + 1)))
            with pytest.raises(BusError):
                await appender.append(Outgoing(topic, "k", random.Random(1).randbytes(5_000)))
            await appender.append(Outgoing(topic, "k", b"the next one"))
            at = TopicPartition(topic, partition_of("k", PARTITIONS))
            assert values(await read_all(bus.reader(), at)) == ["the next one"]

    run(test())


def test_headers_key_and_value_come_back_as_they_were(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            producer = await bus.producer(world.name("p"))
            headers = {"traceparent": b"00-1", "raw": bytes(range(256)), "none": b""}
            raw = b"\xffkey".decode("utf-8", "surrogateescape")
            await producer.transaction(
                [
                    Outgoing(topic, "w:päth.py", bytes(range(256)), headers, partition=3),
                    Outgoing(topic, raw, b"", partition=3),
                ]
            )
            first, second = await read_all(bus.reader(), TopicPartition(topic, 3))
            assert (first.key, first.value, dict(first.headers)) == ("w:päth.py", bytes(range(256)), headers)
            assert first.at == TopicPartition(topic, 3)
            assert (second.key, second.value, dict(second.headers)) == (raw, b"", {})

    run(test())


def test_outputs_and_offsets_take_effect_together(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            group, listener, at = world.name("g"), Listener(), TopicPartition(topic, 0)
            producer = await bus.producer(world.name("p"))
            await producer.transaction(outs(topic, "one", "two"))
            member = await joined(bus, group, topic, listener)
            assert values(await member.records(2)) == ["one", "two"]
            assert listener.committed[at] is None, "a group that has never been has no offset"
            await producer.transaction(
                outs(topic, "out", partition=1),
                {at: Committed(2)},
                group,
                await member.consumer.group_token(),
            )
            await member.consumer.close()
            again = Listener()
            await joined(bus, group, topic, again)
            assert again.committed[at] == Committed(2, "")
            assert again.committed[TopicPartition(topic, 1)] is None
            assert values(await read_all(bus.reader(), TopicPartition(topic, 1))) == ["out"]

    run(test())


def test_an_aborted_transaction_leaves_nothing_but_a_gap(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world, **{"max.message.bytes": "2000"}) as (bus, topic):
            group, at = world.name("g"), TopicPartition(topic, 0)
            producer = await bus.producer(world.name("p"))
            listener = Listener()
            member = await joined(bus, group, topic, listener)
            await producer.transaction(outs(topic, "before"))
            # The broker refuses the last record, in another partition than the first.
            refused = outs(topic, "gone", "gone too") + outs(topic, "x" * 3_000, partition=1)
            with pytest.raises(Refused):
                await producer.transaction(
                    refused, {at: Committed(1)}, group, await member.consumer.group_token()
                )
            await producer.transaction(outs(topic, "after"))
            found = await member.records(2)
            assert values(found) == ["before", "after"]
            assert values(await read_all(bus.reader(), at)) == ["before", "after"]
            await member.nothing()
            await member.consumer.close()
            again = Listener()
            await joined(bus, group, topic, again)
            assert again.committed[at] is None

    run(test())


def test_a_partition_that_does_not_exist_aborts(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            producer = await bus.producer(world.name("p"))
            with pytest.raises(Aborted) as found:
                await producer.transaction(outs(topic, "gone") + outs(topic, "nowhere", partition=99))
            assert not isinstance(found.value, Refused), "it may be there a moment later"
            await producer.transaction(outs(topic, "next"))
            assert values(await read_all(bus.reader(), TopicPartition(topic, 0))) == ["next"]

    run(test())


def test_a_newer_producer_fences_the_older(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            name = world.name("p")
            old = await bus.producer(name)
            await old.transaction(outs(topic, "old"))
            new = await bus.producer(name)
            with pytest.raises(Fenced):
                await old.transaction(outs(topic, "too late"))
            await new.transaction(outs(topic, "new"))
            with pytest.raises(Fenced):
                await old.transaction(outs(topic, "still too late"))
            assert values(await read_all(bus.reader(), TopicPartition(topic, 0))) == ["old", "new"]

    run(test())


def test_oversize_is_refused_before_anything_is_sent(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world, **{"max.message.bytes": "1200000"}) as (bus, topic):
            producer, at = await bus.producer(world.name("p")), TopicPartition(topic, 0)
            largest = Outgoing(topic, "k", b"x" * MAX_RECORD_BYTES, partition=0)
            with pytest.raises(TooLarge):
                await producer.transaction([*outs(topic, "a"), Outgoing(topic, "k", largest.value + b"x")])
            with pytest.raises(TooLarge):
                await producer.transaction([Outgoing(topic, "k" * 70_000, largest.value)])
            with pytest.raises(TooLarge):
                await producer.transaction([], {at: Committed(0, "m" * (MAX_METADATA + 1))}, "g", None)
            await producer.transaction([largest])
            assert [len(record.value) for record in await read_all(bus.reader(), at)] == [MAX_RECORD_BYTES]

    run(test())


def test_metadata_of_an_offset_comes_back(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            group, at = world.name("g"), TopicPartition(topic, 0)
            metadata = "".join(random.Random(1).choices("".join(map(chr, range(33, 127))), k=3_900))
            producer = await bus.producer(world.name("p"))
            await producer.transaction(outs(topic, "one"))
            member = await joined(bus, group, topic, Listener())
            token = await member.consumer.group_token()
            await producer.transaction([], {at: Committed(1, metadata)}, group, token)
            await member.consumer.close()
            again = Listener()
            await joined(bus, group, topic, again)
            assert again.committed[at] == Committed(1, metadata)

    run(test())


def test_a_token_is_refused_before_joining_and_when_stale(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            group, at = world.name("g"), TopicPartition(topic, 0)
            producer = await bus.producer(world.name("p"))
            early = bus.consumer(group, [topic], Listener(), "early")
            with pytest.raises(Fenced):
                await early.group_token()
            await early.close()
            mine, theirs = Listener(), Listener()
            first = await joined(bus, group, topic, mine, "first")
            stale = await first.consumer.group_token()
            second = Member(bus.consumer(group, [topic], theirs, "second"))
            await first.until(lambda: len(mine.owned) == len(theirs.owned) == 2, second)
            taken = min(theirs.owned)
            # For a partition that it kept, a broker with KIP-1251 (4.3) takes the older token of a
            # `group.protocol=consumer` member; for one that was taken away none does.
            with pytest.raises(Aborted):
                await producer.transaction(outs(topic, "stale"), {taken: Committed(1)}, group, stale)
            # A fresh token is good, even for a partition that is the other's now: the broker checks
            # membership, not ownership. The engines have to check ownership themselves.
            fresh = await first.consumer.group_token()
            await producer.transaction(outs(topic, "fresh"), {taken: Committed(0, "mine")}, group, fresh)
            assert values(await read_all(bus.reader(), at)) == ["fresh"]
            await first.consumer.close()
            await second.consumer.close()
            again = Listener()
            await joined(bus, group, topic, again)
            assert again.committed[taken] == Committed(0, "mine")

    run(test())


def test_offsets_are_committed_alone(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            group, at = world.name("g"), TopicPartition(topic, 0)
            producer = await bus.producer(world.name("p"))
            await producer.transaction(outs(topic, "one", "two", "three"))
            early = bus.consumer(group, [topic], Listener(), "early")
            with pytest.raises(Fenced):
                await early.commit({at: Committed(3)})
            await early.close()
            member = await joined(bus, group, topic, Listener())
            await member.consumer.commit({at: Committed(1)})
            await producer.transaction([], {at: Committed(3)}, group, await member.consumer.group_token())
            await member.consumer.commit({at: Committed(2, "two")})
            with pytest.raises(TooLarge):
                await member.consumer.commit({at: Committed(3, "m" * (MAX_METADATA + 1))})
            await member.consumer.close()
            again = Listener()
            other = await joined(world.another(), group, topic, again)
            assert again.committed[at] == Committed(2, "two")
            assert values(await other.records(1)) == ["three"]
            await other.consumer.close()

    run(test())


def test_what_was_not_committed_is_delivered_again(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            group, at = world.name("g"), TopicPartition(topic, 0)
            producer = await bus.producer(world.name("p"))
            await producer.transaction(outs(topic, "one", "two", "three"))
            member = await joined(bus, group, topic, Listener())
            await member.records(3)
            token = await member.consumer.group_token()
            await producer.transaction([], {at: Committed(1)}, group, token)
            await member.consumer.close()
            other = await joined(world.another(), group, topic, Listener())
            assert values(await other.records(2)) == ["two", "three"]
            await other.consumer.close()

    run(test())


def test_rebalance_tells_each_member_in_order_and_hands_over(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            group = world.name("g")
            mine, theirs = Listener(), Listener()
            first = await joined(bus, group, topic, mine, "first")
            second = Member(bus.consumer(group, [topic], theirs, "second"))
            await first.until(lambda: len(mine.owned) == len(theirs.owned) == 2, second)
            assert [what for what, _ in mine.told] == ["assigned", "revoked"], "cooperative: two stay"
            assert len(mine.told[1][1]) == 2
            assert not mine.owned & theirs.owned
            await second.consumer.close()
            assert theirs.told[-1][0] == "revoked"
            await first.until(lambda: len(mine.owned) == PARTITIONS)
            assert mine.told[-1][0] == "assigned"

    run(test())


@pytest.mark.parametrize("leaving", ["closing", "rebalancing"])
def test_a_revoked_member_can_still_commit(world: World, leaving: str) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            group = world.name("g")
            producer = await bus.producer(world.name("p"))
            everywhere = [Outgoing(topic, "k", b"v", partition=number) for number in range(PARTITIONS)]
            await producer.transaction(everywhere)
            mine, theirs = Listener(), Listener()
            first = await joined(bus, group, topic, mine, "first")
            await first.records(PARTITIONS)

            async def commit(partitions: Sequence[TopicPartition]) -> None:
                positions, token = await first.consumer.positions(), await first.consumer.group_token()
                offsets = {at: Committed(positions[at], "drained") for at in partitions}
                await producer.transaction([], offsets, group, token)

            mine.on_revoke = commit
            if leaving == "closing":
                await first.consumer.close()
            second = Member(bus.consumer(group, [topic], theirs, "second"))
            others = [] if leaving == "closing" else [first]
            await second.until(lambda: bool(theirs.owned), *others)
            drained = {known.metadata for known in theirs.committed.values() if known}
            assert drained == {"drained"} and None not in theirs.committed.values()
            await second.nothing()

    run(test())


def test_positions_and_readers_pass_markers(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            at, reader = TopicPartition(topic, 0), bus.reader()
            assert await reader.watermarks(at) == (0, 0)
            assert await reader.position(at) == 0
            producer = await bus.producer(world.name("p"))
            await producer.transaction(outs(topic, "one", "two"))
            await producer.transaction(outs(topic, "three"))
            # Two records, a marker, a record, a marker: only the last may still be on its way.
            low, high = await reader.watermarks(at)
            assert low == 0 and high in (4, 5)
            member = await joined(bus, world.name("g"), topic, Listener())
            assert [record.offset for record in await member.records(3)] == [0, 1, 3]
            deadline = time.monotonic() + SECONDS
            while (await member.consumer.positions())[at] < 5:
                assert time.monotonic() < deadline
                assert list(await member.consumer.poll(10, 0.05)) == []
            assert await member.consumer.positions() == {
                TopicPartition(topic, number): 5 if number == 0 else 0 for number in range(PARTITIONS)
            }
            assert await reader.watermarks(at) == (0, 5)
            both = [at, TopicPartition(topic, 1)]
            assert await reader.ends(both) == {both[0]: 5, both[1]: 0}
            assert [record.offset for record in await read_all(bus.reader(), at)] == [0, 1, 3]
            found = list(await reader.read(at, 1, 1, SECONDS))
            while len(found) < 2:
                found += await reader.read(at, found[-1].offset + 1, 5, SECONDS)
            assert values(found) == ["two", "three"]
            while await reader.position(at) < 5:
                assert time.monotonic() < deadline
                assert list(await reader.read(at, 4, 5, 0.05)) == []

    run(test())


def test_a_reader_jumps_and_reports_what_is_not_there(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            reader, producer = bus.reader(), await bus.producer(world.name("p"))
            for number in range(2):
                await producer.transaction(outs(topic, *"abc", partition=number))
            zero, one = TopicPartition(topic, 0), TopicPartition(topic, 1)
            assert values(await exactly(reader.read, zero, 0, 2)) == ["a", "b"]
            assert values(await exactly(reader.read, one, 1, 2)) == ["b", "c"]
            assert values(await exactly(reader.read, zero, 2, 1)) == ["c"]
            assert values(await exactly(reader.read, zero, 0, 1)) == ["a"]
            with pytest.raises(BusError):
                await reader.read(zero, 999, 1, SECONDS)
            assert values(await exactly(reader.read, zero, 1, 2)) == ["b", "c"]

    run(test())


def test_a_reader_waits_for_what_comes(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            reader, producer = bus.reader(), await bus.producer(world.name("p"))
            at = TopicPartition(topic, 0)
            assert list(await reader.read(at, 0, 10, 0.05)) == []
            waiting = asyncio.create_task(_read(reader.read, at))
            await producer.transaction(outs(topic, "late"))
            assert values(await waiting) == ["late"]

    run(test())


def test_seek_goes_back_and_forth(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            at, producer = TopicPartition(topic, 0), await bus.producer(world.name("p"))
            await producer.transaction(outs(topic, *"abcd"))
            member = await joined(bus, world.name("g"), topic, Listener())
            assert values(await member.records(4)) == list("abcd")
            await member.consumer.seek(at, 1)
            assert (await member.consumer.positions())[at] == 1
            assert values(await member.records(1)) == ["b"]
            await member.consumer.seek(at, 3)
            assert values(await member.records(1)) == ["d"]
            await member.nothing()
            with pytest.raises(BusError):
                await member.consumer.seek(TopicPartition(topic, 99), 0)

    run(test())


def test_assigned_chooses_where_to_start(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            at, producer = TopicPartition(topic, 0), await bus.producer(world.name("p"))
            await producer.transaction(outs(topic, *"abcd"))
            member = await joined(bus, world.name("g"), topic, Listener(start={at: 2}))
            assert values(await member.records(2)) == ["c", "d"]

    run(test())


def test_a_start_that_is_not_on_the_log_is_an_error(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            listener = Listener(start={TopicPartition(topic, 0): 77})
            consumer = bus.consumer(world.name("g"), [topic], listener, "c")
            deadline = time.monotonic() + SECONDS
            with pytest.raises(BusError):
                while time.monotonic() < deadline:
                    await consumer.poll(1, 0.1)

    run(test())


def test_a_paused_partition_rests(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            producer = await bus.producer(world.name("p"))
            member = await joined(bus, world.name("g"), topic, Listener())
            await member.consumer.pause([TopicPartition(topic, 0)])
            await producer.transaction(outs(topic, "paused") + outs(topic, "runs", partition=1))
            assert values(await member.records(1)) == ["runs"]
            await member.nothing()
            await member.consumer.resume([TopicPartition(topic, 0)])
            assert values(await member.records(1)) == ["paused"]

    run(test())


def test_a_paused_partition_that_was_taken_away_and_comes_back_is_read(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            group, mine, theirs = world.name("g"), Listener(), Listener()
            first = await joined(bus, group, topic, mine, "first")
            await first.consumer.pause(sorted(mine.owned))
            second = Member(bus.consumer(group, [topic], theirs, "second"))
            await first.until(lambda: len(mine.owned) == len(theirs.owned) == 2, second)
            away, kept = min(theirs.owned), min(mine.owned)
            await second.consumer.close()
            await first.until(lambda: len(mine.owned) == PARTITIONS)
            producer = await bus.producer(world.name("p"))
            await producer.transaction(
                outs(topic, "came back", partition=away.partition)
                + outs(topic, "rests", partition=kept.partition)
            )
            assert values(await first.records(1)) == ["came back"]
            await first.nothing()

    run(test())


def test_a_cancelled_poll_loses_nothing(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            producer = await bus.producer(world.name("p"))
            member = await joined(bus, world.name("g"), topic, Listener())
            found: list[Record] = []
            for number in range(20):
                poll = asyncio.create_task(_poll(member.consumer))
                await producer.transaction(outs(topic, str(number)))
                if number % 4 == 3:
                    stand_still(0.15)
                poll.cancel()
                with suppress(asyncio.CancelledError):
                    found += await poll
            found += await member.records(20 - len(found))
            assert values(found) == [str(number) for number in range(20)]

    run(test())


def test_a_cancelled_poll_leaves_the_rebalance_to_the_next(world: World) -> None:
    class Slow(Listener):
        def __init__(self) -> None:
            super().__init__()
            self.began, self.goes_on = asyncio.Event(), asyncio.Event()

        async def assigned(
            self, committed: Mapping[TopicPartition, Committed | None]
        ) -> Mapping[TopicPartition, int]:
            self.began.set()
            await self.goes_on.wait()
            return await super().assigned(committed)

    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            await (await bus.producer(world.name("p"))).transaction(outs(topic, "one"))
            listener = Slow()
            member = Member(bus.consumer(world.name("g"), [topic], listener, "c"))
            poll = asyncio.create_task(_poll(member.consumer))
            await listener.began.wait()
            poll.cancel()
            with pytest.raises(asyncio.CancelledError):
                await poll
            listener.goes_on.set()
            assert values(await member.records(1)) == ["one"]
            assert len(listener.told) == 1

    run(test())


def test_poll_takes_at_most_what_is_asked(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            producer = await bus.producer(world.name("p"))
            await producer.transaction([Outgoing(topic, str(n), b"v") for n in range(50)])
            member = await joined(bus, world.name("g"), topic, Listener())
            sizes = [len(member.kept)]
            assert sizes[0] <= 50
            while sum(sizes) < 50:
                sizes.append(len(await member.consumer.poll(7, SECONDS)))
            assert max(sizes[1:], default=0) <= 7 and sum(sizes) == 50

    run(test())


def test_an_error_of_the_listener_reaches_the_caller(world: World) -> None:
    class Broken(Listener):
        async def assigned(
            self, committed: Mapping[TopicPartition, Committed | None]
        ) -> Mapping[TopicPartition, int]:
            raise LookupError("broken")

    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            consumer = bus.consumer(world.name("g"), [topic], Broken(), "c")
            deadline = time.monotonic() + SECONDS
            for _ in range(2):
                with pytest.raises(LookupError):
                    while time.monotonic() < deadline:
                        await consumer.poll(1, 0.1)

    run(test())


def test_topics_are_created_once_and_counted(world: World) -> None:
    async def test() -> None:
        async with bus_with_topic(world) as (bus, topic):
            other = world.name("topic")
            await bus.create_topics({topic: {}, other: {"retention.ms": "-1"}}, 2)
            counts = await bus.partition_counts([topic, other, world.name("none")])
            assert counts == {topic: PARTITIONS, other: 2}

    run(test())


def stand_still(seconds: float) -> None:
    """Hold up the event loop, not the threads of the bus: a poll then has its records, and nobody has
    taken them yet."""
    time.sleep(seconds)


async def _poll(consumer: Consumer) -> Sequence[Record]:
    return await consumer.poll(10, SECONDS)


async def _read(read: Callable[..., Awaitable[Sequence[Record]]], at: TopicPartition) -> Sequence[Record]:
    return await read(at, 0, 10, SECONDS)


async def exactly(
    read: Callable[[TopicPartition, int, int, float], Awaitable[Sequence[Record]]],
    at: TopicPartition,
    offset: int,
    count: int,
) -> list[Record]:
    """So many records from this offset on."""
    found: list[Record] = []
    while len(found) < count:
        found += await read(at, offset, count - len(found), SECONDS)
        offset = found[-1].offset + 1
    return found


def test_a_closed_client_is_let_go(world: World) -> None:
    """A Kafka client keeps thread-local storage until it is freed, and a process has little of that."""

    async def go() -> None:
        async with bus_with_topic(world) as (bus, _):
            reader = bus.reader()
            gone = weakref.ref(reader)
            await reader.close()
            del reader
            bus.reader()
            gc.collect()
            assert gone() is None

    run(go())


def test_lag_is_what_is_left_to_read(world: World) -> None:
    async def go() -> None:
        async with bus_with_topic(world) as (bus, topic):
            producer = await bus.producer(world.name("producer"))
            member = await joined(bus, world.name("group"), topic, Listener())
            await producer.transaction(outs(topic, *"abcdefghij"))
            await member.until(lambda: len(member.kept) >= 1)
            while len(member.kept) < 10:
                member.kept += await member.consumer.poll(1, 0.1)
            deadline = time.monotonic() + SECONDS
            # A marker at the end may count.
            while sum((await member.consumer.lag()).values()) > 1:
                assert time.monotonic() < deadline
                await member.consumer.poll(1, 0.1)
            assert set(await member.consumer.lag()) == {TopicPartition(topic, n) for n in range(PARTITIONS)}

    run(go())
