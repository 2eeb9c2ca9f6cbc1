"""Reads outlines, writes nothing: a map of the repository that fits a budget of tokens.

    pkg/shapes.py
    class Shape(Base):
        def area(self) -> float: ...
    docs/shapes.md

Of the definitions those that matter most to a task, as a stub file would have them; of other files
and languages the paths, nearest first. What is not there is counted.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from codeconvoy.workers.llm import tokens
from codeconvoy.workers.llm.outline import Definition, Outline
from codeconvoy.workers.llm.ranking import rank

DEFAULT_TOKENS = 2_000
KEPT_TIMES = 2
"""What a map holds, in budgets: more than is shown, since files that are shown in full drop out of it."""
LISTED_SHARE = 4
"""A fourth of the budget is for paths, if there are so many."""


class Line(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A definition on the map. What it is in comes before it."""

    path: str
    line: int
    text: str


class RepoMap(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a task may be shown of the rest of its repository, before the room for it is known."""

    tokens: int
    """What it may take of a prompt."""
    lines: tuple[Line, ...]
    """The definitions that matter most first."""
    paths: tuple[str, ...]
    """The nearest files first."""
    own: tuple[str, ...]
    """Which files the task itself names, besides its own one, which is not on the map."""
    files: int
    """How many there are."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What of a map fits."""

    text: str
    defined: int
    """Files whose definitions are shown, some or all of them."""
    listed: int
    """Files of which only the path is shown."""
    files: int
    """How many there are, but for those that are shown in full."""

    @property
    def left_out(self) -> int:
        """Files that are not shown at all."""
        return self.files - self.defined - self.listed


def budget(options: Mapping[str, str]) -> int:
    """The tokens that a role's options allow for its map."""
    return int(options.get("map_tokens", DEFAULT_TOKENS))


def distance(path: str, origin: str) -> int:
    """Directories to go up and down from one file to another."""
    one, other = path.split("/")[:-1], origin.split("/")[:-1]
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    return len(one) + len(other) - 2 * common


def nearest(paths: Iterable[str], origin: str) -> list[str]:
    """Paths, those nearest to a file first."""
    return sorted(paths, key=lambda path: (distance(path, origin), path))


def make(
    outlines: Mapping[str, Outline], path: str, own: Collection[str], goal: str, size: int, files: int
) -> RepoMap:
    """The map for a task.

    Args:
        outlines: of the files that are looked at, by path; empty ones where a language is not known.
        path: the task's file.
        own: the further files that it names.
        goal: of the task.
        size: what is to be shown of it, in tokens.
        files: how many there are, those that are not looked at among them.
    """
    limit = tokens.room(KEPT_TIMES * size)
    ranked = rank(outlines, (path, *own), goal)
    kept, used = list[Line](), 0
    seen: set[tuple[str, int]] = set()
    for each in ranked:
        if used > limit:
            break
        if each.path == path:
            continue
        for number in _chain(outlines[each.path].definitions, each.number):
            if (each.path, number) not in seen:
                seen.add((each.path, number))
                found = outlines[each.path].definitions[number]
                kept.append(Line(each.path, found.line, found.text))
                used += _bytes(found.text)
    others = [other for other in nearest(outlines, path) if other != path]
    return RepoMap(
        tokens=size,
        lines=tuple(kept),
        paths=tuple(_fitting(others, limit)),
        own=tuple(sorted(name for name in set(own) if name in outlines and name != path)),
        files=files - (path in outlines),
    )


def _chain(definitions: Sequence[Definition], number: int) -> list[int]:
    """The classes that a definition is in, the outermost first, and itself."""
    found: list[int] = []
    while number >= 0:
        found.append(number)
        number = definitions[number].within
    return found[::-1]


def show(whole: RepoMap, limit: int, in_full: Collection[str]) -> Shown:
    """As much of a map as fits.

    Args:
        whole: the map.
        limit: bytes that its text may have.
        in_full: the files that are shown as a whole anyway.
    """
    paths = [path for path in whole.paths if path not in in_full]
    listing = min(limit // LISTED_SHARE, sum(map(_bytes, paths)))
    chosen, used = list[Line](), 0
    defined: set[str] = set()
    for line in whole.lines:
        if line.path in in_full:
            continue
        cost = _bytes(line.text) + (_bytes(line.path) if line.path not in defined else 0)
        if used + cost > limit - listing:
            break
        used += cost
        defined.add(line.path)
        chosen.append(line)
    listed = _fitting((path for path in paths if path not in defined), limit - used)
    return Shown(
        text="\n".join((*_drawn(chosen), *listed)),
        defined=len(defined),
        listed=len(listed),
        files=whole.files - sum(path in in_full for path in whole.own),
    )


def _drawn(lines: Iterable[Line]) -> list[str]:
    """By path, and in the order of the source."""
    drawn, path = list[str](), ""
    for line in sorted(lines, key=lambda line: (line.path, line.line)):
        if line.path != path:
            path = line.path
            drawn.append(path)
        drawn.append(line.text)
    return drawn


def _fitting(texts: Iterable[str], limit: int) -> list[str]:
    """The first ones that fit, a line each."""
    kept, used = list[str](), 0
    for text in texts:
        used += _bytes(text)
        if used > limit:
            break
        kept.append(text)
    return kept


def _bytes(text: str) -> int:
    """Of a line, with its end."""
    return len(text.encode("utf-8", "replace")) + 1
