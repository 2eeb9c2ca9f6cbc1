"""Reads partitions without a group, writes nothing: the Kafka bus's Reader."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from confluent_kafka import Consumer, KafkaException, Message

from codeconvoy.schemas.errors import BusError
from codeconvoy.workers.engine.bus import Record, TopicPartition
from codeconvoy.workers.engine.kafka_client import (
    Complaints,
    OwnerThread,
    as_bus_error,
    as_kafka,
    as_record,
    persist,
    reader_settings,
)
from codeconvoy.workers.engine.kafka_hanging import FILLER, LATEST

_SLICE_SECONDS = 0.05
_CALL_SECONDS = 5.0
_WATERMARK_SECONDS = 10.0

T = TypeVar("T")


class KafkaReader:
    """Reads one partition at a time: going on where it stopped is cheap, a jump costs a round trip."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._settings = reader_settings(given, "read_committed")
        self._complaints = Complaints()
        self._owner = OwnerThread("kafka-reader")
        self._consumer = Consumer(self._settings)
        # A client of its own: a high watermark that is read_committed may miss what was just committed,
        # since the markers are written after the commit returned.
        self._ends = Consumer({**reader_settings(given, "read_uncommitted"), "error_cb": self._complaints})
        self._ends_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kafka-ends")
        self._at: TopicPartition | None = None
        self._passed: dict[TopicPartition, int] = {}
        self._delivered = 0
        self.is_closed = False

    async def watermarks(self, partition: TopicPartition) -> tuple[int, int]:
        """See `Reader.watermarks`.

        Raises:
            Unavailable: the broker can't be reached.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._ends_thread, self._watermarks, partition)

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """See `Reader.ends`.

        Raises:
            Unavailable: the broker can't be reached.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._ends_thread, self._ends_of, partitions)

    async def read(
        self, partition: TopicPartition, offset: int, max_records: int, timeout: float
    ) -> Sequence[Record]:
        """See `Reader.read`.

        Raises:
            BusError: the offset is not on the log (any more), or the partition does not exist.
        """
        return await self._owner.run(partial(self._read, partition, offset, max_records, timeout))

    async def position(self, partition: TopicPartition) -> int:
        """See `Reader.position`."""
        return await self._owner.run(partial(self._position, partition))

    async def close(self) -> None:
        """See `Reader.close`."""
        if not self.is_closed:
            self.is_closed = True
            await self._owner.run(self._close)
            await asyncio.get_running_loop().run_in_executor(self._ends_thread, self._ends.close)
            self._ends_thread.shutdown(wait=False)

    def _watermarks(self, partition: TopicPartition) -> tuple[int, int]:
        return self._ask_broker(
            lambda: self._ends.get_watermark_offsets(as_kafka(partition), timeout=_CALL_SECONDS)
        )

    def _ends_of(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        asked = [as_kafka(at, LATEST) for at in partitions]

        def ask() -> Mapping[TopicPartition, int]:
            found = self._ends.offsets_for_times(asked, timeout=_CALL_SECONDS)
            for each in found:
                if each.error is not None:
                    raise KafkaException(each.error)
            return {at: each.offset for at, each in zip(partitions, found, strict=True)}

        return self._ask_broker(ask)

    def _ask_broker(self, ask: Callable[[], T]) -> T:
        try:
            # A topic that is just being created has no leader for a moment.
            return persist(ask, _WATERMARK_SECONDS)
        except KafkaException as error:
            self._ends.poll(0.0)  # serves error_cb, which has the reason
            raise self._complaints.unavailable(self._settings, error.args[0].str()) from error

    def _read(self, partition: TopicPartition, offset: int, max_records: int, timeout: float) -> list[Record]:
        if self._at != partition or not self._delivered <= offset <= self._position(partition):
            self._at = partition
            self._passed[partition] = self._delivered = offset
            self._consumer.assign([as_kafka(partition, offset)])
        deadline = time.monotonic() + timeout
        messages: list[Message[bytes, bytes]] = []
        while not messages:
            messages = self._consumer.consume(1, min(_SLICE_SECONDS, max(0.0, deadline - time.monotonic())))
            if time.monotonic() >= deadline:
                break
        if messages and max_records > 1:
            messages += self._consumer.consume(max_records - 1, 0.0)
        records = []
        for message in messages:
            if (error := message.error()) is None:
                record = as_record(message)
                if FILLER not in record.headers:
                    records.append(record)
            elif not error.retriable():
                self._at = None
                raise BusError(f"{partition} at {offset}: {as_bus_error(error)}")
        if records:
            self._delivered = records[-1].offset + 1
        return records

    def _position(self, partition: TopicPartition) -> int:
        if partition == self._at:
            [known] = self._consumer.position([as_kafka(partition)])
            self._passed[partition] = max(known.offset, self._passed[partition])
        return self._passed.get(partition, 0)

    def _close(self) -> None:
        self._consumer.close()
        self._owner.stop()
