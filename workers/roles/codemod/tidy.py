"""Reads source text, writes source text: libcst rules for what older Python code has too much of.

Every rule leaves the meaning of the program as it was, whatever the types of its values:

- `not-in`: `not a in b` is `a not in b`, and `not a is b` is `a is not b`.
- `one-line`: one statement a line; the body of `if`, `for`, `while`, `try`, `with` on its own lines.
- `parentheses`: none around a whole condition or other operand of a keyword that fits on one line.
- `pass`: no `pass` in a block that holds anything else.
- `while-true`: `while 1` is `while True`.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import libcst as cst

from codeconvoy.schemas.errors import AgentError
from codeconvoy.workers.roles.codemod.source import Rewrite
from codeconvoy.workers.roles.codemod.tidy_candidates import may_be_tidied

RULES = frozenset({"not-in", "one-line", "parentheses", "pass", "while-true"})

_SPACE_BEFORE: Mapping[str, str] = {
    "If": "whitespace_before_test",
    "While": "whitespace_after_while",
    "Return": "whitespace_after_return",
    "Assert": "whitespace_after_assert",
    "For": "whitespace_after_in",
    "ExceptHandler": "whitespace_after_except",
}
_NEEDS_PARENTHESES = (cst.Tuple, cst.GeneratorExp, cst.Yield, cst.NamedExpr)
"""Where parentheses mean something, or (tuples) are a matter of taste."""

_Node = TypeVar("_Node", bound=cst.CSTNode)


class _Tidy(cst.CSTTransformer):
    """Applies the rules it is given, and counts what it did by rule."""

    def __init__(self, rules: Collection[str]) -> None:
        super().__init__()
        self.rules = rules
        self.done: Counter[str] = Counter()
        self._to_split: set[cst.BaseSuite] = set()

    # parentheses, while-true

    def leave_If(self, original_node: cst.If, updated_node: cst.If) -> cst.If:
        """`if (a):`."""
        return self._unwrap(updated_node, "test")

    def leave_While(self, original_node: cst.While, updated_node: cst.While) -> cst.While:
        """`while (a):` and `while 1:`."""
        test = updated_node.test
        if "while-true" in self.rules and isinstance(test, cst.Integer) and test.value == "1":
            self.done["while-true"] += 1
            updated_node = updated_node.with_changes(test=cst.Name("True", lpar=test.lpar, rpar=test.rpar))
        return self._unwrap(updated_node, "test")

    def leave_Return(self, original_node: cst.Return, updated_node: cst.Return) -> cst.Return:
        """`return (a)`."""
        return self._unwrap(updated_node, "value")

    def leave_Assert(self, original_node: cst.Assert, updated_node: cst.Assert) -> cst.Assert:
        """`assert (a), b`."""
        return self._unwrap(updated_node, "test")

    def leave_For(self, original_node: cst.For, updated_node: cst.For) -> cst.For:
        """`for a in (b):`."""
        return self._unwrap(updated_node, "iter")

    def leave_ExceptHandler(
        self, original_node: cst.ExceptHandler, updated_node: cst.ExceptHandler
    ) -> cst.ExceptHandler:
        """`except (a):`; with a name after it a space is there already."""
        return self._unwrap(updated_node, "type")

    def _unwrap(self, node: _Node, operand: str) -> _Node:
        """The node, without parentheses around its operand."""
        value = getattr(node, operand)
        if "parentheses" not in self.rules or value is None or not value.lpar:
            return node
        if isinstance(value, _NEEDS_PARENTHESES) or "\n" in _code(value):
            return node
        self.done["parentheses"] += 1
        changes: dict[str, cst.CSTNode] = {operand: value.with_changes(lpar=(), rpar=())}
        space = _SPACE_BEFORE[type(node).__name__]
        if _code(getattr(node, space)) == "":
            changes[space] = cst.SimpleWhitespace(" ")
        return node.with_changes(**changes)

    # not-in

    def leave_UnaryOperation(
        self, original_node: cst.UnaryOperation, updated_node: cst.UnaryOperation
    ) -> cst.BaseExpression:
        """`not a in b`, `not (a is b)`."""
        inner = updated_node.expression
        if (
            "not-in" not in self.rules
            or not isinstance(updated_node.operator, cst.Not)
            or not isinstance(inner, cst.Comparison)
            or len(inner.comparisons) != 1
        ):
            return updated_node
        target = inner.comparisons[0]
        operator = target.operator
        if not isinstance(operator, cst.In | cst.Is):  # == and < may be anything's own methods
            return updated_node
        opposite = (cst.NotIn if isinstance(operator, cst.In) else cst.IsNot)(
            whitespace_before=operator.whitespace_before, whitespace_after=operator.whitespace_after
        )
        self.done["not-in"] += 1
        # Parentheses that hold a line break together stay; those of the whole do anyway.
        kept = "\n" in _code(inner)
        return inner.with_changes(
            comparisons=(target.with_changes(operator=opposite),),
            lpar=(*updated_node.lpar, *(inner.lpar if kept else ())),
            rpar=(*(inner.rpar if kept else ()), *updated_node.rpar),
        )

    # pass

    def leave_IndentedBlock(
        self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock
    ) -> cst.IndentedBlock:
        """A `pass` beside other statements."""
        body = updated_node.body
        needless = [statement for statement in body if _is_bare_pass(statement)]
        if "pass" not in self.rules or not needless or len(body) == 1:
            return updated_node
        if len(needless) == len(body):
            needless = needless[1:]
        self.done["pass"] += len(needless)
        left = [statement for statement in body if not any(statement is one for one in needless)]
        return updated_node.with_changes(body=left)

    # one-line

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.FlattenSentinel[cst.SimpleStatementLine]:
        """`a; b` and `a;`."""
        if "one-line" not in self.rules or not _has_semicolon(updated_node.body):
            return updated_node
        self.done["one-line"] += 1
        return cst.FlattenSentinel(
            _lines(updated_node.body, updated_node.leading_lines, updated_node.trailing_whitespace)
        )

    def leave_SimpleStatementSuite(
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.BaseSuite:
        """`if a: b`. A comment may be about the line as it is (`# pragma`, `# noqa`): left alone."""
        if original_node not in self._to_split or updated_node.trailing_whitespace.comment:
            return updated_node
        self.done["one-line"] += 1
        return cst.IndentedBlock(body=_lines(updated_node.body, (), updated_node.trailing_whitespace))

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Note the bodies that `one-line` is about: `class A(B): pass` is common style."""
        if "one-line" in self.rules and isinstance(
            node,
            cst.If | cst.Else | cst.For | cst.While | cst.Try | cst.ExceptHandler | cst.Finally | cst.With,
        ):
            self._to_split.add(node.body)
        return super().on_visit(node)


