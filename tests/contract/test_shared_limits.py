"""What a fleet decides on together, in a real Redis: cells under a race, and one call for one prompt."""

import asyncio
import multiprocessing
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.llm.breaker import BreakerLimits, BreakerState, admit, noted
from codeconvoy.workers.llm.cells import RedisCells
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.openai_provider import OpenAIProvider
from codeconvoy.workers.llm.recorded import RecordedProvider, RedisReplies
from tests.contract.worlds import run
from tests.llm_server import HANG, ModelServer
from tests.unit.test_model_chain import Server, request

WORKERS = 32
PROCESSES = 4
READY_SECONDS = 60.0
SPAWN = multiprocessing.get_context("spawn")


class Count(msgspec.Struct, frozen=True, array_like=True):
    """How often a cell was changed."""

    number: int = 0


def test_no_change_of_a_cell_is_lost_in_a_race(redis_url: str, prefix: str) -> None:
    def one_more(state: Count | None, now: float) -> tuple[Count, int]:
        after = Count((state or Count()).number + 1)
        return after, after.number

    async def go() -> None:
        redis = open_redis(redis_url)
        fleet = [RedisCells(redis, prefix, Count, 60) for _ in range(WORKERS)]
        found = await asyncio.gather(*(cells.change("c", one_more) for cells in fleet for _ in range(5)))
        assert sorted(found) == list(range(1, 5 * WORKERS + 1))
        assert await fleet[0].look("c") == Count(5 * WORKERS)
        assert await redis.ttl(f"{{{prefix}:c}}") > 0
        await redis.aclose()

    run(go())


def test_one_probe_of_the_whole_fleet_is_let_through(redis_url: str, prefix: str) -> None:
    limits = BreakerLimits(threshold=3, open_seconds=0.3)

    async def go() -> None:
        redis = open_redis(redis_url)
        fleet = [RedisCells(redis, prefix, BreakerState, 60) for _ in range(WORKERS)]
        for cells in fleet[:3]:
            await cells.change("m", lambda state, now: noted(state, now, limits, failed=True, began=now))
        assert all(
            [await cells.change("m", lambda s, now: admit(s, now, limits, 9.0)) > 0 for cells in fleet]
        )
        await asyncio.sleep(0.4)
        waits = await asyncio.gather(
            *(cells.change("m", lambda s, now: admit(s, now, limits, 9.0)) for cells in fleet)
        )
        assert sorted(wait > 0 for wait in waits) == [False] + [True] * (WORKERS - 1)
        await redis.aclose()

    run(go())


def test_many_workers_with_one_prompt_make_one_call(redis_url: str, prefix: str) -> None:
    async def go() -> None:
        redis = open_redis(redis_url)
        server = Server(seconds=1.0)
        fleet = [
            RecordedProvider(server, "p:m", RedisReplies(redis, prefix), ModelMetrics(CollectorRegistry()))
            for _ in range(WORKERS)
        ]
        replies = await asyncio.gather(*(worker.call(request()) for worker in fleet for _ in range(6)))
        assert len(server.calls) == 1
        assert set(replies) == {replies[0]} and replies[0].usage.tokens_in == 90
        keys = [key async for key in redis.scan_iter(f"{{{prefix}:reply:*")]
        assert len(keys) == 1, "what held the prompt is gone"
        await redis.aclose()

    run(go())


def _ask(url: str, redis_url: str, prefix: str, many: int, ready: Any, said: Any) -> None:
    """A process that asks the same so many times at once."""

    async def go() -> None:
        redis, provider = open_redis(redis_url), OpenAIProvider("secret", base_url=f"{url}/v1")
        recorded = RecordedProvider(
            provider, "p:m", RedisReplies(redis, prefix), ModelMetrics(CollectorRegistry())
        )
        calls = [asyncio.ensure_future(recorded.call(request())) for _ in range(many)]
        await asyncio.sleep(0)
        ready.release()
        for call in calls:
            said.put((await call).text)
        await redis.aclose()

    asyncio.run(go())


def test_two_hundred_prompts_of_four_processes_are_one_call_though_its_first_caller_was_killed(
    redis_url: str, prefix: str
) -> None:
    ready, said = SPAWN.Semaphore(0), SPAWN.Queue()
    with ModelServer([HANG, "done"]) as server, ExitStack() as stack:

        def started(many: int) -> BaseProcess:
            arguments = (server.url, redis_url, prefix, many, ready, said)
            process = SPAWN.Process(target=_ask, args=arguments, daemon=True)
            process.start()
            stack.callback(process.kill)
            return process

        holder = started(1)
        assert server.hangs.wait(READY_SECONDS)
        others = [started(200 // PROCESSES) for _ in range(PROCESSES)]
        assert all(ready.acquire(timeout=READY_SECONDS) for _ in (holder, *others))
        holder.kill()
        texts = [said.get(timeout=READY_SECONDS) for _ in range(200)]
        assert set(texts) == {"done"} and len(server.asked) == 2
        for process in others:
            process.join(READY_SECONDS)
            assert process.exitcode == 0


def test_redis_that_is_away_is_unavailable() -> None:
    async def go() -> None:
        redis = open_redis("redis://127.0.0.1:1/0")
        with pytest.raises(Unavailable):
            await RedisCells(redis, "p", Count, 60).look("c")
        await redis.aclose()

    run(go())
