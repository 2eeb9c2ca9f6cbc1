"""Reads how far each partition can be read, writes nothing: finds transactions that hang.

A broker that is killed and comes back can lose the markers of a transaction that is decided, and maybe
acknowledged (seen with a single Kafka 4.3.1: it tries them again while its partitions have no leader, and
takes those for deleted). Whoever reads committed then waits at that transaction for ever, and so does
whoever asks for the group's offsets.

The markers of the producer's next transaction in the same partitions end it too: a partition knows one open
transaction of a producer, and a `transactional.id` that comes again has the same producer id. Who hangs
where can't be asked, so every producer of an engine ends what may be its own, by a transaction with fillers
and an offset that nobody uses:

- Its last transaction has committed, as this process knows: by one that commits, once it must hang.
- Nobody knows, but its offsets are there: by one that commits.
- Else by one that aborts; what is not there is done again.

The latter two before it makes another, which would make the lost one true in part.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from threading import Lock

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.bus import TopicPartition
from codeconvoy.workers.engine.kafka_client import as_bus_error, as_kafka, consumer_settings, reader_settings

FILLER = "convoy-filler"
"""The header of a record that says nothing: readers pass it by, as they do a marker."""
LATEST = -1
"""The time that stands for the end of a partition."""
CLEAN_UP_SECONDS = 12.0
"""After a transaction's timeout the broker takes so long to abort it, unless it was set otherwise."""
_CALL_SECONDS = 5.0
_COMMITTED_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Wait:
    """Readers of a partition wait at an open transaction."""

    offset: int
    """Where it begins."""
    since: float
    """Seconds of a monotonic clock: when that was seen first."""


class Outcome(Enum):
    """Of the last transaction of an id that the broker may know."""

    COMMITTED = auto()
    ABORTED = auto()
    UNKNOWN = auto()
    """Or aborted, and the broker may have been killed meanwhile."""
    NONE = auto()
    """There is none of which anything could be open."""


@dataclass(slots=True)
class Last:
    """The last transaction of an id, whichever producer of this process made it."""

    outcome: Outcome = Outcome.UNKNOWN
    offsets: Sequence[KafkaPartition] = ()
    """That it commits."""


Waits = Mapping[TopicPartition, Wait]


def waits_now(
    before: Waits, stable: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int], now: float
) -> Waits:
    """Where readers wait: `stable` and `ends` are up to where partitions can be read committed and
    uncommitted."""
    found = {}
    for at, offset in stable.items():
        if offset < ends.get(at, 0):
            known = before.get(at)
            found[at] = known if known is not None and known.offset == offset else Wait(offset, now)
    return found


@dataclass(frozen=True, slots=True)
class Open:
    """What readers wait at."""

    partitions: Waits
    offsets: bool
    """Those of the group."""

    def __bool__(self) -> bool:
        return bool(self.partitions) or self.offsets


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        reason, remedy = str(as_bus_error(error.args[0])), "It is looked for again"
        raise Unavailable("Kafka: hanging transactions", reason, remedy) from error


class HangingFinder:
    """Looks for hanging transactions in the topics of a fleet. Blocks; several threads may ask."""

    def __init__(self, given: Mapping[str, str], topics: Topics, group: str, timeout_seconds: float) -> None:
        """`timeout_seconds` is for how long a transaction may be open."""
        self._topics, self.group = topics, group
        self.patience = timeout_seconds + CLEAN_UP_SECONDS
        """No transaction is open for so many seconds, unless it hangs."""
        # It never joins: it subscribes to nothing.
        self._committed = Consumer(consumer_settings(given, group, f"{group}.hanging"))
        self._uncommitted = Consumer(reader_settings(given, "read_uncommitted"))
        self._one_at_a_time = Lock()
        self._waits: Waits = {}
        self._unstable_since: float | None = None

    @property
    def nobody(self) -> bytes:
        """The group metadata of who is no member."""
        with self._one_at_a_time:
            metadata: bytes = self._committed.consumer_group_metadata()
        return metadata

    @property
    def spare(self) -> KafkaPartition:
        """An offset that the group does not use."""
        return KafkaPartition(self._topics.dead_letters, 0, 0)

    def hanging(self, now: float) -> Open:
        """What has been open for too long, at a time of a monotonic clock.

        Raises:
            Unavailable: the broker does not answer.
        """
        found = self.open(now)
        if not found.offsets:
            self._unstable_since = None
        elif self._unstable_since is None:
            self._unstable_since = now
        self._waits = found.partitions
        return Open(
            {at: wait for at, wait in found.partitions.items() if now - wait.since >= self.patience},
            self._unstable_since is not None and now - self._unstable_since >= self.patience,
        )

    def open(self, now: float) -> Open:
        """What is open, and may be so rightly; offsets only if they stay so for some seconds.

        Raises:
            Unavailable: the broker does not answer.
        """
        with self._one_at_a_time, _answered():
            known = self._committed.list_topics(timeout=_CALL_SECONDS).topics
            names = [name for name in known if name.startswith(f"{self._topics.prefix}.")]
            partitions = [TopicPartition(name, number) for name in names for number in known[name].partitions]
            stable, ends = (
                self._latest(client, partitions) for client in (self._committed, self._uncommitted)
            )
            return Open(waits_now(self._waits, stable, ends, now), self._is_unstable(partitions))

    def has(self, offsets: Sequence[KafkaPartition]) -> bool:
        """Whether these are the offsets of the group. They are of one transaction: all or none.

        Raises:
            Unavailable: the broker does not answer.
        """
        with self._one_at_a_time, _answered():
            asked = [KafkaPartition(one.topic, one.partition) for one in offsets]
            found = self._committed.committed(asked, timeout=_CALL_SECONDS)
            return any(
                (there.offset, there.metadata or "") == (one.offset, one.metadata or "")
                for there, one in zip(found, offsets, strict=True)
            )

    def close(self) -> None:
        """Give up its clients."""
        self._committed.close()
        self._uncommitted.close()

    def _latest(
        self, client: Consumer, partitions: Collection[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        found = client.offsets_for_times([as_kafka(at, LATEST) for at in partitions], timeout=_CALL_SECONDS)
        return {
            TopicPartition(each.topic, each.partition): each.offset for each in found if each.error is None
        }

    def _is_unstable(self, partitions: Collection[TopicPartition]) -> bool:
        """Whether the broker holds back offsets of the group."""
        try:
            self._committed.committed([as_kafka(at) for at in partitions], timeout=_COMMITTED_SECONDS)
        except KafkaException as error:
            # Asked a moment ago it did answer: it says nothing of these as long as they may change.
            if error.args[0].code() == KafkaError._TIMED_OUT:
                return True
            raise
        return False
