"""Reads nothing, writes nothing: Python source as a syntax tree, whichever thread asks."""

import ast
import threading
import warnings

NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What `python_tree` raises for what is no Python, has null bytes, or is nested too deeply."""

_ONE_AT_A_TIME = threading.Lock()
"""CPython counts the depth of a tree under construction once for the whole process (gh-106905): two
threads at it make each other fail with a SystemError. The filters of warnings are shared as well."""


def python_tree(content: bytes) -> ast.Module:
    """The syntax tree of source that declares its own encoding (PEP 263). Warnings are left out.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it can't be parsed.
    """
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(content)
