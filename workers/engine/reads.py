"""Reads fields of a partition's hash, writes nothing: many small reads as a few large ones."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

ReadFields = Callable[[Sequence[str]], Awaitable[Sequence[bytes | None]]]
"""Reads fields of one partition's hash."""

MAX_FIELDS = 5_000
"""Fields that one request may ask for."""


class BatchedReads:
    """Collects what is asked at the same time, and asks for it at once.

    States are loaded side by side in the same few rounds (a header, then what it names), so that
    hundreds of loads make as many requests as one.
    """

    def __init__(self, read: ReadFields) -> None:
        self._read = read
        self._asked: list[tuple[Sequence[str], asyncio.Future[Sequence[bytes | None]]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def read(self, fields: Sequence[str]) -> Sequence[bytes | None]:
        """The values of these fields. Raises what the read of the batch raised."""
        answer: asyncio.Future[Sequence[bytes | None]] = asyncio.get_running_loop().create_future()
        self._asked.append((fields, answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await answer

    async def _ask(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            fields = [field for some, _ in asked for field in some]
            try:
                values: list[bytes | None] = []
                for start in range(0, max(1, len(fields)), MAX_FIELDS):
                    values += await self._read(fields[start : start + MAX_FIELDS])
            except BaseException as error:
                for _, answer in asked:
                    if not answer.done():
                        answer.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            position = 0
            for some, answer in asked:
                if not answer.done():
                    answer.set_result(values[position : position + len(some)])
                position += len(some)
