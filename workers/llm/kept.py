"""Reads and writes conversations with models in Redis: what was asked and answered, while it is kept.

Texts are kept once under their SHA-256, compressed and without secrets; beside them each task has a
list of its calls, which names them. All of it ends by itself after a time, and the oldest goes first
where it grows over its room. The logs hold hashes alone, so nothing that decides is in here: Redis may
lose it at any moment, and nobody rebuilds it.
"""

import zlib
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol, TypeVar, cast

import msgspec
from redis.asyncio import Redis

from codeconvoy.schemas.events import Usage
from codeconvoy.workers.engine.scripts import reached
from codeconvoy.workers.llm.provider import Call, Message, Origin
from codeconvoy.workers.redact import Redact

KEEP_SECONDS = 7 * 24 * 3_600
KEEP_MEGABYTES = 1_024
MAX_TEXT_BYTES = 2 * 2**20
"""Of one text, compressed: a larger one is not kept."""
MAX_PLAIN_BYTES = 64 * 2**20
"""Of one text before that."""
MAX_CALLS = 200
"""Of one task, the latest; some hundreds of bytes each."""
_LEVEL = 3
_FORGET_BATCH = 1_000

T = TypeVar("T")

_LIB = """
local function drop(ages, sizes, key)
  redis.call('HINCRBY', sizes, '', 0 - (redis.call('HGET', sizes, key) or 0))
  redis.call('HDEL', sizes, key)
  redis.call('ZREM', ages, key)
  redis.call('DEL', key)
end
"""
_PUT = (
    _LIB
    + """
local ages, sizes, calls = KEYS[1], KEYS[2], KEYS[3]
local ttl, room, most, entry = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local now = tonumber(redis.call('TIME')[1])
local function account(key, more)
  redis.call('HINCRBY', sizes, key, more)
  redis.call('HINCRBY', sizes, '', more)
  redis.call('ZADD', ages, now, key)
  redis.call('EXPIRE', key, ttl)
end
-- What has ended by itself is taken off the account first, or it would count twice when it comes again.
for _, key in ipairs(redis.call('ZRANGEBYSCORE', ages, '-inf', now - ttl, 'LIMIT', 0, 1000)) do
  drop(ages, sizes, key)
end
for i = 4, #KEYS do
  local before = redis.call('HGET', sizes, KEYS[i]) or '0'
  redis.call('SET', KEYS[i], ARGV[i + 1])
  account(KEYS[i], #ARGV[i + 1] - tonumber(before))
end
redis.call('RPUSH', calls, entry)
account(calls, #entry)
while redis.call('LLEN', calls) > most do
  account(calls, -#redis.call('LPOP', calls))
end
while tonumber(redis.call('HGET', sizes, '')) > room do
  local oldest = redis.call('ZRANGE', ages, 0, 0)[1]
  if not oldest then break end
  drop(ages, sizes, oldest)
end
redis.call('EXPIRE', ages, ttl)
redis.call('EXPIRE', sizes, ttl)
"""
)
_DROP = (
    _LIB
    + """
for i = 3, #KEYS do drop(KEYS[1], KEYS[2], KEYS[i]) end
"""
)


@dataclass(frozen=True, slots=True)
class Keep:
    """How long, and how much."""

    seconds: int = KEEP_SECONDS
    """0: nothing is kept."""
    megabytes: int = KEEP_MEGABYTES
    """Of the whole fleet, compressed."""


KEEP = Keep()


class KeptPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """What a model was sent."""

    system: str
    messages: tuple[Message, ...]
    max_output_tokens: int
    temperature: float | None = None
    seed: int | None = None
    json_schema: dict[str, Any] | None = None


class KeptCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a task, and what came of it."""

    at: int
    """When it ended, in milliseconds since the epoch."""
    round: int
    server: str
    """Provider, host and model."""
    provider: str
    model: str
    prompt: str
    """The prompt's SHA-256, as `Usage.prompt_sha256` has it: of what was sent, secrets and all."""
    reply: str = ""
    """That of the kept reply; empty where there was none, or an empty one."""
    outcome: str
    """Why the reply ended; or the failure's kind, or `cancelled`."""
    reason: str = ""
    """Why it failed."""
    usage: Usage | None = None
    usage_estimated: bool = False
    request_id: str = ""
    seconds: float
    recorded: bool = False
    """It was answered by the reply to the same prompt, given before: nothing was paid for it."""


