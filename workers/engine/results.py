"""Reads what tasks have brought, writes it with its offsets in Kafka transactions: the group commit.

Results wait for the next beat and go together. When a group is aborted its results stay here, and go
again without a second model call. Where the broker will never take one of the records, they go by
halves: it does not hold the others, and is replaced by a dead letter. Any other reason passes (a
partition without a leader, a rebalance that the next poll tells of): all go again, a while later.

Nothing is awaited between looking at who owns what and handing over the transaction, and the group
metadata is older than that look: a partition that is taken away later makes the metadata stale, and
the broker refuses it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from codeconvoy.schemas.errors import Aborted, BusError, Fenced, Refused, Unavailable
from codeconvoy.workers.engine.attempts import Attempts
from codeconvoy.workers.engine.bus import Consumer, GroupToken, Outgoing, Producer, TopicPartition
from codeconvoy.workers.engine.lanes import Assignment, Job, Key
from codeconvoy.workers.engine.metrics import EngineMetrics
from codeconvoy.workers.tracing import OFF, Tracing

logger = logging.getLogger(__name__)

TRIES = 10
"""Passes without a single commit before the engine starts anew: some 15 seconds."""
LONGEST_PAUSE = 2.0
PASSES = 3
"""Over what is left of a partition that leaves: a result may be refused, and its dead letter go next."""


class Fate(Enum):
    """What became of a transaction."""

    COMMITTED = auto()
    ABORTED = auto()
    """The same may be taken later."""
    REFUSED = auto()
    """One of its records never will be."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What came of one task."""

    job: Job
    outputs: Sequence[Outgoing]
    is_letter: bool = False
    """It stands in the place of outputs that the broker refused."""

    @property
    def key(self) -> Key:
        """Its lane."""
        return self.job.record.partition, self.job.record.key


