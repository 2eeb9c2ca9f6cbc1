"""Reads and writes how often a task was begun, in Redis: what finds a task that kills its process.

A start is noted before the work begins and struck out when its outcome is committed, so a note that
is found at the next start was left by a process that died. One death in company says little: the
task goes on among others. After the second it is a suspect: it runs while nothing else does, and a
death that it dies alone counts against it.

A process that lives, but was put out of its group, leaves its notes behind as a dead one does. Notes
are a safety net, not a truth: when Redis is lost, a killer is found that much later.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from redis.asyncio import Redis

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.engine.scripts import reached, run_script

KEEP_SECONDS = 86_400
"""How long notes of a partition stay after the last one."""
COMPANY = 2
"""Deaths among others after which a task is a suspect."""

_BEGIN = """
local found = {}
for i = 2, #ARGV, 2 do
  if redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) == 0 then
    found[#found + 1] = ARGV[i]
    found[#found + 1] = redis.call('HGET', KEYS[1], ARGV[i])
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return found
"""

At = tuple[int, int]
"""Partition and offset."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a task was begun, and what is held against it."""

    crashes: int = 0
    """Processes that died while it was in flight among others."""
    deaths: int = 0
    """Processes that died while nothing else was in flight."""
    alone: bool = False
    """Nothing else is in flight while it is."""

    @property
    def is_suspect(self) -> bool:
        """True where it may only be begun while nothing else is in flight."""
        return self.crashes >= COMPANY or self.deaths > 0

    def after_crash(self) -> "Attempt":
        """What is held against it, now that the process that had begun it is known to have died."""
        if self.alone:
            return Attempt(self.crashes, self.deaths + 1)
        return Attempt(self.crashes + 1, self.deaths)

    def in_flight(self, *, alone: bool) -> "Attempt":
        """The same, while it is in flight alone, or is not any more."""
        return replace(self, alone=alone)


UNSUSPECTED = Attempt()


class Attempts(Protocol):
    """Where starts are noted. Every call may raise Unavailable."""

    async def begin(self, at: At, attempt: Attempt) -> Attempt | None:
        """Note a start, unless one is noted already: that one is answered, and nothing is written."""
        ...

    async def note(self, at: At, attempt: Attempt) -> None:
        """Write over an earlier note."""
        ...

    async def strike_out(self, done: Sequence[At]) -> None:
        """Forget the starts of tasks that are done, or were ended on purpose."""
        ...


class MemoryAttempts:
    """Starts in memory, which outlive the processes of a simulation."""

    def __init__(self) -> None:
        self._notes: dict[At, Attempt] = {}

    async def begin(self, at: At, attempt: Attempt) -> Attempt | None:
        """See `Attempts`."""
        if (found := self._notes.get(at)) is not None:
            return found
        self._notes[at] = attempt
        return None

    async def note(self, at: At, attempt: Attempt) -> None:
        """See `Attempts`."""
        self._notes[at] = attempt

    async def strike_out(self, done: Sequence[At]) -> None:
        """See `Attempts`."""
        for at in done:
            self._notes.pop(at, None)


class RedisAttempts:
    """Starts in Redis, a hash a partition. What is asked at the same time goes in one request."""

    def __init__(self, redis: Redis, prefix: str, group: str) -> None:
        self._redis, self._stem = redis, f"{prefix}:attempts:{group}"
        self._begin = redis.register_script(_BEGIN)
        self._asked: dict[int, list[tuple[int, Attempt, asyncio.Future[Attempt | None]]]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def begin(self, at: At, attempt: Attempt) -> Attempt | None:
        """See `Attempts`."""
        answer: asyncio.Future[Attempt | None] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(at[0], []).append((at[1], attempt, answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await answer

    async def note(self, at: At, attempt: Attempt) -> None:
        """See `Attempts`."""
        with reached():
            await self._redis.hset(self._key(at[0]), str(at[1]), _encode(attempt))

    async def strike_out(self, done: Sequence[At]) -> None:
        """See `Attempts`."""
        by_partition: dict[int, list[str]] = {}
        for partition, offset in done:
            by_partition.setdefault(partition, []).append(str(offset))
        if not by_partition:
            return
        with reached():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for partition, offsets in by_partition.items():
                    pipeline.hdel(self._key(partition), *offsets)
                await pipeline.execute()

    async def _ask(self) -> None:
        """One request after the other, each with all that has come up meanwhile."""
        while self._asked:
            asked, self._asked = self._asked, {}
            calls = [
                (self._key(partition), [KEEP_SECONDS, *_flat(starts)]) for partition, starts in asked.items()
            ]
            try:
                answers = await run_script(self._redis, self._begin, calls)
            except Unavailable as away:
                for _, _, answer in (one for starts in asked.values() for one in starts):
                    if not answer.done():
                        answer.set_exception(away)
                continue
            for starts, found in zip(asked.values(), answers, strict=True):
                noted = dict(zip(map(int, found[::2]), map(_decode, found[1::2]), strict=True))
                for offset, _, answer in starts:
                    if not answer.done():
                        answer.set_result(noted.get(offset))

    def _key(self, partition: int) -> str:
        return f"{{{self._stem}:{partition}}}"


def _flat(starts: Sequence[tuple[int, Attempt, Any]]) -> list[str | int]:
    return [item for offset, attempt, _ in starts for item in (offset, _encode(attempt))]


def _encode(attempt: Attempt) -> str:
    return f"{attempt.crashes} {attempt.deaths} {int(attempt.alone)}"


def _decode(raw: bytes) -> Attempt:
    crashes, deaths, alone = raw.decode().split(" ")
    return Attempt(int(crashes), int(deaths), alone == "1")
