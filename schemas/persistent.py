"""Reads nothing, writes nothing: collections that are never changed in place, and cheap to change a copy of.

The states of the folds are frozen values. Copying a dict of all tasks of a job at every fact would
make a job's cost grow with the square of its size.
"""

from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from math import isqrt
from typing import TypeVar, overload

V = TypeVar("V")
D = TypeVar("D")

_LEAST = 32
"""Changes that are kept apart before two dicts are joined, however small the whole is."""
_RECENT = 16
"""Changes that are remembered, to find fast what has changed since one of the last versions."""


_Change = tuple[object, Iterable[str]]


class PersistentMap(Mapping[str, V]):
    """A frozen mapping from text to anything but None, in the order of a dict: by the first setting of
    each key.

    Its versions share one large dict, and each has a small one of its own with what differs; when that
    has grown to a few times the square root of the whole, the two are joined to a new large one. So a
    change costs about the square root of the size, with a small constant.
    """

    __slots__ = ("_apart", "_base", "_len", "_recent", "_version")

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._base: dict[str, V] = dict(items or {})
        self._apart: dict[str, V | None] = {}
        """What differs from the base; None where a key of the base is gone."""
        self._version = object()
        """Stands for this version, without keeping it in memory."""
        self._recent: tuple[_Change, ...] = ()
        """The versions before this one, the latest last, each with the keys that were changed next."""
        self._len = len(self._base)

    def updated(self, changes: Mapping[str, V | None]) -> "PersistentMap[V]":
        """A copy with these values set; None removes a key that is there."""
        if not changes:
            return self
        apart, length = self._apart.copy(), self._len
        for key, value in changes.items():
            if key in apart:
                known = apart[key]
                if known is None:  # it was removed from the base, and comes last if it comes again
                    return self._joined().updated(changes)
            else:
                known = self._base.get(key)
            length += (value is not None) - (known is not None)
            if value is None and key not in self._base:
                del apart[key]
            else:
                apart[key] = value
        recent = (*self._recent[1 - _RECENT :], (self._version, tuple(changes)))
        if len(apart) > _LEAST and len(apart) > 3 * isqrt(len(self._base)):
            return self._made(_whole(self._base, apart), {}, length, recent)
        return self._made(self._base, apart, length, recent)

    @staticmethod
    def _made(
        base: dict[str, V], apart: dict[str, V | None], length: int, recent: tuple[_Change, ...]
    ) -> "PersistentMap[V]":
        made: PersistentMap[V] = PersistentMap.__new__(PersistentMap)
        made._base, made._apart, made._len, made._recent = base, apart, length, recent
        made._version = object()
        return made

    def _joined(self) -> "PersistentMap[V]":
        """The same, with nothing kept apart."""
        recent = (*self._recent, (self._version, ()))
        return self._made(_whole(self._base, self._apart), {}, self._len, recent)

    def changed_since(self, before: "PersistentMap[V] | None") -> dict[str, V | None]:
        """The keys whose values are others than in an earlier version, with the present value; None
        where a key is gone. Costs little where only little has changed."""
        if before is None:
            return dict(self.items())
        touched = self._touched_since(before)
        return {key: now for key in touched if (now := self.get(key)) is not before.get(key)}

    def _touched_since(self, before: "PersistentMap[V]") -> Iterable[str]:
        """No key that has changed is missing here."""
        touched: dict[str, None] = {}
        for version, keys in reversed(self._recent):
            touched |= dict.fromkeys(keys)
            if version is before._version:
                return touched
        if self._base is not before._base:
            return dict.fromkeys((*before._base, *before._apart, *self._base, *self._apart))
        was, now = before._apart, self._apart
        differing = [key for key, value in now.items() if key not in was or was[key] is not value]
        return [*differing, *(key for key in was if key not in now)]

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


def _whole(base: dict[str, V], apart: Mapping[str, V | None]) -> dict[str, V]:
    """Both as one dict."""
    joined: dict[str, V | None] = {**base, **apart}
    for key in [key for key, value in apart.items() if value is None]:
        del joined[key]
    return joined  # type: ignore[return-value]  # the Nones are gone


_Stack = tuple[str, "_Stack"] | None


class PersistentQueue:
    """A frozen queue of texts: adding the last and taking out the first cost the same, however long it is.

    The first ones are a tuple, the last ones a stack, which is turned over when the tuple is used up.
    """

    __slots__ = ("_first", "_last", "_len", "_start")

    def __init__(self, items: Iterable[str] = ()) -> None:
        self._first = tuple(items)
        self._start = 0
        self._last: _Stack = None
        self._len = len(self._first)

    def pushed(self, item: str) -> "PersistentQueue":
        """A copy with one more item at its end."""
        if not self._len:
            return PersistentQueue((item,))
        return self._made(self._first, self._start, (item, self._last), self._len + 1)

    def without_first(self) -> "PersistentQueue":
        """A copy without its first item."""
        start = self._start + 1
        if start < len(self._first):
            return self._made(self._first, start, self._last, self._len - 1)
        return PersistentQueue(_turned(self._last))

    @property
    def first(self) -> str | None:
        """The item that was added first; None where there is none."""
        return self._first[self._start] if self._len else None

    @property
    def last(self) -> str | None:
        """The item that was added last; None where there is none."""
        if self._last is not None:
            return self._last[0]
        return self._first[-1] if self._len else None

    @staticmethod
    def _made(first: tuple[str, ...], start: int, last: _Stack, length: int) -> "PersistentQueue":
        made = PersistentQueue.__new__(PersistentQueue)
        made._first, made._start, made._last, made._len = first, start, last, length
        return made

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[str]:
        yield from self._first[self._start :]
        yield from _turned(self._last)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PersistentQueue) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"PersistentQueue({tuple(self)!r})"


def _turned(stack: _Stack) -> tuple[str, ...]:
    """A stack's items, the lowest first."""
    items: list[str] = []
    while stack is not None:
        item, stack = stack
        items.append(item)
    return tuple(reversed(items))
