"""Reads and writes what the engines do, wrongly: bugs that the simulation has to find.

Each is a mistake that was made, or is easily made, in an engine of this kind.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from codeconvoy.workers.engine import pool_engine
from codeconvoy.workers.engine.bus import Committed, Consumer, Outgoing, Producer, Record, TopicPartition
from codeconvoy.workers.engine.fold_engine import FoldEngine
from codeconvoy.workers.engine.offsets import Offsets, encode
from codeconvoy.workers.engine.pool_engine import PoolEngine
from tests.simulation.fleet import Engines


class StateFirst(FoldEngine[Any]):
    """Writes the state before the outputs: a crash between the two loses the outputs."""

    async def _write(self, producer: Producer, consumer: Consumer, batches: dict[int, Any]) -> None:
        batches = {number: batch for number, batch in batches.items() if number in self._partitions}
        live = {
            self._partitions[number].at: Committed(batch.position)
            for number, batch in batches.items()
            if batch.position >= self._partitions[number].live_from
        }
        for number, batch in batches.items():
            await self._store_batch(self._partitions[number], batch)
        outputs = [output for batch in batches.values() for output in batch.outputs]
        if live or outputs:
            await self._transaction(producer, consumer, outputs, live)


class LoudCatchUp(FoldEngine[Any]):
    """Writes outputs again for what was folded before its assignment."""

    async def assigned(
        self, committed: Mapping[TopicPartition, Committed | None]
    ) -> Mapping[TopicPartition, int]:
        starts = await super().assigned(committed)
        for partition in self._partitions.values():
            partition.live_from = partition.position
        return starts


class BlindLoad(FoldEngine[Any]):
    """Takes a state that it loads for its own, whosever it is, and though all else was lost."""

    async def _read(self, partition: Any, fields: Sequence[str]) -> Sequence[bytes | None]:
        return (await self._store.load(partition.at.partition, fields)).fields


class AnyEpoch(PoolEngine):
    """Commits a result of an earlier assignment: its partition was away, and somebody else did it."""

    def _is_current(self, record: Record, epoch: int) -> bool:
        return record.partition in self._assigned


class NoTombstone(PoolEngine):
    """Forgets a key while its task still runs."""

    async def _cancel(self, keys: Sequence[pool_engine.Key], seconds: float | None) -> None:
        for key in keys:
            lane = self._lanes.pop(key, None)
            if lane is not None and lane.running is not None:
                lane.running.cancel()


class GapOffsets(Offsets):
    """Commits the highest offset that is done, not the lowest that is not."""

    def commit(self) -> tuple[int, str]:
        self.base = max([self.base, *(offset + 1 for offset in self.done)])
        return self.base, encode(self.base, set())


class GapCommitted(PoolEngine):
    """Commits over a task that is not done."""

    async def assigned(
        self, committed: Mapping[TopicPartition, Committed | None]
    ) -> Mapping[TopicPartition, int]:
        starts = await super().assigned(committed)
        for at in committed:
            found = self._assigned[at.partition].offsets
            self._assigned[at.partition].offsets = GapOffsets(found.base, found.done, found.skipped_to)
        return starts


class CommitFirst(PoolEngine):
    """Commits the offsets, and then writes the outputs."""

    async def _transaction(
        self, outputs: Sequence[Outgoing], offsets: Mapping[TopicPartition, Committed]
    ) -> None:
        await super()._transaction((), offsets)
        await super()._transaction(outputs, {})


PLANTED: Mapping[str, Engines] = {
    "state before output": Engines(fold=StateFirst),
    "outputs written again on catching up": Engines(fold=LoudCatchUp),
    "somebody else's state loaded": Engines(fold=BlindLoad),
    "result of an earlier assignment": Engines(pool=AnyEpoch),
    "forgotten tombstone": Engines(pool=NoTombstone),
    "gap committed": Engines(pool=GapCommitted),
    "commit before produce": Engines(pool=CommitFirst),
}
