"""Reads one topic, writes what its handler answers: the pool engine, for slow and costly work.

Every role worker is this loop around a handler. Tasks of one key run one after the other, tasks
of different keys side by side. In each turn:

    1. poll: records go to the queue of their key
    2. start: each key that is free takes its next task, while there are slots
    3. collect: results of tasks that have ended
    4. one Kafka transaction: all outputs, and the offsets that are done now

The model call is outside of any transaction. A result whose partition was taken away meanwhile
is dropped: the partition's new owner does the task. What is done out of order is in the commit's
metadata (see `offsets`), so that a crash repeats only what was in flight.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import Aborted, BusError, Unavailable, Undecodable
from codeconvoy.workers.engine import offsets as offset_map
from codeconvoy.workers.engine.bus import Bus, Committed, Consumer, Outgoing, Producer, Record, TopicPartition
from codeconvoy.workers.engine.dead_letter import dead_letter, letter_of, skipped_points
from codeconvoy.workers.engine.health import Health
from codeconvoy.workers.engine.metrics import EngineMetrics
from codeconvoy.workers.engine.offsets import Offsets
from codeconvoy.workers.engine.starts import readable

logger = logging.getLogger(__name__)

Key = tuple[int, str]
"""Partition and record key."""
AWAY = (Unavailable, BusError)
"""What a handler raises where something that every task needs is away: no fault of the task."""


class Handler(Protocol):
    """Does one task. Cancelling it must end whatever it started."""

    async def handle(self, record: Record) -> Sequence[Outgoing]:
        """What is to be written because of the task; it is written once, with the task's offset.

        Raises:
            Undecodable: the record can't be read.
            Unavailable, BusError: something that the task needs is away: it is tried again later,
                without using up an attempt.
        """
        ...

    async def close(self) -> None:
        """Give up whatever the handler holds."""
        ...


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Sizes and times of the loop."""

    slots: int = 4
    """Tasks in flight at once."""
    look_ahead: int = 400
    """Tasks read and not begun, before reading pauses."""
    poll_seconds: float = 0.05
    """Also the beat of the group commit."""
    idle_poll_seconds: float = 0.5
    """How long a poll waits where nothing is in hand."""
    drain_seconds: float = 5.0
    """How long tasks in flight may take to end when their partition is taken away, or at the end."""
    retry_seconds: float = 2.0
    retry_limit_seconds: float = 30.0
    transaction_attempts: int = 5
    skip_check_seconds: float = 2.0


@dataclass(slots=True)
class _Assignment:
    """One partition, from its assignment to its revocation."""

    at: TopicPartition
    epoch: int
    offsets: Offsets
    stopped_at: int | None = None


@dataclass(frozen=True, slots=True)
class _Result:
    record: Record
    epoch: int
    outputs: Sequence[Outgoing]


@dataclass(slots=True)
class _Lane:
    """One key: its waiting records and the one in flight."""

    waiting: deque[tuple[Record, int]] = field(default_factory=deque)
    running: asyncio.Task[None] | None = None
    running_epoch: int = 0
    blocked_until: float = 0.0
    failures: int = 0

    def ended(self, task: asyncio.Task[None]) -> None:
        """The key is free again: also after a task that was cancelled before its first step."""
        if self.running is task:
            self.running = None


