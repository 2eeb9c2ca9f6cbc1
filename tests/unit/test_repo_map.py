"""The repository's map: what files define and use, what of it matters to a task, and what fits."""

import pytest

from codeconvoy.workers.llm import tokens
from codeconvoy.workers.llm.outline import MAX_DEFINITIONS, MAX_SOURCE_BYTES, Outline, Outliner
from codeconvoy.workers.llm.ranking import rank
from codeconvoy.workers.llm.repo_map import RepoMap, distance, make, nearest, show

OUTLINER = Outliner()
PACKAGE = {
    "shop/money.py": b"""
from decimal import Decimal

CENT = Decimal("0.01")

class Money:
    amount: Decimal

    @classmethod
    def parse(cls, text: str) -> "Money":
        return cls(Decimal(text))

    def rounded(self) -> "Money":  # to whole cents
        return Money(self.amount.quantize(CENT))

def never_used() -> None: ...
""",
    "shop/basket.py": b"""
from shop.money import Money

class Basket:
    def add_item(
        self,
        price: Money,  # of one
        *,
        count: int = 1,
    ) -> None: ...

    async def total(self, /) -> Money:
        return Money.parse("0").rounded()
""",
    "shop/checkout.py": b"""
from shop.basket import Basket

def check_out(basket: Basket) -> None:
    basket.add_item(1)
""",
    "web/views.py": b"from shop.checkout import check_out\n\ndef page(): check_out(None)\n",
    "README.md": b"# def shop():\n",
    "shop/data.bin": bytes(range(256)),
}
GOLDEN = """\
shop/basket.py
class Basket:
    def add_item(self, price: Money, *, count: int = 1) -> None: ...
    async def total(self, /) -> Money: ...
shop/money.py
CENT = ...
class Money:
    amount: Decimal
    @classmethod
    def parse(cls, text: str) -> "Money": ...
    def rounded(self) -> "Money": ...
def never_used() -> None: ...
web/views.py
def page(): ...
shop/data.bin
README.md"""


def outlines(package: dict[str, bytes]) -> dict[str, Outline]:
    return {
        path: OUTLINER.outline(source) if path.endswith(".py") else Outline()
        for path, source in package.items()
    }


def mapped(
    path: str = "shop/checkout.py", *, own: tuple[str, ...] = (), goal: str = "", budget: int = 1_000
) -> RepoMap:
    return make(outlines(PACKAGE), path, own, goal, budget, len(PACKAGE))


# What a file defines and uses ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        (b"def f(a, b=1, *args, c: int, **rest): pass", ["def f(a, b=1, *args, c: int, **rest): ..."]),
        (b"def f[T](a: T) -> list[T]: pass", ["def f[T](a: T) -> list[T]: ..."]),
        (b"class A(B, metaclass=M): pass", ["class A(B, metaclass=M):"]),
        (b"X = Y = 1\nz: int\n(a, b) = 1, 2\nq.r = 3\n", ["X = ...", "z: int"]),
        (b"@a.b\n@cached(1)\ndef f(): pass", ["@a.b\ndef f(): ..."]),
        (b"def f():\n    def inner(): pass\n    x = 1\n", ["def f(): ..."]),
        (b"if A:\n    def f(): pass\nelse:\n    def f(x): pass\n", ["def f(): ...", "def f(x): ..."]),
        (b"try:\n    import q\nexcept E:\n    q = None\n", ["q = ..."]),
        (
            b"class A:\n    class B:\n        def f(self): pass\n    def g(self): pass\n",
            ["class A:", "    class B:", "        def f(self): ...", "    def g(self): ..."],
        ),
        (b"def broken(:\n    pass\n\ndef whole(a): pass\n", ["def whole(a): ..."]),
        (b"", []),
        (b"\xff\xfe\x00(", []),
        ("größe = 1\n".encode(), ["größe = ..."]),
    ],
)
def test_definitions_are_as_a_stub_has_them(source: bytes, texts: list[str]) -> None:
    found = [definition.text for definition in OUTLINER.outline(source).definitions]
    assert [text for text in found if "broken" not in text] == texts


def test_a_definition_knows_its_line_and_the_class_that_it_is_in() -> None:
    found = OUTLINER.outline(b"\nclass A:\n    class B:\n        def f(self): pass\n    x = 1\ny = 2\n")
    assert [(each.name, each.line, each.within) for each in found.definitions] == [
        ("A", 2, -1),
        ("B", 3, 0),
        ("f", 4, 1),
        ("x", 5, 0),
        ("y", 6, -1),
    ]


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        (b"f(); f(); a.g(h)", {"f": 2, "g": 1}),
        (b"from m import x, y as z", {"x": 1, "y": 1}),
        (b"class A(B, m.C): pass", {"B": 1, "C": 1}),
        (b"def f(a: X, b: list[Y | None]) -> m.Z: pass", {"X": 1, "Y": 1, "Z": 1, "list": 1}),
        (b"@d\ndef f(): pass", {"d": 1}),
        (b"def f(a): return a + 1", {}),
    ],
)
def test_names_are_used_where_they_are_called_imported_or_stated_as_types(
    source: bytes, uses: dict[str, int]
) -> None:
    assert OUTLINER.outline(source).uses == uses


