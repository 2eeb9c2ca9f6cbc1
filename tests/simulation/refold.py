"""Reads the logs of a broker in memory, writes nothing: everything folded once more, from the start.

What the fleet did in pieces, with crashes in between, is done here in one go, by the same pure steps:
the states, and what had to be written because of them, each exactly once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from codeconvoy.schemas.errors import Undecodable
from codeconvoy.workers.engine.bus import Outgoing, Record, TopicPartition
from codeconvoy.workers.engine.fold_consumer import FoldConsumer
from codeconvoy.workers.engine.memory_broker import MemoryBroker, Outcome
from codeconvoy.workers.engine.state import LIVE, OFFSET, MemoryStore

DUE = "!due:"
MAX_SHOWN = 3


def records_of(broker: MemoryBroker, topic: str) -> Iterator[Record]:
    """The committed records of a topic, partition by partition."""
    for number in range(broker.topics[topic]):
        yield from committed(broker, TopicPartition(topic, number))


def committed(broker: MemoryBroker, at: TopicPartition, start: int = 0) -> Iterator[Record]:
    """The committed records of a partition from an offset on, in order."""
    for entry in broker.logs[at].entries[start:]:
        if entry.record is not None and entry.transaction.outcome is Outcome.COMMITTED:
            yield entry.record


@dataclass(slots=True)
class Refold:
    """What a fold consumer makes of its topic."""

    states: dict[tuple[int, str], Any] = field(default_factory=dict)
    """By partition and key."""
    outputs: list[Outgoing] = field(default_factory=list)
    fields: dict[int, dict[str, bytes]] = field(default_factory=dict)
    """Of each partition that is not empty: what a store has to hold."""


def refold(consumer: FoldConsumer[Any], broker: MemoryBroker) -> Refold:
    """Fold a topic from its start to its end. What can't be read is passed over: it is garbage, or
    somebody has skipped it."""
    found = Refold()
    for record in records_of(broker, consumer.topic):
        at = (record.partition, record.key)
        state = found.states.get(at, consumer.empty(record.key))
        try:
            found.states[at], outputs = consumer.step(state, record, record.timestamp)
        except Undecodable:
            continue
        found.outputs += outputs
    for number in range(broker.topics[consumer.topic]):
        end = len(broker.logs[TopicPartition(consumer.topic, number)].entries)
        if end:
            found.fields[number] = {OFFSET: str(end).encode(), LIVE: b"1"}
    for (partition, key), state in found.states.items():
        fields = found.fields[partition]
        fields.update(_written(consumer.dump(key, None, state)))
        wait = consumer.wait(state)
        if wait is not None:
            fields[DUE + key] = str(wait).encode()
    return found


def _written(changes: Mapping[str, bytes | None]) -> dict[str, bytes]:
    return {name: value for name, value in changes.items() if value is not None}


def differences(folds: Mapping[str, Refold], stores: Mapping[str, MemoryStore]) -> Iterator[str]:
    """Where what the engines wrote piece by piece is not, byte for byte, what one fold gives."""
    for name, fold in folds.items():
        stored = {number: dict(fields) for number, fields in stores[name].snapshot().items() if fields}
        for number in sorted(stored.keys() | fold.fields.keys()):
            there, here = stored.get(number, {}), fold.fields.get(number, {})
            differ = sorted(
                field for field in there.keys() | here.keys() if there.get(field) != here.get(field)
            )
            for name_of in differ[:MAX_SHOWN]:
                was, due = _cut(there.get(name_of)), _cut(here.get(name_of))
                yield f"{name}/{number} {name_of!r}: {was}, should be {due}"


def _cut(value: bytes | None) -> str:
    return repr(value if value is None or len(value) < 60 else value[:60] + b"...")
