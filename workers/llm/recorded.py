"""Reads and writes replies in Redis: the same prompt is answered once, and the answer is kept.

A reply is kept under the hash of provider, model, messages and parameters. Whoever asks first holds
the prompt and calls; all others of the fleet wait for its reply. The hold is a lease that its holder
renews: when the holder dies, the next one calls. So a task that comes again after a crash makes no
second call when the first one had returned. Without Redis every call is made.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Protocol, cast

import msgspec
from redis.asyncio import Redis

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.engine.scripts import reached
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.provider import Call, CallFailed, Failure, Provider, Reply, fingerprint
from codeconvoy.workers.tracing import OFF, Tracing

TTL_SECONDS = 3_600
LEASE_SECONDS = 15.0
_LOOKS = (0.02, 0.5)
"""First and longest pause between two looks for somebody else's reply, in seconds."""
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_LET_GO = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


class ReplyStore(Protocol):
    """Where replies are kept, and prompts are held. Every call may raise Unavailable."""

    async def get(self, prompt: str) -> Reply | None:
        """The reply to a prompt, if it is kept."""
        ...

    async def put(self, prompt: str, reply: Reply) -> None:
        """Keep a reply."""
        ...

    async def hold(self, prompt: str, holder: str) -> bool:
        """Take a prompt for a lease; False where somebody holds it."""
        ...

    async def renew(self, prompt: str, holder: str) -> None:
        """Hold it for one more lease, if it is still held."""
        ...

    async def let_go(self, prompt: str, holder: str) -> None:
        """Hold it no longer."""
        ...


class RedisReplies:
    """Replies in Redis."""

    def __init__(self, redis: Redis, prefix: str, ttl_seconds: int = TTL_SECONDS) -> None:
        self._redis, self._prefix, self._ttl = redis, f"{prefix}:reply", ttl_seconds
        self._renew, self._let_go = redis.register_script(_RENEW), redis.register_script(_LET_GO)

    async def get(self, prompt: str) -> Reply | None:
        """See `ReplyStore`."""
        with reached():
            raw = cast("bytes | None", await self._redis.get(self._key(prompt)))
        return msgspec.msgpack.decode(raw, type=Reply) if raw else None

    async def put(self, prompt: str, reply: Reply) -> None:
        """See `ReplyStore`."""
        with reached():
            await self._redis.set(self._key(prompt), msgspec.msgpack.encode(reply), ex=self._ttl)

    async def hold(self, prompt: str, holder: str) -> bool:
        """See `ReplyStore`."""
        with reached():
            return bool(
                await self._redis.set(self._hold(prompt), holder, nx=True, px=int(1000 * LEASE_SECONDS))
            )

    async def renew(self, prompt: str, holder: str) -> None:
        """See `ReplyStore`."""
        with reached():
            await self._renew(keys=[self._hold(prompt)], args=[holder, int(1000 * LEASE_SECONDS)])

    async def let_go(self, prompt: str, holder: str) -> None:
        """See `ReplyStore`."""
        with reached():
            await self._let_go(keys=[self._hold(prompt)], args=[holder])

    def _key(self, prompt: str) -> str:
        return f"{{{self._prefix}:{prompt}}}"

    def _hold(self, prompt: str) -> str:
        return f"{self._key(prompt)}:hold"


def _for_nothing(kept: Reply) -> Reply:
    """A reply that was paid for when it was made."""
    return replace(kept, usage=msgspec.structs.replace(kept.usage, cost_usd=0.0), recorded=True)


class RecordedProvider:
    """A provider that asks nothing twice."""

    def __init__(
        self,
        provider: Provider,
        name: str,
        store: ReplyStore,
        metrics: ModelMetrics,
        tracing: Tracing = OFF,
    ) -> None:
        """`name` tells servers apart that speak the same API."""
        self.name = provider.name
        self._provider, self._server, self._store = provider, name, store
        self._metrics, self._tracing = metrics, tracing

    async def call(self, request: Call) -> Reply:
        """See `Provider`."""
        prompt = fingerprint(self._server, request)
        try:
            kept = await self._kept(prompt, request)
        except Unavailable:
            self._count("away")
            return await self._provider.call(request)
        if isinstance(kept, Reply):
            return _for_nothing(kept)
        self._count("miss")
        async with self._held(prompt, kept):
            reply = await self._provider.call(request)
            try:
                await self._store.put(prompt, reply)
            except Unavailable:
                self._count("away")
        return reply

    async def _kept(self, prompt: str, request: Call) -> Reply | str:
        """The reply, or the name under which this call holds the prompt."""
        holder = uuid.uuid4().hex
        clock = asyncio.get_running_loop().time
        ends = clock() + request.deadline_seconds
        pause, longest = _LOOKS
        waited = False
        while True:
            if (reply := await self._store.get(prompt)) is not None:
                self._count("wait" if waited else "hit")
                return reply
            if await self._store.hold(prompt, holder):
                # The holder before may have written its reply since the look.
                if (reply := await self._store.get(prompt)) is None:
                    return holder
                await self._store.let_go(prompt, holder)
                continue
            waited = True
            if clock() + pause > ends:
                reason = f"{self.name}: another worker asks the same, and has no reply yet"
                raise CallFailed(Failure.TIMEOUT, reason)
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    @asynccontextmanager
    async def _held(self, prompt: str, holder: str) -> AsyncIterator[None]:
        """Renew the lease while the call runs."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(LEASE_SECONDS / 3)
                try:
                    await self._store.renew(prompt, holder)
                except Unavailable:
                    continue  # then the lease may run out, and somebody may ask the same

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()
            try:
                await self._store.let_go(prompt, holder)
            except Unavailable:
                self._count("away")

    def _count(self, how: str) -> None:
        self._metrics.replies.labels(how).inc()
        self._tracing.event("convoy.recorded_reply", {"convoy.recorded_reply.how": how})

    async def close(self) -> None:
        """See `Provider`."""
        await self._provider.close()
