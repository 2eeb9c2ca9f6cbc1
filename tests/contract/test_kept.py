"""Conversations in a real Redis: found by task and hash, bounded in time and size, forgotten by workspace."""

from collections.abc import Awaitable, Callable
from random import Random

import msgspec
import pytest
from redis.asyncio import Redis

from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.workers.llm import kept
from codeconvoy.workers.llm.kept import MAX_CALLS, Keep, KeptCall, KeptPrompt, RedisPrompts, reply_key
from codeconvoy.workers.llm.provider import Message, Origin
from tests.contract.worlds import run

Test = Callable[[Redis, str], Awaitable[None]]


@pytest.fixture
def on_redis(redis_url: str, prefix: str) -> Callable[[Test], None]:
    def do(test: Test) -> None:
        async def go() -> None:
            redis = open_redis(redis_url)
            try:
                await test(redis, prefix)
            finally:
                await redis.aclose()

        run(go())

    return do


def prompt(text: str) -> KeptPrompt:
    return KeptPrompt(
        system="s", messages=(Message("user", text),), max_output_tokens=9, json_schema={"a": [1]}
    )


def call(sha: str, said: str = "", round: int = 1) -> KeptCall:
    return KeptCall(
        at=1,
        round=round,
        server="p:m",
        provider="p",
        model="m",
        prompt=sha,
        reply=reply_key(said),
        outcome="finished",
        seconds=0.5,
    )


def origin(workspace: str = "w", task: str = "t") -> Origin:
    return Origin(workspace, "j", task, 1)


async def names(redis: Redis, prefix: str) -> set[str]:
    found = [key.decode() async for key in redis.scan_iter(f"{{{prefix}:kept}}:*")]
    return {name.partition(":kept}:")[2] for name in found}


