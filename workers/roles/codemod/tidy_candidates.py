"""Reads source text, writes nothing: whether the rules of `tidy` could find anything in it.

libcst takes ten times as long as Python's own parser, and most files hold nothing to tidy. What is
found here is more than the rules will change, never less.
"""

import ast
from collections.abc import Iterator, Sequence

from codeconvoy.workers.roles.codemod.source import Unparsable, parse

_OPERANDS = {
    ast.If: "test",
    ast.While: "test",
    ast.Return: "value",
    ast.Assert: "test",
    ast.For: "iter",
    ast.AsyncFor: "iter",
    ast.ExceptHandler: "type",
}
"""The operand of each keyword that may stand in needless parentheses."""
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def may_be_tidied(content: bytes) -> bool:
    """False where no rule applies; True where one may, or where this can't be told."""
    tree = parse(content)
    if isinstance(tree, Unparsable):
        return True
    try:
        content.decode()
    except UnicodeDecodeError:  # columns count the bytes of UTF-8
        return True
    lines = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return any(_is_candidate(node, lines) for node in ast.walk(tree))


def _is_candidate(node: ast.AST, lines: Sequence[bytes]) -> bool:
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=ast.Compare(ops=[ast.In() | ast.Is()])):
            return True
        case ast.While(test=ast.Constant(value=int(value))) if value is not True:
            return True
    operand: ast.expr | None = getattr(node, _OPERANDS.get(type(node), ""), None)
    # Parentheses that hold several lines together are not needless.
    on_one_line = operand is not None and operand.lineno == operand.end_lineno
    if operand is not None and on_one_line and _before(operand, lines).endswith(b"("):
        return True
    return any(_suite_is_candidate(node, suite, lines) for suite in _suites(node))


def _suites(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        suite = getattr(node, name, None)
        if isinstance(suite, list) and suite:
            yield suite


def _suite_is_candidate(node: ast.AST, suite: list[ast.stmt], lines: Sequence[bytes]) -> bool:
    """A `pass` too many, a semicolon, or a body on the line of its keyword."""
    if len(suite) > 1 and any(isinstance(statement, ast.Pass) for statement in suite):
        return True
    own = suite[1:] if isinstance(node, _DEFINITIONS) else suite
    return any(_before(statement, lines) for statement in own) or any(
        _after(statement, lines).startswith(b";") for statement in suite
    )


def _before(node: ast.stmt | ast.expr, lines: Sequence[bytes]) -> bytes:
    return lines[node.lineno - 1][: node.col_offset].strip()


def _after(node: ast.stmt, lines: Sequence[bytes]) -> bytes:
    end = node.end_lineno or node.lineno
    return lines[end - 1][node.end_col_offset :].strip()
