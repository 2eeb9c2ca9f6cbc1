"""An answer drops no definition that its task does not speak of."""

import pytest

from codeconvoy.schemas.tasks import EditWork
from codeconvoy.workers.roles.role import Edits, FileEdit
from codeconvoy.workers.roles.validators import keeps_definitions, standard
from tests import contexts

BASE = b'''"""Shop."""

import os

LIMIT = 3
LEFT, RIGHT = 1, 2
_own = 4


class Cart:
    size = 0

    def add(self, item):
        return item

    def drop(self, item):
        return item

    def _private(self):
        pass


def price(cart):
    total = 0
    return total


async def pay(cart):
    return price(cart)


if os.name == "nt":

    def home():
        return "C:"

else:

    def home():
        return "/"


if __name__ == "__main__":
    result = price(Cart())
'''


def objections(
    after: bytes | None, goal: str = "improve it", *, before: bytes = BASE, path: str = "a.py", **more: bytes
) -> tuple[str, ...]:
    """What is said of an answer that makes `after` of a file, and further files by their stems."""
    others = {f"{stem}.py": content for stem, content in more.items()}
    shown = contexts.context(EditWork(also=tuple(others)), file=contexts.version(before, path), goal=goal)
    files = (FileEdit(path, after), *(FileEdit(name, content) for name, content in others.items()))
    return keeps_definitions(shown, Edits(files))


def without(*lines: bytes) -> bytes:
    """The base without these lines and what is indented under them."""
    kept, depth = [], -1
    for line in BASE.splitlines(keepends=True):
        indent = len(line) - len(line.lstrip())
        if depth >= 0 and (not line.strip() or indent > depth):
            continue
        depth = indent if line.strip() in lines else -1
        if depth < 0:
            kept.append(line)
    return b"".join(kept)


@pytest.mark.parametrize(
    ("after", "names"),
    [
        (without(b"def price(cart):"), "price"),
        (without(b"async def pay(cart):"), "pay"),
        (without(b"class Cart:"), "Cart"),
        (without(b"def drop(self, item):"), "Cart.drop"),
        (without(b"LIMIT = 3"), "LIMIT"),
        (without(b"LEFT, RIGHT = 1, 2"), "LEFT, RIGHT"),
        (BASE.replace(b"def home", b"def _home"), "home"),
        (without(b"def price(cart):", b"class Cart:"), "Cart, price"),
        (BASE.replace(b"def price", b"def cost"), "price"),
        (None, "LIMIT, LEFT, RIGHT, Cart, price, pay, home"),
    ],
)
def test_what_is_dropped_is_named(after: bytes | None, names: str) -> None:
    [said] = objections(after)
    assert said == f"'a.py' would no longer define {names}. The task does not ask for that: keep it."


@pytest.mark.parametrize(
    "after",
    [
        BASE,
        BASE + b"\nmore = 1\n",
        without(b"_own = 4"),
        without(b"def _private(self):"),
        without(b"size = 0"),
        BASE.replace(b"if __name__ == ", b"if False and __name__ == ").replace(b"result =", b"print"),
        BASE.replace(b"def price(cart):\n    total = 0\n    return total\n", b"from prices import price\n"),
        BASE.replace(b"def price(cart):\n    total = 0\n    return total\n", b"from prices import *\n"),
        BASE.replace(b"LIMIT = 3\n", b"").replace(b"total = 0", b"LIMIT = total = 0"),
        BASE.replace(b"async def pay(cart):\n    return price(cart)\n", b"pay = price\n"),
        BASE.replace(b"    def drop(self, item):\n        return item\n", b"    drop = add\n"),
        b"def (",
    ],
)
def test_what_stays_or_is_private_or_can_not_be_read_is_let_through(after: bytes) -> None:
    assert objections(after) == ()


def test_what_moves_within_the_answer_is_kept() -> None:
    left = without(b"def price(cart):", b"class Cart:")
    moved = b"class Cart:\n    def add(self): ...\n    def drop(self): ...\n\n\ndef price(cart): ...\n"
    assert objections(left, b=moved) == ()
    [said] = objections(left, b=moved.replace(b"drop", b"leave"))
    assert "define Cart.drop." in said
    [said] = objections(left, b=b"def price(cart):\n    return 0\n")
    assert "define Cart." in said
    [said] = objections(left, b=b"def other(cart):\n    price = 0\n    return price\n")
    assert "define Cart, price." in said, "a variable is no function"


@pytest.mark.parametrize(
    ("goal", "is_fine"),
    [
        ("Inline price into pay", True),
        ("Get rid of `price`.", True),
        ("Make a.py smaller", True),
        ("Remove dead code", True),
        ("Delete all unused helper functions", True),
        ("Rename what is hard to read", True),
        ("improve it", False),
        ("Show prices with a tax", False),
        ("Remove unused imports", False),
        ("Do not remove any function", False),
        ("Don't rename anything", False),
        ("Drop Python 2. Keep all functions", False),
    ],
)
def test_the_goal_may_speak_of_it(goal: str, is_fine: bool) -> None:
    assert (objections(without(b"def price(cart):"), goal) == ()) == is_fine


def test_so_may_the_feedback() -> None:
    shown = contexts.context(EditWork(feedback=("price is never called",)), file=contexts.version(BASE))
    answer = Edits((FileEdit("a.py", without(b"def price(cart):")),))
    assert keeps_definitions(shown, answer) == ()


def test_other_languages_are_let_through() -> None:
    assert objections(b"x", before=b"function f() {}", path="a.js") == ()


CONFLICT = {
    "base": contexts.version(b"def one():\n    pass\n\n\ndef two():\n    pass\n", event="e0"),
    "file": contexts.version(b"def one():\n    pass\n\n\ndef two():\n    pass\n\n\ndef own(): ...\n"),
    "heads": (contexts.version(b"def one():\n    pass\n\n\ndef theirs(): ...\n", event="e2"),),
}


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        (("one", "own", "theirs"), ""),
        (("one", "two", "own", "theirs"), ""),
        (("one", "theirs"), "own"),
        (("one", "own"), "theirs"),
        (("own", "theirs"), "one"),
    ],
)
def test_a_resolution_keeps_what_each_side_defines(names: tuple[str, ...], lost: str) -> None:
    content = "".join(f"def {name}(): ...\n" for name in names).encode()
    found = keeps_definitions(contexts.resolve(**CONFLICT), Edits((FileEdit("a.py", content),)))
    assert [said.split("define ")[1].split(".")[0] for said in found] == ([lost] if lost else [])


def test_a_role_that_cleans_up_may_say_so() -> None:
    assert keeps_definitions in standard({})
    assert keeps_definitions not in standard({"keep_definitions": "false"})
