"""Reads nothing, writes nothing: collections that are never changed in place, and cheap to change a copy of.

The states of the folds are frozen values. Copying a dict of all tasks of a job at every fact would
make a job's cost grow with the square of its size.
"""

from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from math import isqrt
from typing import Generic, TypeVar, overload

V = TypeVar("V")
D = TypeVar("D")

_LEAST = 32
"""Changes that are kept apart before two dicts are joined, however small the whole is."""
_SHARE = 5
"""Of the square root of the whole: changes that are kept apart in a large one."""
_JOINS = 4
"""Joins that are remembered, to find what has changed since a version before them."""
_STEPS = 64
"""Versions that are remembered, to find what has changed since one of them."""

_Join = tuple[object, Iterable[str]]
_Trail = tuple[Iterable[str], "_Trail | None"]
"""The keys that a version has changed, and the version before it: each has its own."""
_NONE = object()


class PersistentMap(Mapping[str, V]):
    """A frozen mapping from text to anything but None, in the order of a dict: by the first setting of
    each key.

    Its versions share one large dict, and each has a small one of its own with what differs; when that
    has grown to a few times the square root of the whole, the two are joined to a new large one. So a
    change costs about the square root of the size, with a small constant.
    """

    __slots__ = ("_apart", "_base", "_joins", "_len", "_name", "_steps", "_trail")

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._base: dict[str, V] = dict(items or {})
        self._name = object()
        """Stands for the base, without keeping it in memory."""
        self._apart: dict[str, V | None] = {}
        """What differs from the base; None where a key of the base is gone."""
        self._joins: tuple[_Join, ...] = ()
        """The bases before this one, the latest last, each with the keys that its end has changed."""
        self._len = len(self._base)
        self._trail: _Trail = ([], None)
        self._steps = 0
        """How long the trail is."""

    def updated(self, changes: Mapping[str, V | None]) -> "PersistentMap[V]":
        """A copy with these values set; None removes a key that is there."""
        if not changes:
            return self
        base, apart, length = self._base, self._apart.copy(), self._len
        for key, value in changes.items():
            known = apart.get(key, _NONE)
            if known is None:  # it was removed from the base, and comes last if it comes again
                return self._joined(self._apart, self._len).updated(changes)
            if value is not None:
                length += known is _NONE and key not in base
                apart[key] = value
                continue
            length -= 1
            if key in base:
                apart[key] = None
            else:
                del apart[key]
        if len(apart) > _LEAST and len(apart) > _SHARE * isqrt(len(base)):
            return self._joined(apart, length)
        made = self._made(base, self._name, apart, length, self._joins)
        if self._steps < _STEPS:
            made._trail, made._steps = (tuple(changes), self._trail), self._steps + 1
        return made

    def _joined(self, apart: dict[str, V | None], length: int) -> "PersistentMap[V]":
        """A version with nothing kept apart."""
        joins = (*self._joins[1 - _JOINS :], (self._name, tuple(apart)))
        return self._made(_whole(self._base, apart), object(), {}, length, joins)

    @staticmethod
    def _made(
        base: dict[str, V], name: object, apart: dict[str, V | None], length: int, joins: tuple[_Join, ...]
    ) -> "PersistentMap[V]":
        made: PersistentMap[V] = PersistentMap.__new__(PersistentMap)
        made._base, made._name, made._apart, made._len, made._joins = base, name, apart, length, joins
        made._trail, made._steps = ([], None), 0  # made anew: it stands for this version alone
        return made

    def changed_since(self, before: "PersistentMap[V] | None") -> dict[str, V | None]:
        """The keys whose values are others than in an earlier version, with the present value; None
        where a key is gone. Costs little where only little has changed."""
        if before is None:
            return dict(self.items())
        apart, base, were_apart, was = self._apart, self._base, before._apart, before._base
        changes: dict[str, V | None] = {}
        for key in self._touched_since(before):
            now = apart[key] if key in apart else base.get(key)
            if now is not (were_apart[key] if key in were_apart else was.get(key)):
                changes[key] = now
        return changes

    def _touched_since(self, before: "PersistentMap[V]") -> Iterable[str]:
        """No key that has changed is missing here."""
        trail, changed = self._trail, list[str]()
        while trail is not before._trail and trail[1] is not None:
            changed += trail[0]
            trail = trail[1]
        if trail is before._trail:
            return dict.fromkeys(changed)
        was, now = before._apart, self._apart
        if self._name is before._name:
            differing = [key for key, value in now.items() if was.get(key, _NONE) is not value]
            return differing + [key for key in was if key not in now]
        touched: dict[str, None] = dict.fromkeys((*was, *now))
        for name, keys in reversed(self._joins):
            touched |= dict.fromkeys(keys)
            if name is before._name:
                return touched
        return dict.fromkeys((*before._base, *was, *self._base, *now))

    def __getitem__(self, key: str) -> V:
        found = self._apart[key] if key in self._apart else self._base[key]
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
        found = self._apart[key] if key in self._apart else self._base.get(key)
        return default if found is None else found

    def __contains__(self, key: object) -> bool:
        if key in self._apart:
            return self.get(str(key)) is not None
        return key in self._base

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def items(self) -> ItemsView[str, V]:
        """Keys with their values, in order."""
        return self._whole().items()

    def values(self) -> ValuesView[V]:
        """The values, in order."""
        return self._whole().values()

    def _whole(self) -> dict[str, V]:
        return _whole(self._base, self._apart) if self._apart else self._base

    def __repr__(self) -> str:
        return f"PersistentMap({dict(self.items())!r})"


class Draft(Generic[V]):
    """A mapping while several of its values are changed: becomes the next version of it at once."""

    __slots__ = ("_base", "_changes", "_len")

    def __init__(self, base: PersistentMap[V]) -> None:
        self._base = base
        self._changes: dict[str, V] = {}
        self._len = len(base)

    def frozen(self) -> PersistentMap[V]:
        """The mapping with all that was put into it."""
        return self._base.updated(self._changes) if self._changes else self._base

    def put(self, key: str, value: V) -> None:
        """Set a value."""
        if key not in self._changes and key not in self._base:
            self._len += 1
        self._changes[key] = value

    def get(self, key: str) -> V | None:
        """The value of a key, or None."""
        return self._changes[key] if key in self._changes else self._base.get(key)

    def __getitem__(self, key: str) -> V:
        return self._changes[key] if key in self._changes else self._base[key]

    def __contains__(self, key: str) -> bool:
        return key in self._changes or key in self._base

    def __len__(self) -> int:
        return self._len

    def items(self) -> ItemsView[str, V]:
        """Keys with their values, in order."""
        return self.frozen().items()

    def values(self) -> ValuesView[V]:
        """The values, in order."""
        return self.frozen().values()


def _whole(base: dict[str, V], apart: Mapping[str, V | None]) -> dict[str, V]:
    """Both as one dict."""
    joined: dict[str, V | None] = base.copy()  # type: ignore[assignment]  # fast, also where keys are gone
    joined.update(apart)
    for key, value in apart.items():
        if value is None:
            del joined[key]
    return joined  # type: ignore[return-value]  # the Nones are gone


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
