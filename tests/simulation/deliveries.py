"""Reads what a pool engine hands to its handler, writes what is wrong about it: every call is looked at.

A call counts only where its process has a claim: the broker holds it for the owner of the partition.
A process that was paused or put out of its group may go on for a while; that does no harm, since
nothing of it is committed, as other checks see.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from random import Random

from codeconvoy.schemas.errors import Undecodable
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.engine.pool_engine import AWAY, Earlier, Handler
from tests.simulation.process import SimProcess
from tests.simulation.services import WatchedBroker

CLINGS = 0.5
"""Share of cancelled calls that go on to their end."""

Place = tuple[str, int, int]
"""Role, partition and offset of a task."""


class Ending(Enum):
    """How a call ended."""

    RESULT = auto()
    AWAY = auto()
    FAILED = auto()
    UNREADABLE = auto()
    """A later version may be able to read it: its partition stops."""
    CANCELLED = auto()


@dataclass(slots=True, eq=False)
class Run:
    """One call for one task."""

    engine: "RecordingHandler"
    record: Record
    is_claimed: bool
    given_up: int
    lost: int
    """How often the partition had changed hands when it began."""
    start: int
    """Ticks, as the broker counts them."""
    end: int = -1
    ending: Ending | None = None
    outputs: int | None = None
    """Records that it gave; None while it has not ended well."""
    is_cancelled: bool = False
    """It was told to end; from then on its outcome does not count."""

    @property
    def place(self) -> Place:
        """What it was for."""
        return self.engine.process.kind, self.record.partition, self.record.offset

    def __str__(self) -> str:
        return f"offset {self.record.offset} in {self.engine.process.instance}"


class Deliveries:
    """All calls of a world, and what is wrong about them."""

    def __init__(self, broker: WatchedBroker, random: Random) -> None:
        self.broker, self.random = broker, random
        self.runs: list[Run] = []
        self.problems: list[str] = []
        self.deaths_alone: Counter[Place] = Counter()
        """Processes that died while this task, and no other, was running, or about to."""
        self.skipped: set[Place] = set()
        """What an operator has skipped."""
        self._open: defaultdict[tuple[str, int, str], list[Run]] = defaultdict(list)
        self._of: defaultdict[Place, list[Run]] = defaultdict(list)

    @property
    def open(self) -> Iterator[Run]:
        """The calls that have not ended."""
        return (run for runs in self._open.values() for run in runs)

    def begin(self, engine: "RecordingHandler", record: Record) -> Run:
        """A call begins."""
        held = engine.group, record.at
        run = Run(
            engine,
            record,
            self.broker.owns(engine.process.instance, engine.group, record.at),
            self.broker.given_up[held],
            self.broker.lost[held],
            self.broker.tick(),
        )
        others = self._open[engine.process.kind, record.partition, record.key]
        for part in (self._one_at_a_time, self._in_order, self._nothing_twice, self._slots):
            self.problems += [f"{part.__name__}: {record.key}: {found}" for found in part(run, others)]
        others.append(run)
        self._of[run.place].append(run)
        self.runs.append(run)
        engine.process.begins.discard(run.place)
        return run

    def end(self, run: Run, ending: Ending) -> None:
        """A call has ended."""
        run.end, run.ending = self.broker.tick(), ending
        self._open[run.engine.process.kind, run.record.partition, run.record.key].remove(run)

    def died(self, process: SimProcess) -> None:
        """A process was killed."""
        running = {run.place for run in self.open if run.engine.process is process}
        if len(running) < 2:
            self.deaths_alone.update(running or process.begins)

    # What has to be true when a call begins -------------------------------------------------------

    def _one_at_a_time(self, run: Run, others: Sequence[Run]) -> Iterator[str]:
        """No two tasks of a key run at once. Whoever owns a partition may begin while a process that
        lost it does not know yet, or while work that was cancelled is still ending elsewhere."""
        for other in others:
            process = other.engine.process
            if process is run.engine.process:
                yield f"{other} and {run} ran at once in one process"
            elif (
                run.is_claimed
                and other.is_claimed
                and not (process.dead or other.is_cancelled or self._is_lost(other))
            ):
                yield f"{other} and {run} ran at once"

    def _in_order(self, run: Run, others: Sequence[Run]) -> Iterator[str]:
        """All tasks of the key that stand before are committed, or have ended well in this engine
        since the partition is its own."""
        if not run.is_claimed:
            return
        for offset in self.broker.before(run.record):
            if self.broker.is_committed(run.engine.group, run.record.at, offset):
                continue
            if (run.engine.process.kind, run.record.partition, offset) in self.skipped:
                continue
            if (run.record.partition, offset, run.given_up, run.lost) not in run.engine.ended:
                yield f"{run} began before offset {offset} was done"

    def _nothing_twice(self, run: Run, others: Sequence[Run]) -> Iterator[str]:
        """A call is repeated only for a task that was not committed, and with a reason."""
        if not run.is_claimed:
            return
        if self.broker.is_committed(run.engine.group, run.record.at, run.record.offset):
            yield f"{run} was done already"
        for before in self._of[run.place]:
            if before.end >= 0 and not self._is_reason(before):
                yield f"{run} is called again, for no reason: {before.ending} in {before}"
        # What was a reason stays one: only calls that still run are looked at again.
        self._of[run.place] = [before for before in self._of[run.place] if before.end < 0]

    def _is_reason(self, before: Run) -> bool:
        """Whether what became of a call that has ended is a reason for another one."""
        if not before.is_claimed or before.ending in (Ending.AWAY, Ending.UNREADABLE):
            return True
        if before.engine.process.dead or before.engine.is_closed or self._is_lost(before):
            return True
        if self.broker.given_up[before.engine.group, before.record.at] == before.given_up:
            return False
        # Given up in good order: what has ended is committed first, if that can be done at all.
        was_aborted = self.broker.aborted_at.get(before.engine.producer, -1) > before.end
        was_interrupted = before.place in before.engine.process.interrupted
        return before.ending is Ending.CANCELLED or was_aborted or was_interrupted

    def _is_lost(self, run: Run) -> bool:
        return self.broker.lost[run.engine.group, run.record.at] > run.lost

    def _slots(self, run: Run, others: Sequence[Run]) -> Iterator[str]:
        """No more calls at once than there are slots."""
        busy = sum(one.engine is run.engine for one in self.open)
        if busy >= run.engine.slots:
            yield f"{run} is call {busy + 1} on {run.engine.slots} slots"


class RecordingHandler:
    """A worker's handler, with every call looked at. Some of its work can't be cancelled, as a thread
    can't: then its outcome comes late, and comes nevertheless."""

    def __init__(
        self, deliveries: Deliveries, process: SimProcess, group: str, slots: int, inner: Handler
    ) -> None:
        self._deliveries, self._inner = deliveries, inner
        self.process, self.group, self.slots = process, group, slots
        self.producer = f"{group}.{process.instance}"
        self.ended: set[tuple[int, int, int, int]] = set()
        """Partition and offset of what has its result, and how often the partition had changed hands
        when it began."""
        self.is_closed = False

    async def handle(self, record: Record, earlier: Earlier) -> Sequence[Outgoing]:
        """See `Handler`."""
        run = self._deliveries.begin(self, record)
        work = asyncio.ensure_future(self._inner.handle(record, earlier))
        ending = Ending.CANCELLED
        try:
            outputs = await self._unless_cancelled(run, work)
            run.outputs = len(outputs)
            ending = Ending.CANCELLED if run.is_cancelled else Ending.RESULT
            return outputs
        except AWAY:
            ending = Ending.AWAY
            raise
        except Exception as error:
            unreadable = isinstance(error, Undecodable) and not error.is_garbage
            ending = Ending.UNREADABLE if unreadable else Ending.FAILED
            ending = Ending.CANCELLED if run.is_cancelled else ending
            raise
        finally:
            self._deliveries.end(run, ending)
            if ending in (Ending.RESULT, Ending.FAILED):
                self.ended.add((record.partition, record.offset, run.given_up, run.lost))

    async def _unless_cancelled(
        self, run: Run, work: "asyncio.Future[Sequence[Outgoing]]"
    ) -> Sequence[Outgoing]:
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            run.is_cancelled = True
            if self.process.dead or self._deliveries.random.random() >= CLINGS:
                work.cancel()
                await asyncio.wait([work])
                raise
            return await work

    def gave_up(self, record: Record, reason: str) -> Sequence[Outgoing]:
        """See `Handler`."""
        broker, held = self._deliveries.broker, (self.group, record.at)
        self.ended.add((record.partition, record.offset, broker.given_up[held], broker.lost[held]))
        return self._inner.gave_up(record, reason)

    async def close(self) -> None:
        """See `Handler`."""
        self.is_closed = True
        if not self.process.dead:
            left = [str(run) for run in self._deliveries.open if run.engine is self]
            self._deliveries.problems += [f"{run} still ran when its engine had ended" for run in left]
        await self._inner.close()
