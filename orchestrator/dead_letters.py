"""Reads and writes the dead-letters topic and the topics that they came from: an operator's decisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.orchestrator.submit import write
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.codec import Record as AnyRecord
from codeconvoy.schemas.dead_letters import RETRIED_TO, DeadLetter
from codeconvoy.schemas.errors import BadInput, Undecodable
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.job_facts import JobFact
from codeconvoy.schemas.tasks import Task
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.bus import Outgoing, Record, TopicPartition
from codeconvoy.workers.engine.dead_letter import HEADER, all_letters, skip_mark
from codeconvoy.workers.tracing import context_in

READ_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Letter:
    """A record that could not be handled."""

    id: str
    """PARTITION/OFFSET on the dead-letters topic."""
    key: str
    value: bytes
    told: DeadLetter
    """Where it came from, and why it was given up."""
    context: Mapping[str, bytes] = field(default_factory=dict)
    """The trace that it belongs to, as headers."""
    retried_to: str = ""
    """Where an operator has put it back."""


async def letters(fleet: Fleet) -> Mapping[str, Letter]:
    """All dead letters by id, in the order of their partitions and offsets.

    Raises:
        Unavailable: the broker can't be reached.
    """
    return told_by(await all_letters(fleet.bus, fleet.topics.dead_letters), fleet.codec)


def told_by(records: Sequence[Record], codec: Codec) -> Mapping[str, Letter]:
    """The letters among the records of the dead-letters topic, and which of them were put back.

    A record there that nobody of ours wrote is passed over.
    """
    found: dict[str, Letter] = {}
    marks: dict[str, str] = {}
    for record in records:
        if RETRIED_TO in record.headers:
            marks[record.key] = record.headers[RETRIED_TO].decode(errors="replace")
        elif HEADER in record.headers:
            try:
                told = codec.decode(record.headers[HEADER], DeadLetter)
            except Undecodable:
                continue
            id_ = f"{record.partition}/{record.offset}"
            found[id_] = Letter(id_, record.key, record.value, told, context_in(record.headers))
    return {id_: replace(letter, retried_to=marks.get(id_, "")) for id_, letter in found.items()}


async def retry(fleet: Fleet, chosen: Sequence[Letter]) -> None:
    """Append the letters to the partitions that they came from, and mark them, all or none.

    Raises:
        BadInput: one was put back already.
        Unavailable: the broker can't be reached.
    """
    outputs: list[Outgoing] = []
    for letter in chosen:
        if letter.retried_to:
            raise BadInput("ID", f"{letter.id} was put back already", "`convoy dlq list` shows what was not")
        told = letter.told
        outputs.append(Outgoing(told.topic, letter.key, letter.value, letter.context, told.partition))
        where = f"{told.topic}/{told.partition}"
        outputs.append(Outgoing(fleet.topics.dead_letters, letter.id, b"", {RETRIED_TO: where.encode()}))
    if outputs:
        await write(fleet, outputs)


async def skip(fleet: Fleet, topic: str, partition: int, offset: int) -> None:
    """Let every process pass over a record that this version can't read.

    Raises:
        BadInput: there is no such record, or it can be read.
        Unavailable: the broker can't be reached.
    """
    kind = kind_of(fleet.topics, topic)
    if not 0 <= partition < fleet.topics.partitions:
        raise BadInput(
            "PARTITION", f"there is no partition {partition}", f"Use 0 to {fleet.topics.partitions - 1}"
        )
    reader = fleet.bus.reader()
    try:
        at = TopicPartition(topic, partition)
        low, high = await reader.watermarks(at)
        found: Sequence[Record] = ()
        if low <= offset < high:
            found = await reader.read(at, offset, 1, READ_SECONDS)
    finally:
        await reader.close()
    if not found or found[0].offset != offset:
        remedy = "`convoy doctor` and the logs of the stopped process name the offset"
        raise BadInput("OFFSET", f"{topic}/{partition} has no record at {offset}", remedy)
    try:
        fleet.codec.decode(found[0].value, kind)
    except Undecodable as undecodable:
        if not undecodable.is_garbage:
            await write(fleet, [skip_mark(fleet.topics.dead_letters, topic, partition, offset)])
            return
    raise BadInput("OFFSET", "no process stops at that record", "There is nothing to skip")


def kind_of(topics: Topics, topic: str) -> type[AnyRecord]:
    """What the records of a topic are.

    Raises:
        BadInput: it is none of the topics that processes read.
    """
    if topic == topics.events:
        return Event
    if topic == topics.jobs:
        return JobFact
    if topic.startswith(f"{topics.prefix}.tasks."):
        return Task
    known = f"{topics.events}, {topics.jobs} or {topics.prefix}.tasks.ROLE"
    raise BadInput("TOPIC", f"{topic!r} is not read by the fleet", f"Use {known}")
