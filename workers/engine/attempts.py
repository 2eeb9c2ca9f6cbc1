"""Reads and writes how often a task was begun, in Redis: what finds a task that kills its process.

A start is noted before the work begins and struck out when its outcome is committed, so a note that
is found at the next start was left by a process that died. Then the task is a suspect, and so is
each that was in flight with it. Suspects run apart from the others and, at the latest after a second
death, one at a time; only a death that a task died alone counts against it.

A process that lives, but was put out of its group, leaves its notes behind as a dead one does. Notes
are a safety net, not a truth: when Redis is lost, a killer is found that much later.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

from redis.asyncio import Redis

from codeconvoy.workers.engine.state import reached

KEEP_SECONDS = 86_400
"""How long notes of a partition stay after the last one."""
SHARE = 8
"""After one death in company, suspects run side by side on this part of the slots."""

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
        self._asked: list[tuple[At, Attempt, asyncio.Future[bool]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def begin(self, at: At, attempt: Attempt) -> Attempt | None:
        """See `Attempts`."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked.append((at, attempt, answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        if await answer:
            return None
        with reached():
            found = await cast("Awaitable[bytes | None]", self._redis.hget(self._key(at[0]), str(at[1])))
        return _decode(found) if found is not None else UNSUSPECTED

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
        """One request after the other, each with all that has come up meanwhile."""
        while self._asked:
            asked, self._asked = self._asked, []
            try:
                with reached():
                    async with self._redis.pipeline(transaction=False) as pipeline:
                        for (partition, offset), attempt, _ in asked:
                            pipeline.hsetnx(self._key(partition), str(offset), _encode(attempt))
                        partitions = sorted({partition for (partition, _), _, _ in asked})
                        for partition in partitions:
                            pipeline.expire(self._key(partition), KEEP_SECONDS)
                        answers = await pipeline.execute()
            except Exception as error:  # noqa: BLE001 - raised where each of them waits
                for _, _, future in asked:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, _, future), answer in zip(asked, answers, strict=False):
                if not future.done():
                    future.set_result(bool(answer))

    def _key(self, partition: int) -> str:
        return f"{{{self._stem}:{partition}}}"


def _encode(attempt: Attempt) -> str:
    return f"{attempt.crashes} {attempt.deaths} {int(attempt.alone)}"


def _decode(raw: bytes) -> Attempt:
    crashes, deaths, alone = raw.decode().split(" ")
    return Attempt(int(crashes), int(deaths), alone == "1")
