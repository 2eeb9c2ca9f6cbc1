"""Reads a Python file's source, writes nothing: the names that it defines, and which of them an edit drops.

A definition is a function, a class, a method of a class, or a name that the module assigns. Names with a
leading underscore are a module's own affair. Other languages are let through.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from codeconvoy.workers.python_tree import NOT_PYTHON, python_tree

SUFFIXES = (".py", ".pyi")
_NOUNS = (
    "code|functions?|methods?|class(?:es)?|definitions?|names?|constants?|variables?|helpers?|alias(?:es)?|"
    "apis?|shims?|tests?"
)
_IN_GENERAL = re.compile(
    r"(?<!not )(?<!n.t )(?<!never )(?<!without )\b(?:"
    rf"(?:remov|delet|drop|prun|eliminat)\w*\b[^.!?\n]{{0,60}}\b(?:{_NOUNS})\b|renam\w*\b)",
    re.IGNORECASE,
)
"""Words that ask for definitions to go without naming one: remove dead code, rename the methods."""


@dataclass(slots=True)
class _Names:
    """What is found in one file."""

    definitions: dict[str, bool] = field(default_factory=dict)
    """Public ones, a method as Class.method, in the order of the file; True: it is a mere assignment."""
    bound: set[str] = field(default_factory=set)
    """All names that the module or one of its classes binds, imports too."""
    stored: set[str] = field(default_factory=set)
    """All names that are assigned anywhere."""
    star: bool = False
    """`from x import *`: nobody knows what is bound."""


def dropped(before: Mapping[str, bytes | None], after: Mapping[str, bytes | None]) -> Mapping[str, list[str]]:
    """The definitions of each file that none of the files has any more.

    Args:
        before: the files as they were.
        after: those that change, as they become; None: deleted. What is moved among them is kept.
    """
    now = [names for path, content in after.items() if (names := _names(path, content or b""))]
    if any(names.star for names in now):
        return {}
    bound = set[str]().union(*(names.bound for names in now))
    stored = set[str]().union(*(names.stored for names in now))
    found: dict[str, list[str]] = {}
    for path, content in after.items():
        was, become = _names(path, before.get(path) or b""), _names(path, content or b"")
        if was is None or become is None:
            continue
        gone: list[str] = []
        for name, is_assigned in was.definitions.items():
            own, _, last = name.rpartition(".")
            kept = name in become.definitions or last in bound or (is_assigned and last in stored)
            if not kept and own not in gone:
                gone.append(name)
        if gone:
            found[path] = gone
    return found


def defined(path: str, content: bytes | None) -> frozenset[str]:
    """The definitions of a file; none where it can't be read."""
    names = _names(path, content or b"")
    return frozenset(names.definitions) if names else frozenset()


def mentioned(name: str, path: str, texts: Sequence[str]) -> bool:
    """Whether a text speaks of the definition, of its whole file, or of definitions that shall go."""
    last = name.rpartition(".")[2]
    file = path.rpartition("/")[2]
    words = "|".join(re.escape(word) for word in (last, file))
    return any(re.search(rf"(?<!\w)(?:{words})(?!\w)", text) or _IN_GENERAL.search(text) for text in texts)


def _names(path: str, content: bytes) -> _Names | None:
    """The names of a file; None where it is not Python."""
    if not path.endswith(SUFFIXES):
        return None
    try:
        tree = python_tree(content)
    except NOT_PYTHON:
        return None
    names = _Names()
    _look(tree.body, "", names)
    names.stored = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return names


def _look(body: Sequence[ast.stmt], inside: str, names: _Names) -> None:
    """Collect what the statements of a module or class bind."""
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                _note(node.name, inside, names, is_assigned=False)
            case ast.ClassDef():
                _note(node.name, inside, names, is_assigned=False)
                _look(node.body, f"{inside}{node.name}.", names)
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for name in (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)):
                    _note(name, inside, names, is_assigned=True)
            case ast.Import() | ast.ImportFrom():
                bound = {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
                names.star |= "*" in bound
                names.bound |= bound
            case ast.If() if "__name__" in ast.dump(node.test):
                continue
            case ast.If() | ast.Try() | ast.TryStar():
                _look([*node.body, *node.orelse], inside, names)
                if not isinstance(node, ast.If):
                    _look([s for one in node.handlers for s in one.body] + node.finalbody, inside, names)


def _note(name: str, inside: str, names: _Names, *, is_assigned: bool) -> None:
    names.bound.add(name)
    is_public = not any(part.startswith("_") for part in (*inside.split("."), name))
    if is_public and not (is_assigned and inside):
        whole = f"{inside}{name}"
        names.definitions[whole] = is_assigned and names.definitions.get(whole, True)
