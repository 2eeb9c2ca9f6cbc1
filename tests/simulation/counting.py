"""Reads the events of the engines' world, writes counts: a fold consumer that is easy to check by eye.

A key's state is how many records it has seen, a digest of their order, the last task among them, and
until when it waits for a fact about time. Each record is answered by a count; every third one by a
record for another key, which is folded in its turn, as the detector's notes to other files are.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from codeconvoy.schemas.errors import Flaw, Undecodable
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.engine.reads import ReadFields

NAME = "counter"
EFFECTS = ("done", "gave-up")
"""Words about a task under its own key."""
WORDS = (*EFFECTS, "also", "echo", "due")
WAIT_MILLISECONDS = 1_500


def word_of(value: bytes) -> tuple[str, str]:
    """What a record of the events says, and of what.

    Raises:
        Undecodable: it is garbage, or of a later version.
    """
    word, _, rest = value.decode().partition(" ")
    if word == "unknown":
        raise Undecodable(Flaw.UNKNOWN_SCHEMA, "of a later version")
    if word not in WORDS:
        raise Undecodable(Flaw.NO_MARKER, "garbage")
    return word, rest


@dataclass(frozen=True, slots=True)
class Count:
    """The state of a key."""

    key: str
    total: int = 0
    digest: int = 0
    last: int = -1
    """The number of the last task that has taken effect."""
    until: int | None = None
    """Milliseconds since the epoch."""


class Counting:
    """The declaration of the counter."""

    def __init__(self, events: str, counts: str, keys: Sequence[str]) -> None:
        self.name, self.topic = NAME, events
        self._counts, self._keys = counts, keys

    def empty(self, key: str) -> Count:
        """See `FoldConsumer`."""
        return Count(key)

    async def load(self, keys: Sequence[str], read: ReadFields) -> Mapping[str, Count]:
        """See `FoldConsumer`."""
        values = await read([field for key in keys for field in fields_of(key)])
        return {key: self._loaded(key, *values[2 * i : 2 * i + 2]) for i, key in enumerate(keys)}

    @staticmethod
    def _loaded(key: str, counted: bytes | None, last: bytes | None) -> Count:
        if counted is None:
            return Count(key)
        total, digest, until = counted.decode().split(" ")
        return Count(key, int(total), int(digest), int(last or b"-1"), int(until) or None)

    def dump(self, key: str, before: Count | None, after: Count) -> Mapping[str, bytes | None]:
        """See `FoldConsumer`."""
        counted, last = fields_of(key)
        changes: dict[str, bytes | None] = {
            counted: f"{after.total} {after.digest} {after.until or 0}".encode()
        }
        if after.last >= 0 and (before is None or before.last != after.last):
            changes[last] = str(after.last).encode()
        return changes

    def step(self, state: Count, record: Record, now: int) -> tuple[Count, Sequence[Outgoing]]:
        """See `FoldConsumer`."""
        word, rest = word_of(record.value)
        if word == "due":
            # Whoever takes over may say it again: only the first one counts.
            return (replace(state, until=None) if rest == str(state.until) else state), ()
        total = state.total + 1
        after = replace(
            state,
            total=total,
            digest=zlib.crc32(record.value, state.digest),
            last=int(rest) if word in EFFECTS else state.last,
            until=record.timestamp + WAIT_MILLISECONDS if total % 5 == 0 else state.until,
        )
        outputs = [Outgoing(self._counts, state.key, f"{after.total} {after.digest}".encode())]
        if word in EFFECTS and total % 3 == 0:
            other = self._keys[(self._keys.index(state.key) + 1) % len(self._keys)]
            outputs.append(Outgoing(self.topic, other, f"echo {state.key} {total}".encode()))
        return after, outputs

    def weigh(self, state: Count) -> int:
        return 1_000

    def together(self, outputs: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """See `FoldConsumer`."""
        return outputs

    def wait(self, state: Count) -> int | None:
        """See `FoldConsumer`."""
        return state.until

    def due(self, key: str, state: Count, now: int) -> Sequence[Outgoing]:
        """See `FoldConsumer`."""
        return [Outgoing(self.topic, key, f"due {state.until}".encode())]


def fields_of(key: str) -> tuple[str, str]:
    """Where a key's count stands, and the last task that it has seen."""
    return f"count:{key}", f"last:{key}"
