"""Reads topics as a member of a consumer group, writes nothing: the Kafka bus's Consumer.

confluent-kafka gates a Consumer across threads, so one thread owns it. A rebalance callback runs on
that thread, inside poll() or close(): it hands the listener's coroutine to the event loop and, until
that ends, serves the requests that the listener makes (positions, group_token, seek), so that
`revoked` can commit.
"""

import asyncio
import struct
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as KafkaPartition

from codeconvoy.schemas.errors import Aborted, BusError, Fenced
from codeconvoy.workers.engine.bus import (
    Committed,
    GroupToken,
    RebalanceListener,
    Record,
    TopicPartition,
)
from codeconvoy.workers.engine.kafka_client import (
    OwnerThread,
    Settings,
    as_bus_error,
    as_kafka,
    as_offsets,
    as_record,
    from_kafka,
    persist,
)
from codeconvoy.workers.engine.kafka_hanging import FILLER
from codeconvoy.workers.engine.limits import check_limits

_SLICE_SECONDS = 0.01
"""How long one look for records may keep other requests waiting."""
_COMMITTED_SECONDS = 45.0
"""The broker holds back the offsets of a partition whose last owner left a transaction open, at most
for its transaction timeout."""
_RESET_SECONDS = 5.0
_NOT_FATAL = frozenset(
    (
        KafkaError._MAX_POLL_EXCEEDED,  # `lost` is called, and the next poll joins again
        KafkaError.UNKNOWN_TOPIC_OR_PART,  # a subscribed topic may be created later
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
    )
)


@dataclass(frozen=True, slots=True)
class MemberToken:
    """The group metadata of a joined member, and whose it is."""

    metadata: bytes
    consumer: "KafkaConsumer"


def generation(metadata: bytes) -> int:
    """The generation in librdkafka's serialised group metadata (`CGMDv2:`, then an int32); -1 before
    joining.

    Raises:
        BusError: another layout. Without the generation an unfenced commit could not be told.
    """
    if not metadata.startswith(b"CGMDv2:") or len(metadata) < 11:
        raise BusError("This librdkafka serialises group metadata in a way that codeconvoy does not know")
    return int(struct.unpack_from("<i", metadata, 7)[0])


def _refusal(error: KafkaError) -> BusError:
    """The error to raise for offsets that were not committed. A group that moves on (a stale generation,
    a rebalance) and a coordinator that is away both pass."""
    found = as_bus_error(error)
    return found if error.fatal() or isinstance(found, Fenced) else Aborted(str(found))


class _Poll:
    """One poll on its way. When its caller was cancelled, its records are kept for the next."""

    abandoned = False


