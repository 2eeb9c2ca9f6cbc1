"""A broker that lost the markers of a transaction: what it left hanging is ended by its producer.

What a killed broker may do by itself is done to it here, for sure: the last markers are cut off from the
logs of partitions, while the log of transactions says that all is complete.
"""

import asyncio
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from codeconvoy.orchestrator.services import LocalKafka, kafka_jars
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine import kafka_hanging
from codeconvoy.workers.engine.bus import Committed, GroupToken, Outgoing, Producer, TopicPartition
from codeconvoy.workers.engine.kafka_bus import KafkaBus
from codeconvoy.workers.engine.kafka_client import consumer_settings
from codeconvoy.workers.engine.kafka_consumer import MemberToken
from codeconvoy.workers.engine.kafka_hanging import Outcome
from tests.fleets import until
from tests.services import jar_cache

TOPICS = Topics("hanging", 2)
AT = TopicPartition(TOPICS.events, 1)
QUEUE = TopicPartition(TOPICS.tasks("clerk"), 0)
GROUP = TOPICS.group("worker.clerk")
TIMEOUT_SECONDS = 10.0
"""Of a transaction, unless it is set."""
PATIENCE_SECONDS = 3.0
SECONDS = 60.0
_CONTROL = 0x20
"""The bit of a batch's attributes that says that it is a marker (Kafka's message format 2)."""


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[LocalKafka]:
    service = LocalKafka(kafka_jars(jar_cache()), tmp_path / "kafka")
    service.start()
    try:
        yield service
    finally:
        service.stop()


def settings(kafka: LocalKafka) -> dict[str, str]:
    return {"bootstrap.servers": kafka.bootstrap}


def cut_marker(log: Path) -> bool:
    """Cut off the last batch of a partition's log, if it is a marker."""
    content, at, last = log.read_bytes(), 0, None
    while at + 12 <= len(content):
        [length] = struct.unpack_from(">i", content, at + 8)
        if length <= 0:
            break
        at, last = at + 12 + length, at
    if last is None or not struct.unpack_from(">h", content, last + 21)[0] & _CONTROL:
        return False
    log.write_bytes(content[:last])
    for snapshot in log.parent.glob("*.snapshot"):  # it is made anew from the log
        snapshot.unlink()
    return True


def lose_markers(kafka: LocalKafka, *stems: str) -> None:
    """Kill the broker, and bring it back without the last markers of partitions whose names start so."""
    kafka.kill()
    for stem in stems:
        logs = [log for log in kafka.data.glob(f"logs/{stem}*/*.log") if log.stat().st_size]
        assert [log for log in logs if cut_marker(log)], f"{stem}: there is no marker"
    kafka.start()


class Group:
    """The group's offsets, for who is no member."""

    def __init__(self, kafka: LocalKafka) -> None:
        self.client = Consumer(consumer_settings(settings(kafka), GROUP, "looker"))

    def token(self) -> GroupToken:
        unused: Any = None
        return GroupToken(MemberToken(self.client.consumer_group_metadata(), unused))

    def offset(self) -> int | None:
        """That of the queue; None while the broker holds it back."""
        try:
            [found] = self.client.committed([KafkaPartition(QUEUE.topic, QUEUE.partition)], timeout=2.0)
        except KafkaException:
            return None
        return int(found.offset)


async def write(producer: Producer, group: Group, value: str, offset: int) -> None:
    """What a worker does: an output and the offset behind its task, in one transaction."""
    outputs = [Outgoing(AT.topic, "", value.encode(), partition=AT.partition)]
    await producer.transaction(outputs, {QUEUE: Committed(offset)}, GROUP, group.token())


class FromTheStart:
    """What a member of a group wants to be told: nothing."""

    async def assigned(
        self, committed: Mapping[TopicPartition, Committed | None]
    ) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(committed, 0)

    async def revoked(self, partitions: Sequence[TopicPartition]) -> None: ...

    async def lost(self, partitions: Sequence[TopicPartition]) -> None: ...


