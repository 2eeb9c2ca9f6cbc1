"""Reads and writes the topics of a broker in memory: the bus for simulation, tests and a first look.

It fulfils the same contract as the Kafka bus (one suite runs on both). Every call is an await point:
the `yield_point` handed in is awaited at each step with the step's name, so that a simulation can let
others run there, or crash the process that called. Time is the event loop's, so it can be virtual, and
all choices are the broker's seeded random's.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from codeconvoy.schemas.errors import Aborted, BusError, Fenced
from codeconvoy.workers.engine.bus import (
    Committed,
    GroupToken,
    Outgoing,
    RebalanceListener,
    Record,
    TopicPartition,
)
from codeconvoy.workers.engine.limits import check_limits
from codeconvoy.workers.engine.memory_broker import MemoryBroker, Outcome, Token, Transaction
from codeconvoy.workers.engine.memory_consumer import (
    MemoryConsumer,
    Process,
    Wakers,
    YieldPoint,
    let_others_run,
    now,
)


class MemoryProducer:
    """The one owner of its transactional id."""

    def __init__(self, process: Process, transactional_id: str) -> None:
        self._process, self.client_id = process, transactional_id
        self._epoch = process.broker.register(transactional_id, now())
        self._open: Transaction | None = None
        self._dead = False

    def check(self) -> None:
        """See `Producer.check`: it learns all from its transactions."""

    async def transaction(
        self,
        outputs: Sequence[Outgoing],
        offsets: Mapping[TopicPartition, Committed] | None = None,
        group: str = "",
        token: GroupToken | None = None,
    ) -> None:
        """See `Producer.transaction`. As on the Kafka bus, a caller that is cancelled gets the
        outcome decided first: the rest happens without yield points."""
        check_limits(outputs, offsets)
        steps: list[tuple[str, Callable[[], None]]] = [("begin", self._begin)]
        steps += [("produce", partial(self._append, output)) for output in outputs]
        if offsets:
            if not isinstance(token, Token):
                raise BusError("offsets need the group token of a consumer of the in-memory bus")
            steps.append(("offsets", partial(self._add_offsets, group, token, dict(offsets))))
        steps.append(("commit", self._commit))
        cancelled: asyncio.CancelledError | None = None
        for name, step in steps:
            try:
                if cancelled is None:
                    await self._process.yield_point(f"producer.{name}")
            except asyncio.CancelledError as error:
                cancelled = error
            try:
                self._see_valid()
                step()
            except BusError:
                if cancelled is None:
                    raise
                break
        if cancelled is not None:
            raise cancelled
        # Who dies here has committed and does not know it.
        await self._process.yield_point("producer.committed")

    async def close(self) -> None:
        """See `Producer.close`."""
        await self._process.yield_point("producer.close")
        self._dead = True

    def die(self) -> None:
        """The process is gone; the broker does not know yet."""
        self._dead = True

    def expire(self) -> None:
        """The transaction timeout: what was left open is aborted."""
        if self._open is not None and self._open.outcome is Outcome.OPEN:
            self._process.broker.end(self._open, Outcome.ABORTED, now())
            self._process.wakers.wake()

    def _see_valid(self) -> None:
        if self._dead:
            raise Fenced(f"{self.client_id} is closed")
        self._process.broker.check(self.client_id, self._epoch)

    def _begin(self) -> None:
        self._open = self._process.broker.begin(self.client_id, now())

    def _transaction(self) -> Transaction:
        assert self._open is not None, "begun in the first step"
        if self._open.outcome is not Outcome.OPEN:
            raise Aborted("the transaction timed out")
        return self._open

    def _append(self, output: Outgoing) -> None:
        self._process.broker.append(self._transaction(), output, now())

    def _add_offsets(self, group: str, token: Token, offsets: Mapping[TopicPartition, Committed]) -> None:
        self._process.broker.add_offsets(self._transaction(), group, token, offsets, now())

    def _commit(self) -> None:
        broker = self._process.broker
        fails = broker.random.random() < broker.abort_rate
        broker.end(self._transaction(), Outcome.ABORTED if fails else Outcome.COMMITTED, now())
        self._process.wakers.wake()
        if fails:
            raise Aborted("the broker was told to abort some transactions")


class MemoryAppender:
    """Writes records one by one."""

    def __init__(self, process: Process, client_id: str) -> None:
        self._process, self._client_id = process, client_id

    async def append(self, output: Outgoing) -> None:
        """See `Appender.append`."""
        check_limits([output], None)
        await self._process.yield_point("appender.append")
        self._process.broker.append_alone(self._client_id, output, now())
        self._process.wakers.wake()
        # Who dies here has written and does not know it.
        await self._process.yield_point("appender.appended")

    async def close(self) -> None:
        """See `Appender.close`."""
        await self._process.yield_point("appender.close")


class MemoryReader:
    """Reads partitions without a group."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._passed: dict[TopicPartition, int] = {}

    async def watermarks(self, partition: TopicPartition) -> tuple[int, int]:
        """See `Reader.watermarks`."""
        await self._process.yield_point("reader.watermarks")
        return 0, len(self._process.broker.log(partition).entries)

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """See `Reader.ends`."""
        await self._process.yield_point("reader.watermarks")
        return {at: len(self._process.broker.log(at).entries) for at in partitions}

    async def read(
        self, partition: TopicPartition, offset: int, max_records: int, timeout: float
    ) -> Sequence[Record]:
        """See `Reader.read`."""
        deadline = now() + timeout
        log = self._process.broker.log(partition)
        while True:
            await self._process.yield_point("reader.read")
            records, self._passed[partition] = log.read(offset, max_records, now())
            if records or now() >= deadline:
                return records
            await self._process.wakers.wait(min(deadline, log.next_visible_at(now()) or deadline))

    async def position(self, partition: TopicPartition) -> int:
        """See `Reader.position`."""
        await self._process.yield_point("reader.position")
        return self._passed.get(partition, 0)

    async def close(self) -> None:
        """See `Reader.close`."""
        await self._process.yield_point("reader.close")


