"""Reads and writes a bus and stores on behalf of the code under test: one simulated process.

Whatever a process does to the world goes through `point`: there it can be killed, paused, or made
to wait. A killed process does nothing any more: each of its tasks ends at its next point, and what
it left open is noticed by the broker only after a while.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import Any

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.engine.memory_bus import MemoryBus
from codeconvoy.workers.engine.state import Loaded, MemoryStore, StateStore, Write

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


@dataclass(slots=True, eq=False)
class SimProcess:
    """One process, from its start to its end."""

    kind: str
    instance: str
    weather: Weather
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    bus: MemoryBus = field(init=False)
    dead: bool = False
    disturbed: bool = False
    """It was killed, paused, or put out of its groups: another one may do its tasks meanwhile."""
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
        self.dead = self.disturbed = True
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
        self.disturbed = True
        if self._resumed is None:
            self._resumed = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        """SIGCONT."""
        if self._resumed is not None:
            self._resumed.set_result(None)
            self._resumed = None

    def expel(self) -> None:
        """Its session times out, though it lives."""
        self.disturbed = True
        self.bus.expel(self.instance)

    def store(self, inner: MemoryStore) -> StateStore:
        """A store as this process sees it."""
        return SimStore(self, inner)


class SimStore:
    """A store at the other end of a connection of one process."""

    def __init__(self, process: SimProcess, inner: MemoryStore) -> None:
        self._process, self._inner = process, inner

    async def _before(self, name: str) -> None:
        await self._process.point(f"store.{name}")
        self._fail(2)

    async def _after(self, name: str) -> None:
        self._fail(2)
        await self._process.point(f"store.{name}.done")

    def _fail(self, parts: int) -> None:
        weather = self._process.weather
        if weather.random.random() < weather.store_fails / parts:
            raise Unavailable("store", "it is away", "Wait")

    async def take(self, partition: int, owner: str) -> int:
        await self._before("take")
        found = await self._inner.take(partition, owner)
        await self._after("take")
        return found

    async def load(self, partition: int, fields: Sequence[str]) -> Loaded:
        await self._before("load")
        found = await self._inner.load(partition, fields)
        await self._after("load")
        return found

    async def commit(self, owner: str, writes: Sequence[Write]) -> None:
        await self._before("commit")
        await self._inner.commit(owner, writes)
        await self._after("commit")

    async def scan(self, partition: int, prefix: str) -> AsyncIterator[tuple[str, bytes]]:
        await self._before("scan")
        found = [item async for item in self._inner.scan(partition, prefix)]
        await self._after("scan")
        for item in found:
            yield item
