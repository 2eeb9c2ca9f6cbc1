"""Reads a seed, writes topics: the records that figures are measured with, made and sent fast."""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from confluent_kafka import Consumer, Producer, TopicPartition

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import Policy
from codeconvoy.schemas.job_spec import DEFAULT_STRATEGIES
from codeconvoy.schemas.tasks import EditWork, Task
from codeconvoy.schemas.topics import PARTITIONER, file_key
from tests.bench.figures import Wrong

SEED = 20_261
PARTITIONS = 12
"""Of every topic: what a fleet's own are created with."""
QUIET_SECONDS = 60.0
WORKSPACE = "bench"
GOAL = "Replace the string formatting by f-strings, and keep what the module's callers can see."


@dataclass(frozen=True, slots=True)
class Keyed:
    """A record to be sent."""

    key: str
    value: bytes


def send(kafka: str, topic: str, records: Iterable[Keyed]) -> float:
    """Put the records on a topic, in their order; answers when it began (seconds, monotonic)."""
    producer = Producer(
        {
            "bootstrap.servers": kafka,
            "partitioner": PARTITIONER,
            "enable.idempotence": True,
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 1_000_000,
            "log_level": 2,
        }
    )
    producer.list_topics(topic, timeout=10.0)
    began = time.monotonic()
    for number, record in enumerate(records):
        while True:
            try:
                producer.produce(topic, record.value, record.key.encode())
                break
            except BufferError:
                producer.poll(0.05)
        if number % 1_000 == 0:
            producer.poll(0)
    if producer.flush(120.0):
        raise RuntimeError(f"the broker did not take all records of {topic}")
    return began


def tasks(codec: Codec, count: int, keys: int, role: str, *, mark: str, seed: int = SEED) -> list[Keyed]:
    """Edit tasks for `keys` files in a fixed shuffle. A task's id is `mark/<key>/<number of its key>`."""
    order = [number % keys for number in range(count)]
    random.Random(seed).shuffle(order)
    made: list[Keyed] = []
    seen = [0] * keys
    for key in order:
        path = f"src/package_{key % 10}/module_{key:04d}.py"
        task = Task(
            task_id=f"{mark}/{key}/{seen[key]}",
            job_id="8c6f2a0e-5f0e-5a43-9a52-0a2c7f6d1b11",
            workspace=WORKSPACE,
            role=role,
            path=path,
            round=1,
            goal=GOAL,
            policy=Policy(strategies=DEFAULT_STRATEGIES),
            work=EditWork(),
        )
        seen[key] += 1
        made.append(Keyed(file_key(WORKSPACE, path), codec.encode(task)))
    return made


class Sink:
    """Reads what arrives on a topic, from its beginning, without a group."""

    def __init__(self, kafka: str, topic: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": kafka,
                "group.id": "bench-sink",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 20,
                "log_level": 2,
            }
        )
        self._consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])

    def take(self, count: int, check: Callable[[], None] = lambda: None) -> list[bytes]:
        """The values of the next `count` records. `check` raises where they will not come.

        Raises:
            Wrong: no more came for a minute: the others were lost.
        """
        values: list[bytes] = []
        deadline = time.monotonic() + QUIET_SECONDS
        while len(values) < count:
            for message in self._consumer.consume(min(5_000, count - len(values)), 0.01):
                if message.error() is not None:
                    raise RuntimeError(str(message.error()))
                values.append(message.value() or b"")
                deadline = time.monotonic() + QUIET_SECONDS
            check()
            if time.monotonic() > deadline:
                raise Wrong(f"{len(values)} of {count} records came, and no more for {QUIET_SECONDS:.0f} s")
        return values

    def surplus(self, seconds: float) -> int:
        """How many more there are, after so many quiet seconds."""
        return len(self._consumer.consume(1_000, seconds))

    def close(self) -> None:
        """Give up the consumer."""
        self._consumer.close()


@contextmanager
def sink(kafka: str, topic: str) -> Iterator[Sink]:
    """A sink, for as long as it is needed."""
    opened = Sink(kafka, topic)
    try:
        yield opened
    finally:
        opened.close()


def out_of_order(ids: Sequence[str]) -> list[str]:
    """Of task ids as `tasks` makes them, in the order of their arrival: those before which another one of
    their key should have come, and those that came twice."""
    last: dict[str, int] = {}
    found: list[str] = []
    for task_id in ids:
        key, _, number = task_id.rpartition("/")
        if int(number) != last.get(key, -1) + 1:
            found.append(task_id)
        last[key] = int(number)
    return found
