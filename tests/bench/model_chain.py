"""Reads and writes Redis: what stands around a model's call, measured with a model that answers at once.

One call after the other: how much longer it takes than the call alone, with all that the chain asks of
Redis, and with the same links on the process's own memory. Then many at once: how many calls a second
one process gets through the chain. By hand, the same number of commands goes to Redis, one after the
other or as many at once, and does nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar
from unittest.mock import patch

import msgspec
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.workers.llm.cells import Cells, LocalCells
from codeconvoy.workers.llm.chain import Chain
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.provider import Call, Message, Provider, Reply, Stop, reply_of
from codeconvoy.workers.llm.recorded import ReplyStore
from codeconvoy.workers.roles.role import Role, RoleKind
from tests.bench.figures import Figure, Wrong
from tests.bench.ground import Ground

CALLS = 2_000
"""Of each round."""
ROUNDS = 5
AT_ONCE = 100
PROMPT = "def nothing():\n    return None\n" * 600
"""About 18 kB: a file and what is said about it."""
S = TypeVar("S", bound=msgspec.Struct)
UNREACHED = "1000000000000"
"""A minute: a rate that is looked after, and never met."""
Send = Callable[[int], Awaitable[object]]


class Instant:
    """A model that answers at once."""

    name = "instant"
    calls = 0

    async def call(self, request: Call) -> Reply:
        """See `Provider`."""
        self.calls += 1
        return reply_of(self.name, request, "done", Stop.FINISHED, (6_000, 0, 10), None)

    async def close(self) -> None:
        """There is nothing to close."""


@dataclass
class Kept:
    """Recorded replies in the memory of the process."""

    replies: dict[str, Reply] = field(default_factory=dict)

    async def get(self, prompt: str) -> Reply | None:
        """See `ReplyStore`."""
        return self.replies.get(prompt)

    async def put(self, prompt: str, reply: Reply) -> None:
        """See `ReplyStore`."""
        self.replies[prompt] = reply

    async def hold(self, prompt: str, holder: str) -> bool:
        """See `ReplyStore`."""
        return True

    async def renew(self, prompt: str, holder: str) -> None:
        """See `ReplyStore`."""

    async def let_go(self, prompt: str, holder: str) -> None:
        """See `ReplyStore`."""


class InMemory(Chain):
    """The same links, on what the process itself holds."""

    def _replies(self, role: Role) -> ReplyStore:
        return Kept()

    def _cells(self, what: str, kind: type[S]) -> Cells[S]:
        return LocalCells(self.clock)


def measure(ground: Ground) -> Iterator[Figure]:
    """The figures of the chain.

    Raises:
        Wrong: not every prompt was one call.
    """
    with ground.topics() as topics:
        yield from asyncio.run(_measured(ground, topics.prefix))


async def _measured(ground: Ground, prefix: str) -> list[Figure]:
    redis, model = open_redis(ground.redis), Instant()
    calls, prompts = ground.count(CALLS, 50), iter(range(10**9))
    metrics = ModelMetrics(CollectorRegistry())

    def through(provider: Provider) -> Send:
        return lambda _: provider.call(_request(next(prompts)))

    def chain(kind: type[Chain] = Chain, **options: str) -> Send:
        role = Role("bench", RoleKind.EDIT, "", "instant", model="m", options=options)
        return through(kind(redis, prefix, metrics, time.monotonic).around(role, model))

    try:
        bare = await _micros(through(model), calls, 1)
        local = await _micros(chain(InMemory), calls, 1)
        trips = await _trips(redis, chain())
        alone = await _micros(chain(), calls, 1)
        ping = await _micros(lambda _: redis.get(prefix), calls, 1)
        ground.say(f"chain: {alone:,.0f} µs a call, with {trips} round trips of {ping:,.0f} µs")
        many = await _micros(chain(), calls, AT_ONCE)
        rated = await _micros(
            chain(requests_per_minute=UNREACHED, tokens_per_minute=UNREACHED), calls, AT_ONCE
        )
        pings = await _micros(lambda _: redis.get(prefix), calls, AT_ONCE)
    finally:
        await redis.aclose()
    if model.calls != next(prompts):
        raise Wrong(f"{model.calls} calls for other than as many prompts")
    how = f"prompts of {len(PROMPT) / 1e3:.0f} kB, {calls:,} calls, median of {ROUNDS}; one process"
    alike = f"{trips} Redis round trips"
    at_once = f"{AT_ONCE} calls at once; {how}"
    return [
        Figure("chain", alone - bare, "µs/call", f"{alike} by hand", trips * ping, how=how),
        Figure("chain without Redis", local - bare, "µs/call", how=f"the same links in memory; {how}"),
        Figure(
            "chain, rate", 1e6 / many, "calls/s", f"{alike} each by hand", 1e6 / (trips * pings), how=at_once
        ),
        Figure("chain, rate with limits", 1e6 / rated, "calls/s", "without limits", 1e6 / many, how=at_once),
    ]


def _request(number: int) -> Call:
    return Call("m", "You edit files.", (Message("user", f"{number}\n{PROMPT}"),))


async def _trips(redis: Redis, send: Send) -> int:
    """The commands of one call, once the scripts are known to Redis."""
    await send(0)
    with patch.object(redis, "execute_command", wraps=redis.execute_command) as commands:
        await send(0)
    return commands.call_count


async def _micros(send: Send, calls: int, at_once: int) -> float:
    """Microseconds for each of so many calls, of which so many are under way at any time."""

    async def worker(share: range) -> None:
        for number in share:
            await send(number)

    found = []
    await send(0)
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await asyncio.gather(*(worker(range(first, calls, at_once)) for first in range(at_once)))
        found.append(1e6 * (time.perf_counter() - began) / calls)
    return median(found)