def noise(size: int) -> str:
    """Text that can't be compressed to less than about half."""
    return Random(7).randbytes(size // 2).hex()


def test_all_calls_of_a_task_are_found_in_order(on_redis: Callable[[Test], None]) -> None:
    async def go(redis: Redis, prefix: str) -> None:
        store = RedisPrompts(redis, prefix, Keep(seconds=100))
        calls = [call("a" * 64, "one"), call("b" * 64), call("a" * 64, "two", round=2)]
        for each, said in zip(calls, ("one", "", "two"), strict=True):
            assert await store.keep(origin(), each, prompt(each.prompt), said)
        assert await store.calls("w", "t") == tuple(calls)
        assert await store.prompt("w", "b" * 64) == prompt("b" * 64)
        assert await store.reply("w", reply_key("two")) == "two"
        assert await store.calls("w", "u") == await store.calls("v", "t") == ()
        assert await store.prompt("v", "b" * 64) is None and await store.reply("w", "c") is None
        for name in await names(redis, prefix):
            assert 0 < await redis.ttl(f"{{{prefix}:kept}}:{name}") <= 100, name

    on_redis(go)


def test_the_same_text_is_kept_once(on_redis: Callable[[Test], None]) -> None:
    async def go(redis: Redis, prefix: str) -> None:
        store = RedisPrompts(redis, prefix, Keep())
        for task in ("t", "u", "v"):
            await store.keep(origin(task=task), call("a" * 64, "yes"), prompt("x"), "yes")
        texts = {name for name in await names(redis, prefix) if name.startswith("text:")}
        assert texts == {f"text:w:{'a' * 64}", f"text:w:{reply_key('yes')}"}
        assert await accounted(redis, prefix) == await used(redis, prefix)

    on_redis(go)


async def accounted(redis: Redis, prefix: str) -> int:
    return int(await redis.hget(f"{{{prefix}:kept}}:sizes", "") or 0)


async def used(redis: Redis, prefix: str) -> int:
    """Bytes that all texts and lists have."""
    total = 0
    for name in await names(redis, prefix):
        key = f"{{{prefix}:kept}}:{name}"
        if name.startswith("text:"):
            total += await redis.strlen(key)
        elif name.startswith("calls:"):
            total += sum(map(len, await redis.lrange(key, 0, -1)))
    return total


def test_the_oldest_go_first_when_there_is_no_room(on_redis: Callable[[Test], None]) -> None:
    async def go(redis: Redis, prefix: str) -> None:
        store = RedisPrompts(redis, prefix, Keep(megabytes=1))
        for number in range(12):
            each = call(f"{number:064}")
            await store.keep(origin(task=f"t{number:02}"), each, prompt(noise(400_000) + str(number)), "")
            # They are told apart by the second.
            await redis.zincrby(
                f"{{{prefix}:kept}}:ages", number - 1_000, f"{{{prefix}:kept}}:text:w:{number:064}"
            )
            assert await used(redis, prefix) == await accounted(redis, prefix) <= 2**20
        left = [number for number in range(12) if await store.prompt("w", f"{number:064}")]
        assert 1 < len(left) < 12 and left == list(range(12 - len(left), 12))

    on_redis(go)


def test_what_has_ended_by_itself_is_taken_off_the_account(on_redis: Callable[[Test], None]) -> None:
    async def go(redis: Redis, prefix: str) -> None:
        store = RedisPrompts(redis, prefix, Keep(seconds=100))
        await store.keep(origin(), call("a" * 64), prompt("x"), "")
        base = f"{{{prefix}:kept}}"
        for name in (f"text:w:{'a' * 64}", "calls:w:t"):
            await redis.delete(f"{base}:{name}")  # as Redis does when its time has come
            await redis.zincrby(f"{base}:ages", -200, f"{base}:{name}")
        await store.keep(origin(task="u"), call("b" * 64), prompt("y"), "")
        assert await accounted(redis, prefix) == await used(redis, prefix) > 0
        assert await redis.zcard(f"{base}:ages") == 2

    on_redis(go)


def test_a_text_that_is_too_large_is_not_kept_but_its_call_is(
    on_redis: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MAX_TEXT_BYTES", 10_000)

    async def go(redis: Redis, prefix: str) -> None:
        store = RedisPrompts(redis, prefix, Keep())
        assert not await store.keep(origin(), call("a" * 64, "yes"), prompt(noise(40_000)), "yes")
        assert len(await store.calls("w", "t")) == 1
        assert await store.prompt("w", "a" * 64) is None
        assert await store.reply("w", reply_key("yes")) == "yes"

    on_redis(go)


def test_a_task_that_calls_for_ever_keeps_its_latest_calls(on_redis: Callable[[Test], None]) -> None:
    async def go(redis: Redis, prefix: str) -> None:
        store = RedisPrompts(redis, prefix, Keep())
        for number in range(MAX_CALLS + 5):
            await store.keep(origin(), call("a" * 64, round=number), prompt("x"), "")
        assert [each.round for each in await store.calls("w", "t")] == list(range(5, MAX_CALLS + 5))
        assert await accounted(redis, prefix) == await used(redis, prefix)

    on_redis(go)


def test_a_workspace_is_forgotten_alone(on_redis: Callable[[Test], None]) -> None:
    async def go(redis: Redis, prefix: str) -> None:
        store = RedisPrompts(redis, prefix, Keep())
        for workspace in ("w", "w2"):
            for task in ("t", "u"):
                each = call("a" * 64, "yes")
                await store.keep(origin(workspace, task), each, prompt("x"), "yes")
        assert await store.forget("w") == 4
        assert await store.calls("w", "t") == () and await store.prompt("w", "a" * 64) is None
        assert len(await store.calls("w2", "u")) == 1 and await store.prompt("w2", "a" * 64)
        assert await accounted(redis, prefix) == await used(redis, prefix) > 0
        assert await store.forget("w") == 0

    on_redis(go)


def test_what_an_older_version_kept_can_be_read() -> None:
    """Fields may be added with a default."""
    old = {
        name: getattr(call("a"), name) for name in ("at", "round", "server", "provider", "model", "prompt")
    }
    raw = msgspec.msgpack.encode(old | {"outcome": "finished", "seconds": 0.5})
    assert msgspec.msgpack.decode(raw, type=KeptCall) == call("a")
