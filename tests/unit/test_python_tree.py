"""Reads nothing, writes nothing: syntax trees from many threads at once."""

import ast
import gc
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from codeconvoy.workers.python_tree import NOT_PYTHON, python_tree


def test_threads_do_not_make_each_other_fail() -> None:
    """Whenever the collector runs Python's code, as it does for a finalizer, another thread goes on."""
    content = b"x = (1 + 2) * f(3)\n" * 300

    def let_others(phase: str, info: dict[str, int]) -> None:
        time.sleep(0)

    before = gc.get_threshold()
    gc.callbacks.append(let_others)
    gc.set_threshold(50)
    try:
        with ThreadPoolExecutor(4) as threads:
            trees = list(threads.map(_from_depth, range(0, 200, 5), [content] * 40))
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(let_others)
    assert {len(tree.body) for tree in trees} == {300}


def _from_depth(depth: int, content: bytes) -> ast.Module:
    return _from_depth(depth - 1, content) if depth else python_tree(content)


@pytest.mark.parametrize("content", [b"def", b"a\0b", b"(" * 5_000 + b")" * 5_000, b"\xff = 1\n"])
def test_what_is_no_python(content: bytes) -> None:
    with pytest.raises(NOT_PYTHON):
        python_tree(content)
