"""Reads and writes how often a task was begun, in Redis: what finds a task that kills its process.

A start is noted before the work begins and struck out when its outcome is committed, so a note that
is found at the next start was left by a process that died. One death in company says little: the
task goes on among others. After the second it is a suspect: it runs while nothing else does, and a
death that it dies alone counts against it.

A process that lives, but was put out of its group, leaves its notes behind as a dead one does. Notes
are a safety net, not a truth: when Redis is lost, a killer is found that much later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from redis.asyncio import Redis

from codeconvoy.workers.engine.scripts import reached, run_script

KEEP_SECONDS = 86_400
"""How long notes of a partition stay after the last one."""
COMPANY = 2
"""Deaths among others after which a task is a suspect."""

_BEGIN = """
local found = {}
for i = 3, #ARGV do
  if redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[2]) == 0 then
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

    async def begin(self, starts: Sequence[At]) -> Mapping[At, Attempt]:
        """Note first starts. Where one is noted already nothing is written, and that one is answered."""
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

    async def begin(self, starts: Sequence[At]) -> Mapping[At, Attempt]:
        """See `Attempts`."""
        found = {at: self._notes[at] for at in starts if at in self._notes}
        self._notes |= {at: UNSUSPECTED for at in starts if at not in found}
        return found

    async def note(self, at: At, attempt: Attempt) -> None:
        """See `Attempts`."""
        self._notes[at] = attempt

    async def strike_out(self, done: Sequence[At]) -> None:
        """See `Attempts`."""
        for at in done:
            self._notes.pop(at, None)


class RedisAttempts:
    """Starts in Redis, a hash a partition."""

    def __init__(self, redis: Redis, prefix: str, group: str) -> None:
        self._redis, self._stem = redis, f"{prefix}:attempts:{group}"
        self._begin = redis.register_script(_BEGIN)

    async def begin(self, starts: Sequence[At]) -> Mapping[At, Attempt]:
        """See `Attempts`. One request, whatever the number of partitions."""
        by_partition = _by_partition(starts)
        calls = [
            (self._key(partition), [KEEP_SECONDS, _encode(UNSUSPECTED), *offsets])
            for partition, offsets in by_partition.items()
        ]
        found = {}
        for partition, answer in zip(
            by_partition, await run_script(self._redis, self._begin, calls), strict=True
        ):
            for offset, note in zip(answer[::2], answer[1::2], strict=True):
                found[partition, int(offset)] = _decode(note)
        return found

    async def note(self, at: At, attempt: Attempt) -> None:
        """See `Attempts`."""
        with reached():
            await self._redis.hset(self._key(at[0]), str(at[1]), _encode(attempt))

    async def strike_out(self, done: Sequence[At]) -> None:
        """See `Attempts`."""
        if not done:
            return
        with reached():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for partition, offsets in _by_partition(done).items():
                    pipeline.hdel(self._key(partition), *map(str, offsets))
                await pipeline.execute()

    def _key(self, partition: int) -> str:
        return f"{{{self._stem}:{partition}}}"


def _by_partition(places: Sequence[At]) -> dict[int, list[str | bytes | int]]:
    found: dict[int, list[str | bytes | int]] = {}
    for partition, offset in places:
        found.setdefault(partition, []).append(offset)
    return found


def _encode(attempt: Attempt) -> str:
    return f"{attempt.crashes} {attempt.deaths} {int(attempt.alone)}"


def _decode(raw: bytes) -> Attempt:
    crashes, deaths, alone = raw.decode().split(" ")
    return Attempt(int(crashes), int(deaths), alone == "1")
