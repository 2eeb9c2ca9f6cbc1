"""Reads and writes how often a task was begun, in Redis: what finds a task that kills its process.

A start is noted before the work begins and struck out when its outcome is committed, so a note that
is found at the next start was left by a process that died. Then the task is a suspect, and so is
each that was in flight with it. Suspects run apart from the others and, at the latest after a second
death, one at a time; only a death that a task died alone counts against it.

A process that lives, but was put out of its group, leaves its notes behind as a dead one does. Notes
are a safety net, not a truth: when Redis is lost, a killer is found that much later.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from redis.asyncio import Redis

from codeconvoy.workers.engine.state import reached

KEEP_SECONDS = 86_400
"""How long notes of a partition stay after the last one."""
SHARE = 8
"""After one death in company, suspects run side by side on this part of the slots."""

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
        """True where a process has died of it, or of something beside it."""
        return self.crashes + self.deaths > 0

    def after_crash(self) -> "Attempt":
        """What is held against it, now that the process that had begun it is known to have died."""
        if self.alone:
            return Attempt(self.crashes, self.deaths + 1)
        return Attempt(self.crashes + 1, self.deaths)

    def begun(self, *, alone: bool) -> "Attempt":
        """The same, as it is begun once more."""
        return replace(self, alone=alone)

    def at_once(self, slots: int) -> int:
        """How many like it may be in flight at once, of so many slots."""
        return max(1, slots // SHARE) if self.crashes == 1 and not self.deaths else 1


UNSUSPECTED = Attempt()


class Attempts(Protocol):
    """Where starts are noted. Every call may raise Unavailable."""

    async def begin(self, at: At, attempt: Attempt) -> Attempt | None:
        """Note a start, unless one is noted already: that one is answered, and nothing is written."""
        ...

    async def begin_again(self, at: At, attempt: Attempt) -> None:
        """Note a start over an earlier one."""
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

    async def begin_again(self, at: At, attempt: Attempt) -> None:
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

    async def begin_again(self, at: At, attempt: Attempt) -> None:
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
        """One request after the other, each with all that has come up for a partition meanwhile."""
        while self._asked:
            partition = next(iter(self._asked))
            asked = self._asked.pop(partition)
            args = [item for offset, attempt, _ in asked for item in (offset, _encode(attempt))]
            try:
                with reached():
                    found = await self._begin(keys=[self._key(partition)], args=[KEEP_SECONDS, *args])
                noted = dict(zip(map(int, found[::2]), map(_decode, found[1::2]), strict=True))
            except Exception as error:  # noqa: BLE001 - raised where each of them waits
                for _, _, answer in asked:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for offset, _, answer in asked:
                if not answer.done():
                    answer.set_result(noted.get(offset))

    def _key(self, partition: int) -> str:
        return f"{{{self._stem}:{partition}}}"


def _encode(attempt: Attempt) -> str:
    return f"{attempt.crashes} {attempt.deaths} {int(attempt.alone)}"


def _decode(raw: bytes) -> Attempt:
    crashes, deaths, alone = raw.decode().split(" ")
    return Attempt(int(crashes), int(deaths), alone == "1")
