"""Reads and writes what the engines do, wrongly: bugs that the simulation has to find.

Each is a mistake that was made, or is easily made, in an engine of this kind.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from codeconvoy.schemas.errors import Aborted, Undecodable
from codeconvoy.workers.engine.attempts import At, Attempt, Attempts
from codeconvoy.workers.engine.bus import (
    Committed,
    Consumer,
    GroupToken,
    Outgoing,
    Producer,
    Record,
    TopicPartition,
)
from codeconvoy.workers.engine.fold_engine import FoldEngine
from codeconvoy.workers.engine.lanes import Job, Lane, Lanes
from codeconvoy.workers.engine.offsets import Offsets, encode
from codeconvoy.workers.engine.pool_engine import PoolEngine
from codeconvoy.workers.engine.results import Fate, Result, Results
from codeconvoy.workers.engine.state import Write
from tests.simulation.engine_world import WENT_ON
from tests.simulation.world import NEVER, Engines

Offers = Mapping[TopicPartition, Committed | None]

# The fold engine ----------------------------------------------------------------------------------


class StateFirst(FoldEngine[Any]):
    """Writes the state before the outputs: a crash between the two loses the outputs."""

    async def _write(self, producer: Producer, consumer: Consumer, batches: dict[int, Any]) -> None:
        mine = {number: batch for number, batch in batches.items() if number in self._partitions}
        await self._keep(FoldEngine._passed(self, mine), {})
        await super()._write(producer, consumer, batches)

    def _passed(self, batches: Mapping[int, Any]) -> list[Write]:
        """Done already."""
        return []


class LoudCatchUp(FoldEngine[Any]):
    """Writes outputs again for what was folded before its assignment."""

    async def assigned(self, committed: Offers) -> Mapping[TopicPartition, int]:
        starts = await super().assigned(committed)
        for partition in self._partitions.values():
            partition.live_from = partition.position
        return starts


class BlindLoad(FoldEngine[Any]):
    """Takes a state that it loads for its own, whosever it is, and though all else was lost."""

    async def _read(self, partition: Any, fields: Sequence[str]) -> Sequence[bytes | None]:
        return (await self._store.load(partition.at.partition, fields)).fields


class BlindWrite(FoldEngine[Any]):
    """Puts its state over whatever is stored."""

    async def _keep(self, writes: Sequence[Write], news: Mapping[str, Any]) -> None:
        taken = [
            replace(write, expected=await self._store.take(write.partition, self._owner)) for write in writes
        ]
        await super()._keep(taken, news)


class NeverLooks(FoldEngine[Any]):
    """Does not notice that the state of an idle partition is gone."""

    async def _see_kept(self, batches: Mapping[int, Any]) -> None:
        """Nothing."""


class LostOutputs(FoldEngine[Any]):
    """Takes an aborted transaction for done."""

    async def _transaction(
        self,
        producer: Producer,
        consumer: Consumer,
        outputs: Sequence[Outgoing],
        offsets: Mapping[TopicPartition, Committed],
    ) -> None:
        with contextlib.suppress(Aborted):
            await producer.transaction(outputs, offsets, self._group, await consumer.group_token())


class LostWaits(FoldEngine[Any]):
    """Forgets, when it takes a partition over, what waits for a time."""

    async def assigned(self, committed: Offers) -> Mapping[TopicPartition, int]:
        starts = await super().assigned(committed)
        for at in committed:
            self._partitions[at.partition].due.clear()
        return starts


class FoldSkipsUnknown(FoldEngine[Any]):
    """Goes on over a record that a later version may be able to read."""

    def _stop(self, partition: Any, record: Record, undecodable: Undecodable) -> None:
        """Nothing."""


# The pool engine ----------------------------------------------------------------------------------


class AnyEpoch(PoolEngine):
    """Commits a result of an earlier assignment: its partition was away, and somebody else did it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._results.__class__ = AnyEpochResults


class AnyEpochResults(Results):
    def _is_current(self, result: Result) -> bool:
        return result.job.record.partition in self._assigned


