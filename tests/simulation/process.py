"""Reads and writes a bus and stores on behalf of the code under test: one simulated process.

Whatever a process does to the world goes through `point`: there it can be killed, paused, or made
to wait. A killed process does nothing any more: each of its tasks ends at its next point, and what
it left open is noticed by the broker only after a while.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import Any

from codeconvoy.schemas.errors import PartitionLost, Unavailable
from codeconvoy.workers.engine.attempts import At, Attempt, Attempts
from codeconvoy.workers.engine.memory_bus import MemoryBus
from codeconvoy.workers.engine.state import Loaded, MemoryStore, StateStore, Write
from tests.simulation.services import Notes

CURRENT: ContextVar["SimProcess | None"] = ContextVar("process", default=None)
"""The process whose code runs."""
SLOW_POINTS = 0.02
"""Share of the points that take time."""
FLAKY_POINTS = frozenset({"reader.watermarks", "bus.producer"})
"""Where a broker that is away for a moment is met."""


class Killed(BaseException):
    """SIGKILL, as far as Python can feel it."""


@dataclass(slots=True)
class Weather:
    """What the services of the whole fleet are like at the moment."""

    random: Random
    store_fails: float = 0.0
    """Share of the calls of a store that fail; some of those after they took effect."""
    broker_fails: float = 0.0
    points: int = 0
    """How many points all processes have come to."""
    strike_at: int = 0
    """The point at which the process that comes to it is struck; 0 is none."""
    strike: "Callable[[SimProcess], None]" = lambda process: None


@dataclass(slots=True, eq=False)
class SimProcess:
    """One process, from its start to its end."""

    kind: str
    instance: str
    weather: Weather
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    bus: MemoryBus = field(init=False)
    when_killed: "Callable[[SimProcess], None]" = lambda process: None
    begins: set[tuple[str, int, int]] = field(default_factory=set)
    """Role, partition and offset of tasks that are noted as begun, and about to begin."""
    interrupted: set[tuple[str, int, int]] = field(default_factory=set)
    """Tasks that were cancelled while their end was being noted."""
    dead: bool = False
    _fuse: int = 0
    _step: str = ""
    _notice: float = 0.0
    _resumed: asyncio.Future[None] | None = None
    _tasks: dict["asyncio.Task[Any]", None] = field(default_factory=dict)

    @staticmethod
    def track(task: "asyncio.Task[Any]") -> None:
        """Note a task with the process that made it."""
        process = CURRENT.get()
        if process is not None:
            if len(process._tasks) > 200:
                process._tasks = {known: None for known in process._tasks if not known.done()}
            process._tasks[task] = None

    async def point(self, name: str) -> None:
        """The process touches the world here, or would have."""
        random = self.weather.random
        self._see_alive()
        self.weather.points += 1
        if self.weather.points == self.weather.strike_at:
            self.weather.strike(self)
            self._see_alive()
        await asyncio.sleep(random.random() if random.random() < SLOW_POINTS else 0)
        while self._resumed is not None:
            await asyncio.wait([self._resumed])
        self._see_alive()
        if self._fuse and self._step in ("", name):
            self._fuse -= 1
            if not self._fuse:
                self.kill(self._notice)
                raise Killed(name)
        if name in FLAKY_POINTS and random.random() < self.weather.broker_fails:
            raise Unavailable("broker", "it is away", "Wait")

    def _see_alive(self) -> None:
        if self.dead:
            raise Killed(self.instance)

    def kill(self, notice: float) -> None:
        """SIGKILL. The broker notices so many seconds later."""
        if not self.dead:
            self.when_killed(self)
        self.dead = True
        self.bus.kill(after=notice)
        here = asyncio.current_task()
        for task in self._tasks:
            if task is not here:
                task.cancel()
        self.resume()

    def kill_at(self, points: int, step: str, notice: float) -> None:
        """SIGKILL, so many points from now, counting only those of this name if there is one."""
        self._fuse, self._step, self._notice = points, step, notice

    def pause(self) -> None:
        """SIGSTOP."""
        if self._resumed is None:
            self._resumed = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        """SIGCONT."""
        if self._resumed is not None:
            self._resumed.set_result(None)
            self._resumed = None

    @property
    def is_paused(self) -> bool:
        """Whether it will go on later."""
        return self._resumed is not None

    def expel(self) -> None:
        """Its session times out, though it lives."""
        self.bus.expel(self.instance)

    def store(self, inner: MemoryStore) -> StateStore:
        """A store as this process sees it."""
        return SimStore(self, inner)

    def attempts(self, notes: Notes) -> Attempts:
        """The notes of begun tasks as this process sees them."""
        return SimAttempts(self, notes)


class Connection:
    """What one process has to a store: it fails before the store has done something, or after."""

    def __init__(self, process: SimProcess, name: str) -> None:
        self._process, self._name = process, name

    async def before(self, name: str) -> None:
        await self._process.point(f"{self._name}.{name}")
        self._fail()

    async def after(self, name: str) -> None:
        self._fail()
        await self._process.point(f"{self._name}.{name}.done")

    def _fail(self) -> None:
        weather = self._process.weather
        if weather.random.random() < weather.store_fails / 2:
            raise Unavailable("store", "it is away", "Wait")


class SimStore:
    """A store at the other end of a connection of one process."""

    def __init__(self, process: SimProcess, inner: MemoryStore) -> None:
        self._process, self._inner = process, inner
        self._to = Connection(process, "store")

    async def take(self, partition: int, owner: str) -> int:
        await self._to.before("take")
        found = await self._inner.take(partition, owner)
        await self._to.after("take")
        return found

    async def load(self, partition: int, fields: Sequence[str]) -> Loaded:
        await self._to.before("load")
        found = await self._inner.load(partition, fields)
        await self._to.after("load")
        return found

    async def load_all(self, wanted: Mapping[int, Sequence[str]]) -> Mapping[int, Loaded]:
        """Not of one moment."""
        return {partition: await self.load(partition, fields) for partition, fields in wanted.items()}

    async def commit(self, owner: str, writes: Sequence[Write]) -> None:
        await self._to.before("commit")
        lost: PartitionLost | None = None
        for number, write in enumerate(writes):
            if number:
                # Who dies here has written some of the partitions.
                await self._process.point("store.commit.next")
            try:
                await self._inner.commit(owner, [write])
            except PartitionLost as error:
                lost = error
        if lost is not None:
            raise lost
        await self._to.after("commit")

    async def discard(self, partition: int, owner: str) -> None:
        await self._to.before("discard")
        await self._inner.discard(partition, owner)
        await self._to.after("discard")

    async def scan(self, partition: int, prefix: str) -> AsyncIterator[tuple[str, bytes]]:
        await self._to.before("scan")
        found = [item async for item in self._inner.scan(partition, prefix)]
        await self._to.after("scan")
        for item in found:
            yield item


class SimAttempts:
    """The notes at the other end of a connection of one process."""

    def __init__(self, process: SimProcess, notes: Notes) -> None:
        self._process, self._notes = process, notes
        self._to = Connection(process, "attempts")

    async def begin(self, starts: Sequence[At]) -> Mapping[At, Attempt]:
        await self._to.before("begin")
        found = await self._notes.kept.begin(starts)
        await self._begin("begin", [at for at in starts if at not in found])
        return found

    async def note(self, at: At, attempt: Attempt) -> None:
        try:
            await self._to.before("note")
            await self._notes.kept.note(at, attempt)
            await self._begin("note", [at] if attempt.alone else [])
        except asyncio.CancelledError:
            self._process.interrupted.add((self._process.kind, *at))
            raise

    async def strike_out(self, done: Sequence[At]) -> None:
        await self._to.before("strike_out")
        await self._notes.kept.strike_out(done)
        await self._to.after("strike_out")

    async def _begin(self, name: str, starts: Sequence[At]) -> None:
        places = {(self._process.kind, *at) for at in starts}
        self._process.begins |= places
        try:
            await self._to.after(name)
        except Unavailable:
            self._process.begins -= places
            raise
