"""Reads nothing, writes nothing: draws a causal graph as lines of text, as `git log --graph` does.

Newest first. A column is a line of descent on its way down to the event that it waits for; where a
version has several children their columns meet in it, and a merge opens one more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ASCII = str.maketrans(
    {"│": "|", "─": "-", "├": "|", "┤": "|", "╮": "\\", "╯": "/", "┼": "+", "┴": "+", "●": "*", "·": "."}
)
"""For terminals without box-drawing characters."""


@dataclass(frozen=True, slots=True)
class Node:
    """One row to be drawn."""

    name: str
    parents: tuple[str, ...] = ()
    linked: bool = True
    """False: it has no place in the graph (a refused edit, a note), and stands beside it."""
    symbol: str = "●"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the drawing."""

    drawing: str
    node: Node | None = None
    """None for a line that only connects."""


def draw(nodes: Sequence[Node]) -> Iterator[Row]:
    """The rows, for nodes given newest first (children before parents).

    A parent that is not among the nodes is a line that goes on downwards.
    """
    lanes: list[str | None] = []
    for node in nodes:
        if not node.linked:
            yield Row(_plain(lanes) + node.symbol, node)
            continue
        waiting = [column for column, name in enumerate(lanes) if name == node.name]
        column = waiting[0] if waiting else _free(lanes, 0)
        for other in waiting[1:]:
            yield Row(_link(lanes, column, other, "├", "╯"))
            lanes[other] = None
        lanes[column] = node.name
        yield Row(_plain(lanes, column, node.symbol).rstrip(), node)
        lanes[column] = node.parents[0] if node.parents else None
        for parent in node.parents[1:]:
            if parent in lanes:
                left, right = sorted((column, lanes.index(parent)))
                if left != right:
                    yield Row(_link(lanes, left, right, "├", "┤"))
            else:
                other = _free(lanes, column + 1)
                lanes[other] = parent
                yield Row(_link(lanes, column, other, "├", "╮"))
        while lanes and lanes[-1] is None:
            lanes.pop()


def _free(lanes: list[str | None], start: int) -> int:
    """The first column from `start` on that is free; one is added if need be."""
    for column in range(start, len(lanes)):
        if lanes[column] is None:
            return column
    lanes.append(None)
    return len(lanes) - 1


def _plain(lanes: Sequence[str | None], column: int = -1, symbol: str = "") -> str:
    parts = ("│" if name is not None else " " for name in lanes)
    return "".join(f"{symbol if index == column else part} " for index, part in enumerate(parts))


def _link(lanes: Sequence[str | None], left: int, right: int, begin: str, end: str) -> str:
    """A row in which two columns are connected; what lies between is crossed."""
    drawn = []
    for column, name in enumerate(lanes):
        mark = "│" if name is not None else " "
        if column == left:
            drawn.append(begin + "─")
        elif left < column < right:
            drawn.append(("┼" if name is not None else "─") + "─")
        elif column == right:
            drawn.append(end + " ")
        else:
            drawn.append(mark + " ")
    return "".join(drawn).rstrip()
