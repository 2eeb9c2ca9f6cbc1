"""Reads nothing, writes nothing: Python source text, parsed or refused with a reason."""

import ast
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from codeconvoy.workers.python_tree import NOT_PYTHON, python_tree


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What a rule set made of a text."""

    content: bytes
    done: Mapping[str, int]
    """How often each rule was applied."""


class RuleSet(Protocol):
    """Rewrites source text by rules, without changing what it means."""

    async def rewrite(self, path: str, content: bytes, rules: Collection[str] = ()) -> Rewrite:
        """The text with these rules (all of the set, if none is named) applied.

        Raises:
            AgentError: the text could not be worked on.
        """
        ...


@dataclass(frozen=True, slots=True)
class Unparsable:
    """Why the text is not Python that this interpreter reads."""

    reason: str
    line: int


def is_python(path: str) -> bool:
    """True where the path says that the file is Python source."""
    return path.endswith((".py", ".pyi"))


def parse(content: bytes) -> ast.Module | Unparsable:
    """The syntax tree of the text, which declares its own encoding (PEP 263)."""
    try:
        return python_tree(content)
    except SyntaxError as error:
        return Unparsable(error.msg, error.lineno or 0)
    except NOT_PYTHON as error:
        # Null bytes; nesting deeper than the interpreter's parser goes.
        return Unparsable(str(error) or type(error).__name__, 0)


def is_empty(tree: ast.Module) -> bool:
    """True where nothing but a docstring is left."""
    return not tree.body or (len(tree.body) == 1 and ast.get_docstring(tree) is not None)
