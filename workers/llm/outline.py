"""Reads the source of a Python file, writes nothing: what it defines, and which names it uses.

By tree-sitter, which finds a tree in any bytes: source that is broken, cut off or no source at all
gives what can be seen of it. Everything is bounded, so one odd file can't cost much.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec
import tree_sitter_python
from tree_sitter import Language, Node, Parser, Query, QueryCursor

MAX_SOURCE_BYTES = 128 * 1024
"""Of a file, what is looked at: parsing this takes some 30 ms, in which nothing else runs."""
MAX_DEFINITIONS = 500
MAX_NAMES = 2_000
MAX_NAME_CHARS = 80
MAX_SIGNATURE_CHARS = 160
MAX_DEPTH = 8
"""Of classes in classes."""
INDENT = "    "

_USES = """
(call function: [(identifier) @name (attribute attribute: (identifier) @name)])
(import_from_statement name: (dotted_name (identifier) @name))
(import_from_statement name: (aliased_import name: (dotted_name (identifier) @name)))
(class_definition superclasses: (argument_list
  [(identifier) @name (attribute attribute: (identifier) @name)]))
(type [(identifier) @name (attribute attribute: (identifier) @name)
  (generic_type (identifier) @name)
  (binary_operator (identifier) @name)
  (binary_operator (attribute attribute: (identifier) @name))])
(decorator [(identifier) @name (attribute attribute: (identifier) @name)])
(except_clause [(identifier) @name (tuple (identifier) @name) (as_pattern (identifier) @name)])
(case_pattern (class_pattern (dotted_name (identifier) @name)))
"""
_LOOKED_INTO = frozenset(
    (
        "module",
        "block",
        "class_definition",
        "function_definition",
        "decorated_definition",
        "expression_statement",
        # statements whose blocks define names of the scope around them:
        "if_statement",
        "elif_clause",
        "else_clause",
        "try_statement",
        "except_clause",
        "finally_clause",
        # where the source is broken:
        "ERROR",
    )
)


class Definition(msgspec.Struct, frozen=True, gc=False):
    """A class, function, method or constant."""

    name: str
    line: int
    """From 1."""
    text: str
    """Its signature as a stub would have it, on one line each with its decorators, indented."""
    within: int = -1
    """The number of the class that it is defined in, which comes before it; -1: none."""


class Outline(msgspec.Struct, frozen=True):
    """What is known of a file's source."""

    definitions: tuple[Definition, ...] = ()
    uses: Mapping[str, int] = {}
    """How often each name is used: called, imported, inherited from, annotated with."""

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return 200 + sum(250 + len(each.text) for each in self.definitions) + 120 * len(self.uses)


class Outliner:
    """Makes outlines. Not for two threads at once."""

    def __init__(self) -> None:
        language = Language(tree_sitter_python.language())
        self._parser, self._uses = Parser(language), Query(language, _USES)

    def outline(self, source: bytes) -> Outline:
        """The outline of a source: the same for the same bytes."""
        root = self._parser.parse(source[:MAX_SOURCE_BYTES]).root_node
        names = Counter(map(_name, QueryCursor(self._uses).captures(root).get("name", ())))
        names.pop("", None)
        kept = sorted(names.items(), key=lambda item: (-item[1], item[0]))[:MAX_NAMES]
        return Outline(tuple(_definitions(root)), dict(sorted(kept)))


def _definitions(root: Node) -> Iterator[Definition]:
    """In the order of the source; a class before what is in it."""
    stack: list[tuple[Node, int, int]] = [(root, -1, 0)]
    count = 0
    while stack and count < MAX_DEFINITIONS:
        node, within, depth = stack.pop()
        decorated = node.type == "decorated_definition"
        inner = node.child_by_field_name("definition") if decorated else node
        found = _definition(node, inner, within, depth) if inner is not None else None
        if found is not None:
            yield found
            count += 1
        if inner is None or inner.type in ("function_definition", "expression_statement"):
            continue
        if inner.type == "class_definition" and found is not None:
            if depth >= MAX_DEPTH:
                continue
            within, depth = count - 1, depth + 1
        stack += [(child, within, depth) for child in reversed(inner.children) if child.type in _LOOKED_INTO]


def _definition(node: Node, inner: Node, within: int, depth: int) -> Definition | None:
    """What a statement defines, if it does."""
    if inner.type == "expression_statement":
        return _constant(inner, within, depth)
    if inner.type not in ("class_definition", "function_definition"):
        return None
    named = inner.child_by_field_name("name")
    name = _name(named) if named is not None else ""
    if not name:
        return None
    marks = [_line(child) for child in node.children if child.type == "decorator"]
    head = _class(inner, name) if inner.type == "class_definition" else _function(inner, name)
    return _made(name, node, [*(mark for mark in marks if "(" not in mark), head], within, depth)


def _class(node: Node, name: str) -> str:
    bases = node.child_by_field_name("superclasses")
    return f"class {name}{_part(node, 'type_parameters')}{_listed(bases) if bases is not None else ''}:"


def _function(node: Node, name: str) -> str:
    start = "async def" if node.children[0].type == "async" else "def"
    parameters, returns = node.child_by_field_name("parameters"), _part(node, "return_type")
    listed = _listed(parameters) if parameters is not None else "()"
    arrow = f" -> {returns}" if returns else ""
    return f"{start} {name}{_part(node, 'type_parameters')}{listed}{arrow}: ..."


def _listed(node: Node) -> str:
    """What stands between brackets, without its comments."""
    return f"({', '.join(_line(child) for child in node.named_children if child.type != 'comment')})"


def _part(node: Node, field: str) -> str:
    found = node.child_by_field_name(field)
    return _line(found) if found is not None else ""


def _constant(statement: Node, within: int, depth: int) -> Definition | None:
    """A name that a module or class gives a value: shown without the value, with its type if stated."""
    assignment = statement.named_child(0)
    if assignment is None or assignment.type != "assignment":
        return None
    left, stated = assignment.child_by_field_name("left"), assignment.child_by_field_name("type")
    if left is None or left.type != "identifier" or not (name := _name(left)):
        return None
    text = f"{name}: {_line(stated)}" if stated is not None else f"{name} = ..."
    return _made(name, statement, [text], within, depth)


def _made(name: str, node: Node, lines: list[str], within: int, depth: int) -> Definition:
    text = "\n".join(INDENT * depth + _cut(line) for line in lines)
    return Definition(name, node.start_point[0] + 1, text, within)


def _cut(line: str) -> str:
    return line if len(line) <= MAX_SIGNATURE_CHARS else line[: MAX_SIGNATURE_CHARS - 3] + "..."


def _line(node: Node) -> str:
    """Its source on one line, with single spaces."""
    return " ".join((node.text or b"").decode("utf-8", "replace").split())


def _name(node: Node) -> str:
    """An identifier; empty where it is too long to be looked for."""
    text = node.text or b""
    return text.decode("utf-8", "replace") if len(text) <= MAX_NAME_CHARS else ""
