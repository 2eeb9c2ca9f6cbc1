"""Reads and writes its own memory: the broker behind the in-memory bus, as Kafka's behaves.

No clock and no waiting in here: `now` is handed in, and what may happen at once happens in one call.
What is modelled, since engines depend on it: partitions chosen by key; transactions whose aborted
records and markers take offsets; readers that stop at the first open transaction; producers fenced by
a newer one of their id; cooperative rebalances in which a partition changes hands only after its owner
gave it up, each with a new generation; offsets accepted from any member of the current generation,
*whether or not it owns the partition*; offsets of an open transaction held back from the next owner.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random

from codeconvoy.schemas.errors import Aborted, BusError, Fenced, Refused
from codeconvoy.schemas.topics import MAX_MESSAGE_BYTES, murmur2
from codeconvoy.workers.engine.bus import Committed, Outgoing, Record, TopicPartition
from codeconvoy.workers.engine.limits import key_bytes


class Outcome(Enum):
    """What became of a transaction."""

    OPEN = auto()
    COMMITTED = auto()
    ABORTED = auto()


Offsets = Mapping[TopicPartition, Committed]


@dataclass(frozen=True, slots=True)
class Token:
    """The group metadata of a member."""

    member: str
    generation: int


@dataclass(slots=True, eq=False)
class Transaction:
    """One transaction of one producer."""

    producer: str
    outcome: Outcome = Outcome.OPEN
    partitions: list[TopicPartition] = field(default_factory=list)
    group: str = ""
    offsets: dict[TopicPartition, Committed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """One offset of a log: a record, or (None) the marker that ends a transaction."""

    record: Record | None
    transaction: Transaction
    visible_at: float


@dataclass(slots=True)
class Log:
    """One partition."""

    entries: list[Entry] = field(default_factory=list)
    first_of_open: dict[int, Transaction] = field(default_factory=dict)
    """Offset of the first record of each open transaction."""
    held_at: int | None = None
    """A consumer sees nothing from here on, until it is released."""
    _visible: int = 0

    def stable_end(self, now: float) -> int:
        """The offset at which a read_committed consumer has to stop at this time."""
        while self._visible < len(self.entries) and self.entries[self._visible].visible_at <= now:
            self._visible += 1
        held = self._visible if self.held_at is None else self.held_at
        return min(self._visible, held, *self.first_of_open)

    def next_visible_at(self, now: float) -> float | None:
        """When a delayed entry becomes visible; None when none is delayed."""
        self.stable_end(now)
        return self.entries[self._visible].visible_at if self._visible < len(self.entries) else None

    def read(self, offset: int, limit: int, now: float) -> tuple[list[Record], int]:
        """Committed records from `offset` on, and the position after them, past what is left out.

        Raises:
            BusError: the log has no such offset.
        """
        if not 0 <= offset <= len(self.entries):
            raise BusError(f"offset {offset} is not on a log of {len(self.entries)}")
        end, records = self.stable_end(now), list[Record]()
        while offset < end:
            entry = self.entries[offset]
            if entry.record is not None and entry.transaction.outcome is Outcome.COMMITTED:
                if len(records) == limit:
                    break
                records.append(entry.record)
            offset += 1
        return records, offset


@dataclass(slots=True)
class Group:
    """A consumer group: its members, who shall own and who owns each partition, its offsets."""

    generation: int = 0
    members: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Topics of each member, in the order of joining."""
    target: dict[TopicPartition, str] = field(default_factory=dict)
    owner: dict[TopicPartition, str] = field(default_factory=dict)
    committed: dict[TopicPartition, Committed] = field(default_factory=dict)

    def rebalance(self, partitions: Sequence[TopicPartition]) -> None:
        """A new generation: everyone keeps what they can, nobody has two more than another."""
        self.generation += 1
        eligible = {
            at: [name for name, topics in self.members.items() if at.topic in topics] for at in partitions
        }
        self.target = {
            at: name for at, name in self.target.items() if at in eligible and name in eligible[at]
        }
        load = Counter(self.target.values())
        for at, names in eligible.items():
            if at not in self.target and names:
                self.target[at] = min(names, key=lambda name: load[name])
                load[self.target[at]] += 1
        for at in reversed(partitions):
            if at in self.target:
                least = min(eligible[at], key=lambda name: load[name])
                if load[self.target[at]] > load[least] + 1:
                    load[self.target[at]] -= 1
                    load[least] += 1
                    self.target[at] = least

    def to_give_up(self, member: str) -> list[TopicPartition]:
        """What the member owns and shall not."""
        return [at for at, name in self.owner.items() if name == member and self.target.get(at) != member]

    def to_take(self, member: str) -> list[TopicPartition]:
        """What the member shall own and nobody does."""
        return [at for at, name in self.target.items() if name == member and at not in self.owner]

    def owned(self, member: str) -> list[TopicPartition]:
        """What the member owns."""
        return [at for at, name in self.owner.items() if name == member]