class NoTombstone(PoolEngine):
    """Forgets a key while its task still runs."""

    async def _leave(self, partitions: Sequence[int], seconds: float | None) -> None:
        self._lanes.clear(partitions)
        for lane in list(self._lanes.in_flight(partitions)):
            if lane.task is not None:
                lane.task.cancel()
                self._lanes.ended(lane, lane.task)


class GapCommitted(PoolEngine):
    """Commits over a task that is not done."""

    async def assigned(self, committed: Offers) -> Mapping[TopicPartition, int]:
        starts = await super().assigned(committed)
        for at in committed:
            found = self._assigned[at.partition].offsets
            self._assigned[at.partition].offsets = GapOffsets(found.base, found.read_to, found.done)
        return starts


class GapOffsets(Offsets):
    """Commits the highest offset that is done, not the lowest that is not."""

    def point(self, also: Collection[int] = ()) -> Committed:
        done = [offset + 1 for offset in self.done.union(also)]
        base = max(self.base, *done, 0) if self.open.difference(also) else self.read_to
        return Committed(base, encode(base, set()))


class MapForgotten(PoolEngine):
    """Does again what was done out of order."""

    async def assigned(self, committed: Offers) -> Mapping[TopicPartition, int]:
        return await super().assigned(
            {at: Committed(found.offset) if found else None for at, found in committed.items()}
        )


class SplitCommit(PoolEngine):
    """Outputs and offsets in two transactions."""

    offsets_first: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._results.__class__ = SplitResults
        self._results.offsets_first = self.offsets_first  # type: ignore[attr-defined]


class SplitResults(Results):
    offsets_first: bool

    def open(self, producer: Producer, consumer: Consumer) -> None:
        super().open(SplitProducer(producer, self.offsets_first), consumer)


@dataclass
class SplitProducer:
    """Makes two transactions of one."""

    inner: Producer
    offsets_first: bool

    def check(self) -> None:
        self.inner.check()

    async def transaction(
        self,
        outputs: Sequence[Outgoing],
        offsets: Mapping[TopicPartition, Committed] | None = None,
        group: str = "",
        token: GroupToken | None = None,
    ) -> None:
        if self.offsets_first:
            await self.inner.transaction((), offsets, group, token)
        await self.inner.transaction(outputs)
        if not self.offsets_first:
            await self.inner.transaction((), offsets, group, token)

    async def close(self) -> None:
        await self.inner.close()


class CommitFirst(SplitCommit):
    """Commits the offsets, and then writes the outputs."""

    offsets_first = True


class ProduceFirst(SplitCommit):
    """Writes the outputs, and then commits the offsets."""

    offsets_first = False


class RetryHoldsSlot(PoolEngine):
    """A task that waits for its retry holds its slot."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lanes.__class__ = SlotLanes


class SlotLanes(Lanes):
    def again(self, lane: Lane, until: float) -> None:
        super().again(lane, until)
        self.running += 1

    def _free(self, lane: Lane) -> None:
        super()._free(lane)
        self.running -= 1


class NoOrder(PoolEngine):
    """Begins a key's next task while one runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lanes.__class__ = HastyLanes


class HastyLanes(Lanes):
    def add(self, job: Job) -> None:
        partition, offset = job.at
        lane = self._lanes[partition, f"{job.record.key}/{offset}"] = Lane((partition, f"/{offset}"))
        lane.waiting.append(job)
        self.waiting += 1
        self.bytes += len(job.record.value)
        self._queue(lane)


class CallsAgain(PoolEngine):
    """Does a task again when its transaction was aborted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._results.__class__ = ForgetfulResults
        self._results.lanes = self._lanes  # type: ignore[attr-defined]


class ForgetfulResults(Results):
    lanes: Lanes

    async def _write(self, results: Sequence[Result], token: GroupToken) -> Fate:
        fate = await super()._write(results, token)
        if fate is not Fate.COMMITTED:
            self._forget(results)
            for result in results:
                self.lanes.add(result.job)
        return fate


class OneHoldsAll(PoolEngine):
    """Writes all together or not at all: an output that is refused holds the others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._results.__class__ = AllOrNothing


