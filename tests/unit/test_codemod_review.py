"""The rule-based reviewer: what it refuses, and the safe refactorings that it must let pass."""

import asyncio

import pytest

from codeconvoy.workers.roles.codemod.review import Problem, problems

MODULE = '''"""Doc."""
import os
import sys
from collections import OrderedDict

__all__ = ["area", "Shape", "OrderedDict", "_hidden_but_exported"]

LIMIT = 10
_private = 1
_hidden_but_exported = 2


def area(width, height=u"1", *rest, unit=None):
    return width


class Shape(object):
    colour = "red"

    def __init__(self, name):
        self.name = name

    def draw(self, canvas, dots=[1, 2]):
        return os.path.join(canvas, self.name)

    @classmethod
    def make(cls, name):
        return cls(name)

    def _inner(self):
        pass


if sys.version_info < (3, 0):
    def only_on_two():
        pass
'''


def review(
    before: str | bytes | None, after: str | bytes | None, path: str = "pkg/mod.py"
) -> tuple[Problem, ...]:
    texts = [text.encode() if isinstance(text, str) else text for text in (before, after)]
    return asyncio.run(problems(path, texts[0], texts[1], "py39"))


def changed(old: str, new: str, path: str = "pkg/mod.py") -> tuple[Problem, ...]:
    assert old in MODULE
    return review(MODULE, MODULE.replace(old, new), path)


@pytest.mark.parametrize(
    ("old", "new", "rule", "said"),
    [
        ("def area(", "def _area(", "lost", "area"),
        ("LIMIT = 10\n", "", "lost", "LIMIT"),
        ("class Shape(object)", "class Form(object)", "lost", "Shape"),
        ("def draw(", "def paint(", "lost", "Shape.draw"),
        ('colour = "red"\n', "", "lost", "Shape.colour"),
        ("_hidden_but_exported = 2\n", "", "lost", "_hidden_but_exported"),
        ("from collections import OrderedDict\n", "", "lost", "OrderedDict"),
        ('__all__ = ["area", ', "__all__ = [", "lost", "area is not in __all__"),
        ('height=u"1"', 'height="2"', "signature", "height='2'"),
        ("(self, name)", "(self, name, size)", "signature", "Shape.__init__"),
        ("(cls, name)", "(cls)", "signature", "Shape.make"),
        ("dots=[1, 2]", "dots=[2, 1]", "signature", "Shape.draw"),
        ("return width", "return widht", "F821", "widht"),
        ("import os\n", "", "F821", "os"),
        ("return width", "return (width", "unparsable", "parse"),
        ("return cls(name)", "return '%s %s' % (name,)", "F507", "format"),
    ],
)
def test_what_is_refused(old: str, new: str, rule: str, said: str) -> None:
    found = changed(old, new)
    assert any(one.rule == rule and said in one.message and one.blocking for one in found), found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("class Shape(object)", "class Shape"),
        ('u"1"', '"1"'),
        ("width, height", "width: int, height"),
        ("[1, 2]", "[1,2]"),
        ("_private = 1\n", ""),
        ("    def _inner(self):\n        pass\n", ""),
        ("return width", "return width  # in mm"),
        ("if sys.version_info < (3, 0):\n    def only_on_two():\n        pass\n", ""),
        ("from collections import OrderedDict\n", "from collections import OrderedDict, abc\n"),
        ("LIMIT = 10", "LIMIT = 5 + 5"),
        ("import os\nimport sys\n", "import sys\nimport os\n"),
    ],
)
def test_what_is_safe_passes(old: str, new: str) -> None:
    assert [one for one in changed(old, new) if one.blocking] == []


def test_an_import_that_became_unused_is_only_remarked() -> None:
    (found,) = changed("return os.path.join(canvas, self.name)", "return canvas + self.name")
    assert (found.rule, found.blocking) == ("F401", False)


def test_an_unused_import_that_is_dropped_is_no_loss_but_a_re_export_is() -> None:
    before = (
        "from collections import OrderedDict\nfrom pkg.inner import Thing\nfrom .other import more\nX = 1\n"
    )
    assert review(before, "X = 1\n", "pkg/mod.py") == ()
    lost = review(before, "X = 1\n", "pkg/__init__.py")
    assert [(one.rule, one.message.split()[2]) for one in lost] == [("lost", "Thing"), ("lost", "more")]


def test_findings_that_were_there_before_are_nobodys_fault() -> None:
    before = "import os\n\n\ndef f():\n    return nowhere\n"
    assert review(before, "# A line more.\n" + before) == ()
    assert [one.rule for one in review(before, before + "\n\ndef g():\n    return nowhere\n")] == ["F821"]


def test_a_prefix_that_goes_away_uncovers_nothing_new() -> None:
    assert review("x = {u'a': 1,\n     u'a': 2}\n", "x = {'a': 1,\n     'a': 2}\n") == ()
    assert [one.rule for one in review("x = {'a': 1}\n", "x = {'a': 1, 'a': 2}\n")] == ["F601"]


@pytest.mark.parametrize("path", ["pkg/mod.py", "README.rst"])
def test_an_emptied_or_deleted_file_is_refused(path: str) -> None:
    assert [one.rule for one in review("x = 1\n", " \n", path)] == ["emptied"]
    assert [one.rule for one in review("x = 1\n", None, path)] == ["deleted"]
    assert review("", "\n", path) == ()


def test_a_module_of_which_only_the_docstring_is_left_is_emptied() -> None:
    assert [one.rule for one in review(MODULE, '"""Doc."""\n# nothing\n')] == ["emptied"]


def test_files_that_never_parsed_are_not_broken_by_staying_so() -> None:
    assert review("print 'a'\n", "print 'b'\n") == ()
    assert [one.rule for one in review("print('a')\n", "print 'b'\n")] == ["unparsable"]


def test_a_new_file_is_held_to_the_same_rules() -> None:
    assert review(None, "x = 1\n") == ()
    assert [one.rule for one in review(None, "x = y\n")] == ["F821"]


def test_other_files_are_not_read_as_python() -> None:
    assert review("a: b\n", "a: [\n", "conf.yaml") == ()


def test_a_method_that_moved_to_a_new_base_class_is_no_loss() -> None:
    before = "class A:\n    def f(self):\n        return 1\n"
    after = "class B:\n    def f(self):\n        return 1\n\n\nclass A(B):\n    pass\n"
    assert review(before, after) == ()


def test_a_comment_names_place_and_rule() -> None:
    found = changed("return width", "return widht")
    assert found[0].comment("pkg/mod.py") == "pkg/mod.py:14: Undefined name `widht` [F821]"