def _code(node: cst.CSTNode) -> str:
    return cst.Module(()).code_for_node(node)


def _is_bare_pass(statement: cst.CSTNode) -> bool:
    """True for a line that holds `pass` and no comment, on it or above it."""
    return (
        isinstance(statement, cst.SimpleStatementLine)
        and len(statement.body) == 1
        and isinstance(statement.body[0], cst.Pass)
        and statement.trailing_whitespace.comment is None
        and not any(line.comment for line in statement.leading_lines)
    )


def _has_semicolon(body: Sequence[cst.BaseSmallStatement]) -> bool:
    return any(isinstance(statement.semicolon, cst.Semicolon) for statement in body)


def _lines(
    body: Sequence[cst.BaseSmallStatement],
    leading: Sequence[cst.EmptyLine],
    trailing: cst.TrailingWhitespace,
) -> list[cst.SimpleStatementLine]:
    """A line for each of the statements."""
    lines = [
        cst.SimpleStatementLine((statement.with_changes(semicolon=cst.MaybeSentinel.DEFAULT),))
        for statement in body
    ]
    lines[0] = lines[0].with_changes(leading_lines=leading)
    lines[-1] = lines[-1].with_changes(trailing_whitespace=trailing)
    return lines


def tidy(content: bytes, rules: Collection[str] = RULES) -> tuple[bytes, Mapping[str, int]]:
    """The text with the rules applied, and how often each of them was. Encoding and line ends stay.

    Raises:
        AgentError: libcst can't read the text.
    """
    if not may_be_tidied(content):
        return content, {}
    try:
        module = cst.parse_module(content)
        transformer = _Tidy(rules)
        changed = module.visit(transformer)
        return (changed.bytes if transformer.done else content), transformer.done
    except (cst.ParserSyntaxError, SyntaxError, UnicodeError, RecursionError) as error:
        raise AgentError(f"libcst can't read it: {type(error).__name__}") from error


class TidyRules:
    """`tidy` as a rule set. It runs on a thread: some 200 ms for 1,000 lines."""

    async def rewrite(self, path: str, content: bytes, rules: Collection[str] = ()) -> Rewrite:
        """The text with these rules (all of them if none is named) applied.

        Raises:
            AgentError: the text can't be read.
        """
        changed, done = await asyncio.to_thread(tidy, content, rules or RULES)
        return Rewrite(changed, done)