class KafkaConsumer:
    """A member of a consumer group."""

    def __init__(self, settings: Settings, topics: Sequence[str], listener: RebalanceListener) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._owner = OwnerThread(f"kafka-{settings['client.id']}")
        self._held: list[Record] = []
        self._starts: dict[TopicPartition, int] = {}
        """For each assigned partition, where it was told to start: its position before any record."""
        self._turns: dict[TopicPartition, int] = {}
        """For each assigned partition, how often it was assigned or sought: older records are void."""
        self._failure: BaseException | None = None
        self.is_closed = False
        # Subscribing only notes the topics; the group is joined in the first poll.
        self._consumer = Consumer({**settings, "error_cb": self._on_error})
        self._consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    async def poll(self, max_records: int, timeout: float) -> Sequence[Record]:
        """See `Consumer.poll`. What a cancelled poll had read, the next one returns."""
        poll = _Poll()
        future = self._owner.call(partial(self._poll, poll, max_records, timeout), nested=False)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:

            def abandon() -> None:
                poll.abandoned = True
                if future.done() and future.exception() is None:
                    self._held[:0] = future.result()

            with suppress(BusError):  # closed meanwhile: nobody will poll again
                self._owner.call(abandon)
            raise

    async def positions(self) -> Mapping[TopicPartition, int]:
        """See `Consumer.positions`."""
        return await self._owner.run(self._positions)

    async def lag(self) -> Mapping[TopicPartition, int]:
        """See `Consumer.lag`."""
        return await self._owner.run(self._lag)

    async def group_token(self) -> GroupToken:
        """See `Consumer.group_token`."""
        return GroupToken(MemberToken(await self._owner.run(self._membership), self))

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """See `Consumer.commit`."""
        check_limits((), offsets)
        await self._owner.run(partial(self._commit, as_offsets(offsets)))

    async def seek(self, partition: TopicPartition, offset: int) -> None:
        """See `Consumer.seek`."""
        await self._owner.run(partial(self._seek, partition, offset))

    async def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """See `Consumer.pause`."""
        await self._owner.run(lambda: self._consumer.pause([as_kafka(one) for one in partitions]))

    async def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """See `Consumer.resume`."""
        await self._owner.run(lambda: self._consumer.resume([as_kafka(one) for one in partitions]))

    async def close(self) -> None:
        """See `Consumer.close`."""
        if not self.is_closed:
            self.is_closed = True
            await self._owner.run(self._close, nested=False)

    # All below runs on the owner's thread.

    def _poll(self, poll: _Poll, max_records: int, timeout: float) -> list[Record]:
        deadline = time.monotonic() + timeout
        while not (poll.abandoned or self._failure or self._held):
            self._fetch(max_records, min(_SLICE_SECONDS, max(0.0, deadline - time.monotonic())))
            self._owner.serve_waiting()
            if time.monotonic() >= deadline:
                break
        if self._failure:
            raise self._failure
        if poll.abandoned:
            return []
        ready, self._held = self._held[:max_records], self._held[max_records:]
        return ready

    def _fetch(self, max_records: int, seconds: float) -> None:
        """Hold what is there, waiting for the first record at most so long. consume() would wait on
        until its batch is full, so only the first one is waited for."""
        messages = self._consumer.consume(1, seconds)
        if not messages:
            return
        # A rebalance in the second call voids what the first one brought.
        turns = dict(self._turns)
        if max_records > 1:
            messages += self._consumer.consume(max_records - 1, 0.0)
        for index, message in enumerate(messages):
            if (error := message.error()) is not None:
                self._note_error(error, message)
                continue
            record = as_record(message)
            if FILLER in record.headers:
                continue
            if index or self._turns.get(record.at) == turns.get(record.at):
                self._held.append(record)

    def _note_error(self, error: KafkaError, message: Message) -> None:
        if error.fatal() or not (error.code() in _NOT_FATAL or error.retriable()):
            at = f" ({message.topic()}-{message.partition()})" if message.topic() else ""
            found = as_bus_error(error)
            self._failure = type(found)(f"{found}{at}")

    def _on_error(self, error: KafkaError) -> None:
        # All else the client gets over by itself, or it comes as a message's error.
        if error.code() == KafkaError._AUTHENTICATION:
            self._failure = as_bus_error(error)

    def _membership(self) -> bytes:
        """The group metadata of a member; without a generation a commit would not be fenced."""
        metadata: bytes = self._consumer.consumer_group_metadata()
        if generation(metadata) < 0:
            raise Fenced("this consumer has not joined its group")
        return metadata

    def _commit(self, offsets: list[KafkaPartition]) -> None:
        self._membership()  # a group that is empty would take offsets of anybody
        try:
            answers = self._consumer.commit(offsets=offsets, asynchronous=False) or ()
        except KafkaException as error:
            raise _refusal(error.args[0]) from error
        for answer in answers:
            if answer.error is not None:
                raise _refusal(answer.error)

    def _positions(self) -> dict[TopicPartition, int]:
        assigned = [as_kafka(partition) for partition in self._starts]
        result = {}
        for known in self._consumer.position(assigned) if assigned else ():
            at = from_kafka(known)
            result[at] = max(known.offset, self._starts[at])
        for record in reversed(self._held):
            result[record.at] = record.offset
        return result

    def _lag(self) -> dict[TopicPartition, int]:
        lag = {}
        for at, position in self._positions().items():
            _, high = self._consumer.get_watermark_offsets(as_kafka(at), cached=True)
            lag[at] = max(0, high - position)
        return lag

    def _seek(self, partition: TopicPartition, offset: int) -> None:
        if partition not in self._starts:
            raise BusError(f"{partition} is not assigned")
        self._note_start({partition: offset})
        self._consumer.seek(as_kafka(partition, offset))

    def _assign(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._note_start(offsets)
        # The client gives up a partition in the background: its old position must not pass for the new.
        deadline = time.monotonic() + _RESET_SECONDS
        while any(known.offset >= 0 for known in self._consumer.position([as_kafka(at) for at in offsets])):
            if time.monotonic() > deadline:
                raise BusError("the client keeps the position of a partition that it gave up")
        self._consumer.incremental_assign([as_kafka(at, offset) for at, offset in offsets.items()])
        # The client remembers that a partition was paused, also while somebody else has it.
        self._consumer.resume([as_kafka(at) for at in offsets])

    def _note_start(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._forget(offsets)
        for at, offset in offsets.items():
            self._starts[at] = offset
            self._turns[at] = self._turns.get(at, 0) + 1

    def _forget(self, partitions: Mapping[TopicPartition, Any]) -> None:
        for at in partitions:
            self._starts.pop(at, None)
        self._held = [record for record in self._held if record.at not in partitions]

    def _on_assign(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        try:
            committed = self._committed(partitions)
            starts = self._wait(self._listener.assigned(committed)) if committed else {}
            self._assign({at: starts[at] for at in committed})
        except BaseException as error:  # noqa: BLE001 - raised by poll, where the caller is
            self._failure = self._failure or error
            self._consumer.incremental_assign([])

    def _on_revoke(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        self._take_away(partitions, self._listener.revoked)

    def _on_lost(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        self._take_away(partitions, self._listener.lost)

    def _take_away(self, partitions: list[KafkaPartition], tell: Any) -> None:
        mine = [at for at in map(from_kafka, partitions) if at in self._starts]
        try:
            if mine:
                self._wait(tell(mine))
        except BaseException as error:  # noqa: BLE001 - raised by poll or close, where the caller is
            self._failure = self._failure or error
        self._forget(dict.fromkeys(mine))
        for at in mine:
            self._turns[at] += 1
        self._consumer.incremental_unassign(partitions)

    def _committed(self, partitions: list[KafkaPartition]) -> dict[TopicPartition, Committed | None]:
        if not partitions:
            return {}
        try:
            found = persist(lambda: self._consumer.committed(partitions, timeout=5.0), _COMMITTED_SECONDS)
        except KafkaException as error:
            raise as_bus_error(error.args[0]) from error
        for one in found:
            if one.error is not None:
                raise as_bus_error(one.error)
        return {
            from_kafka(one): Committed(one.offset, one.metadata or "") if one.offset >= 0 else None
            for one in found
        }

    def _wait(self, told: Coroutine[Any, Any, Any]) -> Any:
        """Run the listener's coroutine on the event loop, serving its requests meanwhile."""
        future = asyncio.run_coroutine_threadsafe(told, self._loop)
        self._owner.serve_until(future)
        return future.result()

    def _close(self) -> None:
        before = self._failure
        try:
            self._consumer.close()
        finally:
            self._owner.stop()
        if self._failure is not before and self._failure is not None:
            raise self._failure
