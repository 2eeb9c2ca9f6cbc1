"""Reads and writes a channel of Redis' pub/sub: which files have moved, as a hint that makes workers look.

The projector says so after the new state is in Redis; each worker listens, once a process. Nothing is
decided from it: a message may be lost, late or doubled, and who is told by one looks at the projection.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from codeconvoy.schemas.file_history import FileHistory

MAX_MOVES = 256
"""Of one message."""
RETRY_SECONDS = (0.1, 5.0)
"""First and longest pause before a channel that was lost is listened to again."""

Move = tuple[str, str]
"""A file key, and the event that readers of the file see now."""

logger = logging.getLogger(__name__)


def moves_of(changes: Mapping[str, tuple[FileHistory | None, FileHistory]]) -> list[Move]:
    """Of files that have changed, by key, those of which readers see another event now."""
    return [
        (key, after.visible)
        for key, (before, after) in changes.items()
        if after.visible != (before.visible if before is not None else "")
    ]


class Hints:
    """Who in this process wants to be told that a file may have moved."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[asyncio.Event, None]] = {}

    @contextmanager
    def about(self, keys: Iterable[str]) -> Iterator[asyncio.Event]:
        """An event that is set by each hint about one of these file keys."""
        event, keys = asyncio.Event(), dict.fromkeys(keys)
        for key in keys:
            self._waiting.setdefault(key, {})[event] = None
        try:
            yield event
        finally:
            for key in keys:
                del self._waiting[key][event]
                if not self._waiting[key]:
                    del self._waiting[key]

    def tell(self, moves: Iterable[Move]) -> None:
        """These files have moved."""
        for key, _ in moves:
            for event in self._waiting.get(key, ()):
                event.set()

    def tell_all(self) -> None:
        """Any file may have moved: nobody listened for a while."""
        for events in self._waiting.values():
            for event in events:
                event.set()


class Channel(Protocol):
    """Where the projector says what has moved."""

    async def publish(self, changes: Mapping[str, tuple[FileHistory | None, FileHistory]]) -> None:
        """Say which of these files have moved. Never raises: whoever misses it finds out by looking."""
        ...


class RedisMoves:
    """The channel of a fleet."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis, self._name = redis, f"{prefix}:moved"

    async def publish(self, changes: Mapping[str, tuple[FileHistory | None, FileHistory]]) -> None:
        """See `Channel`: one request for a batch; where nobody listens Redis drops it at once."""
        moves = moves_of(changes)
        if not moves:
            return
        with suppress(RedisError, OSError):
            async with self._redis.pipeline(transaction=False) as pipeline:
                for first in range(0, len(moves), MAX_MOVES):
                    pipeline.publish(self._name, msgspec.msgpack.encode(moves[first : first + MAX_MOVES]))
                await pipeline.execute()

    async def listen(self, hints: Hints) -> None:
        """Pass on what is said, for ever; after every gap whoever waits is told too."""
        shortest, longest = RETRY_SECONDS
        pause = shortest
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(self._name)
                    while True:
                        message = await channel.get_message(timeout=None)
                        if message is not None:
                            pass_on(message, hints)
                            pause = shortest
            except (RedisError, OSError) as error:
                logger.warning("moved files are not heard of, but looked for, for %.1f s: %s", pause, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)


def pass_on(message: Mapping[str, Any], hints: Hints) -> None:
    """What a message of pub/sub says, to those whom it concerns: once it is listened again, all."""
    if message["type"] != "message":
        hints.tell_all()
        return
    try:
        hints.tell(_MOVES.decode(message["data"]))
    except msgspec.MsgspecError:  # of another version: it may be about any file
        hints.tell_all()


_MOVES: msgspec.msgpack.Decoder[list[Move]] = msgspec.msgpack.Decoder(list[Move])
