"""Reads fields of hashes in Redis, writes nothing: many small reads as a few large ones.

A request costs a client far more than a field does. So what is asked while one request is on its way
goes into the next one, all of it: the fields of one hash in one HMGET, which reads them at one
moment, and all hashes in one round trip.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar, cast

from redis.asyncio import Redis

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.engine.scripts import reached

ReadFields = Callable[[Sequence[str]], Awaitable[Sequence[bytes | None]]]
"""Reads fields of one partition's hash."""

T = TypeVar("T")

MAX_FIELDS = 5_000
"""Fields of one HMGET, unless one read asks for more."""

_Asked = tuple[str, Sequence[str], "asyncio.Future[Sequence[bytes | None]]"]


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


class BatchedReads:
    """Collects what is asked at the same time, and asks for it at once."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: list[_Asked] = []
        self._asking: asyncio.Task[None] | None = None

    async def read(self, key: str, fields: Sequence[str]) -> Sequence[bytes | None]:
        """The values of these fields of a hash, as of one moment after this call.

        Raises:
            Unavailable: Redis can't be reached.
        """
        answer: asyncio.Future[Sequence[bytes | None]] = asyncio.get_running_loop().create_future()
        self._asked.append((key, fields, answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await answer

    async def _ask(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            groups = _groups(asked)
            try:
                values = await self._request(groups)
            except Unavailable as away:
                for _, _, answer in asked:
                    if not answer.done():
                        answer.set_exception(away)
                continue
            for group, found in zip(groups, values, strict=True):
                position = 0
                for _, fields, answer in group:
                    if not answer.done():
                        answer.set_result(found[position : position + len(fields)])
                    position += len(fields)

    async def _request(self, groups: Sequence[Sequence[_Asked]]) -> list[list[bytes | None]]:
        with reached():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for group in groups:
                    pipeline.hmget(group[0][0], [field for _, fields, _ in group for field in fields])
                return cast("list[list[bytes | None]]", await pipeline.execute())


def _groups(asked: Sequence[_Asked]) -> list[list[_Asked]]:
    """What goes into one HMGET each."""
    groups: list[list[_Asked]] = []
    latest: dict[str, tuple[list[_Asked], int]] = {}
    for one in asked:
        key, fields, _ = one
        group, size = latest.get(key, ([], MAX_FIELDS))
        if size + len(fields) > MAX_FIELDS:
            group, size = [], 0
            groups.append(group)
        group.append(one)
        latest[key] = group, size + len(fields)
    return groups
