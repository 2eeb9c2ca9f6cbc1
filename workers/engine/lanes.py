"""Reads nothing, writes nothing: which task is next. One lane a key, one task of a lane at a time.

A lane is idle, ready, blocked until a time (a retry: its key waits, no slot does), or running. A
lane whose partition is taken away keeps its running task as a tombstone until that has really
ended, so that a partition that comes back does not run a key twice at once.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from codeconvoy.workers.engine.attempts import UNSUSPECTED, Attempt
from codeconvoy.workers.engine.bus import Record, TopicPartition
from codeconvoy.workers.engine.offsets import Offsets

Key = tuple[int, str]
"""Partition and record key."""


@dataclass(slots=True, eq=False)
class Assignment:
    """One partition, from its assignment to its revocation. Being the same object is its epoch."""

    at: TopicPartition
    offsets: Offsets
    is_ending: bool = False
    """It is being taken away: nothing of it is begun, or begun again."""
    is_paused: bool = False
    stopped_at: int | None = None
    """The offset of a record that can't be read yet: nothing behind it is read."""


@dataclass(slots=True, eq=False)
class Job:
    """One record in hand."""

    record: Record
    assignment: Assignment
    attempt: Attempt = UNSUSPECTED
    is_noted: bool = False
    """This process has tried to note its start."""
    retries: int = 0

    @property
    def at(self) -> tuple[int, int]:
        """Its partition and offset."""
        return self.record.partition, self.record.offset


@dataclass(slots=True, eq=False)
class Lane:
    """One key: its waiting tasks, and the one in flight."""

    key: Key
    waiting: deque[Job] = field(default_factory=deque)
    running: Job | None = None
    task: "asyncio.Task[None] | None" = None
    blocked_until: float | None = None
    is_queued: bool = False


class _Turns:
    """Lanes that are ready: first come, first served within a partition, the partitions by turns. So the
    tasks of a partition that was just taken over do not wait for all that was read of the others."""

    def __init__(self) -> None:
        self._partitions: dict[int, deque[Lane]] = {}

    def append(self, lane: Lane) -> None:
        """Put a lane in line."""
        self._partitions.setdefault(lane.key[0], deque()).append(lane)

    def next(self) -> Lane | None:
        """Take the lane whose turn it is, or None."""
        if not self._partitions:
            return None
        number = next(iter(self._partitions))
        line = self._partitions.pop(number)
        lane = line.popleft()
        if line:
            self._partitions[number] = line  # dicts keep their order: at the end
        return lane