async def check_passed_by(bus: KafkaBus, wanted: Sequence[str]) -> None:
    """See that a member of a group is given what is wanted, and passes the fillers."""
    reader = bus.reader()
    ends = await reader.ends([AT])
    consumer = bus.consumer("passes-by", [AT.topic], FromTheStart(), "passer")
    found: list[str] = []
    async with asyncio.timeout(SECONDS):
        while (await consumer.positions()).get(AT, 0) < ends[AT]:
            found += [record.value.decode() for record in await consumer.poll(10, 0.5)]
    assert found == list(wanted)
    assert ends[AT] > 2 * len(wanted) + 1, "there are fillers and markers"
    await consumer.close()


async def read(bus: KafkaBus, wanted: Sequence[str]) -> None:
    """Wait until the partition can be read as far, and see that just this is there."""
    reader, found, offset = bus.reader(), list[str](), 0
    async with asyncio.timeout(SECONDS):
        while len(found) < len(wanted):
            records = await reader.read(AT, offset, 100, 0.5)
            found += [record.value.decode() for record in records]
            offset = await reader.position(AT)
    assert found == list(wanted)
    await reader.close()


def test_what_hangs_is_ended_by_who_wrote_it_or_comes_again_in_its_name(
    kafka: LocalKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No transaction is really open here: there is none whose end would have to be waited for.
    monkeypatch.setattr(kafka_hanging, "CLEAN_UP_SECONDS", PATIENCE_SECONDS - TIMEOUT_SECONDS)
    bystander, mine = f"{GROUP}.bystander", f"{GROUP}.writer"

    async def go() -> None:
        group = Group(kafka)
        bus = KafkaBus(settings(kafka), topics=TOPICS)
        await bus.create_topics({name: {} for name in (AT.topic, QUEUE.topic, TOPICS.dead_letters)}, 2)
        await bus.producer(bystander, GROUP)
        writer = await bus.producer(mine, GROUP)
        await write(writer, group, "first", 1)
        await read(bus, ["first"])
        # Who wrote it lives, and knows that it was committed.
        await asyncio.to_thread(lose_markers, kafka, f"{AT.topic}-{AT.partition}", "__consumer_offsets")
        assert await asyncio.to_thread(group.offset) is None
        await read(bus, ["first"])
        await asyncio.to_thread(until, lambda: group.offset() == 1, "its offset is known again")
        await write(writer, group, "second", 2)
        await read(bus, ["first", "second"])
        await asyncio.to_thread(until, lambda: group.offset() == 2, "its offset is known")
        # Nobody has learnt how it ended, but its offset is there.
        await asyncio.to_thread(lose_markers, kafka, f"{AT.topic}-{AT.partition}")
        writer._last.outcome = Outcome.UNKNOWN
        await writer.close()
        writer = await bus.producer(mine, GROUP)
        await read(bus, ["first", "second"])
        await write(writer, group, "third", 3)
        await read(bus, ["first", "second", "third"])
        await asyncio.to_thread(until, lambda: group.offset() == 3, "its offset is known")
        await asyncio.to_thread(lose_markers, kafka, f"{AT.topic}-{AT.partition}", "__consumer_offsets")
        await bus.close()
        # Without it the others can't. Who comes again in its name can, and undoes what it knows nothing of.
        bus = KafkaBus(settings(kafka), topics=TOPICS)
        await bus.producer(bystander, GROUP)
        assert await asyncio.to_thread(group.offset) is None
        writer = await bus.producer(mine, GROUP)
        assert await asyncio.to_thread(group.offset) == 2
        await write(writer, group, "third again", 3)
        await read(bus, ["first", "second", "third again"])
        assert await asyncio.to_thread(group.offset) == 3
        await check_passed_by(bus, ["first", "second", "third again"])
        await bus.close()
        group.client.close()

    asyncio.run(go())
