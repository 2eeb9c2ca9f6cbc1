"""Reads client settings and librdkafka's errors, writes nothing: what all Kafka clients here share."""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as KafkaPartition

from codeconvoy.schemas.errors import BusError, Fenced, Unavailable
from codeconvoy.schemas.topics import MAX_LETTER_BYTES, PARTITIONER
from codeconvoy.workers.engine.bus import Committed, Record, TopicPartition
from codeconvoy.workers.engine.limits import key_text

T = TypeVar("T")
Settings = dict[str, Any]

_LOG = logging.getLogger(__name__)

_RETRY_SECONDS = 0.05

_ALL = {
    # Short: the coordinator answers "still busy with the last transaction" to the next one, and a
    # client that then waits librdkafka's 100 ms makes a transaction twenty times slower.
    "retry.backoff.ms": 5,
    # A topic that is created after its consumer subscribed is found after this (default: five minutes).
    "topic.metadata.refresh.interval.ms": 10_000,
    # A broker that was restarted is found again within two seconds (default: ten); one that is away is
    # not asked, and complained about, twenty times a second.
    "reconnect.backoff.ms": 250,
    "reconnect.backoff.max.ms": 2_000,
    # Otherwise a client that has lost all brokers takes them for gone, and sends a transaction's offsets to
    # the one that it remembers as the group's coordinator: it waits for ever, whatever the time-out
    # (librdkafka 2.16.0, its issues 5511 and 5456).
    "metadata.recovery.strategy": "none",
    "logger": _LOG,
}
_LEADERLESS = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
_FENCING = (KafkaError._FENCED, KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID)
_CONSUMER = {
    "queued.min.messages": 200,
    "queued.max.messages.kbytes": 8_192,
    "fetch.queue.backoff.ms": 20,
    "fetch.wait.max.ms": 100,
}
_CLASSIC = {"session.timeout.ms": 9_000, "heartbeat.interval.ms": 2_000}
"""A killed worker's partitions go on elsewhere after nine seconds. With `group.protocol=consumer` the
broker sets these (`group.consumer.session.timeout.ms`), and refuses clients that do."""
_CONSUMER_RULES = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
}
_PRODUCER = {
    "linger.ms": 2,
    "message.max.bytes": MAX_LETTER_BYTES,
    "transaction.timeout.ms": 10_000,
}
_PRODUCER_RULES = {"partitioner": PARTITIONER, "enable.idempotence": True}
# What librdkafka's documentation gives to one kind of client only. The other kind would log a warning.
_CONSUMERS_ONLY = (
    *("auto.", "check.crcs", "consume.", "coordinator.query.", "enable.auto.", "enable.partition.eof"),
    *("fetch.", "group.", "heartbeat.", "isolation.level", "max.partition.", "max.poll.", "offset."),
    *("partition.assignment.", "queued.", "session.", "share."),
)
_PRODUCERS_ONLY = (
    *("acks", "batch.", "compression.", "delivery.", "enable.gapless.", "enable.idempotence", "linger."),
    *("message.send.", "message.timeout.", "partitioner", "produce.", "queue.buffering.", "queuing."),
    *("request.required.", "request.timeout.", "retries", "sticky.", "transaction.", "transactional."),
)


def consumer_settings(given: Mapping[str, str], group: str, client_id: str) -> Settings:
    """Settings of a group member. What correctness rests on can't be overridden by `given`."""
    rules: Settings = {**_CONSUMER_RULES, "isolation.level": "read_committed"}
    tunable: Settings = {**_ALL, **_CONSUMER}
    if given.get("group.protocol", "classic") == "classic":
        tunable |= _CLASSIC
        rules["partition.assignment.strategy"] = "cooperative-sticky"
    return {**tunable, **_for_consumers(given), **rules, "group.id": group, "client.id": client_id}


def reader_settings(given: Mapping[str, str], isolation: str) -> Settings:
    """Settings of a consumer that joins no group."""
    free = {name: value for name, value in _for_consumers(given).items() if name != "group.protocol"}
    rules: Settings = {**_CONSUMER_RULES, "isolation.level": isolation, "group.id": "convoy-reader"}
    return {**_ALL, **_CONSUMER, **free, **rules}


def producer_settings(given: Mapping[str, str], transactional_id: str) -> Settings:
    """Settings of a transactional producer."""
    return {
        **_ALL,
        **_PRODUCER,
        **_for_producers(given),
        **_PRODUCER_RULES,
        "transactional.id": transactional_id,
        "client.id": transactional_id,
    }


def appender_settings(given: Mapping[str, str], client_id: str) -> Settings:
    """Settings of a producer without transactions. A record is acknowledged soon, or not at all."""
    return {
        **_ALL,
        **_PRODUCER,
        "linger.ms": 0,
        "delivery.timeout.ms": 10_000,
        **_for_producers(given),
        **_PRODUCER_RULES,
        "acks": "all",
        "client.id": client_id,
    }


def admin_settings(given: Mapping[str, str]) -> Settings:
    """Settings of an admin client."""
    return {**_ALL, "retry.backoff.ms": 100, **_for_producers(given)}


