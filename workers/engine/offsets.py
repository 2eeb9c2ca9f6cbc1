"""Reads nothing, writes nothing: which offsets of a partition are done, and how a commit says so.

Tasks end out of order. What is committed is the lowest offset that is not done, and in the commit's
metadata the done ones above it, so that after a crash only what was in flight is repeated:

    v1:<crc32, hex>:<base, decimal>:<bitmap, base64>     bit i: offset base + i is done

The map carries its own base, for a commit without metadata may have come later. It stays under
Kafka's 4,096 characters by construction: nothing is begun more than `MAX_SPAN` above the base.
"""

import base64
import binascii
import zlib
from dataclasses import dataclass, field

MAX_SPAN = 16_000
"""Offsets between the lowest one that is not done and the highest one begun: 2,672 characters."""
_VERSION = "v1"


@dataclass(slots=True)
class Offsets:
    """The offsets of one partition since its assignment."""

    base: int
    """The lowest offset that is not done: the next one to be committed."""
    done: set[int] = field(default_factory=set)
    """Done ones above the base."""
    skipped_to: int = 0
    """Everything below this was read; offsets that were not begun below it are markers."""
    open: set[int] = field(default_factory=set)
    """Begun, not done."""

    def begin(self, offset: int) -> bool:
        """Take an offset up; False where it was done already (before a crash)."""
        self.skipped_to = max(self.skipped_to, offset + 1)
        if offset < self.base or offset in self.done:
            return False
        self.open.add(offset)
        return True

    def finish(self, offset: int) -> None:
        """An offset is done."""
        self.open.discard(offset)
        self.done.add(offset)

    def has_room(self, offset: int) -> bool:
        """True where this offset may be begun without the map growing too long."""
        return offset - min(self.open, default=offset) < MAX_SPAN

    def commit(self) -> tuple[int, str]:
        """The offset to commit, and its metadata."""
        self.base = max(self.base, min(self.open, default=self.skipped_to))
        self.done = {offset for offset in self.done if offset >= self.base}
        return self.base, encode(self.base, self.done)


def encode(base: int, done: set[int]) -> str:
    """The metadata that names these done offsets above the base; empty where there are none."""
    if not done:
        return ""
    bitmap = bytearray((max(done) - base) // 8 + 1)
    for offset in done:
        bitmap[(offset - base) // 8] |= 1 << ((offset - base) % 8)
    body = f"{base}:{base64.b64encode(bytes(bitmap)).decode()}"
    return f"{_VERSION}:{zlib.crc32(body.encode()):08x}:{body}"


def decode(offset: int, metadata: str) -> set[int]:
    """The done offsets that a commit names, at or above its offset. Metadata that is of another
    version, damaged, or somebody else's names none: the tasks are repeated, never skipped."""
    version, _, rest = metadata.partition(":")
    checksum, _, body = rest.partition(":")
    base, _, bitmap = body.partition(":")
    if version != _VERSION or checksum != f"{zlib.crc32(body.encode()):08x}" or not base.isdigit():
        return set()
    try:
        raw = base64.b64decode(bitmap, validate=True)
    except binascii.Error:
        return set()
    first = int(base)
    found = {first + 8 * i + bit for i, byte in enumerate(raw) for bit in range(8) if byte >> bit & 1}
    return {one for one in found if one >= offset}
