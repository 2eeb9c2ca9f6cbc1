"""One suite for what both stores promise, the one in memory and the one in a real Redis."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import pytest
from redis.asyncio.client import Pipeline

from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.schemas.errors import PartitionLost, Unavailable
from codeconvoy.workers.engine import reads
from codeconvoy.workers.engine.attempts import Attempt, Attempts, MemoryAttempts, RedisAttempts
from codeconvoy.workers.engine.reads import BatchedReads
from codeconvoy.workers.engine.state import LIVE, Loaded, MemoryStore, RedisStore, StateStore, Write
from tests.contract.worlds import run

Opened = Callable[[], AbstractAsyncContextManager["Shelf"]]
NOBODY = "redis://127.0.0.1:1/0"


@dataclass
class Shelf:
    """A store of states, a store of attempts, and a way to make Redis forget its scripts."""

    states: StateStore
    attempts: Attempts
    forget_scripts: Callable[[], Awaitable[None]]


@asynccontextmanager
async def _memory() -> AsyncIterator[Shelf]:
    async def nothing() -> None:
        """There are no scripts."""

    yield Shelf(MemoryStore(), MemoryAttempts(), nothing)


@asynccontextmanager
async def _redis(url: str, prefix: str) -> AsyncIterator[Shelf]:
    redis = open_redis(url)

    async def forget() -> None:
        await redis.script_flush()

    yield Shelf(RedisStore(redis, prefix, "states"), RedisAttempts(redis, prefix, "group"), forget)
    await redis.aclose()


@pytest.fixture(params=["memory", "redis"])
def shelf(request: pytest.FixtureRequest, prefix: str) -> Opened:
    if request.param == "memory":
        return _memory
    return partial(_redis, request.getfixturevalue("redis_url"), prefix)


def test_a_write_is_refused_to_all_but_the_owner_at_its_offset(shelf: Opened) -> None:
    async def go() -> None:
        async with shelf() as here:
            states = here.states
            assert await states.take(1, "me") == 0
            await states.commit("me", [Write(1, 0, 5, {"a": b"1", "b": b"2"})])
            for owner, expected in (("you", 5), ("me", 4)):
                with pytest.raises(PartitionLost):
                    await states.commit(owner, [Write(1, expected, 9, {"a": b"stale", "c": b"stale"})])
            assert await states.load(1, ["a", "b", "c"]) == Loaded(5, "me", (b"1", b"2", None))
            await here.forget_scripts()
            await states.commit("me", [Write(1, 5, 7, {"a": None, "c": b"3"})])
            assert await states.load(1, ["a", "b", "c"]) == Loaded(7, "me", (None, b"2", b"3"))
            assert await states.take(1, "you") == 7
            with pytest.raises(PartitionLost):
                await states.commit("me", [Write(1, 7, 8, {})])

    run(go())


def test_many_partitions_and_many_fields_go_in_one_commit(shelf: Opened) -> None:
    async def go() -> None:
        async with shelf() as here:
            many = {f"f{n}": str(n).encode() for n in range(9_001)}
            for number in range(3):
                await here.states.take(number, "me")
            await here.states.commit("me", [Write(n, 0, n + 1, {**many, LIVE: b"1"}) for n in range(3)])
            for number in range(3):
                loaded = await here.states.load(number, list(many))
                assert loaded == Loaded(number + 1, "me", tuple(many.values()))
            await here.states.commit("me", [Write(0, 1, 2, dict.fromkeys(many))])
            assert [item async for item in here.states.scan(0, "")]
            assert [item async for item in here.states.scan(0, "f")] == []

    run(go())


def test_a_start_is_noted_once_until_it_is_struck_out(shelf: Opened) -> None:
    async def go() -> None:
        async with shelf() as here:
            attempts, alone = here.attempts, Attempt(2, 1, alone=True)
            places = [(n % 3, n) for n in range(40)]
            assert await attempts.begin(places) == {}
            await attempts.note(places[0], alone)
            await here.forget_scripts()
            assert await attempts.begin(places) == {at: Attempt() for at in places} | {places[0]: alone}
            await attempts.strike_out(places[:5])
            await attempts.strike_out([])
            assert await attempts.begin(places) == {at: Attempt() for at in places[5:]}
            assert await attempts.begin([]) == {}

    run(go())


def test_reads_that_come_up_together_go_as_one_request(redis_url: str, prefix: str) -> None:
    requests = 0
    execute = Pipeline.execute

    async def counted(self: Pipeline, raise_on_error: bool = True) -> list[object]:
        nonlocal requests
        requests += 1
        return await execute(self, raise_on_error)

    async def go() -> None:
        redis = open_redis(redis_url)
        keys = [f"{prefix}:h{n}" for n in range(3)]
        for key in keys:
            await redis.hset(key, mapping={f"f{n}": f"{key}.{n}" for n in range(20)})
        batched = BatchedReads(redis)
        wanted = [(keys[n % 3], [f"f{n % 20}", "none", f"f{n % 7}"]) for n in range(90)]
        with patch.object(Pipeline, "execute", counted), patch.object(reads, "MAX_FIELDS", 10):
            parts = [
                wanted[first : first + size]
                for first, size in zip((0, 1, 3, 40), (1, 2, 37, 50), strict=True)
            ]
            found = await asyncio.gather(*map(batched.read, parts))
            assert await batched.read([]) == []
            assert await batched.read([(keys[0], [])]) == [()]
            assert await batched.read([(keys[0], []), (keys[1], ["f1"])]) == [(), [f"{keys[1]}.1".encode()]]
        for (key, fields), values in zip(wanted, itertools.chain(*found), strict=True):
            assert values == [None if field == "none" else f"{key}.{field[1:]}".encode() for field in fields]
        await redis.aclose()
        assert requests == 2, "one for all that came up together"

    run(go())


def test_a_question_that_can_not_be_asked_leaves_nobody_waiting(redis_url: str, prefix: str) -> None:
    async def go() -> None:
        redis = open_redis(redis_url)
        batched = BatchedReads(redis)
        asked = [asyncio.create_task(batched.read([(f"{prefix}:h", [name])])) for name in ("good", "\ud800")]
        done, _ = await asyncio.wait(asked, timeout=10)
        assert len(done) == 2 and all(isinstance(one.exception(), UnicodeEncodeError) for one in asked)
        assert await batched.read([(f"{prefix}:h", ["good"])]) == [[None]]
        await redis.aclose()

    run(go())


def test_redis_that_is_away_is_unavailable_for_all_who_ask() -> None:
    async def go() -> None:
        redis = open_redis(NOBODY)
        store, attempts = RedisStore(redis, "p", "s"), RedisAttempts(redis, "p", "g")
        asked = [store.load(0, ["a"]), store.load(1, ["b"]), attempts.begin([(0, 1)])]
        asked += [store.commit("me", [Write(0, 0, 1, {})]), attempts.strike_out([(0, 1)])]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in found] == [Unavailable] * 5
        await redis.aclose()

    run(go())