class MemoryBroker:
    """The state that outlives its clients.

    `random` decides all that is left open; with `max_delay` a record becomes visible up to so many
    seconds after its commit (in the order of its partition); `abort_rate` of all transactions fail.
    """

    def __init__(
        self, random: Random | None = None, *, max_delay: float = 0.0, abort_rate: float = 0.0
    ) -> None:
        self.random = random or Random(0)
        self.max_delay, self.abort_rate = max_delay, abort_rate
        self.topics: dict[str, int] = {}
        self.logs: dict[TopicPartition, Log] = {}
        self.groups: dict[str, Group] = {}
        self._limits: dict[str, int] = {}
        self._epochs: dict[str, int] = {}
        self._members = 0
        self._open: dict[str, Transaction] = {}

    # Topics.

    def create_topic(self, name: str, partitions: int, config: Mapping[str, str]) -> None:
        """Create it unless it exists; groups that wait for it are rebalanced."""
        if name in self.topics:
            return
        self.topics[name] = partitions
        self._limits[name] = int(config.get("max.message.bytes", MAX_MESSAGE_BYTES))
        self.logs |= {TopicPartition(name, number): Log() for number in range(partitions)}
        for group in self.groups.values():
            if any(name in topics for topics in group.members.values()):
                self._rebalance(group)

    def log(self, partition: TopicPartition) -> Log:
        """The partition's log.

        Raises:
            BusError: there is no such partition.
        """
        if partition not in self.logs:
            raise BusError(f"{partition} does not exist")
        return self.logs[partition]

    def hold(self, partition: TopicPartition) -> None:
        """Let consumers see nothing new of this partition until `release`."""
        log = self.log(partition)
        log.held_at = len(log.entries)

    def release(self, partition: TopicPartition) -> None:
        """End `hold`."""
        self.log(partition).held_at = None

    # Transactions.

    def register(self, producer: str, now: float) -> int:
        """A new producer of this id: fences the older one, aborts its transaction. Its epoch."""
        self.abort_open(producer, now)
        self._epochs[producer] = self._epochs.get(producer, -1) + 1
        return self._epochs[producer]

    def check(self, producer: str, epoch: int) -> None:
        """See that this is the newest producer of its id.

        Raises:
            Fenced: it is not.
        """
        if self._epochs[producer] != epoch:
            raise Fenced(f"a newer producer has the transactional id {producer}")

    def begin(self, producer: str, now: float) -> Transaction:
        """Open a transaction."""
        self.abort_open(producer, now)
        self._open[producer] = Transaction(producer)
        return self._open[producer]

    def append(self, transaction: Transaction, output: Outgoing, now: float) -> None:
        """Append a record, not yet visible.

        Raises:
            Refused: it is over the topic's limit.
            Aborted: the topic or partition does not exist.
        """
        at = self._place(output)
        if at is None:
            self.end(transaction, Outcome.ABORTED, now)
            is_too_large = len(output.value) > self._limits.get(output.topic, len(output.value))
            raise (Refused if is_too_large else Aborted)(_refusal(output))
        log = self.logs[at]
        if at not in transaction.partitions:
            transaction.partitions.append(at)
            log.first_of_open[len(log.entries)] = transaction
        self._add_record(at, output, transaction, now)

    def append_alone(self, producer: str, output: Outgoing, now: float) -> None:
        """Append a record outside of any transaction: as one that is committed, without a marker.

        Raises:
            BusError: the topic or partition does not exist, or its limit is exceeded.
        """
        at = self._place(output)
        if at is None:
            raise BusError(_refusal(output))
        self._add_record(at, output, Transaction(producer, Outcome.COMMITTED), now)

    def _place(self, output: Outgoing) -> TopicPartition | None:
        """Where a record goes; None where it is not taken."""
        count = self.topics.get(output.topic, 0)
        number = output.partition
        if number is None and count:
            number = (murmur2(key_bytes(output.key)) & 0x7FFFFFFF) % count
        at = TopicPartition(output.topic, -1 if number is None else number)
        taken = at in self.logs and len(output.value) <= self._limits[output.topic]
        return at if taken else None

    def _add_record(self, at: TopicPartition, output: Outgoing, transaction: Transaction, now: float) -> None:
        log, headers, stamp = self.logs[at], dict(output.headers), int(now * 1_000)
        record = Record(
            output.topic, at.partition, len(log.entries), output.key, output.value, headers, stamp
        )
        self._add(log, record, transaction, now)

    def add_offsets(
        self, transaction: Transaction, group: str, token: Token, offsets: Offsets, now: float
    ) -> None:
        """Add offsets to a transaction, for a member of the group's current generation.

        Raises:
            Aborted: the member left, or the group has moved on.
        """
        if not self._is_current(group, token):
            self.end(transaction, Outcome.ABORTED, now)
            raise Aborted("the group token is stale")
        transaction.group = group
        transaction.offsets |= offsets

    def commit_alone(self, group: str, token: Token, offsets: Offsets) -> None:
        """Commit offsets outside of any transaction, for a member of the group's current generation.

        Raises:
            Aborted: the member left, or the group has moved on; or so it is decided.
        """
        if not self._is_current(group, token) or self.random.random() < self.abort_rate:
            raise Aborted("the offsets were refused")
        self.groups[group].committed |= offsets

    def _is_current(self, group: str, token: Token) -> bool:
        state = self.groups.get(group, Group())
        return token.member in state.members and token.generation == state.generation

    def end(self, transaction: Transaction, outcome: Outcome, now: float) -> None:
        """Commit or abort: outputs and offsets both. Each of its partitions gets a marker."""
        transaction.outcome = outcome
        del self._open[transaction.producer]
        for at in transaction.partitions:
            log = self.logs[at]
            log.first_of_open = {
                offset: other for offset, other in log.first_of_open.items() if other is not transaction
            }
            self._add(log, None, transaction, now)
        if outcome is Outcome.COMMITTED and transaction.offsets:
            self.groups[transaction.group].committed |= transaction.offsets

    def abort_open(self, producer: str, now: float) -> None:
        """Abort the producer's open transaction, if there is one."""
        if producer in self._open:
            self.end(self._open[producer], Outcome.ABORTED, now)

    def is_unstable(self, group: str, partitions: Iterable[TopicPartition]) -> bool:
        """Whether an open transaction holds offsets of these partitions: they can't be fetched yet."""
        wanted = set(partitions)
        return any(one.group == group and wanted & one.offsets.keys() for one in self._open.values())

    # Groups.

    def new_member(self, client_id: str) -> str:
        """A member id that was never used."""
        self._members += 1
        return f"{client_id}-{self._members}"

    def join(self, group: str, member: str, topics: Sequence[str]) -> None:
        """Become a member."""
        state = self.groups.setdefault(group, Group())
        state.members[member] = tuple(topics)
        self._rebalance(state)

    def leave(self, group: str, member: str) -> None:
        """End a membership, by its own wish or as the session timeout does; its partitions are free."""
        state = self.groups.get(group)
        if state is not None and state.members.pop(member, None) is not None:
            state.owner = {at: name for at, name in state.owner.items() if name != member}
            self._rebalance(state)

    def give_up(self, group: str, member: str, partitions: Iterable[TopicPartition]) -> None:
        """The member has revoked these: it joins again, which makes a new generation."""
        state = self.groups[group]
        for at in partitions:
            if state.owner.get(at) == member:
                del state.owner[at]
        self._rebalance(state)

    def _rebalance(self, group: Group) -> None:
        topics = {name for wanted in group.members.values() for name in wanted}
        group.rebalance([at for at in self.logs if at.topic in topics])

    def _add(self, log: Log, record: Record | None, transaction: Transaction, now: float) -> None:
        delayed = now + self.random.random() * self.max_delay
        before = log.entries[-1].visible_at if log.entries else 0.0
        log.entries.append(Entry(record, transaction, max(delayed, before)))


def _refusal(output: Outgoing) -> str:
    return f"{output.topic} does not take {output.key!r} of {len(output.value)} bytes"
