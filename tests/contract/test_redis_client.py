"""The client of a real Redis: who is cancelled while it asks ends there, at whatever moment that comes."""

import asyncio

import pytest
from redis.asyncio import Redis

from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.workers.moves import Hints, RedisMoves
from tests.contract.worlds import run

TURNS = range(1, 80)
"""Turns of the event loop before the cancellation: more than a connection and some commands take."""
END_SECONDS = 10.0


async def turns(count: int) -> None:
    """Let the event loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelled(task: "asyncio.Task[None]", count: int) -> None:
    """Cancel it once, and see that it ends of that."""
    task.cancel()
    _, pending = await asyncio.wait([task], timeout=END_SECONDS)
    assert not pending and task.cancelled(), f"cancelled after {count} turns, it goes on"


async def ask(redis: Redis, key: str) -> None:
    """Ask one thing after the other, for ever."""
    while True:
        assert await redis.incr(key) > 0


def test_whoever_asks_ends_when_it_is_cancelled(redis_url: str, prefix: str) -> None:
    async def go() -> None:
        redis = open_redis(redis_url)
        await redis.set(f"{prefix}:text", "as it was")
        for count in TURNS:
            asking = asyncio.create_task(ask(redis, f"{prefix}:count"))
            await turns(count)
            await cancelled(asking, count)
            # Nobody is given a reply that was meant for the one that has gone.
            assert await redis.get(f"{prefix}:text") == b"as it was"
        await redis.aclose()

    run(go())


def test_a_deadline_that_passes_at_any_moment_ends_what_it_bounds(redis_url: str, prefix: str) -> None:
    async def bounded(redis: Redis, deadlines: list[asyncio.Timeout]) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as deadline:
                deadlines.append(deadline)
                await ask(redis, f"{prefix}:count")

    async def go() -> None:
        redis = open_redis(redis_url)
        for count in TURNS:
            deadlines: list[asyncio.Timeout] = []
            asking = asyncio.create_task(bounded(redis, deadlines))
            await turns(count)
            deadlines[0].reschedule(asyncio.get_running_loop().time())
            _, pending = await asyncio.wait([asking], timeout=END_SECONDS)
            assert not pending, f"its deadline passed after {count} turns, it goes on"
            asking.result()
        await redis.aclose()

    run(go())


def test_whoever_listens_ends_when_it_is_cancelled(redis_url: str, prefix: str) -> None:
    async def go() -> None:
        for warm in (False, True):  # the first connection of a process, and one that there was
            for count in TURNS:
                redis = open_redis(redis_url)
                if warm:
                    await redis.ping()
                listening = asyncio.create_task(RedisMoves(redis, prefix).listen(Hints()))
                await turns(count)
                await cancelled(listening, count)
                await redis.aclose()

    run(go())
