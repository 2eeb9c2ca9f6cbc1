"""Reads nothing, writes nothing: what a fold engine is told, the declaration of its fold and its limits."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.engine.reads import ReadFields

S = TypeVar("S")

Stored = Callable[[Mapping[str, tuple[S | None, S]]], Awaitable[None]]
"""Told of states by key, before and after, once the latter are in the store. Must not raise: there is
no way back. Never told of what is folded in silence, nor when the process dies in between."""


class FoldConsumer(Protocol[S]):
    """What is folded: a declaration, without IO and without a clock."""

    name: str
    topic: str

    def empty(self, key: str) -> S:
        """The state of a key that was never seen."""
        ...

    async def load(self, keys: Sequence[str], read: ReadFields) -> Mapping[str, S]:
        """The states of keys of one partition, from their fields."""
        ...

    def dump(self, key: str, before: S | None, after: S) -> Mapping[str, bytes | None]:
        """The fields that differ between two states (None: to be deleted)."""
        ...

    def weigh(self, state: S) -> int:
        """About how many bytes a state takes in memory, at a cost that does not depend on its size."""
        ...

    def step(self, state: S, record: Record, now: int) -> tuple[S, Sequence[Outgoing]]:
        """The state after a record, and what is to be written because of it. `now` (milliseconds
        since the epoch) may only be used to say until when somebody else shall wait.

        Raises:
            Undecodable: the record can't be read.
        """
        ...

    def together(self, outputs: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """How the outputs of one transaction are written: all that they say, in no more records, and for
        each key of a topic in the same order."""
        ...

    def wait(self, state: S) -> int | None:
        """When (milliseconds since the epoch) `due` is to be asked for this state."""
        ...

    def due(self, key: str, state: S, now: int) -> Sequence[Outgoing]:
        """Facts about waits that have run out. They change nothing until they are folded."""
        ...


@dataclass(frozen=True, slots=True)
class FoldLimits:
    """Sizes and times of the loop."""

    batch: int = 2_000
    poll_seconds: float = 0.5
    beat_seconds: float = 0.03
    """Between the beginnings of two batches, after a small one: what comes meanwhile goes together, in
    fewer and larger transactions."""
    loaded_beat_seconds: float = 0.15
    """The same after a batch of `loaded` records or more: under load a transaction costs more than a
    moment's wait."""
    loaded: int = 100
    marker_seconds: float = 0.3
    """After the last record, how long markers are looked for each beat; later ones are passed each tick."""
    states: int = 50_000
    """States kept in memory between two batches: more than the files of a large repository."""
    state_bytes: int = 2**30
    """Of these, about."""
    transaction_attempts: int = 5
    tick_seconds: float = 1.0
    skip_check_seconds: float = 2.0

    def beat(self, records: int) -> float:
        """Seconds between the beginnings of a batch of so many records and of the next."""
        share = min(1.0, records / self.loaded)
        return self.beat_seconds + share * (self.loaded_beat_seconds - self.beat_seconds)
