"""Reads one topic and the state in Redis, writes topics and the state: the fold engine.

Projector, detector and orchestrator are this loop around a pure step. For each batch:

    1. poll
    2. fold: load the states that are missing, step each record, collect the outputs
    3. first one Kafka transaction: outputs and consumed offset N; without outputs N alone is committed
    4. then states and offset M to Redis, in one request; each partition's are written as a whole. Steps
       1 and 2 of the next batch run meanwhile, which nobody sees; its step 3 waits

A crash between 3 and 4 leaves M < N: on assignment the engine folds M..N again, silently, and
goes live at N. So outputs and states both take effect exactly once. A write that is refused in
step 4, or a load in step 2 that finds another M, means that the partition, or Redis, was lost.
"""

import asyncio
import logging
import math
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import msgspec

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import Aborted, PartitionLost, TornState, Undecodable
from codeconvoy.workers.engine.bus import Bus, Committed, Consumer, Outgoing, Producer, Record, TopicPartition
from codeconvoy.workers.engine.dead_letter import letter_of
from codeconvoy.workers.engine.fold_consumer import FoldConsumer, FoldLimits, Stored
from codeconvoy.workers.engine.health import Health
from codeconvoy.workers.engine.kept import Kept
from codeconvoy.workers.engine.metrics import EngineMetrics
from codeconvoy.workers.engine.reads import in_parts
from codeconvoy.workers.engine.starts import readable
from codeconvoy.workers.engine.state import LIVE, StateStore, Write
from codeconvoy.workers.engine.stops import Stops
from codeconvoy.workers.tracing import OFF, Tracing, carried, context_in

S = TypeVar("S")

_DUE = "!due:"
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Partition:
    """What this process knows of a partition that it owns."""

    at: TopicPartition
    position: int
    """M: the next offset to fold, as stored."""
    live_from: int
    """N as it was at assignment: outputs of earlier records were committed before."""
    live_marked: bool = False
    due: dict[str, int] = field(default_factory=dict)
    stopped_at: int | None = None


@dataclass(slots=True)
class _Batch(Generic[S]):
    """What one turn of the loop brings about on one partition."""

    position: int
    states: dict[str, S] = field(default_factory=dict)
    before: dict[str, S | None] = field(default_factory=dict)
    outputs: list[Outgoing] = field(default_factory=list)
    records: int = 0
    duplicates: int = 0
    """Records that changed nothing: they were folded already."""


