"""Reads and writes topics: the protocol that both buses, Kafka and in-memory, fulfil.

One contract suite (`tests/contract`) runs on both. All calls are coroutines of one event loop;
the Kafka bus keeps its Consumer on one thread of its own, since confluent-kafka gates calls from
others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NewType, Protocol

import msgspec

_NO_HEADERS: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True, order=True)
class TopicPartition:
    """One partition of one topic."""

    topic: str
    partition: int


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record as it was read. The value is bytes: the consumer decodes."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    headers: Mapping[str, bytes] = _NO_HEADERS
    timestamp: int = 0
    """Milliseconds since the epoch, as the broker or client stamped it. Information only."""

    @property
    def at(self) -> TopicPartition:
        """The partition that it came from."""
        return TopicPartition(self.topic, self.partition)


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A record to be written. The partition follows from the key, unless `partition` is given."""

    topic: str
    key: str
    value: bytes
    headers: Mapping[str, bytes] = _NO_HEADERS
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """What a group has committed for a partition: the next offset to read, and its metadata."""

    offset: int
    """The next offset to read."""
    metadata: str = ""
    """ASCII, under 4,096 characters."""


GroupToken = NewType("GroupToken", object)
"""A consumer's group metadata, taken afresh for each transaction (opaque)."""


class RebalanceListener(Protocol):
    """What a consumer is told about its partitions, in order, while it polls or closes.

    The bus waits for each of these before it goes on, so that `revoked` can still commit.
    """

    async def assigned(
        self, committed: Mapping[TopicPartition, Committed | None]
    ) -> Mapping[TopicPartition, int]:
        """Partitions that are this consumer's from now on, with what the group has committed
        (None: never). Answers the offset to start from, for each of them."""
        ...

    async def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Partitions that are taken away after this returns: the last chance to commit."""
        ...

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Partitions that were taken away already: commit nothing for them."""
        ...


class Consumer(Protocol):
    """A member of a consumer group. Reads committed records only, in the order of the log."""

    async def poll(self, max_records: int, timeout: float) -> Sequence[Record]:
        """The next records, at most so many, waiting at most `timeout` seconds for the first.
        Rebalances happen in here.

        Raises:
            Fenced: this member is not in the group any more and can't come back by itself.
            BusError: a fatal error of the broker or its client.
        """
        ...

    async def positions(self) -> Mapping[TopicPartition, int]:
        """For each assigned partition the next offset to be read: past transaction markers too."""
        ...

    async def lag(self) -> Mapping[TopicPartition, int]:
        """For each assigned partition about how many records are left to be read, markers counted
        as records: a figure to look at, from what the client last heard of the partition's end."""
        ...

    async def group_token(self) -> GroupToken:
        """The group metadata as it is now. Never reuse one for a later transaction.

        Raises:
            Fenced: this consumer has not joined (a generation of -1 would not be fenced).
        """
        ...

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Commit offsets where there is nothing to write with them: what a transaction would cost
        many times as much for.

        Raises:
            Aborted: they may not be committed; the same may be tried again, in a transaction too.
            Fenced: this member is not in the group any more and can't come back by itself.
        """
        ...

    async def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from this offset."""
        ...

    async def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Fetch no more from these partitions until they are resumed, or taken away: one that comes back
        is not paused."""
        ...

    async def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Fetch from these partitions again."""
        ...

    async def close(self) -> None:
        """Leave the group (`revoked` is called for what is still assigned)."""
        ...


class Producer(Protocol):
    """A transactional producer: the one owner of its transactional id."""

    async def transaction(
        self,
        outputs: Sequence[Outgoing],
        offsets: Mapping[TopicPartition, Committed] | None = None,
        group: str = "",
        token: GroupToken | None = None,
    ) -> None:
        """Write the outputs and commit the offsets for the group, both or neither.

        When this returns the transaction is committed. An outcome that is not known at first
        (a broken connection during commit) is resolved before this returns or raises.

        Raises:
            Aborted: nothing of it took effect; the same may be tried again.
            Refused: nor will it, as long as one of these records is in it.
            Fenced: nothing of it took effect, and this producer or member is no longer valid.
            TooLarge: an output is over the cap (checked before anything is sent).
        """
        ...

    def check(self) -> None:
        """See that it can be used: nobody else would find out while there is nothing to write.

        Raises:
            BusError: it can't any more.
        """
        ...

    async def close(self) -> None:
        """Give up the producer; an open transaction is aborted."""
        ...


class Appender(Protocol):
    """Writes single records outside of any transaction: what must be on the log before something is done
    that no transaction can take back."""

    async def append(self, output: Outgoing) -> None:
        """Write a record. When this returns it is on the log, for every reader; it is there once.

        Raises:
            Unavailable: it was not acknowledged in time, and may or may not be on the log.
            BusError: the broker refused it.
            TooLarge: it is over the cap (checked before anything is sent).
        """
        ...

    async def close(self) -> None:
        """Give up the appender."""
        ...


class Reader(Protocol):
    """Reads partitions without a group: audits, time travel, watches."""

    async def watermarks(self, partition: TopicPartition) -> tuple[int, int]:
        """Low and high watermark; the high one is read_uncommitted, so that it includes what was
        just committed."""
        ...

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The high watermarks of several partitions, as `watermarks` gives them, in one request."""
        ...

    async def read(
        self, partition: TopicPartition, offset: int, max_records: int, timeout: float
    ) -> Sequence[Record]:
        """Committed records from `offset` on, at most so many; empty when `timeout` seconds
        brought none. Records come in order; offsets of markers and aborted records are left out."""
        ...

    async def position(self, partition: TopicPartition) -> int:
        """The next offset after what `read` has passed, markers included (0 before any read)."""
        ...

    async def close(self) -> None:
        """Give up the reader."""
        ...


class Bus(Protocol):
    """Makes the clients of one broker."""

    def consumer(
        self, group: str, topics: Sequence[str], listener: RebalanceListener, client_id: str
    ) -> Consumer:
        """A member of `group` that subscribes to the topics."""
        ...

    async def producer(self, transactional_id: str, group: str = "") -> Producer:
        """A transactional producer. An older one of the same id is fenced, its open transaction
        aborted. `group` is that whose offsets it sends, if any.

        Raises:
            Unavailable: the broker can't be reached.
        """
        ...

    def appender(self, client_id: str) -> Appender:
        """Writes records one by one, without a transaction."""
        ...

    def reader(self) -> Reader:
        """A reader without a group."""
        ...

    async def partition_counts(self, topics: Sequence[str]) -> Mapping[str, int]:
        """The partition count of each of the topics that exists.

        Raises:
            Unavailable: the broker can't be reached.
        """
        ...

    async def create_topics(self, topics: Mapping[str, Mapping[str, str]], partitions: int) -> None:
        """Create those of the topics (name to configuration) that do not exist yet.

        Raises:
            Unavailable: the broker can't be reached, or refuses.
        """
        ...

    async def close(self) -> None:
        """Give up all clients."""
        ...
