"""Causal graphs as they are drawn: the pictures are the expectation."""

from textwrap import dedent

from codeconvoy.orchestrator.graph import ASCII, Node, draw


def drawn(*nodes: Node) -> str:
    """The drawing of nodes given newest first, each with its name beside it."""
    return "\n".join(f"{row.drawing}  {row.node.name}" if row.node else row.drawing for row in draw(nodes))


def expect(picture: str) -> str:
    return dedent(picture).strip("\n")


def test_a_line() -> None:
    assert drawn(Node("c", ("b",)), Node("b", ("a",)), Node("a")) == expect(
        """
        ●  c
        ●  b
        ●  a
        """
    )


def test_a_fork_and_its_join() -> None:
    assert drawn(Node("m", ("b", "c")), Node("c", ("a",)), Node("b", ("a",)), Node("a")) == expect(
        """
        ●  m
        ├─╮
        │ ●  c
        ● │  b
        ├─╯
        ●  a
        """
    )


def test_a_fork_that_is_open() -> None:
    assert drawn(Node("c", ("a",)), Node("b", ("a",)), Node("a")) == expect(
        """
        ●  c
        │ ●  b
        ├─╯
        ●  a
        """
    )


def test_three_heads_joined_at_once() -> None:
    nodes = [Node(name, ("a",)) for name in ("d", "c", "b")]
    assert drawn(Node("m", ("b", "c", "d")), *nodes, Node("a")) == expect(
        """
        ●  m
        ├─╮
        ├─┼─╮
        │ │ ●  d
        │ ● │  c
        ● │ │  b
        ├─╯ │
        ├───╯
        ●  a
        """
    )


def test_heads_joined_one_by_one() -> None:
    assert drawn(
        Node("n", ("m", "d")),
        Node("m", ("b", "c")),
        Node("d", ("a",)),
        Node("c", ("a",)),
        Node("b", ("a",)),
        Node("a"),
    ) == expect(
        """
        ●  n
        ├─╮
        ● │  m
        ├─┼─╮
        │ ● │  d
        │ │ ●  c
        ● │ │  b
        ├─╯ │
        ├───╯
        ●  a
        """
    )


def test_a_merge_into_a_line_that_is_there() -> None:
    assert drawn(
        Node("x", ("b",)), Node("m", ("b", "c")), Node("c", ("a",)), Node("b", ("a",)), Node("a")
    ) == expect(
        """
        ●  x
        │ ●  m
        │ ├─╮
        │ │ ●  c
        ├─╯ │
        ●   │  b
        ├───╯
        ●  a
        """
    )


def test_a_merge_whose_second_parent_is_waited_for() -> None:
    assert drawn(
        Node("x", ("b",)), Node("m", ("c", "b")), Node("c", ("a",)), Node("b", ("a",)), Node("a")
    ) == expect(
        """
        ●  x
        │ ●  m
        ├─┤
        │ ●  c
        ● │  b
        ├─╯
        ●  a
        """
    )


def test_what_has_no_place_stands_beside() -> None:
    assert drawn(
        Node("m", ("b", "c")),
        Node("note", linked=False, symbol="·"),
        Node("c", ("a",)),
        Node("dead", ("b",), linked=False, symbol="x"),
        Node("b", ("a",)),
        Node("a"),
    ) == expect(
        """
        ●  m
        ├─╮
        │ │ ·  note
        │ ●  c
        │ │ x  dead
        ● │  b
        ├─╯
        ●  a
        """
    )


def test_a_second_root() -> None:
    assert drawn(Node("m", ("a", "b")), Node("b"), Node("a")) == expect(
        """
        ●  m
        ├─╮
        │ ●  b
        ●  a
        """
    )


def test_a_parent_beyond_the_limit() -> None:
    assert drawn(Node("c", ("b",)), Node("b", ("a",))) == expect(
        """
        ●  c
        ●  b
        """
    )


def test_ascii() -> None:
    picture = drawn(Node("m", ("b", "c", "d")), Node("d", ("a",)), Node("c", ("a",)), Node("b", ("a",)))
    assert picture.translate(ASCII).isascii()