class PromptStore(Protocol):
    """Where conversations are kept. Every call may raise Unavailable."""

    async def keep(self, origin: Origin, call: KeptCall, prompt: KeptPrompt, reply: str) -> bool:
        """Keep a call with its texts; False where a text was too large and only the call is kept."""
        ...

    async def calls(self, workspace: str, task_id: str) -> tuple[KeptCall, ...]:
        """The calls of a task that are kept, in order."""
        ...

    async def prompt(self, workspace: str, sha: str) -> KeptPrompt | None:
        """A prompt, while it is kept."""
        ...

    async def reply(self, workspace: str, sha: str) -> str | None:
        """A reply, while it is kept."""
        ...

    async def forget(self, workspace: str) -> int:
        """Erase all of a workspace; answers the number of texts and lists."""
        ...


class RedisPrompts:
    """Conversations in Redis. The workspace is part of every key, so that it can be forgotten."""

    def __init__(self, redis: Redis, prefix: str, keep: Keep) -> None:
        self._redis, self._keep = redis, keep
        self._base = f"{{{prefix}:kept}}"
        self._put, self._drop = redis.register_script(_PUT), redis.register_script(_DROP)

    async def keep(self, origin: Origin, call: KeptCall, prompt: KeptPrompt, reply: str) -> bool:
        """See `PromptStore`."""
        texts: dict[str, object] = {self._key("text", origin.workspace, call.prompt): prompt}
        if call.reply:
            texts[self._key("text", origin.workspace, call.reply)] = reply
        packed = {key: _packed(text) for key, text in texts.items()}
        fitting = {key: text for key, text in packed.items() if text is not None}
        entry = msgspec.msgpack.encode(call)
        args: list[bytes | int] = [self._keep.seconds, self._keep.megabytes * 2**20, MAX_CALLS, entry]
        calls = self._key("calls", origin.workspace, origin.task_id)
        with reached():
            await self._put(keys=[*self._accounts(), calls, *fitting], args=[*args, *fitting.values()])
        return len(fitting) == len(texts)

    async def calls(self, workspace: str, task_id: str) -> tuple[KeptCall, ...]:
        """See `PromptStore`."""
        with reached():
            found = await cast("Any", self._redis.lrange(self._key("calls", workspace, task_id), 0, -1))
        return tuple(msgspec.msgpack.decode(entry, type=KeptCall) for entry in found)

    async def prompt(self, workspace: str, sha: str) -> KeptPrompt | None:
        """See `PromptStore`."""
        return await self._text(workspace, sha, KeptPrompt)

    async def reply(self, workspace: str, sha: str) -> str | None:
        """See `PromptStore`."""
        return await self._text(workspace, sha, str)

    async def forget(self, workspace: str) -> int:
        """See `PromptStore`."""
        found: list[bytes] = []
        with reached():
            for kind in ("text", "calls"):
                pattern = self._key(kind, workspace, "*")
                found += [key async for key in self._redis.scan_iter(match=pattern, count=_FORGET_BATCH)]
            for first in range(0, len(found), _FORGET_BATCH):
                await self._drop(keys=[*self._accounts(), *found[first : first + _FORGET_BATCH]])
        return len(found)

    async def _text(self, workspace: str, sha: str, kind: type[T]) -> T | None:
        with reached():
            raw = await cast("Any", self._redis.get(self._key("text", workspace, sha)))
        return msgspec.msgpack.decode(zlib.decompress(raw), type=kind) if raw else None

    def _accounts(self) -> tuple[str, str]:
        """Where the age and the size of each key stand."""
        return f"{self._base}:ages", f"{self._base}:sizes"

    def _key(self, kind: str, workspace: str, name: str) -> str:
        return f"{self._base}:{kind}:{workspace}:{name}"


def prompt_of(request: Call, redact: Redact) -> KeptPrompt:
    """The copy of a prompt that is kept."""
    schema = request.json_schema
    return KeptPrompt(
        system=redact(request.system),
        messages=tuple(Message(message.role, redact(message.content)) for message in request.messages),
        max_output_tokens=request.max_output_tokens,
        temperature=request.temperature,
        seed=request.seed,
        json_schema=dict(schema) if schema is not None else None,
    )


def reply_key(text: str) -> str:
    """Under what a reply is kept; empty for an empty one."""
    return sha256(text.encode("utf-8", "replace")).hexdigest() if text else ""


def _packed(text: object) -> bytes | None:
    """Compressed; None where it is too large."""
    plain = msgspec.msgpack.encode(text)
    packed = zlib.compress(plain, _LEVEL) if len(plain) <= MAX_PLAIN_BYTES else b""
    return packed if 0 < len(packed) <= MAX_TEXT_BYTES else None
