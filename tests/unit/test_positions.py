"""What the tasks of a process wait for: asked for once for all of them, and never older than they may see."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import pytest

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.tasks import MustSee
from codeconvoy.workers import positions
from codeconvoy.workers.engine.bus import Reader, TopicPartition
from codeconvoy.workers.engine.memory_bus import MemoryReader
from codeconvoy.workers.positions import Ends, Positions


class Log(MemoryReader):
    """Ends that are told when the test says so."""

    def __init__(self) -> None:
        self.at = {0: 5, 1: 0, 2: 9}
        self.asked: list[list[int]] = []
        self.gate = asyncio.Event()

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        found = {at: self.at[at.partition] for at in partitions}
        self.asked.append([at.partition for at in partitions])
        await self.gate.wait()
        return found


def point(partition: int, offset: int) -> MustSee:
    return MustSee(partition=partition, offset=offset)


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_an_end_is_never_older_than_the_question() -> None:
    """A task that asks while a request is under way gets the answer of the next one, with all others."""

    async def test() -> None:
        log = Log()
        reader: Reader = log
        ends = Ends(reader, "events")
        first = asyncio.create_task(ends.of([0]))
        await settle()
        late = [asyncio.create_task(ends.of(some)) for some in ([0, 1], [2], [0])]
        await settle()
        log.at[0] = 7  # written after the first request had its answer, before the others asked for theirs
        log.gate.set()
        assert await first == [point(0, 4)]
        assert await asyncio.gather(*late) == [[point(0, 6)], [point(2, 8)], [point(0, 6)]]
        assert log.asked == [[0], [0, 1, 2]]
        assert await ends.of([]) == []

    asyncio.run(test())


def test_who_asks_for_ends_is_told_that_the_broker_is_away_and_the_next_one_asks_again() -> None:
    class Away(Log):
        async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
            if len(self.asked) == 0:
                self.asked.append([])
                raise Unavailable("broker", "it is away", "Wait")
            return await super().ends(partitions)

    async def test() -> None:
        log = Away()
        log.gate.set()
        ends = Ends(log, "events")
        both = await asyncio.gather(ends.of([0]), ends.of([2]), return_exceptions=True)
        assert [type(each) for each in both] == [Unavailable, Unavailable]
        assert await ends.of([0]) == [point(0, 4)]

    asyncio.run(test())


class Projector:
    """Stands where the test puts it."""

    def __init__(self) -> None:
        self.at = {0: 0, 1: 0}
        self.looks = 0

    async def look(self, partitions: Sequence[int]) -> Mapping[int, int]:
        self.looks += 1
        return {number: self.at[number] for number in partitions}


def run(test: Callable[[Projector, Positions], Awaitable[None]]) -> None:
    async def go() -> None:
        projector = Projector()
        await test(projector, Positions(projector.look))

    asyncio.run(go())


def test_all_who_wait_are_served_by_the_same_looks() -> None:
    async def test(projector: Projector, watched: Positions) -> None:
        waits = [asyncio.create_task(watched.passed([point(0, n), point(1, 3)], 30)) for n in range(100)]
        await settle()
        assert projector.looks == 1
        projector.at = {0: 50, 1: 4}
        await asyncio.gather(*waits[:50])
        assert not any(wait.done() for wait in waits[50:])
        projector.at[0] = 100
        await asyncio.gather(*waits)
        assert projector.looks < 100

    run(test)


def test_what_was_seen_to_be_passed_is_not_looked_at_again() -> None:
    async def test(projector: Projector, watched: Positions) -> None:
        watched.saw(0, 5)
        await watched.passed([point(0, 4)], 30)
        assert projector.looks == 0
        watched.saw(0, 0)  # the projection was lost
        wait = asyncio.create_task(watched.passed([point(0, 4)], 30))
        await settle()
        assert (projector.looks, wait.done()) == (1, False)
        projector.at[0] = 5
        await wait

    run(test)


def test_a_wait_that_is_too_long_says_what_is_behind() -> None:
    async def test(projector: Projector, watched: Positions) -> None:
        other = asyncio.create_task(watched.passed([point(1, 0)], 30))
        with pytest.raises(Unavailable, match="convoy projector"):
            await watched.passed([point(0, 0)], 2 * positions.PAUSE_SECONDS)
        projector.at[1] = 1
        await other

    run(test)


def test_who_waits_is_told_that_the_projection_is_away() -> None:
    async def test(projector: Projector, watched: Positions) -> None:
        async def away(partitions: Sequence[int]) -> Mapping[int, int]:
            raise Unavailable("Redis", "it is away", "Wait")

        watched = Positions(away)
        both = [watched.passed([point(n, 0)], 30) for n in range(2)]
        found = await asyncio.gather(*both, return_exceptions=True)
        assert [type(each) for each in found] == [Unavailable, Unavailable]

    run(test)
