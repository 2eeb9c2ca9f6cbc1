"""What only the in-memory bus can do: crashes, expulsions, delays, and the same again from a seed."""

import asyncio
from random import Random

import pytest

from codeconvoy.schemas.errors import Aborted, Fenced
from codeconvoy.workers.engine.bus import Committed, Outgoing, TopicPartition
from codeconvoy.workers.engine.memory_broker import MemoryBroker
from codeconvoy.workers.engine.memory_bus import MemoryBus
from tests.contract.test_bus import Listener, Member, joined, outs, values
from tests.contract.worlds import read_all

AT = TopicPartition("t", 0)


async def bus_with_topic(broker: MemoryBroker | None = None) -> MemoryBus:
    bus = MemoryBus(broker)
    await bus.create_topics({"t": {}}, 2)
    return bus


def test_a_crash_in_a_transaction_leaves_nothing_and_blocks_readers_until_it_is_noticed() -> None:
    async def test() -> None:
        first = await bus_with_topic()
        stopped = asyncio.Event()

        async def stop_before_commit(name: str) -> None:
            if name == "producer.commit":
                stopped.set()
                await asyncio.Event().wait()

        dying = first.another(stop_before_commit)
        doomed = asyncio.create_task((await dying.producer("p")).transaction(outs("t", "doomed")))
        await stopped.wait()
        await (await first.producer("q")).transaction(outs("t", "behind it"))
        member = await joined(first, "g", "t", Listener())
        await member.nothing()
        dying.kill()
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        assert values(await member.records(1)) == ["behind it"]
        assert values(await read_all(first.reader(), AT)) == ["behind it"]

    asyncio.run(test())


def test_a_killed_members_partitions_move_after_its_session() -> None:
    async def test() -> None:
        first = await bus_with_topic()
        await (await first.producer("p")).transaction(outs("t", "again"))
        dying, mine = first.another(), Listener()
        dead = await joined(dying, "g", "t", Listener(), "dead")
        assert values(await dead.records(1)) == ["again"]
        dying.kill("dead", after=0.05)
        with pytest.raises(Fenced):
            await dead.consumer.poll(1, 0.0)
        member = Member(first.consumer("g", ["t"], mine, "live"))
        assert values(await member.records(1)) == ["again"]
        assert len(mine.owned) == 2

    asyncio.run(test())


def test_an_expelled_member_loses_its_partitions_and_comes_back() -> None:
    async def test() -> None:
        bus = await bus_with_topic()
        producer, listener = await bus.producer("p"), Listener()
        member = await joined(bus, "g", "t", listener, "slow")
        stale = await member.consumer.group_token()
        bus.expel("slow")
        with pytest.raises(Aborted):
            await producer.transaction([], {AT: Committed(0)}, "g", stale)
        with pytest.raises(Fenced):
            await member.consumer.group_token()
        await member.until(lambda: len(listener.told) == 3)
        assert [what for what, _ in listener.told] == ["assigned", "lost", "assigned"]
        await producer.transaction([], {AT: Committed(0)}, "g", await member.consumer.group_token())

    asyncio.run(test())


def test_offsets_of_an_open_transaction_are_waited_for() -> None:
    async def test() -> None:
        first = await bus_with_topic()
        goes_on = asyncio.Event()

        async def wait_before_commit(name: str) -> None:
            if name == "producer.commit":
                await goes_on.wait()

        other = first.another(wait_before_commit)
        member = await joined(first, "g", "t", Listener())
        token = await member.consumer.group_token()
        producer = await other.producer("p")
        slow = asyncio.create_task(producer.transaction([], {AT: Committed(0, "m")}, "g", token))
        await asyncio.sleep(0.01)
        await member.consumer.close()
        again = Listener()
        joining = asyncio.create_task(joined(first, "g", "t", again))
        await asyncio.sleep(0.01)
        assert not again.committed
        goes_on.set()
        await joining
        await slow
        assert again.committed[AT] == Committed(0, "m")

    asyncio.run(test())


def test_a_held_partition_shows_nothing_new() -> None:
    async def test() -> None:
        bus = await bus_with_topic()
        producer = await bus.producer("p")
        member = await joined(bus, "g", "t", Listener())
        bus.broker.hold(AT)
        await producer.transaction(outs("t", "held") + outs("t", "free", partition=1))
        assert values(await member.records(1)) == ["free"]
        await member.nothing()
        bus.release(AT)
        assert values(await member.records(1)) == ["held"]

    asyncio.run(test())


def test_the_same_seed_gives_the_same_run() -> None:
    async def run(seed: int) -> list[tuple[int, int, str]]:
        broker = MemoryBroker(Random(seed), max_delay=0.005, abort_rate=0.3)
        bus = await bus_with_topic(broker)
        producer, member = await bus.producer("p"), await joined(bus, "g", "t", Listener())
        kept = 0
        for number in range(40):
            try:
                await producer.transaction([Outgoing("t", str(number), b"v")])
                kept += 1
            except Aborted:
                pass
        assert 0 < kept < 40
        found = sorted(await member.records(kept), key=lambda record: (record.partition, record.offset))
        return [(record.partition, record.offset, record.key) for record in found]

    assert asyncio.run(run(1)) == asyncio.run(run(1)) != asyncio.run(run(2))
