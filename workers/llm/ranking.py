"""Reads outlines, writes nothing: which definitions of a repository matter to a task.

In the way of aider's repository map: files are nodes, and a file points to the files that define the
names which it uses, the more the more often. A walk along these edges that keeps starting anew at the
task's own files (personalised PageRank, Page et al. 1999) says how near a file is; what a file has of
that goes to the definitions that it uses.

Everything is summed up in the order of paths and names, so equal inputs give equal ranks to the last bit.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from codeconvoy.workers.llm.outline import Definition, Outline

DAMPING = 0.85
TURNS = 40
"""Of the walk at most: 0.85^40 is 0.0015."""
CLOSE_ENOUGH = 1e-4
MAX_DEFINERS = 40
"""A name that more files define tells nothing about where it comes from."""
NAMED = 10.0
"""What a use of a name weighs more when the goal speaks of it,"""
TELLING = 3.0
"""and when it is long and made of several words,"""
PRIVATE = 0.1
"""and when it is not meant for others."""
_TELLING_CHARS = 8
_LEAST_CHARS = 3
"""Of a word that may be a name."""
_WORD, _PATH = re.compile(r"[^\W\d]\w*"), re.compile(r"[\w./-]+")


@dataclass(frozen=True, slots=True)
class Ranked:
    """A definition of a file, by its number there."""

    path: str
    number: int
    definition: Definition


def _is_meant(word: str, definers: Mapping[str, Sequence[int]]) -> bool:
    """Whether a word of the goal speaks of what has that name: not where it may be plain English."""
    return _is_several(word) or len(definers.get(word, ())) == 1


def _is_several(name: str) -> bool:
    """Whether a name is made of several words, as no word of a sentence is."""
    return "_" in name.strip("_") or (any(char.isupper() for char in name[1:]) and not name.isupper())


def words(text: str) -> frozenset[str]:
    """The words of a text that may be names in code."""
    return frozenset(word for word in _WORD.findall(text) if len(word) >= _LEAST_CHARS)


def rank(outlines: Mapping[str, Outline], own: Iterable[str], goal: str) -> list[Ranked]:
    """All definitions, those that matter most to a task first.

    Args:
        outlines: of the repository's files, by path.
        own: the task's own files.
        goal: what it is about; names and paths in it count.
    """
    paths = sorted(outlines)
    if not paths:
        return []
    definers = _definers(paths, outlines)
    named = frozenset(word for word in words(goal) if _is_meant(word, definers))
    seeds = _seeds(paths, set(own), goal, named, definers)
    edges = [_edges(number, outlines[path], definers, named) for number, path in enumerate(paths)]
    near = _walk([_summed(some) for some in edges], seeds)
    shares = _shares(edges, near, seeds, definers, named)
    found = [
        (-shares.get((place, each.name), 0.0), -near[place], path, number, each)
        for place, path in enumerate(paths)
        for number, each in enumerate(outlines[path].definitions)
    ]
    found.sort(key=lambda item: item[:4])
    return [Ranked(path, number, each) for _, _, path, number, each in found]


_Edge = tuple[int, str, float]
"""The file that defines, the name, the weight."""


def _definers(paths: Sequence[str], outlines: Mapping[str, Outline]) -> Mapping[str, Sequence[int]]:
    """The files that define each name, by their numbers."""
    found: dict[str, dict[int, None]] = {}
    for number, path in enumerate(paths):
        for each in outlines[path].definitions:
            found.setdefault(each.name, {})[number] = None
    return {name: tuple(files) for name, files in found.items() if len(files) <= MAX_DEFINERS}


def _seeds(
    paths: Sequence[str],
    own: set[str],
    goal: str,
    named: frozenset[str],
    definers: Mapping[str, Sequence[int]],
) -> list[float]:
    """Where the walk starts: the task's files, what the goal names; everywhere where it names nothing."""
    weights, spelled = [0.0] * len(paths), {word.strip("./") for word in _PATH.findall(goal)}
    for number, path in enumerate(paths):
        stem = path.rpartition("/")[2].partition(".")[0]
        weights[number] = float(path in own) + float(path in spelled or stem in named)
    for name in sorted(named):
        files = definers.get(name, ())
        for number in files:
            weights[number] += 1.0 / len(files)
    total = sum(weights)
    return [weight / total for weight in weights] if total else [1.0 / len(paths)] * len(paths)


def _edges(
    number: int, outline: Outline, definers: Mapping[str, Sequence[int]], named: frozenset[str]
) -> list[_Edge]:
    """What a file uses of others. Its own uses of what it defines tell nothing about others."""
    found: list[_Edge] = []
    for name, count in outline.uses.items():
        files = definers.get(name, ())
        if not files or number in files:
            continue
        weight = math.sqrt(count) * _weight(name, named) / len(files)
        found += [(file, name, weight) for file in files]
    return found


def _weight(name: str, named: frozenset[str]) -> float:
    weight = NAMED if name in named else 1.0
    if len(name) >= _TELLING_CHARS and _is_several(name):
        weight *= TELLING
    return weight * PRIVATE if name.startswith("_") else weight


def _summed(edges: Iterable[_Edge]) -> list[tuple[int, float]]:
    """The edges of a file, one to each other file, their weights summing up to 1."""
    weights: dict[int, float] = {}
    for file, _, weight in edges:
        weights[file] = weights.get(file, 0.0) + weight
    total = sum(weights.values())
    return [(file, weight / total) for file, weight in weights.items()]


def _walk(edges: Sequence[Sequence[tuple[int, float]]], seeds: Sequence[float]) -> list[float]:
    """Personalised PageRank, by power iteration; who points nowhere starts anew."""
    ranks = list(seeds)
    for _ in range(TURNS):
        lost = sum(rank for rank, out in zip(ranks, edges, strict=True) if not out)
        anew = 1.0 - DAMPING + DAMPING * lost
        after = [anew * seed for seed in seeds]
        for rank_, out in zip(ranks, edges, strict=True):
            if rank_:
                kept = DAMPING * rank_
                for file, weight in out:
                    after[file] += kept * weight
        moved = sum(abs(new - old) for new, old in zip(after, ranks, strict=True))
        ranks = after
        if moved < CLOSE_ENOUGH:
            break
    return ranks


def _shares(
    edges: Sequence[Sequence[_Edge]],
    near: Sequence[float],
    seeds: Sequence[float],
    definers: Mapping[str, Sequence[int]],
    named: frozenset[str],
) -> dict[tuple[int, str], float]:
    """What each definition gets of the files that use it; and of the start, where the goal names it."""
    shares: dict[tuple[int, str], float] = {}
    for rank_, some in zip(near, edges, strict=True):
        total = sum(weight for _, _, weight in some)
        if rank_:
            for file, name, weight in some:
                shares[file, name] = shares.get((file, name), 0.0) + rank_ * weight / total
    for name in sorted(named):
        for file in definers.get(name, ()):
            shares[file, name] = shares.get((file, name), 0.0) + seeds[file]
    return shares
