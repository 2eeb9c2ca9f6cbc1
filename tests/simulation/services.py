"""Reads and writes its own memory: the broker and the stores of a simulation, which outlive processes.

Both are the ones that ship; what is added is what a simulation has to know and to do: who owned a
partition when, and stores that come back empty or older than they were.
"""

from collections import Counter
from collections.abc import Iterable
from copy import deepcopy
from random import Random

from codeconvoy.workers.engine.attempts import MemoryAttempts
from codeconvoy.workers.engine.bus import Committed, Record, TopicPartition
from codeconvoy.workers.engine.memory_broker import Group, MemoryBroker, Outcome, Transaction
from codeconvoy.workers.engine.offsets import decode
from codeconvoy.workers.engine.state import MemoryStore

Held = tuple[str, TopicPartition]
"""A partition, as a group holds it."""


class WatchedBroker(MemoryBroker):
    """A broker that counts what happens, so that checks can tell before from after."""

    def __init__(self, random: Random, *, max_delay: float, abort_rate: float) -> None:
        super().__init__(random, max_delay=max_delay, abort_rate=abort_rate)
        self.ticks = 0
        self.aborted_at: dict[str, int] = {}
        """The tick of the last abort, by transactional id."""
        self.given_up: Counter[Held] = Counter()
        """How often the owner of a partition has given it up, as it was told to."""
        self.lost: Counter[Held] = Counter()
        """How often it was taken from an owner that did not know."""
        self._keys: dict[TopicPartition, dict[str, list[int]]] = {}
        self._indexed: Counter[TopicPartition] = Counter()

    def tick(self) -> int:
        """The time of one thing that happens: no two have the same."""
        self.ticks += 1
        return self.ticks

    def end(self, transaction: Transaction, outcome: Outcome, now: float) -> None:
        """See `MemoryBroker`."""
        super().end(transaction, outcome, now)
        if outcome is Outcome.ABORTED:
            self.aborted_at[transaction.producer] = self.tick()

    def leave(self, group: str, member: str) -> None:
        """See `MemoryBroker`."""
        if (state := self.groups.get(group)) is not None:
            self.lost.update((group, at) for at in state.owned(member))
        super().leave(group, member)

    def give_up(self, group: str, member: str, partitions: Iterable[TopicPartition]) -> None:
        """See `MemoryBroker`."""
        partitions = list(partitions)
        owned = self.groups[group].owned(member)
        self.given_up.update((group, at) for at in partitions if at in owned)
        super().give_up(group, member, partitions)

    def owns(self, instance: str, group: str, at: TopicPartition) -> bool:
        """Whether a partition is this instance's own."""
        return self.groups[group].owner.get(at, "").rpartition("-")[0] == instance

    def committed(self, group: str, at: TopicPartition) -> Committed | None:
        """What a group has committed."""
        return self.groups.get(group, Group()).committed.get(at)

    def is_committed(self, group: str, at: TopicPartition, offset: int) -> bool:
        """Whether the group has committed that this offset is done."""
        found = self.committed(group, at)
        if found is None:
            return False
        return offset < found.offset or offset in decode(found.offset, found.metadata)

    def before(self, record: Record) -> list[int]:
        """The offsets of the records of this key that stand before this one, on a log that a
        consumer has read up to here."""
        keys, entries = self._keys.setdefault(record.at, {}), self.logs[record.at].entries
        for offset in range(self._indexed[record.at], record.offset + 1):
            found = entries[offset].record
            if found is not None and entries[offset].transaction.outcome is Outcome.COMMITTED:
                keys.setdefault(found.key, []).append(offset)
        self._indexed[record.at] = max(self._indexed[record.at], record.offset + 1)
        return [offset for offset in keys[record.key] if offset < record.offset]


class SimState(MemoryStore):
    """States that can be lost, and that can come back as they once were."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[int, dict[str, bytes]] = {}

    def lose_one(self, partition: int) -> None:
        """Forget the state of one partition."""
        self._hashes.pop(partition, None)

    def keep(self) -> None:
        """Write a snapshot, as a Redis does now and then."""
        self._kept = deepcopy(self._hashes)

    def rewind(self) -> None:
        """Come back from the last snapshot."""
        self._hashes = deepcopy(self._kept)


class Notes:
    """Which tasks were begun; can be lost."""

    def __init__(self) -> None:
        self.kept = MemoryAttempts()

    def lose(self) -> None:
        """Forget everything."""
        self.kept = MemoryAttempts()