class MemoryBus:
    """The clients of one process on a broker in memory. `another()` is a further process on it."""

    def __init__(
        self,
        broker: MemoryBroker | None = None,
        yield_point: YieldPoint = let_others_run,
        wakers: Wakers | None = None,
    ) -> None:
        self.broker = broker or MemoryBroker()
        self._process = Process(self.broker, wakers or Wakers(), yield_point)
        self._consumers: list[MemoryConsumer] = []
        self._producers: list[MemoryProducer] = []

    def another(self, yield_point: YieldPoint = let_others_run) -> "MemoryBus":
        """The bus of another process on the same broker."""
        return MemoryBus(self.broker, yield_point, self._process.wakers)

    def consumer(
        self, group: str, topics: Sequence[str], listener: RebalanceListener, client_id: str
    ) -> MemoryConsumer:
        """See `Bus.consumer`."""
        consumer = MemoryConsumer(self._process, group, topics, listener, client_id)
        self._consumers.append(consumer)
        return consumer

    async def producer(self, transactional_id: str, group: str = "") -> MemoryProducer:
        """See `Bus.producer`."""
        await self._process.yield_point("bus.producer")
        producer = MemoryProducer(self._process, transactional_id)
        self._producers.append(producer)
        self._process.wakers.wake()
        return producer

    def appender(self, client_id: str) -> MemoryAppender:
        """See `Bus.appender`."""
        return MemoryAppender(self._process, client_id)

    def reader(self) -> MemoryReader:
        """See `Bus.reader`."""
        return MemoryReader(self._process)

    async def partition_counts(self, topics: Sequence[str]) -> Mapping[str, int]:
        """See `Bus.partition_counts`."""
        await self._process.yield_point("bus.partition_counts")
        return {name: self.broker.topics[name] for name in topics if name in self.broker.topics}

    async def create_topics(self, topics: Mapping[str, Mapping[str, str]], partitions: int) -> None:
        """See `Bus.create_topics`."""
        await self._process.yield_point("bus.create_topics")
        for name, config in topics.items():
            self.broker.create_topic(name, partitions, config)
        self._process.wakers.wake()

    async def close(self) -> None:
        """See `Bus.close`."""
        for consumer in self._consumers:
            await consumer.close()
        for producer in self._producers:
            await producer.close()

    def kill(self, client_id: str = "", after: float = 0.0) -> None:
        """Crash the clients of this id (a transactional id is its producer's), or of the whole process.

        They fail from now on. The broker notices `after` seconds: memberships end, open transactions
        are aborted. Cancelling the tasks that used them is the simulation's part.
        """
        clients: list[MemoryConsumer | MemoryProducer] = [*self._consumers, *self._producers]
        for client in clients:
            if client_id in ("", client.client_id):
                client.die()
                if after:
                    asyncio.get_running_loop().call_later(after, client.expire)
                else:
                    client.expire()

    def expel(self, client_id: str) -> None:
        """End the membership of a consumer that lives on, as a missed session timeout does: its next
        poll tells it so and joins again."""
        for consumer in self._consumers:
            if consumer.client_id == client_id:
                consumer.expire()

    def release(self, partition: TopicPartition) -> None:
        """End the broker's `hold` of a partition, and wake who waits for it."""
        self.broker.release(partition)
        self._process.wakers.wake()
