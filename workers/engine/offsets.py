"""Reads nothing, writes nothing: which offsets of a partition are done, and how a commit says so.

Tasks end out of order. What is committed is the lowest offset that is not done, and in the commit's
metadata the done ones above it, so that after a crash only what was in flight is repeated:

    v1:<crc32, hex>:<base, decimal>:<bitmap, base64>     bit i: offset base + i is done

The map carries its own base, for a commit without metadata may have come later. It stays under
Kafka's 4,096 characters by construction: offsets `MAX_SPAN` or more above the base are left out of
it, and the engine reads no further once a partition spans half of that.
"""

import base64
import binascii
import zlib
from collections.abc import Collection
from dataclasses import dataclass, field

from codeconvoy.workers.engine.bus import Committed

MAX_SPAN = 16_000
"""Offsets above the base that a map may speak of: at most 2,701 characters."""
_VERSION = "v1"


@dataclass(slots=True)
class Offsets:
    """The offsets of one partition since its assignment."""

    base: int
    """The lowest offset that was not done at the last commit."""
    read_to: int = 0
    """Everything below this was read; offsets that were not begun below it are markers."""
    done: set[int] = field(default_factory=set)
    """Done ones above the base."""
    open: set[int] = field(default_factory=set)
    """Begun, not done."""
    dropped: set[int] = field(default_factory=set)
    """Open ones that are not in hand any more, and will be read again."""

    def begin(self, offset: int) -> bool:
        """Take an offset up; False where it was done before a crash, or is in hand already."""
        self.read_to = max(self.read_to, offset + 1)
        if offset in self.dropped:
            self.dropped.discard(offset)
            return True
        if offset < self.base or offset in self.done or offset in self.open:
            return False
        self.open.add(offset)
        return True

    def drop(self, offset: int) -> None:
        """Give an open offset back: it is not done, and will be read again."""
        self.dropped.add(offset)

    def read_again(self, offset: int) -> None:
        """This offset was skipped, and reading goes on behind it."""
        self.finish([offset])
        self.read_to = offset + 1

    def point(self, also: Collection[int] = ()) -> Committed:
        """What to commit once these are done too."""
        still = self.open.difference(also)
        base = max(self.base, min(still, default=self.read_to))
        return Committed(base, encode(base, {one for one in self.done.union(also) if one >= base}))

    def finish(self, offsets: Collection[int]) -> None:
        """These are done, and committed."""
        self.open.difference_update(offsets)
        self.dropped.difference_update(offsets)
        self.base = max(self.base, min(self.open, default=self.read_to))
        self.done = {one for one in self.done.union(offsets) if one >= self.base}

    @property
    def in_hand(self) -> int:
        """How many were begun and are not done."""
        return len(self.open) - len(self.dropped)

    @property
    def is_stretched(self) -> bool:
        """True where so much was read above the base that reading has to wait."""
        return self.read_to - self.base >= MAX_SPAN // 2


def encode(base: int, done: Collection[int]) -> str:
    """The metadata that names these done offsets above the base; empty where there are none."""
    bits = [offset - base for offset in done if offset - base < MAX_SPAN]
    if not bits:
        return ""
    bitmap = bytearray(max(bits) // 8 + 1)
    for bit in bits:
        bitmap[bit // 8] |= 1 << bit % 8
    body = f"{base}:{base64.b64encode(bytes(bitmap)).decode()}"
    return f"{_VERSION}:{zlib.crc32(body.encode()):08x}:{body}"


def decode(offset: int, metadata: str) -> set[int]:
    """The done offsets that a commit names, at or above its offset. Metadata that is of another
    version, damaged, or somebody else's names none: the tasks are repeated, never skipped."""
    version, _, rest = metadata.partition(":")
    checksum, _, body = rest.partition(":")
    base, _, bitmap = body.partition(":")
    if version != _VERSION or checksum != f"{zlib.crc32(body.encode()):08x}":
        return set()
    if not (base.isascii() and base.isdigit()):
        return set()
    try:
        raw = base64.b64decode(bitmap, validate=True)
    except binascii.Error:
        return set()
    first = int(base)
    found = {first + 8 * i + bit for i, byte in enumerate(raw) for bit in range(8) if byte >> bit & 1}
    return {one for one in found if one >= offset}
