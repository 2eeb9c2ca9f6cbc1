"""Reads fields of hashes in Redis, writes nothing: many small reads as a few large ones.

A request costs a client far more than a field does. So what is asked while one request is on its way
goes into the next one, all of it: the fields of one hash in one HMGET, which reads them at one
moment, and all hashes in one round trip.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from redis.asyncio import Redis

from codeconvoy.workers.engine.scripts import reached

ReadFields = Callable[[Sequence[str]], Awaitable[Sequence[bytes | None]]]
"""Reads fields of one partition's hash."""

T = TypeVar("T")

MAX_FIELDS = 5_000
"""Fields of one HMGET, unless one read asks for more."""

Values = Sequence[bytes | None]
"""Of fields, None where one is not there."""


def batches(whole: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The whole in order, at most so many at once."""
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


def in_parts(read: ReadFields) -> ReadFields:
    """The same reads, of `MAX_FIELDS` at most: each part as of a moment of its own."""

    async def read_parts(fields: Sequence[str]) -> Sequence[bytes | None]:
        values: list[bytes | None] = []
        for some in batches(fields, MAX_FIELDS):
            values += await read(some)
        return values

    return read_parts


class _Answer:
    """To one question, which may be about several hashes."""

    __slots__ = ("future", "left", "parts")

    def __init__(self, size: int, left: int) -> None:
        """In so many parts, of which so many are not empty."""
        self.future: asyncio.Future[Sequence[Values]] = asyncio.get_running_loop().create_future()
        self.parts: list[Values] = [()] * size
        self.left = left

    def put(self, number: int, values: Values) -> None:
        """One part of it is known."""
        self.parts[number] = values
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(self.parts)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Fields of one hash, and where in its answer they go."""

    key: str
    fields: Sequence[str]
    answer: _Answer
    number: int


class BatchedReads:
    """Collects what is asked at the same time, and asks for it at once."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: list[_Asked] = []
        self._asking: asyncio.Task[None] | None = None

    async def read(self, wanted: Sequence[tuple[str, Sequence[str]]]) -> Sequence[Values]:
        """The values of fields of some hashes: each hash's as of one moment after this call.

        Raises:
            Unavailable: Redis can't be reached.
        """
        left = sum(bool(fields) for _, fields in wanted)
        if not left:
            return [()] * len(wanted)
        answer = _Answer(len(wanted), left)
        self._asked += [
            _Asked(key, fields, answer, number) for number, (key, fields) in enumerate(wanted) if fields
        ]
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await answer.future

    async def _ask(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            groups = _groups(asked)
            try:
                values = await self._request(groups)
            except BaseException as error:
                # Whoever waits for an answer is told why there is none.
                for one in asked:
                    if not one.answer.future.done():
                        one.answer.future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            for group, found in zip(groups, values, strict=True):
                position = 0
                for one in group:
                    one.answer.put(one.number, found[position : position + len(one.fields)])
                    position += len(one.fields)

    async def _request(self, groups: Sequence[Sequence[_Asked]]) -> list[list[bytes | None]]:
        with reached():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for group in groups:
                    pipeline.hmget(group[0].key, [field for one in group for field in one.fields])
                return cast("list[list[bytes | None]]", await pipeline.execute())


def _groups(asked: Sequence[_Asked]) -> list[list[_Asked]]:
    """What goes into one HMGET each."""
    groups: list[list[_Asked]] = []
    latest: dict[str, tuple[list[_Asked], int]] = {}
    for one in asked:
        group, size = latest.get(one.key, ([], MAX_FIELDS))
        if size + len(one.fields) > MAX_FIELDS:
            group, size = [], 0
            groups.append(group)
        group.append(one)
        latest[one.key] = group, size + len(one.fields)
    return groups