class FoldEngine(Generic[S]):
    """One consumer of one topic, as a loop."""

    def __init__(
        self,
        consumer: FoldConsumer[S],
        bus: Bus,
        store: StateStore,
        *,
        group: str,
        instance: str,
        codec: Codec,
        dead_letters: str,
        now: Callable[[], int],
        metrics: EngineMetrics,
        health: Health,
        limits: FoldLimits | None = None,
        nonce: str = "",
        tracing: Tracing = OFF,
        stored: Stored[S] | None = None,
    ) -> None:
        """`nonce` is what no other engine has, drawn at random where it is empty."""
        self._what = consumer
        self._bus, self._store = bus, store
        self._codec = codec
        self._group, self._instance, self._dead_letters = group, instance, dead_letters
        self._now, self._metrics, self._health = now, metrics, health
        self._tracing = tracing
        self._limits = limits or FoldLimits()
        self._stops = Stops(bus, dead_letters, health, metrics)
        self._stored = stored
        self._owner = f"{instance}/{nonce or uuid.uuid4().hex[:12]}"
        self._partitions: dict[int, _Partition] = {}
        self._states = Kept[S](self._limits.states, self._limits.state_bytes, consumer.weigh)
        self._heard_at = -math.inf
        self._storing: asyncio.Task[None] | None = None
        """Step 4 of the last batch, on its way."""
        self._told: dict[tuple[int, str], int] = {}
        """Waits that were reported already and whose fact has not come back yet."""

    async def run(self, stop: asyncio.Event) -> None:
        """Turn until told to stop. Leaves the group at the end, whatever happened.

        Raises:
            BusError: the process must start anew: it was fenced, or a partition's state is lost.
        """
        producer = await self._bus.producer(f"{self._group}.{self._instance}", self._group)
        consumer = self._bus.consumer(self._group, [self._what.topic], self, self._instance)
        last_tick = last_skip_check = 0.0
        clock = asyncio.get_running_loop().time
        try:
            while not stop.is_set():
                records = await consumer.poll(self._limits.batch, self._patience(clock()))
                began = clock()
                batches = await self._fold(records)
                if records:
                    self._heard_at = began
                elif self._awaits_markers(began):
                    await self._pass_markers(consumer, batches)
                if clock() - last_tick >= self._limits.tick_seconds:
                    last_tick = clock()
                    producer.check()
                    await self._see_kept(batches)
                    await self._tick(batches)
                    await self._pass_markers(consumer, batches)
                    self._metrics.lag.set(sum((await consumer.lag()).values()))
                if clock() - last_skip_check >= self._limits.skip_check_seconds and self._stops:
                    last_skip_check = clock()
                    await self._try_skip(consumer, batches)
                with self._metrics.commit_seconds.time() if batches else nullcontext():
                    await self._write(producer, consumer, batches)
                self._health.turned(progressed=bool(batches), behind=bool(records))
                if batches and len(records) < self._limits.batch:
                    await asyncio.sleep(max(0.0, began + self._limits.beat(len(records)) - clock()))
            await self._stored_all()
        finally:
            await self._give_up()
            await consumer.close()
            await producer.close()

    def _awaits_markers(self, now: float) -> bool:
        """After records the marker of their transaction comes. It wakes no poll, and readers wait for M
        to pass it."""
        return now - self._heard_at < self._limits.marker_seconds

    def _patience(self, now: float) -> float:
        """How long the next poll may wait for a record."""
        longest = self._limits.poll_seconds
        return min(self._limits.beat_seconds, longest) if self._awaits_markers(now) else longest

    # The rebalance listener -------------------------------------------------------------------

    async def assigned(
        self, committed: Mapping[TopicPartition, Committed | None]
    ) -> Mapping[TopicPartition, int]:
        """Take the partitions at M; what lies between M and N is folded silently."""
        starts: dict[TopicPartition, int] = {}
        for at, offsets in committed.items():
            position = await self._store.take(at.partition, self._owner)
            live_from = max(offsets.offset if offsets else 0, position)
            self._forget(at.partition)
            partition = _Partition(at, position, live_from)
            async for name, value in self._store.scan(at.partition, _DUE):
                partition.due[name.removeprefix(_DUE)] = int(value)
            self._partitions[at.partition] = partition
            starts[at] = position
            logger.info("assigned %s/%s from %s, live at %s", at.topic, at.partition, position, live_from)
        self._metrics.rebalances.inc()
        return await readable(self._bus, starts)

    async def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Each turn commits what it folded, so there is nothing left to commit."""
        await self._stored_all()
        for at in partitions:
            self._forget(at.partition)
            self._partitions.pop(at.partition, None)
            self._stops.forget(at)
        self._metrics.rebalances.inc()

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """The same: states that were not written are simply forgotten."""
        await self.revoked(partitions)

    def _forget(self, partition: int) -> None:
        self._states.forget(partition)
        for told in [told for told in self._told if told[0] == partition]:
            del self._told[told]

    # One turn ---------------------------------------------------------------------------------

    async def _fold(self, records: Sequence[Record]) -> dict[int, _Batch[S]]:
        """Step 2: fold the records of each partition in order."""
        batches: dict[int, _Batch[S]] = {}
        await self._load(dict.fromkeys((record.partition, record.key) for record in records))
        for record in records:
            partition = self._partitions.get(record.partition)
            if partition is None or partition.stopped_at is not None:
                continue
            batch = batches.get(record.partition)
            if batch is None:
                batch = batches[record.partition] = _Batch(partition.position)
            if record.offset < batch.position:
                continue
            try:
                self._step(partition, batch, record)
            except Undecodable as undecodable:
                if not undecodable.is_garbage:
                    self._stop(partition, record, undecodable)
                    continue
                self._metrics.dead_letters.inc()
                if record.offset >= partition.live_from:
                    letter = letter_of(
                        self._codec, self._dead_letters, record, undecodable, self._group, self._now()
                    )
                    batch.outputs.extend(carried([letter], context_in(record.headers)))
            batch.position = record.offset + 1
        for number, batch in batches.items():
            if batch.position >= self._partitions[number].live_from:
                for key, state in batch.states.items():
                    self._ask_due(number, key, state, batch)
        return {
            number: batch
            for number, batch in batches.items()
            if batch.position > self._partitions[number].position
        }

    def _step(self, partition: _Partition, batch: _Batch[S], record: Record) -> None:
        key = record.key
        known = batch.states.get(key)
        before = known if known is not None else self._states[partition.at.partition, key]
        is_live = record.offset >= partition.live_from
        if is_live and record.headers:
            # What is written because of a record belongs to the record's trace.
            with self._tracing.within(record.headers):
                state, outputs = self._what.step(before, record, self._now())
            outputs = carried(outputs, context_in(record.headers))
        else:
            state, outputs = self._what.step(before, record, self._now())
        if known is None:
            batch.before[key] = before
        if state is before:
            batch.duplicates += 1
        batch.states[key] = state
        told = partition.at.partition, key
        if told in self._told and self._what.wait(state) != self._told[told]:
            del self._told[told]  # its fact has come back: the next wait may be until the same time
        batch.records += 1
        if is_live:
            batch.outputs.extend(outputs)

    async def _load(self, wanted: Iterable[tuple[int, str]]) -> None:
        """Have these keys' states in memory, and see that the stored ones are this process's own."""
        missing: dict[int, list[str]] = {}
        for number, key in wanted:
            if (number, key) in self._states:
                self._states.use((number, key))
            elif number in self._partitions:
                missing.setdefault(number, []).append(key)
        if missing:
            await self._stored_all()
        await asyncio.gather(*(self._load_from(number, keys) for number, keys in missing.items()))

    async def _load_from(self, number: int, keys: Sequence[str]) -> None:
        read = in_parts(partial(self._read, self._partitions[number]))
        try:
            states = await self._what.load(keys, read)
        except (TornState, msgspec.DecodeError) as damage:
            # The log has it all: what is stored is given up, and folded anew from there.
            await self._store.discard(number, self._owner)
            raise PartitionLost(f"partition {number}: {damage}") from damage
        for key, state in states.items():
            self._states[number, key] = state

    async def _read(self, partition: _Partition, fields: Sequence[str]) -> Sequence[bytes | None]:
        loaded = await self._store.load(partition.at.partition, fields)
        if (loaded.offset, loaded.owner) != (partition.position, self._owner):
            raise PartitionLost(
                f"{partition.at}: the state is at {loaded.offset} of {loaded.owner!r}, "
                f"this process is at {partition.position}"
            )
        return loaded.fields

    async def _see_kept(self, batches: Mapping[int, _Batch[S]]) -> None:
        """See that the states of idle partitions are still there: nobody else would notice that they
        were lost, and readers would wait for ever."""
        await self._stored_all()
        idle = [one for number, one in self._partitions.items() if number not in batches]
        await asyncio.gather(*(self._read(partition, ()) for partition in idle))

    async def _tick(self, batches: dict[int, _Batch[S]]) -> None:
        """Report waits that have run out, of states that no record of this turn was about."""
        now = self._now()
        for number, partition in self._partitions.items():
            batch = batches.get(number) or _Batch(partition.position)
            if partition.position < partition.live_from:
                continue
            late = [
                key
                for key, when in partition.due.items()
                if when <= now and key not in batch.states and self._is_news(number, key, when)
            ]
            await self._load((number, key) for key in late)
            for key in late:
                self._ask_due(number, key, self._states[number, key], batch)
            if batch.outputs:
                batches[number] = batch

    def _ask_due(self, number: int, key: str, state: S, batch: _Batch[S]) -> None:
        """Report a wait that has run out, once; the fact counts when it is folded."""
        when, now = self._what.wait(state), self._now()
        if when is not None and when <= now and self._is_news(number, key, when):
            self._told[number, key] = when
            batch.outputs.extend(self._what.due(key, state, now))

    def _is_news(self, number: int, key: str, when: int) -> bool:
        """True for a wait that was not reported yet."""
        return self._told.get((number, key)) != when

    async def _pass_markers(self, consumer: Consumer, batches: dict[int, _Batch[S]]) -> None:
        """Let M pass transaction markers, so that whoever waits for M at the end is not stuck."""
        for at, position in (await consumer.positions()).items():
            partition = self._partitions.get(at.partition)
            if partition is None or partition.stopped_at is not None or at.partition in batches:
                continue
            if position > partition.position:
                batches[at.partition] = _Batch(position)

    async def _write(self, producer: Producer, consumer: Consumer, batches: dict[int, _Batch[S]]) -> None:
        """Step 3, and step 4 begun."""
        await self._stored_all()
        batches = {number: batch for number, batch in batches.items() if number in self._partitions}
        live = {
            self._partitions[number].at: Committed(batch.position)
            for number, batch in batches.items()
            if batch.position >= self._partitions[number].live_from
        }
        outputs = self._what.together([output for batch in batches.values() for output in batch.outputs])
        if outputs:
            await self._transaction(producer, consumer, outputs, live)
        elif live:
            await self._commit(producer, consumer, live)
        if batches:
            news = self._news(batches)
            self._storing = asyncio.create_task(self._keep(self._passed(batches), news))

    async def _commit(
        self, producer: Producer, consumer: Consumer, offsets: Mapping[TopicPartition, Committed]
    ) -> None:
        """Write N, where there is nothing to be true together with it."""
        try:
            await consumer.commit(offsets)
        except Aborted:
            self._metrics.aborts.inc()
            await self._transaction(producer, consumer, (), offsets)

    async def _transaction(
        self,
        producer: Producer,
        consumer: Consumer,
        outputs: Sequence[Outgoing],
        offsets: Mapping[TopicPartition, Committed],
    ) -> None:
        """Write the outputs and N. Aborted ones are sent again, from the same memory."""
        for attempt in range(self._limits.transaction_attempts):
            try:
                token = await consumer.group_token()
                await producer.transaction(outputs, offsets, self._group, token)
            except Aborted:
                self._metrics.aborts.inc()
                if attempt + 1 == self._limits.transaction_attempts:
                    raise
            else:
                self._metrics.transactions.inc()
                self._metrics.outputs.inc(len(outputs))
                return

    async def _keep(self, writes: Sequence[Write], news: Mapping[str, tuple[S | None, S]]) -> None:
        """Step 4."""
        if writes:
            await self._store.commit(self._owner, writes)
        if self._stored is not None and news:
            await self._stored(news)

    async def _stored_all(self) -> None:
        """Wait until step 4 of the last batch is done.

        Raises:
            PartitionLost, Unavailable: it was refused, or failed. Nothing was committed since.
        """
        storing, self._storing = self._storing, None
        if storing is not None:
            await storing

    async def _give_up(self) -> None:
        """Leave step 4 undone where this process fails: the next owner repeats it from the log."""
        storing, self._storing = self._storing, None
        if storing is not None:
            storing.cancel()
            await asyncio.gather(storing, return_exceptions=True)

    def _passed(self, batches: Mapping[int, _Batch[S]]) -> list[Write]:
        """Go on behind these batches. What of them is to be written."""
        writes = []
        for number, batch in batches.items():
            partition = self._partitions[number]
            changes = self._changes(partition, batch)
            if batch.position > partition.position or changes:
                writes.append(Write(number, partition.position, batch.position, changes))
            partition.position = batch.position
            partition.live_marked = batch.position >= partition.live_from
            for key, state in batch.states.items():
                wait = self._what.wait(state)
                if wait is not None:
                    partition.due[key] = wait
                else:
                    partition.due.pop(key, None)
                self._states[number, key] = state
            self._metrics.records.inc(batch.records)
            self._metrics.duplicates.inc(batch.duplicates)
            self._metrics.batch.observe(batch.records)
        self._states.shrink()
        return writes

    def _news(self, batches: Mapping[int, _Batch[S]]) -> Mapping[str, tuple[S | None, S]]:
        """The states that `_stored` is told of: none that are just caught up with."""
        if self._stored is None:
            return {}
        live = [
            batch
            for number, batch in batches.items()
            if self._partitions[number].position >= self._partitions[number].live_from
        ]
        return {key: (batch.before[key], state) for batch in live for key, state in batch.states.items()}

    def _changes(self, partition: _Partition, batch: _Batch[S]) -> Mapping[str, bytes | None]:
        """The fields that a batch changes."""
        changes: dict[str, bytes | None] = {}
        for key, state in batch.states.items():
            changes.update(self._what.dump(key, batch.before[key], state))
            wait = self._what.wait(state)
            if wait != partition.due.get(key):
                changes[_DUE + key] = None if wait is None else str(wait).encode()
        if batch.position >= partition.live_from and not partition.live_marked:
            changes[LIVE] = b"1"
        return changes

    # Partitions that can't go on ----------------------------------------------------------------

    def _stop(self, partition: _Partition, record: Record, undecodable: Undecodable) -> None:
        """Stop visibly: skipping a record that others may be able to read would make replicas differ."""
        partition.stopped_at = record.offset
        self._stops.add(partition.at, record.offset, undecodable)

    async def _try_skip(self, consumer: Consumer, batches: dict[int, _Batch[S]]) -> None:
        """Go on behind a record that an operator has skipped for all replicas, on the log."""
        for at, offset in (await self._stops.skipped()).items():
            partition = self._partitions[at.partition]
            partition.stopped_at = None
            batch = batches.setdefault(at.partition, _Batch(partition.position))
            batch.position = offset + 1
            await consumer.seek(at, offset + 1)
