"""Reads `events` and `jobs`, writes the projection in Redis: rebuilds it from the log, beside the live one.

A partition at a time: the log is folded into a shadow of the partition's hash by the projector's own
fold; once the shadow stands at the offset of the live state the two are compared byte for byte, and
the shadow takes its place in one atomic step. Readers and the projector go on meanwhile. Where there
is no live state, or it has not reached the end of its log, the rebuilt one takes its place as it is.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.orchestrator.log_reader import LogReader, Progress
from codeconvoy.schemas.errors import Unavailable, Undecodable
from codeconvoy.workers.engine.bus import Record, TopicPartition
from codeconvoy.workers.engine.dead_letter import skipped_points
from codeconvoy.workers.engine.fold_consumer import FoldConsumer
from codeconvoy.workers.engine.kept import Kept
from codeconvoy.workers.engine.reads import in_parts
from codeconvoy.workers.engine.state import LIVE, OFFSET, RedisStore, Write
from codeconvoy.workers.projector import FileProjector, JobProjector

BATCH = 500
STATES, STATE_BYTES = 4_000, 2**28
"""States kept in memory, and about how many bytes of them."""
ATTEMPTS = 200
"""To switch: the live state moves on between a look at it and the switch."""
MAX_LISTED = 20
"""Differences that are named; all are counted."""

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of one partition of one projection."""

    projection: str
    partition: int
    offset: int
    """M, of the state that is live now."""
    compared: bool
    """False where there was no live state to compare with."""
    differences: int = 0
    fields: tuple[str, ...] = ()
    """Those that differed, the first `MAX_LISTED`."""


async def rebuild(fleet: Fleet, progress: Progress) -> Sequence[Rebuilt]:
    """Rebuild both projections, all partitions.

    Raises:
        Unavailable: broker or log can't be read, or a record is of an unknown schema.
    """
    skipped = await skipped_points(fleet.bus, fleet.topics.dead_letters)
    reader = fleet.bus.reader()
    log = LogReader(reader, fleet.codec, fleet.topics, progress)
    found: list[Rebuilt] = []
    try:
        for number in range(fleet.topics.partitions):
            files = FileProjector(fleet.codec, fleet.topics)
            found.append(await _Rebuild(fleet, log, files, number, skipped).run())
            jobs = JobProjector(fleet.codec, fleet.topics)
            found.append(await _Rebuild(fleet, log, jobs, number, skipped).run())
    finally:
        await reader.close()
    return sorted(found, key=lambda each: (each.projection, each.partition))


async def length(fleet: Fleet) -> int:
    """Offsets that a rebuild will pass, about."""
    reader = fleet.bus.reader()
    try:
        log = LogReader(reader, fleet.codec, fleet.topics)
        logs = (fleet.topics.events, fleet.topics.jobs)
        return sum([sum((await log.ends(topic)).values()) for topic in logs])
    finally:
        await reader.close()


class _Rebuild(Generic[S]):
    """The rebuild of one partition of one projection."""

    def __init__(
        self,
        fleet: Fleet,
        log: LogReader,
        consumer: FoldConsumer[S],
        partition: int,
        skipped: set[tuple[str, int, int]],
    ) -> None:
        self._log, self._what, self._skipped = log, consumer, skipped
        self._at = TopicPartition(consumer.topic, partition)
        self._number, self._now = partition, fleet.now
        self._live = fleet.store(consumer.name)
        self._shadow: RedisStore = self._live.shadow()
        self._owner = f"rebuild/{uuid.uuid4().hex[:12]}"
        self._position = 0
        self._states = Kept[S](STATES, STATE_BYTES, consumer.weigh)
        """The latest ones; nobody else writes the shadow."""

    async def run(self) -> Rebuilt:
        """Fold the log, compare, switch."""
        await self._shadow.drop(self._number)
        await self._shadow.take(self._number, self._owner)
        end = (await self._log.ends(self._what.topic))[self._number]
        live = await self._live.load(self._number, [LIVE])
        if end == 0 and live.offset == 0:
            await self._shadow.drop(self._number)
            return self._result(compared=False)
        if live.fields[0] is None:
            await self._fold_to(end)
            if await self._live.put(self._number):
                return self._result(compared=False)
            live = await self._live.load(self._number, [LIVE])  # it has caught up meanwhile
        # The shadow first catches up, so that the live state does not get far ahead of the copy of it.
        await self._fold_to(live.offset)
        there = await self._live.snapshot(self._number)
        await self._fold_to(int(there[OFFSET]))
        differing = _differing(there, await self._shadow.snapshot(self._number))
        for _ in range(ATTEMPTS):
            ahead = await self._live.switch(self._number, keep_owner=not differing)
            if ahead is None:
                return self._result(compared=True, differing=differing)
            await self._fold_to(ahead)
        raise Unavailable(
            "projection", "it moves faster than it can be rebuilt", "Try again when less happens"
        )

    async def _fold_to(self, end: int) -> None:
        """Have the shadow at this M.

        Raises:
            Unavailable: the live state is behind what was folded: its log or Redis was exchanged.
        """
        if end < self._position:
            reason = f"the live state of {self._at.topic}/{self._number} went back to {end}"
            raise Unavailable("projection", reason, "Try again")
        batch: list[Record] = []
        async for record in self._log.records(self._at, self._position, end):
            batch.append(record)
            if len(batch) == BATCH:
                await self._write(batch, record.offset + 1)
                batch = []
        await self._write(batch, end)

    async def _write(self, batch: Sequence[Record], offset: int) -> None:
        """Fold a batch into the shadow."""
        await self._load(list(dict.fromkeys(record.key for record in batch)))
        after: dict[str, S] = {}
        for record in batch:
            try:
                state = after.get(record.key, self._state(record.key))
                after[record.key], _ = self._what.step(state, record, self._now())
            except Undecodable as undecodable:
                self._check_passed(record, undecodable)
        changes: dict[str, bytes | None] = {LIVE: b"1"}
        for key, state in after.items():
            changes.update(self._what.dump(key, self._state(key), state))
        write = Write(self._number, self._position, offset, changes)
        await self._shadow.commit(self._owner, [write])
        self._position = offset
        for key, state in after.items():
            self._states[self._number, key] = state
        self._states.shrink()

    async def _load(self, keys: Sequence[str]) -> None:
        """Have these states in memory."""
        missing = [key for key in keys if (self._number, key) not in self._states]
        for key, state in (await self._what.load(missing, in_parts(self._read))).items():
            self._states[self._number, key] = state

    def _state(self, key: str) -> S:
        return self._states[self._number, key]

    async def _read(self, fields: Sequence[str]) -> Sequence[bytes | None]:
        return (await self._shadow.load(self._number, fields)).fields

    def _check_passed(self, record: Record, undecodable: Undecodable) -> None:
        """See that the projector passes over this record too."""
        point = (record.topic, record.partition, record.offset)
        if not undecodable.is_garbage and point not in self._skipped:
            remedy = "Upgrade codeconvoy, or skip it everywhere with `convoy dlq skip`"
            raise Unavailable(f"{record.topic}/{record.partition}/{record.offset}", str(undecodable), remedy)

    def _result(self, *, compared: bool, differing: Sequence[str] = ()) -> Rebuilt:
        return Rebuilt(
            projection=self._what.name,
            partition=self._number,
            offset=self._position,
            compared=compared,
            differences=len(differing),
            fields=tuple(differing[:MAX_LISTED]),
        )


def _differing(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> list[str]:
    """The fields in which two snapshots of a partition differ, sorted."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
