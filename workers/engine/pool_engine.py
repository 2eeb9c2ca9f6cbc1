"""Reads one topic, writes what its handler answers: the pool engine, for slow and costly work.

Every role worker is this around a handler. Tasks of one key run one after the other, tasks of
different keys side by side. Reading and committing go on side by side:

    1. poll: records go to the lane of their key             ┐ the loop
    2. start: each lane that is free takes its next task     ┘
    3. a task ends: its result is kept, its lane goes on
    4. commit: results, outputs and offsets in one Kafka transaction, once a beat (see `results`)

The model call is outside of any transaction. A result whose partition was taken away meanwhile is
dropped: the partition's new owner does the task. What is done out of order is in the commit's
metadata (see `offsets`), so that a crash repeats only what was in flight; what kills its process is
found and given up (see `attempts`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import BusError, TooLarge, Unavailable, Undecodable
from codeconvoy.workers.engine import offsets as offset_map
from codeconvoy.workers.engine.attempts import Attempt, Attempts
from codeconvoy.workers.engine.bus import Bus, Committed, Consumer, Outgoing, Record, TopicPartition
from codeconvoy.workers.engine.dead_letter import dead_letter, letter_of
from codeconvoy.workers.engine.health import Health
from codeconvoy.workers.engine.lanes import Assignment, Job, Lane, Lanes
from codeconvoy.workers.engine.limits import check_limits
from codeconvoy.workers.engine.metrics import EngineMetrics
from codeconvoy.workers.engine.offsets import Offsets
from codeconvoy.workers.engine.results import Result, Results
from codeconvoy.workers.engine.starter import Starter
from codeconvoy.workers.engine.starts import readable
from codeconvoy.workers.engine.stops import Stops
from codeconvoy.workers.redact import Redact
from codeconvoy.workers.tracing import OFF, Tracing, carried, context_in

logger = logging.getLogger(__name__)

AWAY = (Unavailable, BusError)
"""What a handler raises where something that every task needs is away: no fault of the task."""


Earlier = Callable[[], Awaitable[None]]
"""Waits until what this process did before under the same key is committed, or was dropped. A task begins
when the one before has ended: who has to see what that one wrote waits for this first."""


class Handler(Protocol):
    """Does one task. Cancelling it must end whatever it started."""

    async def handle(self, record: Record, earlier: Earlier) -> Sequence[Outgoing]:
        """What is to be written because of the task; it is written once, with the task's offset.

        Raises:
            Undecodable: the record can't be read.
            Unavailable, BusError: something that the task needs is away: it is tried again later,
                without using up an attempt.
        """
        ...

    def gave_up(self, record: Record, reason: str) -> Sequence[Outgoing]:
        """What is to be written, beside its dead letter, about a task that the engine gives up, so
        that whoever waits for it knows. Raises nothing, whatever the record is."""
        ...

    async def close(self) -> None:
        """Give up whatever the handler holds."""
        ...


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Sizes and times of the loop."""

    slots: int = 4
    """Tasks in flight at once."""
    look_ahead: int = 500
    """Records of a partition read and not committed, before reading it pauses."""
    look_ahead_bytes: int = 64 * 2**20
    """Of all records read and not done, before all reading pauses."""
    batch: int = 500
    """Records that one poll may bring."""
    backlog: int = 2_000
    """Results not committed yet, before reading waits for them."""
    poll_seconds: float = 0.05
    idle_poll_seconds: float = 0.5
    """How long a poll waits where nothing is in hand."""
    beat_seconds: float = 0.1
    """Between the beginnings of two group commits."""
    drain_seconds: float = 5.0
    """How long tasks in flight may take to end when their partition is taken away, or at the end."""
    deaths: int = 3
    """Processes that may die of a task, while it runs alone, before it is given up."""
    stale_seconds: float = 4.0
    """Without a poll for longer nothing is begun: less than a session."""
    trust_seconds: float = 1.0
    """How long after such a silence nothing is begun."""
    retry_seconds: float = 2.0
    retry_limit_seconds: float = 30.0
    look_seconds: float = 2.0
    """Between two looks at what changes slowly: lag, markers, skips."""