class Lanes:
    """All keys of one engine."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._lanes: dict[Key, Lane] = {}
        self._ready = _Turns()
        self._suspects: deque[Lane] = deque()
        self._blocked: list[tuple[float, int, Lane]] = []
        self._pushed = 0
        self.running = 0
        """Tasks in flight, tombstones included."""
        self._is_alone = False
        """What runs is a suspect."""
        self.waiting = 0
        """Tasks read and not begun."""
        self.bytes = 0
        """Of the tasks waiting and in flight."""
        self.blocked = 0
        """Keys that wait for a retry."""

    def add(self, job: Job) -> None:
        """Queue a task under its key."""
        key = job.record.partition, job.record.key
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        lane.waiting.append(job)
        self.waiting += 1
        self.bytes += len(job.record.value)
        self._queue(lane)

    def next(self) -> Lane | None:
        """The lane whose first task is to be begun now, or None. It counts as running from then on.

        A suspect is begun while nothing else runs, and nothing is begun beside it.
        """
        while self._suspects and not self._suspects[0].waiting:  # it was cleared
            self._suspects.popleft()
        if self._suspects:
            return self._begin(self._suspects.popleft()) if not self.running else None
        if self._is_alone:
            return None
        while self.running < self._slots and (lane := self._ready.next()) is not None:
            if lane.waiting:  # else it was cleared
                return self._begin(lane)
        return None

    def ended(self, lane: Lane, task: "asyncio.Task[None]") -> None:
        """This task of the lane has ended. Saying so twice does no harm: a task that is cancelled
        before its first step can't say it itself."""
        if lane.task is task:
            self._release(lane)
            self._queue(lane)

    def give_back(self, lane: Lane) -> None:
        """The lane was chosen, and its task does not begin."""
        self._release(lane)
        self._queue(lane)

    def suspect(self, lane: Lane, attempt: Attempt) -> None:
        """The task that was just begun turns out to be a suspect: it goes back, to be begun alone."""
        job = self._release(lane)
        job.attempt = attempt
        self._put_back(lane, job)

    def again(self, lane: Lane, until: float) -> None:
        """The lane's task is to be tried again at this time."""
        job = self._release(lane)
        lane.blocked_until = until
        self.blocked += 1
        self._pushed += 1
        heapq.heappush(self._blocked, (until, self._pushed, lane))
        self._put_back(lane, job)

    def unblock(self, now: float) -> None:
        """Let the keys go on whose time has come."""
        while self._blocked and self._blocked[0][0] <= now:
            until, _, lane = heapq.heappop(self._blocked)
            if lane.blocked_until == until:
                self._free(lane)
                self._queue(lane)

    @property
    def unblocks_at(self) -> float | None:
        """When the next key goes on."""
        return self._blocked[0][0] if self._blocked else None

    def clear(self, partitions: Collection[int], above: int = -1) -> list[Job]:
        """Forget, and answer, the waiting tasks of these partitions above this offset. What runs
        stays."""
        cleared: list[Job] = []
        for lane in [lane for lane in self._lanes.values() if lane.key[0] in partitions]:
            stay = deque(job for job in lane.waiting if job.record.offset <= above)
            gone = [job for job in lane.waiting if job.record.offset > above]
            cleared += gone
            self.bytes -= sum(len(job.record.value) for job in gone)
            self.waiting -= len(lane.waiting) - len(stay)
            lane.waiting = stay
            if not stay:
                lane.is_queued = False
                if lane.blocked_until is not None:
                    self._free(lane)
                self._sweep(lane)
        return cleared

    def in_flight(self, partitions: Collection[int] | None = None) -> Iterator[Lane]:
        """The lanes whose task runs, of these partitions or of all."""
        for lane in list(self._lanes.values()):
            if lane.running is not None and (partitions is None or lane.key[0] in partitions):
                yield lane

    def __len__(self) -> int:
        return len(self._lanes)

    def _begin(self, lane: Lane) -> Lane:
        lane.is_queued = False
        lane.running = lane.waiting.popleft()
        self.waiting -= 1
        self.running += 1
        self._is_alone = lane.running.attempt.is_suspect
        return lane

    def _release(self, lane: Lane) -> Job:
        job, lane.running, lane.task = lane.running, None, None
        assert job is not None, "only a running lane is released"
        self.running -= 1
        self.bytes -= len(job.record.value)
        self._is_alone = self._is_alone and not job.attempt.is_suspect
        return job

    def _put_back(self, lane: Lane, job: Job) -> None:
        lane.waiting.appendleft(job)
        self.waiting += 1
        self.bytes += len(job.record.value)
        self._queue(lane)

    def _free(self, lane: Lane) -> None:
        lane.blocked_until = None
        self.blocked -= 1

    def _queue(self, lane: Lane) -> None:
        """Put a lane in line, if it is free and has work."""
        if lane.running is not None or lane.blocked_until is not None or lane.is_queued:
            return
        if lane.waiting:
            lane.is_queued = True
            (self._suspects if lane.waiting[0].attempt.is_suspect else self._ready).append(lane)
        else:
            self._sweep(lane)

    def _sweep(self, lane: Lane) -> None:
        idle = lane.running is None and not lane.waiting and lane.blocked_until is None
        if idle and self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]