def test_one_odd_file_costs_little() -> None:
    many = b"".join(b"def f%d(): pass\n" % number for number in range(10_000))
    assert len(OUTLINER.outline(many).definitions) == MAX_DEFINITIONS
    late = b"#" * MAX_SOURCE_BYTES + b"\ndef late(): pass\n"
    assert OUTLINER.outline(late).definitions == ()
    deep = b"".join(b"    " * depth + b"class A%d:\n" % depth for depth in range(60))
    assert len(OUTLINER.outline(deep).definitions) < 20
    long = b"def f(" + b"a, " * 1_000 + b"): pass\n"
    assert len(OUTLINER.outline(long).definitions[0].text) < 200


# What matters -------------------------------------------------------------------------------------

LIBRARY = {
    "app.py": b"from near import close_by\nclose_by()\n",
    "near.py": b"from far import far_away\ndef close_by(): far_away()\n",
    "far.py": b"def far_away(): pass\ndef unused(): pass\n",
    "apart.py": b"def alone(): pass\n",
    "busy.py": b"from apart import alone\nalone()\n",
}


@pytest.mark.parametrize(
    ("own", "goal", "first"),
    [
        (("app.py",), "", ["close_by", "far_away"]),
        (("near.py",), "", ["far_away"]),
        (("busy.py",), "", ["alone"]),
        ((), "rename far_away", ["far_away"]),
        ((), "make busy.py faster", ["alone"]),
        ((), "what is alone in there", ["alone"]),
        (("app.py",), "use alone", ["alone"]),
    ],
)
def test_what_the_tasks_files_use_and_its_goal_names_comes_first(
    own: tuple[str, ...], goal: str, first: list[str]
) -> None:
    found = [each.definition.name for each in rank(outlines(LIBRARY), own, goal)]
    assert found[: len(first)] == first
    assert sorted(found) == ["alone", "close_by", "far_away", "unused"]


@pytest.mark.parametrize(
    ("more", "less"),
    [
        (b"import_me(); import_me(); import_me(); import_me()", b"other_one()"),
        (b"a_telling_name()", b"short()"),
        (b"meant_for_all()", b"_meant_for_us()"),
    ],
)
def test_uses_weigh_by_number_and_by_what_the_name_tells(more: bytes, less: bytes) -> None:
    names = [source.partition(b"(")[0] for source in (more, less)]
    package = {
        "a.py": b"def %s(): pass\n" % names[1],
        "b.py": b"def %s(): pass\n" % names[0],
        "task.py": more + b"\n" + less + b"\n",
    }
    found = [each.definition.name.encode() for each in rank(outlines(package), ("task.py",), "")]
    assert found == names


def test_a_name_that_many_files_define_says_little_about_each() -> None:
    package = {f"{letter}.py": b"def run(): pass\n" for letter in "bcdefg"}
    package |= {"z.py": b"def once(): pass\n", "task.py": b"run()\nonce()\n"}
    assert rank(outlines(package), ("task.py",), "")[0].definition.name == "once"


def test_a_plain_word_of_the_goal_is_no_name_where_several_files_define_it() -> None:
    package = {"b.py": b"def count(): pass\n", "c.py": b"def count(): pass\n"}
    package |= {"used.py": b"def helper(): pass\n", "task.py": b"helper()\n"}
    assert rank(outlines(package), ("task.py",), "count the lines")[0].definition.name == "helper"


# What fits ----------------------------------------------------------------------------------------


def test_the_map_of_a_small_package() -> None:
    shown = show(mapped(), tokens.room(1_000), ())
    assert shown.text == GOLDEN
    assert (shown.defined, shown.listed, shown.files, shown.left_out) == (3, 2, 5, 0)


def test_a_narrow_map_keeps_what_matters_and_counts_the_rest() -> None:
    shown = show(mapped(), 133, ())
    assert shown.text.splitlines() == [
        "shop/basket.py",
        "class Basket:",
        "    def add_item(self, price: Money, *, count: int = 1) -> None: ...",
        "shop/data.bin",
        "shop/money.py",
    ]
    assert (shown.defined, shown.listed, shown.files, shown.left_out) == (1, 2, 5, 2)


def test_what_is_shown_in_full_is_not_on_the_map() -> None:
    whole = mapped(own=("shop/basket.py", "shop/none.py"))
    shown = show(whole, tokens.room(1_000), {"shop/basket.py", "shop/none.py", "shop/checkout.py"})
    assert "basket" not in shown.text and "shop/money.py" in shown.text
    assert (shown.files, shown.left_out) == (4, 0)


def test_a_file_that_was_left_out_for_its_size_is_on_the_map() -> None:
    whole = mapped(own=("shop/basket.py",))
    assert "class Basket:" in show(whole, tokens.room(1_000), {"shop/checkout.py"}).text


def test_files_that_were_not_looked_at_are_counted() -> None:
    whole = make(outlines(PACKAGE), "shop/checkout.py", (), "", 1_000, 5_000)
    assert show(whole, tokens.room(1_000), ()).left_out == 5_000 - len(PACKAGE)


@pytest.mark.parametrize(
    ("path", "origin", "steps"),
    [
        ("a.py", "b.py", 0),
        ("x/a.py", "b.py", 1),
        ("x/a.py", "x/y/b.py", 1),
        ("x/a.py", "y/b.py", 2),
        ("a", "", 0),
    ],
)
def test_near_files_have_few_directories_between_them(path: str, origin: str, steps: int) -> None:
    assert distance(path, origin) == distance(origin, path) == steps


def test_the_nearest_come_first() -> None:
    assert nearest(["z/q.py", "a.py", "x/y/b.py", "x/c.py"], "x/y/a.py") == [
        "x/y/b.py",
        "x/c.py",
        "a.py",
        "z/q.py",
    ]
