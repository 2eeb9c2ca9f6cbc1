"""Reads and writes topics and Redis by hand: what a figure is measured against.

These are loops that somebody who knows Kafka well would write for one purpose, with the client's
settings that the engines use too. They keep what exactly-once needs (a transaction a batch, in Kafka or
in Redis, with the consumed offsets in it) and nothing else: no order across slow calls, no retries, no
verdicts, no check of a hash or of a record, no dead letters, no bound of a history, no metrics.
"""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import fastavro
import msgspec
from confluent_kafka import Consumer, Producer
from redis import Redis

from codeconvoy.schemas.codec import SchemaSet
from codeconvoy.schemas.events import Event
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


@dataclass(frozen=True, slots=True)
class Projecting:
    """A projection by hand: from which topic to which hashes."""

    kafka: str
    redis: str
    topic: str
    group: str
    stem: str
    """Of the hashes' names, before the partition."""
    coalesce: bool
    """Write a file once a batch, not once an event."""


class _File:
    """One file, as far as the next event needs it."""

    __slots__ = ("content", "count", "head")

    def __init__(self) -> None:
        self.content, self.count, self.head = [b""], 0, ""


def project(what: Projecting) -> None:
    """Read events and write the same fields to Redis as the projector does, until SIGTERM: for each event
    its entry, the file's content after it and the file's header; the offsets in the same transaction."""
    consumer = consumer_of(what.kafka, what.group)
    redis = Redis.from_url(what.redis)
    schema = schema_of(Event)
    files: dict[str, _File] = {}
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    consumer.subscribe([what.topic])
    while not stopped:
        messages = consumer.consume(BATCH, BATCH_SECONDS)
        if not messages:
            continue
        hashes: dict[int, dict[Any, Any]] = {}
        with redis.pipeline(transaction=True) as pipeline:
            for message in messages:
                if message.error() is not None:
                    raise RuntimeError(str(message.error()))
                key, number = (message.key() or b"").decode(), message.partition() or 0
                fields = _folded(files.setdefault(key, _File()), key, message.value() or b"", schema)
                if what.coalesce:
                    hashes.setdefault(number, {}).update(fields)
                else:
                    pipeline.hset(f"{{{what.stem}:{number}}}", mapping=fields)
            for number, fields in hashes.items():
                pipeline.hset(f"{{{what.stem}:{number}}}", mapping=fields)
            for position in consumer.position(consumer.assignment()):
                if position.offset >= 0:
                    pipeline.hset(f"{{{what.stem}:{position.partition}}}", "@offset", position.offset)
            pipeline.execute()
    consumer.close()


def _folded(file: _File, key: str, value: bytes, schema: Any) -> dict[Any, Any]:
    """The fields that one more event of a file changes."""
    source = BytesIO(value)
    source.seek(_HEADER)
    event: Any = fastavro.schemaless_reader(source, schema, None, return_record_name=True)
    (_, payload), (_, policy) = event["payload"], event["policy"]
    patch = payload["patch"]
    if patch["content"] is not None:
        file.content = patch["content"].splitlines(keepends=True)
    else:
        for hunk in reversed(patch["hunks"]):
            start = hunk["start"]
            file.content[start : start + hunk["removed"]] = hunk["lines"].splitlines(keepends=True)
    number, file.count, file.head = file.count, file.count + 1, event["event_id"]
    summary = payload.get("summary", "")
    entry = {"seq": number, "slot": number} | {name: event[name] for name in _ENTRY}
    entry |= {"verdict": "accepted", "reason": "", "edit": None, "summary": summary}
    edit = {
        "parents": event["parent_event_ids"],
        "live": True,
        "content": b"".join(file.content),
        "sha256": patch["result_sha256"],
        "executable": patch["executable"],
        "policy": policy,
        "shown": True,
    }
    about = {name: event[name] for name in ("event_id", "role")} | {"seq": number, "summary": summary}
    header = [file.count, file.count, [file.head], file.head, None, [0, 0], [0, 0], [0, 0]]
    return {
        f"e:{key}\x1f{number}": _pack(entry),
        f"c:{key}\x1f{file.head}": _pack(about | {"edit": edit}),
        f"f:{key}": _pack(header),
    }


_ENTRY = ("event_id", "event_type", "job_id", "task_id", "round", "role", "agent_id", "timestamp")
_pack = msgspec.msgpack.encode