class PoolEngine:
    """One consumer of one task queue."""

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
        attempts: Attempts,
        limits: PoolLimits | None = None,
        redact: Redact = str,
        tracing: Tracing = OFF,
    ) -> None:
        self._handler, self._bus, self._codec = handler, bus, codec
        self._topic, self._group, self._instance = topic, group, instance
        self._dead_letters, self._now = dead_letters, now
        self._metrics, self._health, self._attempts = metrics, health, attempts
        self._stops = Stops(bus, dead_letters, health, metrics)
        self._limits, self._redact = limits or PoolLimits(), redact
        self._tracing = tracing
        self._assigned: dict[int, Assignment] = {}
        self._lanes = Lanes(self._limits.slots)
        self._starter = Starter(
            self._lanes,
            attempts,
            self._limits.deaths,
            begin=self._begin,
            give_up=self._convict,
            later=self._try_later,
        )
        self._polled_at = self._trusted_from = 0.0
        self._results = Results(
            self._assigned,
            group,
            attempts,
            metrics,
            self._letter_of_result,
            self._limits.beat_seconds,
            tracing,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Turn until told to stop; then drain, commit, and leave the group.

        Raises:
            BusError: the process must start anew.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._handler.close)
            producer = await self._bus.producer(f"{self._group}.{self._instance}", self._group)
            stack.push_async_callback(producer.close)
            consumer = self._bus.consumer(self._group, [self._topic], self, self._instance)
            stack.push_async_callback(consumer.close)
            self._results.open(producer, consumer)
            committer = asyncio.create_task(self._results.commit_on_beat())
            # Whoever starts anew in this process must not meet a task that has not ended yet.
            stack.push_async_callback(self._leave, (), None)
            stack.push_async_callback(self._starter.stop)
            stack.push_async_callback(self._results.stop, committer)
            await self._turn(stop, consumer, committer)
            await self._give_back(list(self._assigned))

    async def _turn(self, stop: asyncio.Event, consumer: Consumer, committer: asyncio.Task[None]) -> None:
        looked_at = 0.0
        clock = asyncio.get_running_loop().time
        self._polled_at = clock()
        while not stop.is_set():
            if committer.done():
                committer.result()
            self._starter.check()
            records = await consumer.poll(self._limits.batch, self._patience(clock()))
            self._heard(clock())
            self._take_in(records)
            self._lanes.unblock(clock())
            self._start()
            if len(self._results) >= self._limits.backlog:
                await self._results.commit()
            await self._hold_back(consumer)
            if clock() - looked_at >= self._limits.look_seconds:
                looked_at = clock()
                await self._look_around(consumer)
            self._tell(progressed=bool(records))

    def _heard(self, now: float) -> None:
        """A poll has ended. After a long silence the client needs a moment to learn what it has lost."""
        if now - self._polled_at > self._limits.stale_seconds:
            self._trusted_from = now + self._limits.trust_seconds
        self._polled_at = now

    def _patience(self, now: float) -> float:
        """How long the next poll may wait for a record."""
        if not len(self._lanes) and not len(self._results):
            return self._limits.idle_poll_seconds
        unblocks_at = self._lanes.unblocks_at
        until = self._limits.poll_seconds if unblocks_at is None else max(0.0, unblocks_at - now)
        return min(until, self._limits.poll_seconds)

    # The rebalance listener -------------------------------------------------------------------

    async def assigned(
        self, committed: Mapping[TopicPartition, Committed | None]
    ) -> Mapping[TopicPartition, int]:
        """Start at what the group has committed; what is done above it is skipped."""
        wanted = {at: found.offset if found else 0 for at, found in committed.items()}
        starts = await readable(self._bus, wanted)
        for at, found in committed.items():
            start = starts[at]
            done = offset_map.decode(start, found.metadata) if found else set()
            self._assigned[at.partition] = Assignment(at, Offsets(start, start, done))
        self._metrics.rebalances.inc()
        return starts

    async def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Let what is in flight end, within a deadline, and commit it; cancel the rest."""
        await self._give_back([at.partition for at in partitions])
        await self.lost(partitions)

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Drop everything about these partitions; their new owner does it."""
        numbers = [at.partition for at in partitions]
        for at in partitions:
            assignment = self._assigned.pop(at.partition, None)
            if assignment is not None:
                assignment.is_ending = True
            self._stops.forget(at)
        await self._leave(numbers, self._limits.drain_seconds)
        self._metrics.rebalances.inc()

    async def _give_back(self, partitions: Sequence[int]) -> None:
        """Begin nothing more of these partitions, wait for what is in flight, commit what has ended,
        and cancel the rest."""
        for number in partitions:
            if assignment := self._assigned.get(number):
                assignment.is_ending = True
        waiting = self._lanes.clear(partitions)
        await self._starter.settle(self._limits.drain_seconds)
        await self._starter.take_back(waiting)
        running = [lane.task for lane in self._lanes.in_flight(partitions) if lane.task is not None]
        if running:
            await asyncio.wait(running, timeout=self._limits.drain_seconds)
        await self._results.commit_all()
        await self._leave(partitions, self._limits.drain_seconds)

    async def _leave(self, partitions: Sequence[int], seconds: float | None) -> None:
        """Cancel the tasks of these partitions, and wait so long for their end. Without seconds:
        those of all partitions, and until their end."""
        if seconds is None:
            for assignment in self._assigned.values():
                assignment.is_ending = True
        waiting = self._lanes.clear(partitions if seconds is not None else list(self._assigned))
        lanes = list(self._lanes.in_flight(partitions if seconds is not None else None))
        cancelled = [lane.running.at for lane in lanes if lane.running is not None]
        running = [lane.task for lane in lanes if lane.task is not None]
        for task in running:
            if not task.cancelling():  # once more would cut short what it does at its end
                task.cancel()
        if running:
            await asyncio.wait(running, timeout=seconds)
            # This process lives: nobody need suspect them. (The note of a new owner may go with them;
            # then a task that kills is found one death later.)
            await self._results.strike_out(cancelled)
        await self._starter.take_back(waiting)

    # One turn ---------------------------------------------------------------------------------

    def _take_in(self, records: Sequence[Record]) -> None:
        """Step 1: queue the records under their keys."""
        for record in records:
            assignment = self._assigned.get(record.partition)
            if assignment is None or assignment.is_ending or assignment.stopped_at is not None:
                continue
            if assignment.offsets.begin(record.offset):
                self._lanes.add(Job(record, assignment))
            else:
                self._metrics.duplicates.inc()
                self._results.touch(record.partition)

    def _start(self) -> None:
        """Step 2: every free lane takes its next task, while there are slots. A process that was
        stopped for long may have lost its partitions: first it has to hear from the broker."""
        now = asyncio.get_running_loop().time()
        if now - self._polled_at > self._limits.stale_seconds or now < self._trusted_from:
            return
        self._starter.start()

    def _begin(self, lane: Lane) -> None:
        lane.task = asyncio.create_task(self._work(lane))
        lane.task.add_done_callback(partial(self._lanes.ended, lane))

    async def _work(self, lane: Lane) -> None:
        """Step 3: one task, to its result, a retry later, or a dead letter."""
        job, task = lane.running, lane.task
        assert job is not None and task is not None, "begun by _begin"
        try:
            self._results.add(Result(job, await self._traced(job)))
            await self._note_end(job)
        except AWAY as away:
            await self._note_end(job)
            self._try_later(lane, away)
            return
        except Undecodable as undecodable:
            dropped = self._stop(job, undecodable)
            await self._results.strike_out([job.at])
            await self._starter.take_back(dropped)
            return
        finally:
            # The slot is free now: what waits for it need not wait for the turn of the loop.
            self._lanes.ended(lane, task)
            self._start()

    def _convict(self, job: Job, held: Attempt) -> None:
        reason = f"its process died {held.deaths} times while nothing else ran"
        self._results.add(Result(job, self._given_up(job, "poison", reason, held.deaths)))

    async def _note_end(self, job: Job) -> None:
        """What dies from now on does not die of this task alone."""
        if job.attempt.is_suspect:
            try:
                await self._attempts.note(job.at, job.attempt)
            except Unavailable as away:
                logger.warning("%s stays noted as begun alone: %s", job.at, away)

    async def _traced(self, job: Job) -> Sequence[Outgoing]:
        """What comes of a task, in the trace of its record: a task that comes again hangs where it hung."""
        deliveries = 1 + job.attempt.crashes + job.attempt.deaths + job.retries
        with self._tracing.task(job.record, self._group, deliveries):
            return await self._outputs(job)

    async def _outputs(self, job: Job) -> Sequence[Outgoing]:
        """What comes of a task; a dead letter where nothing can."""
        record, clock = job.record, asyncio.get_running_loop().time
        try:
            began = clock()
            try:
                earlier = partial(self._results.settled, (record.partition, record.key))
                outputs = self._tracing.stamped(await self._handler.handle(record, earlier), record.headers)
            finally:
                self._metrics.task_seconds.observe(clock() - began)
            check_limits(outputs, None)
        except AWAY:
            raise
        except Undecodable as undecodable:
            if not undecodable.is_garbage:
                raise
            self._metrics.dead_letters.inc()
            self._tracing.fail(type(undecodable).__name__)
            letter = letter_of(self._codec, self._dead_letters, record, undecodable, self._group, self._now())
            return carried([letter], context_in(record.headers))
        except TooLarge as too_large:
            return self._given_up(job, "too_large", str(too_large), 1)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            # A handler's bug must not hold its partition: the record is kept as a dead letter.
            logger.exception("a task failed in an unforeseen way")
            return self._given_up(job, "poison", f"{type(error).__name__}: {error}", 1)
        return outputs

    def _given_up(self, job: Job, reason: str, detail: str, attempts: int) -> Sequence[Outgoing]:
        self._metrics.dead_letters.inc()
        said = self._redact(detail)  # which may be the text of any error
        letter = dead_letter(
            self._codec, self._dead_letters, job.record, reason, said, attempts, self._group, self._now()
        )
        outputs = [letter, *self._handler.gave_up(job.record, said)]
        self._tracing.fail(reason)
        return carried(outputs, context_in(job.record.headers))

    def _letter_of_result(self, result: Result, reason: str) -> Result:
        """What is written in the place of outputs that the broker refuses."""
        return Result(result.job, self._given_up(result.job, "refused", reason, 1), is_letter=True)

    def _try_later(self, lane: Lane, why: Exception) -> None:
        job = lane.running
        assert job is not None, "it was begun"
        if job.assignment.is_ending:  # its new owner does it
            self._lanes.give_back(lane)
            return
        limits = self._limits
        delay = min(limits.retry_seconds * 2**job.retries, limits.retry_limit_seconds)
        if isinstance(why, Unavailable) and why.retry_within is not None:
            delay = min(delay, why.retry_within)
        job.retries += 1
        self._lanes.again(lane, asyncio.get_running_loop().time() + delay)
        logger.warning("a task waits %.0f s: %s", delay, why)

    async def _hold_back(self, consumer: Consumer) -> None:
        """Read no more of a partition while too much of it is in hand; rarely, for it costs."""
        pause: list[TopicPartition] = []
        resume: list[TopicPartition] = []
        heavy = self._lanes.bytes / self._limits.look_ahead_bytes
        for assignment in self._assigned.values():
            full = max(assignment.offsets.in_hand / self._limits.look_ahead, heavy)
            if assignment.is_paused:
                if full <= 0.5 and not assignment.offsets.is_stretched:
                    resume.append(assignment.at)
                    assignment.is_paused = False
            elif full >= 1 or assignment.offsets.is_stretched:
                pause.append(assignment.at)
                assignment.is_paused = True
        if pause:
            await consumer.pause(pause)
        if resume:
            await consumer.resume(resume)

    async def _look_around(self, consumer: Consumer) -> None:
        """What changes slowly: lag, transaction markers at the end, records that were skipped."""
        self._results.check()
        self._metrics.lag.set(sum((await consumer.lag()).values()))
        for at, position in (await consumer.positions()).items():
            assignment = self._assigned.get(at.partition)
            if assignment and not assignment.offsets.open and position > assignment.offsets.read_to:
                assignment.offsets.read_to = position
                self._results.touch(at.partition)
        await self._try_skips(consumer)

    def _tell(self, *, progressed: bool) -> None:
        lanes, metrics = self._lanes, self._metrics
        metrics.in_flight.set(lanes.running)
        metrics.queued.set(lanes.waiting)
        metrics.blocked.set(lanes.blocked)
        metrics.look_ahead.set(sum(one.offsets.in_hand for one in self._assigned.values()))
        # A model may take minutes: a task in flight has a deadline of its own.
        self._health.turned(
            progressed=progressed or lanes.running > 0, behind=len(lanes) + len(self._results) > 0
        )

    # Partitions that can't go on ----------------------------------------------------------------

    def _stop(self, job: Job, undecodable: Undecodable) -> Sequence[Job]:
        """Stop visibly: whoever upgrades can read the record, and nothing behind it is lost. Answers what
        is dropped, to be read again."""
        assignment, record = job.assignment, job.record
        if assignment.is_ending:
            return ()
        at = record.offset
        if assignment.stopped_at is not None:
            assignment.offsets.drop(max(at, assignment.stopped_at))
            at = min(at, assignment.stopped_at)
        assignment.stopped_at = at
        dropped = self._lanes.clear([record.partition], above=at)
        for waiting in dropped:
            assignment.offsets.drop(waiting.record.offset)
        self._stops.add(assignment.at, at, undecodable)
        return dropped

    async def _try_skips(self, consumer: Consumer) -> None:
        """Go on behind records that an operator has skipped."""
        for at, offset in (await self._stops.skipped()).items():
            assignment = self._assigned[at.partition]
            assignment.stopped_at = None
            assignment.offsets.read_again(offset)
            self._results.touch(at.partition)
            await consumer.seek(at, offset + 1)


def _is_cancelled() -> bool:
    """True where the present task was told to end; False where something that it waits for has ended as
    cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
