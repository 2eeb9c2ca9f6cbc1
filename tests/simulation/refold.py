"""Reads the logs of a broker in memory, writes nothing: everything folded once more, from the start.

What the fleet did in pieces, with crashes in between, is done here in one go, by the same pure steps:
the states, and what had to be written because of them, each exactly once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from codeconvoy.workers.engine.bus import Outgoing, Record, TopicPartition
from codeconvoy.workers.engine.fold_engine import FoldConsumer
from codeconvoy.workers.engine.memory_broker import MemoryBroker, Outcome
from codeconvoy.workers.engine.state import LIVE, OFFSET

DUE = "!due:"


def records_of(broker: MemoryBroker, topic: str) -> Iterator[Record]:
    """The committed records of a topic, partition by partition."""
    for number in range(broker.topics[topic]):
        for entry in broker.logs[TopicPartition(topic, number)].entries:
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
    """Fold a topic from its start to its end."""
    found = Refold()
    for record in records_of(broker, consumer.topic):
        at = (record.partition, record.key)
        state = found.states.get(at, consumer.empty(record.key))
        found.states[at], outputs = consumer.step(state, record, record.timestamp)
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
