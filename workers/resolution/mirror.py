"""Reads a file's history, writes nothing: its causal graph as git commits, for git to merge.

The edits that a merge of some heads may look at become commits in an object store that lives
for one merge: parents = causal parents, time = log order, so that the ids are the same in every
process. Bases, virtual bases of criss-cross merges and merged text are then git's own
(`git_merge_commits`, the recursive merge).
"""

from graphlib import TopologicalSorter

from pygit2 import Oid

from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.workers.resolution.object_store import Clash, GaveUp, Merged, ObjectStore, object_store


def merge_heads(history: FileHistory, heads: tuple[str, ...]) -> Merged | GaveUp:
    """git's merge of two or more heads of a file, whatever order they are given in.

    Sides are sorted by event id, which makes it symmetric; the third and later heads are merged,
    in that order, into what the ones before them gave. Costs about 1 ms, and 2 ms for each pair
    of sides of 2,000 lines.
    """
    order = tuple(sorted(heads))
    needed = _needed(history, order)
    if isinstance(needed, GaveUp):
        return needed
    with object_store() as store:
        commits = _mirror(store, history, needed)
        tip = commits[order[0]]
        merged: Merged | GaveUp = GaveUp("there is nothing to merge")
        for position, head in enumerate(order[1:], start=1):
            merged = store.merge(tip, commits[head])
            if isinstance(merged, GaveUp):
                return merged if len(order) == 2 else GaveUp(f"{merged.reason} (head {head})")
            tip = store.commit(
                merged.content,
                executable=merged.executable,
                parents=(tip, commits[head]),
                time=history.next_seq + position,
                name=head,
            )
        return merged


def clash_of(history: FileHistory, heads: tuple[str, ...]) -> Clash | GaveUp:
    """What `merge_heads` could not merge of two heads. Sides are sorted by event id."""
    one, other = sorted(heads)
    needed = _needed(history, (one, other))
    if isinstance(needed, GaveUp):
        return needed
    with object_store() as store:
        commits = _mirror(store, history, needed)
        return store.clash(commits[one], commits[other])


def _mirror(store: ObjectStore, history: FileHistory, needed: set[str]) -> dict[str, Oid]:
    """The commit of each of these edits; parents that are not among them are left out."""
    parents = {key: [p for p in _parents(history, key) if p in needed] for key in needed}
    commits: dict[str, Oid] = {}
    for key in TopologicalSorter(parents).static_order():
        entry = history.entries[key]
        assert entry.edit is not None
        commits[key] = store.commit(
            entry.edit.content,
            executable=entry.edit.executable,
            parents=[commits[parent] for parent in parents[key]],
            time=entry.seq,
            name=key,
        )
    return commits


def _needed(history: FileHistory, order: tuple[str, ...]) -> set[str] | GaveUp:
    """The edits that merging these heads may look at, or that what it needs was forgotten.

    All edits that the heads descend from, but for those below the single common ancestor that
    each step ends at. Those left out are closed under ancestry and lie below every base that
    the merge will ask for, so no merge base differs from that of the whole graph.
    """
    left_out: set[str] | None = None
    for position in range(1, len(order)):
        floor = _floor(history, order[:position], order[position])
        if isinstance(floor, GaveUp):
            return floor
        below = history.ancestors(floor) - floor
        left_out = below if left_out is None else left_out & below
    return history.ancestors(order) - (left_out or set())


def _floor(history: FileHistory, left: tuple[str, ...], right: str) -> set[str] | GaveUp:
    """The one edit below which a merge of these two sides never looks (empty: it looks at all).

    Follows what a recursive merge does: the bases of the sides, the bases of those bases, until
    there is one. A history forgets, so on the way it is made sure that no base can be missing:
    only edits that just one side knows may end in a parent that is not remembered.
    """
    sides = [history.ancestors(left), history.ancestors((right,))]
    exact = True
    while True:
        common = set.intersection(*sides)
        cut = sum(_is_cut(history, side - common) for side in sides)
        if cut > 1 or (cut and not common):
            return GaveUp("the common ancestor of the heads is too old to be remembered")
        bases = common.difference(*(_parents(history, key) for key in common))
        # Of three or more bases libgit2 merges two first: their bases need not be all of theirs.
        exact = exact and len(bases) <= 2
        if len(bases) <= 1:
            return bases if exact else set()
        sides = [history.ancestors((base,)) for base in bases]


def _is_cut(history: FileHistory, keys: set[str]) -> bool:
    """True where one of these edits has a parent that the history does not remember."""
    return any(
        (parent := history.edit(name)) is None or not parent.live
        for key in keys
        for name in _parents(history, key)
    )


def _parents(history: FileHistory, key: str) -> tuple[str, ...]:
    edit = history.edit(key)
    return edit.parents if edit else ()
