"""Reads and writes the state of fold engines in Redis: one hash a partition, with its offset M.

A partition's states and its M live and die together: they are fields of one hash, in one slot.
A write is refused unless the stored M and owner are the ones that this process knows, so that a
process that lost the partition, or whose Redis was lost, can't put a stale state over a newer one.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import msgspec
from redis.asyncio import Redis

from codeconvoy.schemas.errors import PartitionLost
from codeconvoy.workers.engine.reads import BatchedReads
from codeconvoy.workers.engine.scripts import reached, run_script

OFFSET = "@offset"
OWNER = "@owner"
LIVE = "@live"

_COMMIT = """
local m = redis.call('HGET', KEYS[1], '@offset') or '0'
local owner = redis.call('HGET', KEYS[1], '@owner') or ''
if m ~= ARGV[1] or owner ~= ARGV[2] then return {m, owner} end
local given, at = {}, 1
for i, size in ipairs(cmsgpack.unpack(ARGV[5])) do
  given[i] = string.sub(ARGV[6], at, at + size - 1)
  at = at + size
end
local last, all = 2 * tonumber(ARGV[4]), #given
for i = 1, last, 4000 do redis.call('HSET', KEYS[1], unpack(given, i, math.min(i + 3999, last))) end
for i = last + 1, all, 4000 do redis.call('HDEL', KEYS[1], unpack(given, i, math.min(i + 3999, all))) end
redis.call('HSET', KEYS[1], '@offset', ARGV[3])
return {}
"""

_DISCARD = "if redis.call('HGET', KEYS[1], '@owner') == ARGV[1] then redis.call('DEL', KEYS[1]) end"

_SWITCH = """
if redis.call('EXISTS', KEYS[1]) == 1 then
  local m = redis.call('HGET', KEYS[1], '@offset') or '0'
  if m ~= (redis.call('HGET', KEYS[2], '@offset') or '0') then return m end
  local owner = redis.call('HGET', KEYS[1], '@owner')
  if owner and ARGV[1] == '1' then redis.call('HSET', KEYS[2], '@owner', owner) end
end
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('RENAME', KEYS[2], KEYS[1]) end
return ''
"""

_PUT = """
local m = redis.call('HGET', KEYS[1], '@offset') or '0'
local ours = redis.call('HGET', KEYS[2], '@offset') or '0'
if redis.call('HEXISTS', KEYS[1], '@live') == 1 and tonumber(m) > tonumber(ours) then return 0 end
redis.call('RENAME', KEYS[2], KEYS[1])
return 1
"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Fields of a partition's hash, with the offset and owner that they belong to."""

    offset: int
    owner: str
    fields: tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """What one batch changes in one partition."""

    partition: int
    expected: int
    """The M that has to be stored."""
    offset: int
    """The new M."""
    changes: Mapping[str, bytes | None]
    """Fields; None deletes."""


class StateStore(Protocol):
    """Where a fold engine keeps its states."""

    async def take(self, partition: int, owner: str) -> int:
        """Make `owner` the owner of the partition, and answer its offset M (0: no state)."""
        ...

    async def load(self, partition: int, fields: Sequence[str]) -> Loaded:
        """Some fields, and the M and owner that they were read with."""
        ...

    async def load_all(self, wanted: Mapping[int, Sequence[str]]) -> Mapping[int, Loaded]:
        """The same of several partitions, each as of a moment of its own."""
        ...

    async def commit(self, owner: str, writes: Sequence[Write]) -> None:
        """Write the fields and the new M of each partition: a partition's all or nothing.

        Raises:
            PartitionLost: the stored M or owner of one is another; nothing was written to that one.
        """
        ...

    async def discard(self, partition: int, owner: str) -> None:
        """Forget the partition's state, if it is this owner's."""
        ...

    def scan(self, partition: int, prefix: str) -> AsyncIterator[tuple[str, bytes]]:
        """All fields whose name starts with the prefix."""
        ...


