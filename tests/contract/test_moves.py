"""Which files have moved, through a real Redis: who listens hears of it, and of every gap."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.orchestrator.services import LocalRedis, embedded_redis_binary
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.workers.moves import MAX_MOVES, Hints, RedisMoves
from tests.builders import FileLog
from tests.contract.worlds import run


def change() -> tuple[None, FileHistory]:
    """A file that was created."""
    log = FileLog()
    log.edit("e" * 36, b"1\n")
    return None, log.history


@asynccontextmanager
async def channel(url: str, prefix: str) -> AsyncIterator[tuple[RedisMoves, Hints]]:
    """A channel, and what a process that listens to it has heard."""
    redis, hints = open_redis(url), Hints()
    moves = RedisMoves(redis, prefix)
    listening = asyncio.create_task(moves.listen(hints))
    try:
        yield moves, hints
    finally:
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
        await redis.aclose()


async def heard(event: asyncio.Event) -> None:
    """It is told, and then waits for the next time."""
    async with asyncio.timeout(30.0):
        await event.wait()
    event.clear()


def test_who_listens_is_told(redis_url: str, prefix: str) -> None:
    async def go() -> None:
        async with channel(redis_url, prefix) as (moves, hints):
            with (
                hints.about(["w:first"]) as first,
                hints.about(["w:last"]) as last,
                hints.about(["?"]) as none,
            ):
                for event in (first, last, none):
                    await heard(event)  # it is listened from here on
                names = ["w:first", *map(str, range(2 * MAX_MOVES)), "w:last"]
                await moves.publish(dict.fromkeys(names, change()))
                await heard(first)
                await heard(last)
                assert not none.is_set()
                history = change()[1]
                await moves.publish({"w:first": (history, history)})
                await moves.publish({"w:last": (None, history)})
                await heard(last)
                assert not first.is_set(), "what readers see has not changed"

    run(go())


def test_a_redis_that_went_and_came_is_listened_to_again(tmp_path: Path, prefix: str) -> None:
    binary = shutil.which("redis-server") or embedded_redis_binary()
    assert binary, "install redis-server"
    redis = LocalRedis(binary, tmp_path / "redis")
    redis.start()

    async def go() -> None:
        async with channel(redis.url, prefix) as (moves, hints):
            with hints.about(["w:a"]) as event:
                await heard(event)
                redis.kill()
                await moves.publish({"w:a": change()})  # nobody can be told, and that is no error
                redis.start()
                await heard(event)  # of the gap
                await moves.publish({"w:a": change()})
                await heard(event)

    try:
        run(go(), 60.0)
    finally:
        redis.stop()
