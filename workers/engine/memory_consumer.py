"""Reads topics of a broker in memory as a member of a consumer group, writes nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from codeconvoy.schemas.errors import BusError, Fenced
from codeconvoy.workers.engine.bus import Committed, GroupToken, RebalanceListener, Record, TopicPartition
from codeconvoy.workers.engine.limits import check_limits
from codeconvoy.workers.engine.memory_broker import Group, MemoryBroker, Token

YieldPoint = Callable[[str], Awaitable[None]]


async def let_others_run(name: str) -> None:
    """The yield point outside of simulations."""
    await asyncio.sleep(0)


def now() -> float:
    """The event loop's time, in seconds: virtual in a simulation."""
    return asyncio.get_running_loop().time()


class Wakers:
    """Wakes every client that waits for something to happen on the broker."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def wake(self) -> None:
        """Something happened."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, until: float) -> None:
        """Until something happens, or this time of the event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        timer = loop.call_at(until, lambda: None if future.done() else future.set_result(None))
        try:
            await future
        finally:
            timer.cancel()


@dataclass(frozen=True, slots=True)
class Process:
    """What all clients of one process share."""

    broker: MemoryBroker
    wakers: Wakers
    yield_point: YieldPoint


class MemoryConsumer:
    """A member of a consumer group."""

    def __init__(
        self, process: Process, group: str, topics: Sequence[str], listener: RebalanceListener, client_id: str
    ) -> None:
        self._process, self._group, self._topics = process, group, tuple(topics)
        self._listener, self.client_id = listener, client_id
        self.member = process.broker.new_member(client_id)
        self._rebalance: asyncio.Future[None] | None = None
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._joined = self._dead = self._closing = self._closed = False

    async def poll(self, max_records: int, timeout: float) -> Sequence[Record]:
        """See `Consumer.poll`."""
        deadline = now() + timeout
        while True:
            await self._point("poll")
            self._see_alive()
            await self._follow_group()
            if records := self._take(max_records):
                return records
            if now() >= deadline:
                return []
            await self._process.wakers.wait(self._wake_at(deadline))

    async def positions(self) -> Mapping[TopicPartition, int]:
        """See `Consumer.positions`."""
        await self._point("positions")
        self._see_alive()
        for at, offset in self._positions.items():
            # Past markers and aborted records, as a client's fetcher goes by itself.
            _, self._positions[at] = self._process.broker.log(at).read(offset, 0, now())
        return dict(self._positions)

    async def lag(self) -> Mapping[TopicPartition, int]:
        """See `Consumer.lag`."""
        broker = self._process.broker
        return {at: len(broker.log(at).entries) - offset for at, offset in self._positions.items()}

    async def group_token(self) -> GroupToken:
        """See `Consumer.group_token`."""
        await self._point("group_token")
        self._see_alive()
        if not self._joined or self.member not in self._state.members:
            raise Fenced("this consumer has not joined its group")
        return GroupToken(Token(self.member, self._state.generation))

    async def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """See `Consumer.commit`."""
        check_limits((), offsets)
        await self._point("commit")
        self._see_alive()
        if not self._joined:
            raise Fenced("this consumer has not joined its group")
        token = Token(self.member, self._state.generation)
        self._process.broker.commit_alone(self._group, token, offsets)
        # Who dies here has committed and does not know it.
        await self._point("committed")

    async def seek(self, partition: TopicPartition, offset: int) -> None:
        """See `Consumer.seek`."""
        await self._point("seek")
        self._see_alive()
        if partition not in self._positions:
            raise BusError(f"{partition} is not assigned")
        self._positions[partition] = offset

    async def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """See `Consumer.pause`."""
        await self._point("pause")
        self._paused |= set(partitions)

    async def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """See `Consumer.resume`."""
        await self._point("resume")
        self._paused -= set(partitions)
        self._process.wakers.wake()

    async def close(self) -> None:
        """See `Consumer.close`."""
        await self._point("close")
        if self._closing or self._dead:
            return
        self._closing = True
        if self._rebalance is not None:
            await asyncio.wait([self._rebalance])
        try:
            if self._positions and self.member in self._state.members:
                await self._listener.revoked(list(self._positions))
        finally:
            self._closed = True
            self._process.broker.leave(self._group, self.member)
            self._process.wakers.wake()

    def die(self) -> None:
        """The process is gone; the broker does not know yet."""
        self._dead = True
        if self._rebalance is not None:
            self._rebalance.cancel()

    def expire(self) -> None:
        """The session timeout: the broker takes the partitions away. A member that lives is told so
        in its next poll, and joins again."""
        self._process.broker.leave(self._group, self.member)
        self._process.wakers.wake()

    @property
    def _state(self) -> Group:
        return self._process.broker.groups[self._group]

    async def _point(self, name: str) -> None:
        await self._process.yield_point(f"consumer.{name}")

    def _see_alive(self) -> None:
        if self._dead or self._closed:
            raise Fenced(f"{self.member} is closed")

    async def _follow_group(self) -> None:
        """Take this member's part in a rebalance. It goes on when the poll is cancelled, as on Kafka,
        where it runs on another thread; the next poll waits for its end, or gets its error."""
        if self._rebalance is None and self._has_to_move():
            self._rebalance = asyncio.ensure_future(self._move())
        if self._rebalance is not None:
            await asyncio.shield(self._rebalance)
            self._rebalance = None
            self._see_alive()

    def _has_to_move(self) -> bool:
        if not self._joined or self.member not in self._state.members:
            return True
        return bool(self._state.to_give_up(self.member) or self._state.to_take(self.member))

    async def _move(self) -> None:
        broker = self._process.broker
        if self._joined and self.member not in self._state.members:
            self._joined = False
            if lost := list(self._positions):
                await self._listener.lost(lost)
            self._drop(lost)
        if not self._joined:
            broker.join(self._group, self.member, self._topics)
            self._joined = True
            self._process.wakers.wake()
        if leaving := self._state.to_give_up(self.member):
            await self._listener.revoked(leaving)
            self._drop(leaving)
            broker.give_up(self._group, self.member, leaving)
            self._process.wakers.wake()
        if coming := self._state.to_take(self.member):
            await self._take_over(coming)

    def _drop(self, partitions: Sequence[TopicPartition]) -> None:
        for at in partitions:
            self._positions.pop(at, None)
            self._paused.discard(at)

    async def _take_over(self, partitions: list[TopicPartition]) -> None:
        broker = self._process.broker
        for at in partitions:
            self._state.owner[at] = self.member
        while broker.is_unstable(self._group, partitions):
            await self._process.wakers.wait(now() + 1.0)
        committed = {at: self._state.committed.get(at) for at in partitions}
        starts = await self._listener.assigned(committed)
        self._positions |= {at: starts[at] for at in partitions}

    def _take(self, max_records: int) -> list[Record]:
        order = [at for at in self._positions if at not in self._paused]
        self._process.broker.random.shuffle(order)
        taken: list[Record] = []
        for at in order:
            records, position = self._process.broker.log(at).read(
                self._positions[at], max_records - len(taken), now()
            )
            self._positions[at] = position
            taken += records
        return taken

    def _wake_at(self, deadline: float) -> float:
        logs = [self._process.broker.log(at) for at in self._positions if at not in self._paused]
        times = [at for log in logs if (at := log.next_visible_at(now())) is not None]
        return min([deadline, *times])
