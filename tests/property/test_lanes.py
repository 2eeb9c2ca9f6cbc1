"""Whatever happens to its tasks, a key keeps its order, and no slot is held by one that waits."""

import asyncio
from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from codeconvoy.workers.engine.attempts import Attempt
from codeconvoy.workers.engine.bus import Record, TopicPartition
from codeconvoy.workers.engine.lanes import Assignment, Job, Lane, Lanes
from codeconvoy.workers.engine.offsets import Offsets

SLOTS = 3
KEYS = st.tuples(st.integers(0, 1), st.sampled_from("abc"))


class LanesMachine(RuleBasedStateMachine):
    """Tasks come, begin, end, wait, turn out as suspects, and are taken away."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes(SLOTS)
        self.expected: dict[tuple[int, str], deque[int]] = {}
        """For each key, what has not ended yet, in order."""
        self.running: dict[tuple[int, str], tuple[Lane, Any]] = {}
        self.offset = 0
        self.now = 0.0
        self.unblocked: dict[tuple[int, str], float] = {}

    @rule(key=KEYS, size=st.integers(0, 9))
    def comes(self, key: tuple[int, str], size: int) -> None:
        record = Record("t", key[0], self.offset, key[1], b"x" * size)
        self.lanes.add(Job(record, Assignment(TopicPartition("t", key[0]), Offsets(0))))
        self.expected.setdefault(key, deque()).append(self.offset)
        self.offset += 1

    @rule()
    def begins(self) -> None:
        alone = any(lane.running.attempt.is_suspect for lane, _ in self.running.values() if lane.running)
        lane = self.lanes.next()
        if lane is None:
            free = len(self.running) < SLOTS and not alone
            ready = [
                key
                for key, left in self.expected.items()
                if left and key not in self.running and self.unblocked.get(key, 0.0) <= self.now
            ]
            assert not (free and ready and not self.running), f"{ready} could begin"
            return
        assert lane.key not in self.running, "two of one key at once"
        assert len(self.running) < SLOTS
        assert not alone, "beside a suspect"
        assert lane.running is not None and lane.running.record.offset == self.expected[lane.key][0]
        assert self.unblocked.get(lane.key, 0.0) <= self.now, "it was to wait"
        assert not (lane.running.attempt.is_suspect and self.running), "a suspect among others"
        task: Any = asyncio.Future(loop=_LOOP)
        lane.task = task
        self.running[lane.key] = lane, task

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        lane, task = self._some(data)
        if self.expected[lane.key] and self._head(lane) == self.expected[lane.key][0]:
            self.expected[lane.key].popleft()
        self.lanes.ended(lane, task)
        self.lanes.ended(lane, task)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), seconds=st.floats(0.1, 5))
    def waits(self, data: st.DataObject, seconds: float) -> None:
        lane, task = self._some(data)
        self.unblocked[lane.key] = self.now + seconds
        self.expected[lane.key] = deque([self._head(lane), *self._others(lane)])
        self.lanes.again(lane, self.now + seconds)
        self.lanes.ended(lane, task)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), crashes=st.integers(2, 5))
    def is_suspected(self, data: st.DataObject, crashes: int) -> None:
        lane, task = self._some(data)
        self.expected[lane.key] = deque([self._head(lane), *self._others(lane)])
        self.lanes.suspect(lane, Attempt(crashes))
        self.lanes.ended(lane, task)

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.lanes.unblock(self.now)

    @rule(partition=st.integers(0, 1))
    def is_taken_away(self, partition: int) -> None:
        gone = {job.record.offset for job in self.lanes.clear([partition])}
        for key, left in self.expected.items():
            if key[0] == partition:
                running = {self._head(self.running[key][0])} if key in self.running else set()
                assert gone >= set(left) - running
                self.expected[key] = deque(offset for offset in left if offset in running)
                self.unblocked.pop(key, None)

    @invariant()
    def counts_are_right(self) -> None:
        assert self.lanes.running == len(self.running)
        assert self.lanes.waiting == sum(map(len, self.expected.values())) - len(self.running)
        assert self.lanes.blocked >= 0 and self.lanes.bytes >= 0
        assert len(self.lanes) <= len([key for key, left in self.expected.items() if left])

    def _some(self, data: st.DataObject) -> tuple[Lane, Any]:
        return self.running.pop(data.draw(st.sampled_from(sorted(self.running))))

    def _head(self, lane: Lane) -> int:
        assert lane.running is not None
        return lane.running.record.offset

    def _others(self, lane: Lane) -> list[int]:
        return [offset for offset in self.expected[lane.key] if offset != self._head(lane)]


def test_partitions_take_turns() -> None:
    """A partition that was just taken over does not wait behind all that was read of another one."""
    lanes = Lanes(100)
    for offset in range(50):
        for partition in (0, 1) if offset >= 47 else (0,):
            record = Record("t", partition, offset, f"k{offset}", b"")
            lanes.add(Job(record, Assignment(TopicPartition("t", partition), Offsets(0))))
    begun = [lane.key for _ in range(6) if (lane := lanes.next()) is not None]
    assert begun == [(0, "k0"), (1, "k47"), (0, "k1"), (1, "k48"), (0, "k2"), (1, "k49")]


_LOOP = asyncio.new_event_loop()
TestLanes = LanesMachine.TestCase
TestLanes.settings = settings(max_examples=150, stateful_step_count=40)
