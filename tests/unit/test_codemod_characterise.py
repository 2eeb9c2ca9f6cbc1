"""Characterisation tests are green on what they were made from, and red on every planted break."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from codeconvoy.schemas.test_paths import test_path_for as path_for
from codeconvoy.workers.roles.codemod.characterise import characterise

MODULE = '''"""Doc."""
import enum
import sys
from collections import OrderedDict as Ordered
from functools import wraps

__all__ = ["area", "Shape", "LIMIT"]

LIMIT = 10
NAMES = {"a": 1, "b": [1, 2]}
LONG = "0123456789" * 1
TABLE = "%s"
SEEN = []
SEEN.append(1)
TWICE = 1
TWICE = 2
COMPUTED = len("abc")
if sys.platform == "win32":
    SEP = "back"
else:
    SEP = "slash"
if sys.version_info >= (3, 0):
    text = str


def area(width, height=u"1", *rest, unit=None, **more):
    return width


def later(a, b=LIMIT, /, c=(1, "x"), *, d: int = -1) -> None:
    global COUNT
    COUNT = 1


COUNT = 0


@wraps(area)
def wrapped(*args):
    return area(*args)


class Shape(object):
    colour = "red"
    label = None

    def __init__(self, name):
        self.name = name
        self.label = name

    def draw(self, canvas, __private=1):
        return canvas

    def move(self, x, y=0):
        return x, y

    @classmethod
    def make(cls, name="x"):
        return cls(name)

    @staticmethod
    def twice(value):
        return value * 2

    @property
    def size(self):
        return 1

    async def wait(self, seconds=1.5):
        pass


class Failure(IOError):
    pass


class Map(Ordered, Shape if False else object):
    pass


class Colour(enum.Enum):
    RED = 1


class Inner(Shape):
    def move(self, x, y=0, z=None):
        return x, y, z
''' % ("x" * 1000)


def write_tests(root: Path, path: str, text: str) -> str:
    """Write module and tests below the root; the tests' path."""
    test_path = path_for(path, "tests/convoy")
    content = characterise(path, test_path, ast.parse(text))
    assert content is not None
    for name, data in ((path, text.encode()), (test_path, content)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return test_path


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-B", *command]
    return subprocess.run(argv, cwd=root, capture_output=True, text=True, check=False, timeout=60)


def verdict(tmp_path: Path, text: str) -> str:
    """The output of the tests of MODULE on another text; empty where they are green."""
    test_path = write_tests(tmp_path, "mod.py", MODULE)
    (tmp_path / "mod.py").write_text(text)
    done = run(tmp_path, "-m", "unittest", test_path)
    return done.stderr if done.returncode else ""


def test_green_on_what_they_were_made_from(tmp_path: Path) -> None:
    assert verdict(tmp_path, MODULE) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def area(", "def region("),
        ('height=u"1"', 'height="2"'),
        ("unit=None", "unit=0"),
        (", **more)", ")"),
        ("*, d", "d"),
        ('c=(1, "x")', 'c=(1, "y")'),
        ("b=LIMIT", "b"),
        ("LIMIT = 10", "LIMIT = 11"),
        ('"b": [1, 2]', '"b": [2, 1]'),
        ("x" * 1000, "x" * 999),
        ("COMPUTED = ", "CALCULATED = "),
        ("    text = str", "    txt = str"),
        ('"Shape", "LIMIT"]', '"Shape"]'),
        ("def wrapped", "def rapped"),
        ("def move(self, x, y=0):", "def shift(self, x, y=0):"),
        ("def move(self, x, y=0, z=None)", "def move(self, x, y=0)"),
        ("def draw(", "def paint("),
        ("@classmethod\n", ""),
        ("@staticmethod\n", "@classmethod\n"),
        ("@property\n", ""),
        ("seconds=1.5", "seconds=2"),
        ('colour = "red"', 'colour = "blue"'),
        ("class Failure(IOError)", "class Failure(ValueError)"),
        ("class Inner(Shape)", "class Inner(Failure)"),
        ("class Colour", "class Color"),
        ("(self, name)", "(self, name, size=1)"),
    ],
)
def test_red_on_a_planted_break(tmp_path: Path, old: str, new: str) -> None:
    assert old in MODULE
    assert "FAIL" in verdict(tmp_path, MODULE.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("class Shape(object)", "class Shape"),
        ("class Failure(IOError)", "class Failure(OSError)"),
        ('u"1"', '"1"'),
        ("d: int = -1) -> None", "d=-1)"),
        ("import enum\nimport sys\n", "import sys\nimport enum\n"),
        ("if sys.version_info >= (3, 0):\n    text = str", "text = str"),
        ("return width", "return width + 0"),
        ('SEP = "slash"', 'SEP = "/"'),
    ],
)
def test_green_on_what_others_can_not_see(tmp_path: Path, old: str, new: str) -> None:
    assert old in MODULE
    assert verdict(tmp_path, MODULE.replace(old, new, 1)) == ""


def test_they_run_under_pytest_and_as_a_program_too(tmp_path: Path) -> None:
    test_path = write_tests(tmp_path, "mod.py", MODULE)
    assert (
        run(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null", test_path).returncode == 0
    )
    assert run(tmp_path, test_path).returncode == 0


@pytest.mark.parametrize(
    "path", ["src/pkg/inner/mod.py", "lib/pkg/mod.py", "pkg/__init__.py", "scripts/mod.py"]
)
def test_the_module_is_found_by_its_packages(tmp_path: Path, path: str) -> None:
    for folder in list(Path(path).parents)[:-1]:
        if folder.name not in ("src", "lib", "scripts"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "__init__.py").touch()
    text = "X = 1\n" if "scripts" in path else "from . import __name__ as pkg\nX = 1\n"
    test_path = write_tests(tmp_path, path, text)
    done = run(tmp_path, "-m", "unittest", test_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / path).write_text("X = 2\n")
    assert run(tmp_path, "-m", "unittest", test_path).returncode == 1


def test_a_module_that_can_not_be_imported_is_red(tmp_path: Path) -> None:
    assert "ModuleNotFoundError" in verdict(tmp_path, "import not_installed_anywhere\n" + MODULE)


@pytest.mark.parametrize("path", ["setup.py", "pkg/__main__.py", "tool-with-dashes.py", "stubs/a.pyi"])
def test_programs_are_not_imported(path: str) -> None:
    assert characterise(path, "tests/test_x.py", ast.parse("X = 1\n")) is None


def test_the_same_text_gives_the_same_tests() -> None:
    one, other = (characterise("m.py", "tests/test_m.py", ast.parse(MODULE)) for _ in range(2))
    assert one == other
    assert one is not None
    assert b"x" * 1000 not in one  # long values by hash
    assert one.startswith(b'"""Characterisation tests of m.py')
