"""Reads and writes topics and Redis by hand: what a figure is measured against.

These are loops that somebody who knows Kafka well would write for one purpose, with the client's
settings that the engines use too. They keep what exactly-once needs (a transaction a batch, with the
consumed offsets in it) and nothing else: no order across slow calls, no retries, no checks, no dead
letters, no metrics.
"""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import fastavro
from confluent_kafka import Consumer, Producer

from codeconvoy.schemas.codec import SchemaSet
from codeconvoy.schemas.tasks import Task
from codeconvoy.schemas.topics import PARTITIONER

BATCH = 1_000
BATCH_SECONDS = 0.02
_HEADER = 10
"""Bytes of the single-object framing before the body."""

Pass = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Hop:
    """One stage of a pipeline: from where to where."""

    kafka: str
    source: str
    target: str
    group: str
    next_role: str
    decode: bool = True


def consumer_of(kafka: str, group: str) -> Consumer:
    """A group member that reads committed records only, from the beginning."""
    return Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 100,
            "log_level": 2,
        }
    )


def schema_of(kind: type[Any]) -> Any:
    """The parsed schema of a kind of record."""
    return fastavro.parse_schema(json.loads(SchemaSet.of_package().current[kind]))


def pass_on(hop: Hop) -> None:
    """Read tasks, write each as the next role's, a transaction a batch, until SIGTERM."""
    consumer = consumer_of(hop.kafka, hop.group)
    producer = Producer(
        {
            "bootstrap.servers": hop.kafka,
            "transactional.id": hop.group,
            "partitioner": PARTITIONER,
            "linger.ms": 2,
            "retry.backoff.ms": 5,
            "log_level": 2,
        }
    )
    producer.init_transactions(30.0)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    convert = _rewriting(hop.next_role) if hop.decode else _unchanged
    consumer.subscribe([hop.source])
    while not stopped:
        messages = consumer.consume(BATCH, BATCH_SECONDS)
        if not messages:
            continue
        producer.begin_transaction()
        for message in messages:
            if message.error() is not None:
                raise RuntimeError(str(message.error()))
            producer.produce(hop.target, convert(message.value() or b""), message.key())
        producer.send_offsets_to_transaction(
            consumer.position(consumer.assignment()), consumer.consumer_group_metadata()
        )
        producer.commit_transaction()
    consumer.close()


def _unchanged(value: bytes) -> bytes:
    return value


def _rewriting(next_role: str) -> Pass:
    schema = schema_of(Task)

    def rewrite(value: bytes) -> bytes:
        source = BytesIO(value)
        source.seek(_HEADER)
        task: Any = fastavro.schemaless_reader(source, schema, None, return_record_name=True)
        task["role"] = next_role
        out = BytesIO()
        out.write(value[:_HEADER])
        fastavro.schemaless_writer(out, schema, task)
        return out.getvalue()

    return rewrite