class PoolEngine:
    """One consumer of one task queue, as a loop."""

    def __init__(
        self,
        handler: Handler,
        bus: Bus,
        *,
        topic: str,
        group: str,
        instance: str,
        codec: Codec,
        dead_letters: str,
        now: Callable[[], int],
        metrics: EngineMetrics,
        health: Health,
        limits: PoolLimits | None = None,
    ) -> None:
        self._handler, self._bus, self._codec = handler, bus, codec
        self._topic, self._group, self._instance = topic, group, instance
        self._dead_letters, self._now = dead_letters, now
        self._metrics, self._health = metrics, health
        self._limits = limits or PoolLimits()
        self._assigned: dict[int, _Assignment] = {}
        self._lanes: dict[Key, _Lane] = {}
        self._results: list[_Result] = []
        self._epoch = 0
        self._draining: set[int] = set()
        """Partitions that are being taken away: nothing of theirs is begun any more."""
        self._paused = False
        self._dirty: set[int] = set()
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Turn until told to stop; then drain, commit, and leave the group.

        Raises:
            BusError: the process must start anew.
        """
        self._producer = await self._bus.producer(f"{self._group}.{self._instance}")
        self._consumer = self._bus.consumer(self._group, [self._topic], self, self._instance)
        clock = asyncio.get_running_loop().time
        last_skip_check = 0.0
        try:
            while not stop.is_set():
                in_hand = self._lanes or self._results or self._dirty
                patience = self._limits.poll_seconds if in_hand else self._limits.idle_poll_seconds
                records = await self._consumer.poll(self._room(), patience)
                self._take_in(records)
                self._start(clock())
                ended = await self._commit()
                await self._hold_back()
                if clock() - last_skip_check >= self._limits.skip_check_seconds:
                    last_skip_check = clock()
                    await self._try_skips()
                self._tell_health(progressed=bool(records) or ended > 0)
            await self._drain({assignment.at for assignment in self._assigned.values()})
        finally:
            # Whoever starts anew in this process must not meet a task that has not ended yet.
            self._draining |= {number for number, _ in self._lanes}
            await self._cancel(list(self._lanes), None)
            await self._consumer.close()
            await self._producer.close()
            await self._handler.close()

    # The rebalance listener -------------------------------------------------------------------

    async def assigned(
        self, committed: Mapping[TopicPartition, Committed | None]
    ) -> Mapping[TopicPartition, int]:
        """Start at what the group has committed; what is done above it is skipped."""
        self._epoch += 1
        wanted = {at: found.offset if found else 0 for at, found in committed.items()}
        starts = await readable(self._bus, wanted)
        for at, found in committed.items():
            start = starts[at]
            done = offset_map.decode(start, found.metadata) if found else set()
            self._assigned[at.partition] = _Assignment(at, self._epoch, Offsets(start, done, start))
        self._metrics.rebalances.inc()
        return starts

    async def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Let what is in flight end, within a deadline, and commit it; cancel the rest."""
        await self._drain(set(partitions))
        await self.lost(partitions)

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Drop everything about these partitions; their new owner does it."""
        gone = {at.partition for at in partitions}
        for number in gone:
            self._assigned.pop(number, None)
        for at in partitions:
            self._health.stopped.pop(at, None)
        self._count_stopped()
        keys = [key for key in self._lanes if key[0] in gone]
        for key in keys:
            self._lanes[key].waiting.clear()
        await self._cancel(keys, self._limits.drain_seconds)
        self._results = [result for result in self._results if result.record.partition not in gone]
        self._dirty -= gone
        self._draining -= gone
        self._metrics.rebalances.inc()

    async def _drain(self, partitions: set[TopicPartition]) -> None:
        """Wait for the tasks in flight of these partitions, and commit what has ended."""
        numbers = {at.partition for at in partitions}
        self._draining |= numbers
        running = [
            lane.running
            for key, lane in self._lanes.items()
            if key[0] in numbers and lane.running is not None
        ]
        if running:
            await asyncio.wait(running, timeout=self._limits.drain_seconds)
        await self._commit()

    async def _cancel(self, keys: Sequence[Key], seconds: float | None) -> None:
        """Cancel the tasks of these keys, and wait so long for their end (None: until it). A lane
        stays until its task has really ended, so that a partition that comes back does not run a
        key twice at once."""
        running = [
            lane.running for key in keys if (lane := self._lanes.get(key)) and lane.running is not None
        ]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=seconds)

    # One turn ---------------------------------------------------------------------------------

    def _waiting(self) -> int:
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def _room(self) -> int:
        return max(1, self._limits.look_ahead - self._waiting())

    def _take_in(self, records: Sequence[Record]) -> None:
        """Step 1: queue the records under their keys."""
        for record in records:
            assignment = self._assigned.get(record.partition)
            if assignment is None or assignment.stopped_at is not None:
                continue
            if not assignment.offsets.begin(record.offset):
                self._dirty.add(record.partition)
                continue
            lane = self._lanes.setdefault((record.partition, record.key), _Lane())
            lane.waiting.append((record, assignment.epoch))
        self._metrics.queued.set(self._waiting())

    def _start(self, time: float) -> None:
        """Step 2: every free key takes its next task, while there are slots."""
        free = self._limits.slots - sum(lane.running is not None for lane in self._lanes.values())
        for key, lane in list(self._lanes.items()):
            if lane.running is None and not lane.waiting:
                del self._lanes[key]
            elif (
                free > 0
                and lane.running is None
                and lane.blocked_until <= time
                and key[0] not in self._draining
            ):
                record, epoch = lane.waiting.popleft()
                lane.running_epoch = epoch
                lane.running = asyncio.create_task(self._work(key, lane, record, epoch))
                lane.running.add_done_callback(lane.ended)
                free -= 1
        self._metrics.in_flight.set(self._limits.slots - free)

    async def _work(self, key: Key, lane: _Lane, record: Record, epoch: int) -> None:
        """One task, to its result, a retry later, or a dead letter."""
        try:
            with self._metrics.task_seconds.time():
                outputs = await self._handler.handle(record)
        except AWAY as away:
            if not self._is_current(record, epoch):
                return  # its partition was taken away meanwhile: the new owner does it
            lane.failures += 1
            delay = min(
                self._limits.retry_seconds * 2 ** (lane.failures - 1), self._limits.retry_limit_seconds
            )
            lane.blocked_until = asyncio.get_running_loop().time() + delay
            lane.waiting.appendleft((record, epoch))
            logger.warning("a task waits %.0f s: %s", delay, away)
            return
        except Undecodable as undecodable:
            if not undecodable.is_garbage:
                self._stop(record, undecodable)
                return
            outputs = [
                letter_of(self._codec, self._dead_letters, record, undecodable, self._group, self._now())
            ]
            self._metrics.dead_letters.inc()
        except Exception as error:
            # A handler's bug must not hold its partition: the record is kept as a dead letter.
            logger.exception("a task failed in an unforeseen way")
            detail = f"{type(error).__name__}: {error}"
            outputs = [
                dead_letter(
                    self._codec, self._dead_letters, record, "poison", detail, 1, self._group, self._now()
                )
            ]
            self._metrics.dead_letters.inc()
        finally:
            lane.running = None
        lane.failures = 0
        lane.blocked_until = 0.0
        self._results.append(_Result(record, epoch, outputs))
        # The slot is free now: what waits for it need not wait for the turn of the loop.
        self._start(asyncio.get_running_loop().time())

    async def _commit(self) -> int:
        """Steps 3 and 4: write what has ended, unless its partition was taken away meanwhile."""
        results, self._results = self._results, []
        current = [result for result in results if self._is_current(result.record, result.epoch)]
        if not current and not self._dirty:
            return 0
        for result in current:
            self._assigned[result.record.partition].offsets.finish(result.record.offset)
            self._dirty.add(result.record.partition)
        outputs = [output for result in current for output in result.outputs]
        offsets: dict[TopicPartition, Committed] = {}
        for number in self._dirty & self._assigned.keys():
            assignment = self._assigned[number]
            offsets[assignment.at] = Committed(*assignment.offsets.commit())
        await self._transaction(outputs, offsets)
        self._dirty.clear()
        self._metrics.records.inc(len(current))
        return len(current)

    def _is_current(self, record: Record, epoch: int) -> bool:
        assignment = self._assigned.get(record.partition)
        return assignment is not None and assignment.epoch == epoch

    async def _transaction(
        self, outputs: Sequence[Outgoing], offsets: Mapping[TopicPartition, Committed]
    ) -> None:
        assert self._producer is not None and self._consumer is not None, "runs only"
        for attempt in range(self._limits.transaction_attempts):
            try:
                token = await self._consumer.group_token()
                await self._producer.transaction(outputs, offsets, self._group, token)
            except Aborted:
                self._metrics.aborts.inc()
                if attempt + 1 == self._limits.transaction_attempts:
                    raise
            else:
                self._metrics.transactions.inc()
                self._metrics.outputs.inc(len(outputs))
                return

    async def _hold_back(self) -> None:
        """Stop reading while too much is queued, or a commit map would grow too long."""
        assert self._consumer is not None, "runs only"
        crowded = self._waiting() >= self._limits.look_ahead or not all(
            assignment.offsets.has_room(assignment.offsets.skipped_to)
            for assignment in self._assigned.values()
        )
        partitions = [a.at for a in self._assigned.values() if a.stopped_at is None]
        if crowded and not self._paused:
            await self._consumer.pause(partitions)
            self._paused = True
        elif self._paused and not crowded and self._waiting() <= self._limits.look_ahead // 2:
            await self._consumer.resume(partitions)
            self._paused = False

    def _tell_health(self, *, progressed: bool) -> None:
        busy = bool(self._lanes)
        working = any(lane.running is not None for lane in self._lanes.values())
        # A model may take minutes: a task in flight has a deadline of its own.
        self._health.turned(progressed=progressed or working, behind=busy)

    # Partitions that can't go on ----------------------------------------------------------------

    def _stop(self, record: Record, undecodable: Undecodable) -> None:
        assignment = self._assigned.get(record.partition)
        if assignment is None:
            return
        assignment.stopped_at = record.offset
        for key, lane in self._lanes.items():
            if key[0] == record.partition:
                for waiting, _ in lane.waiting:
                    assignment.offsets.open.discard(waiting.offset)
                lane.waiting.clear()
        reason = (
            f"offset {record.offset}: {undecodable}. Upgrade codeconvoy, or skip it everywhere with "
            f"`convoy dlq skip {record.topic} {record.partition} {record.offset}`"
        )
        self._health.stopped[assignment.at] = reason
        self._count_stopped()
        logger.error("partition %s/%s is stopped at %s", record.topic, record.partition, reason)

    def _count_stopped(self) -> None:
        self._metrics.stopped.set(sum(each.stopped_at is not None for each in self._assigned.values()))

    async def _try_skips(self) -> None:
        """Go on behind records that an operator has skipped."""
        stopped = [a for a in self._assigned.values() if a.stopped_at is not None]
        if not stopped:
            return
        assert self._consumer is not None, "runs only"
        skipped = await skipped_points(self._bus, self._dead_letters)
        for assignment in stopped:
            at = assignment.stopped_at
            if at is None or (self._topic, assignment.at.partition, at) not in skipped:
                continue
            assignment.stopped_at = None
            self._health.stopped.pop(assignment.at, None)
            self._count_stopped()
            assignment.offsets.finish(at)
            assignment.offsets.skipped_to = at + 1
            self._dirty.add(assignment.at.partition)
            await self._consumer.seek(assignment.at, at + 1)
