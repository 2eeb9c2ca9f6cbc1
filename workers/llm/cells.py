"""Reads and writes small shared states in Redis: what all processes of a fleet decide on together.

A cell is a value under a name. It is changed by a pure function of the value and the time, which is
tried again when somebody else was faster (compare and set), so that a breaker, a rate or a budget is
written once, in Python, and is the same in a test with a virtual clock, in one process and fleet-wide.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from redis.asyncio import Redis

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.engine.scripts import reached

S = TypeVar("S", bound=msgspec.Struct)
R = TypeVar("R")

Change = Callable[[S | None, float], tuple[S, R]]
"""From a value (None: there is none) and the time in seconds to the new value, and an answer."""

TRIES = 200
_READ = """
local time = redis.call('TIME')
return {redis.call('GET', KEYS[1]), time[1], time[2]}
"""
_SET = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""
_RUN = """
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
"""
_READ_OF_RUN = f"""{_RUN}
local time = redis.call('TIME')
local raw = redis.call('GET', KEYS[1])
if raw and string.sub(raw, 1, #run) ~= run then
    redis.call('DEL', KEYS[1])
    raw = false
end
return {{raw, time[1], time[2], run}}
"""
_SET_IN_RUN = f"""{_RUN}
if string.sub(ARGV[2], 1, #run) ~= run then return 0 end
{_SET}"""


class Cells(Protocol[S]):
    """Cells of one kind of value."""

    async def change(self, name: str, change: "Change[S, R]") -> R:
        """Change a value, at once for all, and give the answer. The function may be called often.

        Raises:
            Unavailable: the cells can't be reached.
        """
        ...

    async def look(self, name: str) -> S | None:
        """A value as it is now."""
        ...


class LocalCells(Generic[S]):
    """Cells of one process."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds, from any beginning."""
        self._clock = clock
        self._values: dict[str, S] = {}

    async def change(self, name: str, change: "Change[S, R]") -> R:
        """See `Cells`."""
        self._values[name], answer = change(self._values.get(name), self._clock())
        return answer

    async def look(self, name: str) -> S | None:
        """See `Cells`."""
        return self._values.get(name)


class RedisCells(Generic[S]):
    """Cells of a fleet. The time is Redis' own: the processes' clocks need not agree."""

    _scripts = (_READ, _SET)

    def __init__(self, redis: Redis, prefix: str, kind: type[S], keep_seconds: int) -> None:
        """A cell that nobody changes for `keep_seconds` is forgotten."""
        self._prefix, self._kind, self._keep = prefix, kind, keep_seconds
        self._read, self._set = map(redis.register_script, self._scripts)
        self._turns: dict[str, asyncio.Lock] = {}
        """Whoever was too slow waits for its turn among those of this process: they would only go on making
        each other too slow."""

    async def change(self, name: str, change: "Change[S, R]") -> R:
        """See `Cells`."""
        key = self._key(name)
        is_done, answer = await self._try(key, change)
        if is_done:
            return answer
        async with self._turns.setdefault(name, asyncio.Lock()):
            for attempt in range(1, TRIES):
                is_done, answer = await self._try(key, change)
                if is_done:
                    return answer
                await asyncio.sleep(random.random() * 0.002 * min(attempt, 10))
        raise Unavailable("Redis", f"{key} changes faster than it can be changed", "Try again")

    async def _try(self, key: str, change: "Change[S, R]") -> tuple[bool, R]:
        """False: somebody else was faster."""
        with reached():
            raw, seconds, micros, *run = await self._read(keys=[key])
        before = self._decoded(raw, *run)
        after, answer = change(before, int(seconds) + int(micros) / 1e6)
        if after == before:
            return True, answer
        args: list[Any] = [raw or b"", b"".join((*run, msgspec.msgpack.encode(after))), self._keep]
        with reached():
            return bool(await self._set(keys=[key], args=args)), answer

    async def look(self, name: str) -> S | None:
        """See `Cells`."""
        with reached():
            raw, _, _, *run = await self._read(keys=[self._key(name)])
        return self._decoded(raw, *run)

    def _decoded(self, raw: bytes | None, run: bytes = b"") -> S | None:
        return msgspec.msgpack.decode(raw[len(run) :], type=self._kind) if raw else None

    def _key(self, name: str) -> str:
        return f"{{{self._prefix}:{name}}}"


class RunCells(RedisCells[S]):
    """Cells that live no longer than the run of the server that holds them. One that was started again,
    or a replica that has taken over, may hold an older value than the one that was decided from: that
    counts as none."""

    _scripts = (_READ_OF_RUN, _SET_IN_RUN)


class FallbackCells(Generic[S]):
    """Cells of the fleet while they can be reached, else those of this process."""

    def __init__(self, shared: Cells[S], local: LocalCells[S], told: Callable[[bool], None]) -> None:
        """`told` hears each time whether the shared ones could be reached."""
        self._shared, self._local, self._told = shared, local, told

    async def change(self, name: str, change: "Change[S, R]") -> R:
        """See `Cells`. Never raises Unavailable."""
        try:
            answer = await self._shared.change(name, change)
        except Unavailable:
            self._told(False)
            return await self._local.change(name, change)
        self._told(True)
        return answer

    async def look(self, name: str) -> S | None:
        """See `Cells`."""
        try:
            return await self._shared.look(name)
        except Unavailable:
            return await self._local.look(name)
