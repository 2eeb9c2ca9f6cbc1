"""Reads nothing, writes nothing: collections that are never changed in place, and cheap to change a copy of.

The states of the folds are frozen values. Copying a dict of all tasks of a job at every fact would
make a job's cost grow with the square of its size.
"""

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import Generic, TypeVar, overload

V = TypeVar("V")
D = TypeVar("D")


class PersistentMap(Mapping[str, V]):
    """A frozen mapping from text to anything but None, in the order of a dict: by the first setting of
    each key.

    The latest version has a dict. Its next version takes that dict and changes it, and leaves behind what
    each key that it changed was before: so a change costs the same however large the map is, and so does
    finding what has changed since. To read an earlier version costs the number of changes since, and to
    change one, or to remove a key, a copy. (Baker, "Shallow binding makes functional arrays fast", 1991.)

    Whoever iterates over a version must not derive another one from it meanwhile.
    """

    __slots__ = ("_dict", "_later")

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._dict: dict[str, V] | None = dict(items or {})
        """None where a later version has taken it."""
        self._later: tuple[Mapping[str, V | None], PersistentMap[V]] | None = None
        """The next version, with what is here of the keys that it changed (None: not there)."""

    def updated(self, changes: Mapping[str, V | None]) -> "PersistentMap[V]":
        """A copy with these values set; None removes a key that is there."""
        if not changes:
            return self
        made: PersistentMap[V] = PersistentMap.__new__(PersistentMap)
        made._later = None
        now = self._dict
        # Removed keys would come back in another place: versions before and after have a dict each.
        if now is None or None in changes.values():
            made._dict = _change(self._whole() if now is None else now.copy(), changes)
            if now is not None:
                self._later = {key: now.get(key) for key in changes}, made
            return made
        self._later = {key: now.get(key) for key in changes}, made
        self._dict, made._dict = None, now
        now.update(changes)  # type: ignore[arg-type]  # there is no None among them
        return made

    def changed_since(self, before: "PersistentMap[V] | None") -> dict[str, tuple[V | None, V | None]]:
        """The keys whose values are others than in an earlier version: what they were and what they are,
        None where a key is not there. Costs little where only little has changed."""
        if before is None:
            return {key: (None, value) for key, value in self.items()}
        were: dict[str, V | None] = {}
        at: PersistentMap[V] = before
        while at is not self:
            if at._later is None:  # it is no earlier one
                keys = dict.fromkeys((*before, *self))
                were = {key: before.get(key) for key in keys}
                break
            changes, at = at._later
            for key, was in changes.items():
                were.setdefault(key, was)
        return {key: (was, now) for key, was in were.items() if (now := self.get(key)) is not was}

    def _whole(self) -> dict[str, V]:
        """All of it as a dict: its own where it is the latest version, else a new one."""
        if self._dict is not None:
            return self._dict
        undone: list[Mapping[str, V | None]] = []
        at: PersistentMap[V] = self
        while at._dict is None:
            assert at._later is not None, "whoever took the dict was noted"
            changes, at = at._later
            undone.append(changes)
        whole = at._dict.copy()
        for changes in reversed(undone):
            _change(whole, changes)
        return whole

    def __getitem__(self, key: str) -> V:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    @overload
    def get(self, key: str, /) -> V | None: ...
    @overload
    def get(self, key: str, /, default: V) -> V: ...
    @overload
    def get(self, key: str, /, default: D) -> V | D: ...
    def get(self, key: str, /, default: object = None) -> object:
        """The value of a key, or the default."""
        at: PersistentMap[V] = self
        while (now := at._dict) is None:
            assert at._later is not None, "whoever took the dict was noted"
            changes, at = at._later
            if key in changes:
                found = changes[key]
                return default if found is None else found
        return now.get(key, default)

    def lookup(self) -> Callable[[str], V | None]:
        """`get`, at its fastest, for as long as no version is derived from this one."""
        return self._dict.get if self._dict is not None else self.get

    def __contains__(self, key: object) -> bool:
        return (key in self._dict) if self._dict is not None else self.get(str(key)) is not None

    def __len__(self) -> int:
        return len(self._whole())

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def latest(self) -> Iterator[tuple[str, V]]:
        """Keys with their values, the last first."""
        return reversed(self._whole().items())

    def items(self) -> ItemsView[str, V]:
        """Keys with their values, in order."""
        return self._whole().items()

    def values(self) -> ValuesView[V]:
        """The values, in order."""
        return self._whole().values()

    def __repr__(self) -> str:
        return f"PersistentMap({dict(self.items())!r})"


def _change(whole: dict[str, V], changes: Mapping[str, V | None]) -> dict[str, V]:
    """Set these values in a dict; None removes a key."""
    for key, value in changes.items():
        if value is None:
            del whole[key]
        else:
            whole[key] = value
    return whole