def state_key(prefix: str, name: str, partition: int) -> str:
    """The Redis key of the hash with a partition's states and its M: one slot of a cluster."""
    return f"{{{prefix}:{name}:{partition}}}"


class RedisStore:
    """States in Redis under `<prefix>:<name>:<partition>`. Every call may raise Unavailable."""

    def __init__(self, redis: Redis, prefix: str, name: str) -> None:
        self._redis = redis
        self._prefix, self._name = prefix, name
        self._reads = BatchedReads(redis)
        self._commit = redis.register_script(_COMMIT)
        self._discard = redis.register_script(_DISCARD)
        self._switch, self._put = redis.register_script(_SWITCH), redis.register_script(_PUT)

    def key(self, partition: int, shadow: bool = False) -> str:
        """The Redis key of a partition's hash; a rebuild writes to its shadow, in the same slot."""
        return state_key(self._prefix, self._name, partition) + (":shadow" if shadow else "")

    def shadow(self) -> "RedisStore":
        """The same store, writing to the shadow hashes."""
        return _ShadowStore(self._redis, self._prefix, self._name)

    async def take(self, partition: int, owner: str) -> int:
        """See `StateStore`."""
        key = self.key(partition)
        with reached():
            await self._redis.hset(key, OWNER, owner)
            offset = await self._redis.hget(key, OFFSET)
        return int(offset or 0)

    async def load(self, partition: int, fields: Sequence[str]) -> Loaded:
        """See `StateStore`."""
        return (await self.load_all({partition: fields}))[partition]

    async def load_all(self, wanted: Mapping[int, Sequence[str]]) -> Mapping[int, Loaded]:
        """See `StateStore`."""
        asked = [(self.key(partition), (OFFSET, OWNER, *fields)) for partition, fields in wanted.items()]
        return {
            partition: Loaded(int(values[0] or 0), (values[1] or b"").decode(), tuple(values[2:]))
            for partition, values in zip(wanted, await self._reads.read(asked), strict=True)
        }

    async def commit(self, owner: str, writes: Sequence[Write]) -> None:
        """See `StateStore`. One request, whatever the number of partitions."""
        calls = [(self.key(write.partition), _arguments(owner, write)) for write in writes]
        answers = await run_script(self._redis, self._commit, calls)
        for write, answer in zip(writes, answers, strict=True):
            _check_written(owner, write, answer)

    async def discard(self, partition: int, owner: str) -> None:
        """See `StateStore`."""
        with reached():
            await self._discard(keys=[self.key(partition)], args=[owner])

    async def scan(self, partition: int, prefix: str) -> AsyncIterator[tuple[str, bytes]]:
        """See `StateStore`."""
        pattern = "".join(f"\\{c}" if c in "*?[]\\^" else c for c in prefix) + "*"
        fields = self._redis.hscan_iter(self.key(partition), match=pattern, count=1000)
        while True:
            with reached():
                field = await anext(fields, None)
            if field is None:
                return
            yield field[0].decode(), field[1]

    async def snapshot(self, partition: int) -> Mapping[str, bytes]:
        """All fields of a partition but its owner, as of one moment."""
        with reached():
            found = await self._redis.hgetall(self.key(partition))
        fields = cast("dict[bytes, bytes]", found)
        return {name.decode(): value for name, value in fields.items() if name != OWNER.encode()}

    async def drop(self, partition: int) -> None:
        """Forget the partition's states."""
        with reached():
            await self._redis.delete(self.key(partition))

    async def switch(self, partition: int, *, keep_owner: bool) -> int | None:
        """Put the shadow in the place of the hash if both stand at the same M; else the M to reach. The
        owner of the hash may keep it only where both are equal: it goes on from what it has in memory."""
        keys = [self.key(partition), self.key(partition, shadow=True)]
        with reached():
            answer = await self._switch(keys=keys, args=[int(keep_owner)])
        return int(answer) if answer else None

    async def put(self, partition: int) -> bool:
        """Put the shadow in the place of the hash, unless that is live by now and ahead: readers never see
        an older state. Whoever folds there finds that it is not its own any more, and starts anew."""
        keys = [self.key(partition), self.key(partition, shadow=True)]
        with reached():
            return bool(await self._put(keys=keys, args=[]))