class Results:
    """Results that are not committed yet."""

    def __init__(
        self,
        assigned: Mapping[int, Assignment],
        group: str,
        attempts: Attempts,
        metrics: EngineMetrics,
        give_up: Callable[[Result, str], Result],
        beat_seconds: float,
        tracing: Tracing = OFF,
    ) -> None:
        self._assigned, self._group, self._attempts = assigned, group, attempts
        self._metrics, self._give_up, self._beat = metrics, give_up, beat_seconds
        self._tracing = tracing
        self._waiting: list[Result] = []
        self._keys: set[Key] = set()
        """Of those that wait."""
        self._awaited: dict[Key, asyncio.Future[None]] = {}
        """Resolved when no result of the key waits any more."""
        self._touched: set[int] = set()
        """Partitions whose offset moves, maybe without a result."""
        self._failures = 0
        """Passes in a row in which nothing could be committed."""
        self._is_over = False
        self._turn = asyncio.Lock()
        self._something = asyncio.Event()
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None

    def open(self, producer: Producer, consumer: Consumer) -> None:
        """Begin to commit with these."""
        self._producer, self._consumer = producer, consumer

    def check(self) -> None:
        """Raise what keeps the producer from ever committing again."""
        assert self._producer is not None, "opened"
        self._producer.check()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, result: Result) -> None:
        """A task has ended."""
        self._waiting.append(result)
        self._keys.add(result.key)
        self._something.set()

    async def settled(self, key: Key) -> None:
        """Wait until all results of this key are committed, or dropped."""
        if key not in self._keys:
            return
        if key not in self._awaited:
            self._awaited[key] = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._awaited[key])

    def touch(self, partition: int) -> None:
        """The partition's offset has moved without a result."""
        self._touched.add(partition)
        self._something.set()

    async def commit_on_beat(self) -> None:
        """Commit what has come, at most once a beat, until cancelled.

        Raises:
            BusError: nothing can be committed any more.
        """
        clock = asyncio.get_running_loop().time
        while True:
            await self._something.wait()
            self._something.clear()
            began = clock()
            await self.commit()
            pause = min(self._beat * 2**self._failures, LONGEST_PAUSE)
            await asyncio.sleep(max(0.0, began + pause - clock()))

    async def commit_all(self) -> None:
        """Commit what there is, now or never: as a partition leaves. What can't be is done anew by
        its next owner."""
        for _ in range(PASSES):
            await self.commit()
            if not self._waiting:
                return

    async def commit(self) -> None:
        """One pass over what has come.

        Raises:
            BusError: this process has to start anew.
        """
        async with self._turn:
            self._keep(one for one in self._waiting if self._is_current(one))
            self._touched &= self._assigned.keys()
            if self._is_over or not (self._waiting or self._touched):
                return
            with self._metrics.commit_seconds.time():
                committed = await self._pass()
            self._failures = 0 if committed else self._failures + 1
            if self._failures >= TRIES:
                raise BusError(f"nothing could be committed in {TRIES} tries")
            if self._waiting or self._touched:
                self._something.set()

    async def stop(self, committer: "asyncio.Task[None]") -> None:
        """End the committer, but not in the middle of a transaction: whether its results are still to
        be written would be unknown."""
        async with self._turn:
            committer.cancel()
        await asyncio.wait([committer])
        # Whoever does them again must not take their notes for those of a process that died.
        await self.strike_out([result.job.at for result in self._waiting])

    async def strike_out(self, done: Sequence[tuple[int, int]]) -> None:
        """Forget the starts of these. Where that can't be done, they run apart once for nothing."""
        try:
            await self._attempts.strike_out(done)
        except Unavailable as away:
            logger.warning("%s tasks stay noted as begun: %s", len(done), away)

    def _is_current(self, result: Result) -> bool:
        return self._assigned.get(result.job.record.partition) is result.job.assignment

    async def _pass(self) -> bool:
        """All together; where one is refused, by halves, down to that one. A key's later results wait for
        its earlier one. False where the broker takes nothing now."""
        groups = deque([self._waiting])
        behind: set[Key] = set()
        went = False
        while groups:
            if (token := await self._token()) is None:
                return went
            group = [one for one in groups.popleft() if self._is_current(one) and one.key not in behind]
            if not group and groups:
                continue
            fate = await self._write(group, token)
            if fate is Fate.ABORTED or (fate is Fate.REFUSED and not group):
                return went
            went = True
            if fate is Fate.REFUSED and len(group) > 1:
                groups.extendleft((group[len(group) // 2 :], group[: len(group) // 2]))
            elif fate is Fate.REFUSED:
                behind.add(group[0].key)
                self._replace(group[0])
        return went

    def _replace(self, refused: Result) -> None:
        """Put a dead letter in the place of a result."""
        if refused.is_letter:
            raise BusError(f"the broker refuses a dead letter of {refused.job.record.topic}")
        letter = self._give_up(refused, "the broker refuses its outputs")
        self._waiting = [letter if one is refused else one for one in self._waiting]

    async def _token(self) -> GroupToken | None:
        """Fresh group metadata; None where the next poll has to join the group again first."""
        assert self._consumer is not None, "opened"
        try:
            return await self._consumer.group_token()
        except Fenced:
            return None

    async def _write(self, results: Sequence[Result], token: GroupToken) -> Fate:
        """One transaction."""
        assert self._producer is not None, "opened"
        done: dict[int, list[int]] = {number: [] for number in self._touched & self._assigned.keys()}
        for result in results:
            partition, offset = result.job.at
            done.setdefault(partition, []).append(offset)
        points = {self._at(number): self._assigned[number].offsets.point(d) for number, d in done.items()}
        owners = {number: self._assigned[number] for number in done}
        self._touched -= done.keys()
        outputs = [output for result in results for output in result.outputs]
        try:
            with self._tracing.commit(self._group, [result.outputs for result in results]):
                await self._producer.transaction(outputs, points, self._group, token)
        except Aborted as aborted:
            logger.warning("a transaction of %s results was aborted: %s", len(results), aborted)
            self._metrics.aborts.inc()
            self._touched |= done.keys()
            return Fate.REFUSED if isinstance(aborted, Refused) else Fate.ABORTED
        except BaseException:
            # Whether it was committed only the group's offsets can tell.
            self._is_over = True
            raise
        for number, offsets in done.items():
            owners[number].offsets.finish(offsets)
        self._forget(results)
        self._metrics.transactions.inc()
        self._metrics.outputs.inc(len(outputs))
        self._metrics.records.inc(len(results))
        if results:
            self._metrics.batch.observe(len(results))
        await self.strike_out([result.job.at for result in results])
        return Fate.COMMITTED

    def _at(self, number: int) -> TopicPartition:
        return self._assigned[number].at

    def _keep(self, waiting: Iterable[Result]) -> None:
        """Only these wait on."""
        self._waiting = list(waiting)
        self._keys = {one.key for one in self._waiting}
        for key in [key for key in self._awaited if key not in self._keys]:
            self._awaited.pop(key).set_result(None)

    def _forget(self, results: Collection[Result]) -> None:
        gone = set(map(id, results))
        self._keep(one for one in self._waiting if id(one) not in gone)