class Draft(Generic[V]):
    """A mapping while several of its values are changed: becomes the next version of it at once."""

    __slots__ = ("_base", "_changes", "_len", "_under")

    def __init__(self, base: PersistentMap[V]) -> None:
        self._base = base
        self._under = base.lookup()
        self._changes: dict[str, V] = {}
        self._len = len(base)

    def frozen(self) -> PersistentMap[V]:
        """The mapping with all that was put into it so far."""
        if self._changes:
            self._base, self._changes = self._base.updated(self._changes), {}
            self._under = self._base.lookup()
        return self._base

    def put(self, key: str, value: V) -> None:
        """Set a value."""
        if key not in self:
            self._len += 1
        self._changes[key] = value

    def get(self, key: str) -> V | None:
        """The value of a key, or None."""
        found = self._changes.get(key)
        return self._under(key) if found is None else found

    def __getitem__(self, key: str) -> V:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def __len__(self) -> int:
        return self._len

    def items(self) -> ItemsView[str, V]:
        """Keys with their values, in order."""
        return self.frozen().items()

    def values(self) -> ValuesView[V]:
        """The values, in order."""
        return self.frozen().values()


_Stack = tuple[V, "_Stack[V]"] | None


class PersistentQueue(Generic[V]):
    """A frozen queue: adding the last and taking out the first cost the same, however long it is.

    The first ones are a tuple, the last ones a stack, which is turned over when the tuple is used up.
    """

    __slots__ = ("_first", "_last", "_len", "_start")

    def __init__(self, items: Iterable[V] = ()) -> None:
        self._first = tuple(items)
        self._start = 0
        self._last: _Stack[V] = None
        self._len = len(self._first)

    def pushed(self, item: V) -> "PersistentQueue[V]":
        """A copy with one more item at its end."""
        if not self._len:
            return PersistentQueue((item,))
        return self._made(self._first, self._start, (item, self._last), self._len + 1)

    def without_first(self) -> "PersistentQueue[V]":
        """A copy without its first item."""
        start = self._start + 1
        if start < len(self._first):
            return self._made(self._first, start, self._last, self._len - 1)
        return PersistentQueue(_turned(self._last))

    @property
    def first(self) -> V | None:
        """The item that was added first; None where there is none."""
        return self._first[self._start] if self._len else None

    @property
    def last(self) -> V | None:
        """The item that was added last; None where there is none."""
        if self._last is not None:
            return self._last[0]
        return self._first[-1] if self._len else None

    @staticmethod
    def _made(first: tuple[V, ...], start: int, last: _Stack[V], length: int) -> "PersistentQueue[V]":
        made: PersistentQueue[V] = PersistentQueue.__new__(PersistentQueue)
        made._first, made._start, made._last, made._len = first, start, last, length
        return made

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[V]:
        yield from self._first[self._start :]
        yield from _turned(self._last)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PersistentQueue) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"PersistentQueue({tuple(self)!r})"


def _turned(stack: _Stack[V]) -> tuple[V, ...]:
    """A stack's items, the lowest first."""
    items: list[V] = []
    while stack is not None:
        item, stack = stack
        items.append(item)
    return tuple(reversed(items))


_Node = tuple[int, tuple[int, str], "_Node | None", "_Node | None"]
"""Rank, item, left and right: a leftist heap, whose right spines are short."""


class PersistentHeap:
    """Frozen pairs of a time and a name, of which the earliest is at hand. Adding one and taking out the
    first cost the logarithm of their number."""

    __slots__ = ("_root",)

    def __init__(self, items: Iterable[tuple[int, str]] = ()) -> None:
        self._root: _Node | None = None
        for item in items:
            self._root = _merged(self._root, (1, item, None, None))

    def pushed(self, item: tuple[int, str]) -> "PersistentHeap":
        """A copy with one more pair."""
        return self._made(_merged(self._root, (1, item, None, None)))

    def without_first(self) -> "PersistentHeap":
        """A copy without the earliest pair."""
        assert self._root is not None, "it is empty"
        return self._made(_merged(self._root[2], self._root[3]))

    @property
    def first(self) -> tuple[int, str] | None:
        """The earliest pair; None where there is none."""
        return self._root[1] if self._root is not None else None

    @staticmethod
    def _made(root: _Node | None) -> "PersistentHeap":
        made = PersistentHeap.__new__(PersistentHeap)
        made._root = root
        return made

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """In no order."""
        stack = [self._root]
        while stack:
            node = stack.pop()
            if node is not None:
                yield node[1]
                stack += node[2:]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PersistentHeap) and sorted(self) == sorted(other)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self)))

    def __repr__(self) -> str:
        return f"PersistentHeap({sorted(self)!r})"


def _merged(one: _Node | None, other: _Node | None) -> _Node | None:
    if one is None or other is None:
        return one or other
    if other[1] < one[1]:
        one, other = other, one
    left, right = one[2], _merged(one[3], other)
    if right is not None and (left is None or left[0] < right[0]):
        left, right = right, left
    return (right[0] + 1 if right is not None else 1, one[1], left, right)
