"""Reads nothing, writes nothing: the states that a fold engine keeps in memory, the latest used ones."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

S = TypeVar("S")
Name = tuple[int, str]
"""Partition and key."""


class Kept(Generic[S]):
    """States by partition and key, bounded in number and in bytes."""

    def __init__(self, count: int, size: int, weigh: Callable[[S], int]) -> None:
        """At most `count` states of `size` bytes in all, as `weigh` guesses them, survive `shrink`."""
        self._count, self._size, self._weigh = count, size, weigh
        self._states: OrderedDict[Name, tuple[S, int]] = OrderedDict()
        self.bytes = 0

    def __contains__(self, name: Name) -> bool:
        return name in self._states

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, name: Name) -> S:
        return self._states[name][0]

    def __setitem__(self, name: Name, state: S) -> None:
        """Keep a state; it was used just now."""
        self._drop(name)
        weight = self._weigh(state)
        self._states[name] = state, weight
        self.bytes += weight

    def use(self, name: Name) -> None:
        """The state is used just now."""
        self._states.move_to_end(name)

    def forget(self, partition: int) -> None:
        """Keep nothing of a partition."""
        for name in [name for name in self._states if name[0] == partition]:
            self._drop(name)

    def shrink(self) -> None:
        """Forget what was not used for longest, until the bounds hold."""
        while self._states and (len(self._states) > self._count or self.bytes > self._size):
            self._drop(next(iter(self._states)))

    def _drop(self, name: Name) -> None:
        if name in self._states:
            self.bytes -= self._states.pop(name)[1]