class _ShadowStore(RedisStore):
    """The shadow hashes of a store, while a rebuild fills them."""

    def key(self, partition: int, shadow: bool = True) -> str:
        """The shadow hash of a partition."""
        return super().key(partition, shadow=True)


def _arguments(owner: str, write: Write) -> list[str | bytes | int]:
    """The arguments of the script that commits. The fields are one of them, with their sizes in another:
    a client takes longer over thousands of arguments than Redis does over cutting one up."""
    sets = [(name.encode(), value) for name, value in write.changes.items() if value is not None]
    deletes = [name.encode() for name, value in write.changes.items() if value is None]
    texts = [text for pair in sets for text in pair] + deletes
    sizes = msgspec.msgpack.encode([len(text) for text in texts])
    return [str(write.expected), owner, str(write.offset), len(sets), sizes, b"".join(texts)]


def _check_written(owner: str, write: Write, answer: Sequence[bytes]) -> None:
    """`answer` is empty, or the M and owner that are stored."""
    if answer:
        raise PartitionLost(
            f"the state of partition {write.partition} is at offset {answer[0]!r} of owner {answer[1]!r}, "
            f"this process expected {write.expected} of {owner!r}"
        )


class MemoryStore:
    """States in memory, which outlive the processes of a simulation and can be lost on purpose."""

    def __init__(self) -> None:
        self._hashes: dict[int, dict[str, bytes]] = {}

    def lose(self) -> None:
        """Forget everything, as a Redis without a disk does when it is killed."""
        self._hashes.clear()

    async def take(self, partition: int, owner: str) -> int:
        """See `StateStore`."""
        fields = self._hashes.setdefault(partition, {})
        fields[OWNER] = owner.encode()
        return int(fields.get(OFFSET, b"0"))

    async def load(self, partition: int, fields: Sequence[str]) -> Loaded:
        """See `StateStore`."""
        found = self._hashes.get(partition, {})
        return Loaded(
            int(found.get(OFFSET, b"0")),
            found.get(OWNER, b"").decode(),
            tuple(found.get(name) for name in fields),
        )

    async def load_all(self, wanted: Mapping[int, Sequence[str]]) -> Mapping[int, Loaded]:
        """See `StateStore`."""
        return {partition: await self.load(partition, fields) for partition, fields in wanted.items()}

    async def commit(self, owner: str, writes: Sequence[Write]) -> None:
        """See `StateStore`."""
        for write in writes:
            found = self._hashes.setdefault(write.partition, {})
            stored, owned_by = found.get(OFFSET, b"0"), found.get(OWNER, b"")
            refused = (int(stored), owned_by.decode()) != (write.expected, owner)
            _check_written(owner, write, [stored, owned_by] if refused else [])
            for name, value in write.changes.items():
                if value is None:
                    found.pop(name, None)
                else:
                    found[name] = value
            found[OFFSET] = str(write.offset).encode()

    async def discard(self, partition: int, owner: str) -> None:
        """See `StateStore`."""
        if self._hashes.get(partition, {}).get(OWNER) == owner.encode():
            del self._hashes[partition]

    async def scan(self, partition: int, prefix: str) -> AsyncIterator[tuple[str, bytes]]:
        """See `StateStore`."""
        for name, value in list(self._hashes.get(partition, {}).items()):
            if name.startswith(prefix):
                yield name, value

    def snapshot(self) -> Mapping[int, Mapping[str, bytes]]:
        """All fields but the owners, for comparisons."""
        return {
            partition: {name: value for name, value in sorted(fields.items()) if name != OWNER}
            for partition, fields in self._hashes.items()
        }
