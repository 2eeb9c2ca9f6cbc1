"""Reads the ends of the events log and the positions of the projection; writes nothing: what the tasks
of a process wait for, asked for once for all of them.

Hundreds of tasks are in flight at once, and each must know where the log ends and whether the
projection has passed that point. They ask the same few partitions.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.tasks import MustSee
from codeconvoy.workers.engine.bus import Reader, TopicPartition

PAUSE_SECONDS = 0.01
MAX_PAUSE_SECONDS = 0.1
"""Between two looks at the positions: so long at first, and at most, while nobody's wait ends."""
_REMEDY = "Is `convoy projector` running? `convoy doctor` tells"


class Ends:
    """The ends of the events log's partitions.

    A question is part of a request that begins after it was asked: an answer to an earlier one might
    miss what its task must see.
    """

    def __init__(self, reader: Reader, topic: str) -> None:
        self._reader, self._topic = reader, topic
        self._asked: list[tuple[frozenset[int], asyncio.Future[list[MustSee]]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def of(self, partitions: Iterable[int]) -> list[MustSee]:
        """The last offsets of these partitions as they are now; none for a partition that is empty.
        Markers are included, since the projection's position passes them too.

        Raises:
            Unavailable: the broker can't be reached.
        """
        wanted = frozenset(partitions)
        if not wanted:
            return []
        answer: asyncio.Future[list[MustSee]] = asyncio.get_running_loop().create_future()
        self._asked.append((wanted, answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await answer

    async def _ask(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            numbers = sorted(frozenset[int]().union(*(some for some, _ in asked)))
            try:
                ends = await self._reader.ends([TopicPartition(self._topic, number) for number in numbers])
            except BaseException as error:
                for _, answer in asked:
                    _fail(answer, error)
                if not isinstance(error, Exception):
                    raise
                continue
            found = {at.partition: end for at, end in ends.items()}
            for some, answer in asked:
                if not answer.done():
                    answer.set_result(
                        [MustSee(partition=n, offset=found[n] - 1) for n in sorted(some) if found[n] > 0]
                    )


@dataclass(slots=True)
class _Wait:
    points: Sequence[MustSee]
    over: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Positions:
    """Where the projection stands: one look at a time, for all who wait."""

    def __init__(self, look: Callable[[Sequence[int]], Awaitable[Mapping[int, int]]]) -> None:
        """`look` answers the next offset that the projection folds in each of some partitions."""
        self._look = look
        self._known: dict[int, int] = {}
        self._waits: list[_Wait] = []
        self._watching: asyncio.Task[None] | None = None

    async def passed(self, points: Sequence[MustSee], seconds: float) -> None:
        """Wait until the projection was seen to have passed these points. Who reads it then compares
        again: it may have been lost meanwhile.

        Raises:
            Unavailable: it has not, after so many seconds; or it can't be read.
        """
        if self._are_passed(points):
            return
        wait = _Wait(points)
        self._waits.append(wait)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(seconds):
                await wait.over
        except TimeoutError:
            raise Unavailable("projection", f"it is behind by more than {seconds:.0f} s", _REMEDY) from None

    def saw(self, partition: int, position: int) -> None:
        """Somebody has read where the projection stands."""
        self._known[partition] = position

    def _are_passed(self, points: Sequence[MustSee]) -> bool:
        return all(self._known.get(point.partition, 0) > point.offset for point in points)

    async def _watch(self) -> None:
        pause = PAUSE_SECONDS
        while self._waits:
            numbers = sorted({point.partition for wait in self._waits for point in wait.points})
            try:
                self._known.update(await self._look(numbers))
            except BaseException as error:
                waits, self._waits = self._waits, []
                for wait in waits:
                    _fail(wait.over, error)
                if not isinstance(error, Exception):
                    raise
                continue
            before = len(self._waits)
            self._waits = [wait for wait in self._waits if not self._ends(wait)]
            pause = PAUSE_SECONDS if len(self._waits) < before else min(1.5 * pause, MAX_PAUSE_SECONDS)
            if self._waits:
                await asyncio.sleep(pause)

    def _ends(self, wait: _Wait) -> bool:
        if not wait.over.done() and self._are_passed(wait.points):
            wait.over.set_result(None)
        return wait.over.done()


def _fail(answer: "asyncio.Future[Any]", error: BaseException) -> None:
    """Whoever waits for an answer is told why there is none."""
    if not answer.done():
        answer.set_exception(error)