class AllOrNothing(Results):
    async def _pass(self) -> bool:
        token = await self._token()
        return token is not None and await self._write(self._waiting, token) is Fate.COMMITTED


class PoolSkipsUnknown(PoolEngine):
    """Goes on over a record that a later version may be able to read."""

    def _stop(self, job: Job, undecodable: Undecodable) -> Sequence[Job]:
        self._results.add(Result(job, ()))
        return ()


class NotCounted(PoolEngine):
    """Does not count a start before it: what kills its process is begun for ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "attempts": Uncounted(kwargs["attempts"])})


@dataclass
class Uncounted:
    """Notes nothing."""

    inner: Attempts

    async def begin(self, starts: Sequence[At]) -> Mapping[At, Attempt]:
        return {}

    async def note(self, at: At, attempt: Attempt) -> None:
        """Nothing."""

    async def strike_out(self, done: Sequence[At]) -> None:
        """Nothing."""


class BystandersCount(PoolEngine):
    """Holds a death against everything that was in flight."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "attempts": AlwaysAlone(kwargs["attempts"])})


@dataclass
class AlwaysAlone:
    """Takes every death for one alone."""

    inner: Attempts

    async def begin(self, starts: Sequence[At]) -> Mapping[At, Attempt]:
        found = await self.inner.begin(starts)
        return {at: attempt.in_flight(alone=True) for at, attempt in found.items()}

    async def note(self, at: At, attempt: Attempt) -> None:
        await self.inner.note(at, attempt)

    async def strike_out(self, done: Sequence[At]) -> None:
        await self.inner.strike_out(done)


@dataclass(frozen=True, slots=True)
class Bug:
    """A bug, and by which checks it shows: what breaks everything would teach nothing."""

    engines: Engines
    shows: Sequence[str]


PLANTED: Mapping[str, Bug] = {
    "state before output": Bug(Engines(fold=StateFirst), ["_counts"]),
    "outputs written again on catching up": Bug(Engines(fold=LoudCatchUp), ["_counts"]),
    "somebody else's state loaded": Bug(Engines(fold=BlindLoad), ["_counts", "_states"]),
    "state written over somebody else's": Bug(Engines(fold=BlindWrite), ["_counts", "_states"]),
    "lost state of an idle partition": Bug(Engines(fold=NeverLooks), ["_states"]),
    "aborted outputs forgotten": Bug(Engines(fold=LostOutputs), ["_counts"]),
    "waits forgotten": Bug(Engines(fold=LostWaits), [NEVER]),
    "unknown schema skipped by a fold": Bug(Engines(fold=FoldSkipsUnknown), [WENT_ON]),
    "result of an earlier assignment": Bug(Engines(pool=AnyEpoch), ["_effects"]),
    "forgotten tombstone": Bug(Engines(pool=NoTombstone), ["_one_at_a_time"]),
    "gap committed": Bug(Engines(pool=GapCommitted), ["_effects"]),
    "done offsets forgotten": Bug(Engines(pool=MapForgotten), ["_nothing_twice", "_effects"]),
    "commit before produce": Bug(Engines(pool=CommitFirst), ["_effects"]),
    "produce before commit": Bug(Engines(pool=ProduceFirst), ["_effects"]),
    "retry holding the slot": Bug(Engines(pool=RetryHoldsSlot), [NEVER]),
    "two tasks of a key at once": Bug(Engines(pool=NoOrder), ["_one_at_a_time"]),
    "call repeated after an abort": Bug(Engines(pool=CallsAgain), ["_nothing_twice"]),
    "refused output holding a group commit": Bug(Engines(pool=OneHoldsAll), [NEVER]),
    "unknown schema skipped by a pool": Bug(Engines(pool=PoolSkipsUnknown), [WENT_ON]),
    "start not counted": Bug(Engines(pool=NotCounted), [NEVER]),
    "bystander dead-lettered": Bug(Engines(pool=BystandersCount), ["_bystanders"]),
}