def _for_consumers(given: Mapping[str, str]) -> Settings:
    return {name: value for name, value in given.items() if not name.startswith(_PRODUCERS_ONLY)}


def _for_producers(given: Mapping[str, str]) -> Settings:
    return {name: value for name, value in given.items() if not name.startswith(_CONSUMERS_ONLY)}


class Complaints:
    """What a client's `error_cb` said last: a wrong password, for one, shows only there."""

    def __init__(self) -> None:
        self.reason = ""

    def __call__(self, error: KafkaError) -> None:
        """Note what `error_cb` is told."""
        # "All brokers are down" follows the reason for it, and would hide it.
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self.reason = error.str()

    def unavailable(self, settings: Mapping[str, Any], error: object) -> Unavailable:
        """The error to raise when the broker did not answer."""
        remedy = "Check the address, the credentials and that the broker runs"
        return Unavailable(f"Kafka at {settings.get('bootstrap.servers')}", self.reason or str(error), remedy)


def persist(call: Callable[[], T], seconds: float) -> T:
    """Make a resumable call until it succeeds, fails for good, or `seconds` are over.

    Raises:
        KafkaException: the last failure.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except KafkaException as error:
            problem = error.args[0]
            # A conflict with another call of the same client is called retriable, but would stay.
            passing = problem.retriable() and problem.code() != KafkaError._CONFLICT
            passing = passing or problem.code() in _LEADERLESS
            if not passing or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)


def as_bus_error(error: KafkaError) -> BusError:
    """The error to raise for one that the client can't get over by itself."""
    return Fenced(error.str()) if error.code() in _FENCING else BusError(f"{error.name()}: {error.str()}")


def _headers(message: "Message[bytes, bytes]") -> dict[str, bytes]:
    given = message.headers()
    if not given:
        return {}
    pairs = given.items() if isinstance(given, dict) else given
    return {name: value if isinstance(value, bytes) else b"" for name, value in pairs}


def as_record(message: "Message[bytes, bytes]") -> Record:
    """A message without error, as the engines know it."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    # The client's types allow for None: a message without error has all three.
    assert topic is not None and partition is not None and offset is not None
    return Record(
        topic=topic,
        partition=partition,
        offset=offset,
        key=key_text(message.key()),
        value=message.value() or b"",
        headers=_headers(message),
        timestamp=message.timestamp()[1],
    )


def as_kafka(partition: TopicPartition, offset: int | None = None) -> KafkaPartition:
    """A partition, with an offset where there is one, in the client's type."""
    if offset is None:
        return KafkaPartition(partition.topic, partition.partition)
    return KafkaPartition(partition.topic, partition.partition, offset)


def as_offsets(offsets: Mapping[TopicPartition, Committed]) -> list[KafkaPartition]:
    """Offsets to be committed, in the client's type."""
    return [
        KafkaPartition(at.topic, at.partition, committed.offset, committed.metadata)
        for at, committed in offsets.items()
    ]


def from_kafka(partition: KafkaPartition) -> TopicPartition:
    """A partition of the client in our type."""
    return TopicPartition(partition.topic, partition.partition)


async def run_on(thread: Executor, work: Callable[[], T]) -> T:
    """Run blocking work on a thread. A caller that is cancelled waits for its end first."""
    future = asyncio.get_running_loop().run_in_executor(thread, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        future.exception()  # decided, but nobody is left to tell
        raise


class OwnerThread:
    """The one thread that calls a Consumer, and the requests that wait for it.

    A request made with `nested=False` (poll, close) never runs inside another one; all others are
    also served while a poll has nothing to do or a rebalance callback waits for its listener.
    """

    def __init__(self, name: str) -> None:
        self._requests: queue.SimpleQueue[tuple[Callable[[], None], bool] | None] = queue.SimpleQueue()
        self._deferred: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], T], *, nested: bool = True) -> "Future[T]":
        """Run `work` on the thread; the future has its result."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - handed to the caller, all of it
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._stopped:
                raise BusError("this client is closed")
            self._requests.put((run, nested))
        return future

    async def run(self, work: Callable[[], T], *, nested: bool = True) -> T:
        """`call`, awaited. Cancelling the caller does not stop the work."""
        return await asyncio.shield(asyncio.wrap_future(self.call(work, nested=nested)))

    def serve_waiting(self) -> None:
        """On the thread, within a request: run what waits and may be nested."""
        while not self._requests.empty():
            self._serve_one()

    def serve_until(self, done: "Future[Any]") -> None:
        """On the thread, within a callback: run nested requests until `done`."""
        done.add_done_callback(lambda _: self._requests.put(None))
        while not done.done():
            self._serve_one()

    def stop(self) -> None:
        """On the thread, within its last request: end when all that was asked before is answered."""
        with self._lock:
            self._stopped = True

    def _serve_one(self) -> None:
        request = self._requests.get()
        if request is None:
            return
        run, nested = request
        if nested:
            run()
        else:
            self._deferred.append(run)

    def _run(self) -> None:
        while not self._stopped or self._deferred or not self._requests.empty():
            if self._deferred:
                self._deferred.popleft()()
            elif (request := self._requests.get()) is not None:
                request[0]()
