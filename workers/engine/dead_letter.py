"""Reads and writes the dead-letters topic: bytes that could not be handled, and skip marks.

The value is the raw bytes, the key as it was. Headers say where they came from and why, in plain
text for any tool, and once more as an Avro record for ours.
"""

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.dead_letters import DeadLetter
from codeconvoy.schemas.errors import Undecodable
from codeconvoy.workers.engine.bus import Bus, Outgoing, Record, TopicPartition

HEADER = "dead-letter"
SKIP = "skip"
"""Header of a mark that lets every replica go on behind a record that it can't read."""
SCAN_BATCH = 1_000


def letter_of(codec: Codec, topic: str, record: Record, why: Undecodable, service: str, now: int) -> Outgoing:
    """The dead letter of a record that no version could read."""
    return dead_letter(codec, topic, record, str(why.flaw), why.detail, 1, service, now)


def dead_letter(
    codec: Codec, topic: str, record: Record, reason: str, detail: str, attempts: int, service: str, now: int
) -> Outgoing:
    """The dead letter of a record. `detail` is cut to 2,000 characters, and may hold what is none."""
    letter = DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        reason=reason,
        detail=detail.encode("utf-8", "replace").decode()[:2000],
        attempts=attempts,
        service=service,
        timestamp=now,
    )
    headers = {
        HEADER: codec.encode(letter),
        "topic": record.topic.encode(),
        "partition": str(record.partition).encode(),
        "offset": str(record.offset).encode(),
        "reason": reason.encode(),
        "attempts": str(attempts).encode(),
    }
    return Outgoing(topic, record.key, record.value, headers)


def skip_mark(dead_letters: str, topic: str, partition: int, offset: int) -> Outgoing:
    """The mark that `convoy dlq skip` appends."""
    point = f"{topic}/{partition}/{offset}"
    return Outgoing(dead_letters, point, b"", {SKIP: point.encode()})


async def skipped_points(bus: Bus, dead_letters: str) -> set[tuple[str, int, int]]:
    """All (topic, partition, offset) that operators have skipped."""
    points: set[tuple[str, int, int]] = set()
    for record in await all_letters(bus, dead_letters):
        if SKIP in record.headers:
            topic, partition, offset = record.headers[SKIP].decode().rsplit("/", 2)
            points.add((topic, int(partition), int(offset)))
    return points


async def all_letters(bus: Bus, dead_letters: str) -> list[Record]:
    """Every record of the dead-letters topic, partition by partition."""
    reader = bus.reader()
    records: list[Record] = []
    try:
        count = (await bus.partition_counts([dead_letters])).get(dead_letters, 0)
        for number in range(count):
            at = TopicPartition(dead_letters, number)
            low, high = await reader.watermarks(at)
            position = low
            while position < high:
                found = await reader.read(at, position, SCAN_BATCH, 2.0)
                records.extend(found)
                passed = await reader.position(at)
                if passed <= position and not found:
                    break
                position = max(passed, found[-1].offset + 1 if found else 0)
    finally:
        await reader.close()
    return records
