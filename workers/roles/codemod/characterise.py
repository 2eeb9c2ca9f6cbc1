"""Reads source text, writes the text of a test file: what the module offers, held fast.

The tests are derived from the text alone, nothing is imported or run here. What the text leaves
open (names bound under a condition, computed values, decorated signatures) is not tested. The
same text gives the same tests, byte for byte.
"""

import ast
import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from pprint import pformat

from codeconvoy.workers.roles.codemod.surface import Definition, Kind, Surface, surface

_LONGEST_VALUE = 400
"""Characters of a constant's repr; longer ones are compared by hash."""
_NOT_IMPORTED = frozenset({"__main__.py", "conftest.py", "setup.py"})
"""Importing these runs them."""
_METHODS = (Kind.FUNCTION, Kind.CLASSMETHOD, Kind.STATICMETHOD, Kind.PROPERTY)

_TEMPLATE = '''"""Characterisation tests of {path}: its public API, as it was found.

Written by codeconvoy's rule-based tester from the source text. A red test says that a name, a
signature or a value that others may rely on is another one now. Run it from the repository's root:

    python -m unittest {test_path}
"""

import hashlib
import importlib
import inspect
import re
import sys
import unittest
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[{depth}] / {path!r}

EXPORTED = {exported}
NAMES = {names}
FUNCTIONS = {functions}
CLASSES = {classes}
CONSTANTS = {constants}
HASHES = {hashes}


def load():
    """The module, by its dotted name from the first directory above that is not a package."""
    root, parts = SOURCE.parent, [SOURCE.stem]
    while (root / "__init__.py").is_file():
        root, parts = root.parent, [root.name, *parts]
    if parts[-1] == "__init__":
        parts.pop()
    sys.path.insert(0, str(root))
    return importlib.import_module(".".join(parts))


def signature(function, expected):
    """The parameters as in `expected`: no annotations, `?` for a default that is computed."""
    computed = set(re.findall(r"(\\w+)=\\?", expected))
    found = inspect.signature(function)
    parameters = []
    for parameter in found.parameters.values():
        if parameter.default is not parameter.empty and parameter.name in computed:
            parameter = parameter.replace(default=Computed())
        parameters.append(parameter.replace(annotation=parameter.empty))
    return str(found.replace(parameters=parameters, return_annotation=found.empty))


class Computed:
    def __repr__(self):
        return "?"


class PublicApi(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.module = load()

    def test_it_is_this_file(self):
        self.assertEqual(Path(self.module.__file__).resolve(), SOURCE)

    def test_all(self):
        if EXPORTED is not None:
            self.assertEqual(list(self.module.__all__), EXPORTED)

    def test_names(self):
        self.assertEqual([name for name in NAMES if not hasattr(self.module, name)], [])

    def test_functions(self):
        for name, expected in FUNCTIONS.items():
            with self.subTest(name):
                self.check(getattr(self.module, name, None), "function", expected)

    def test_classes(self):
        for name, (bases, methods, attributes) in CLASSES.items():
            found = getattr(self.module, name, None)
            with self.subTest(name):
                self.assertIsInstance(found, type)
                if bases is not None:
                    self.assertEqual([one.__name__ for one in found.__bases__ if one is not object], bases)
            for method, (kind, expected) in methods.items():
                with self.subTest(f"{{name}}.{{method}}"):
                    self.check(vars(found).get(method), kind, expected)
            for attribute, value in attributes.items():
                with self.subTest(f"{{name}}.{{attribute}}"):
                    self.assertEqual(repr(vars(found).get(attribute, "gone")), repr(value))

    def test_constants(self):
        for name, value in CONSTANTS.items():
            with self.subTest(name):
                self.assertEqual(repr(getattr(self.module, name, "gone")), repr(value))

    def test_long_constants(self):
        for name, expected in HASHES.items():
            with self.subTest(name):
                text = repr(getattr(self.module, name, "gone"))
                self.assertEqual(hashlib.sha256(text.encode()).hexdigest(), expected)

    def check(self, found, kind, expected):
        self.assertEqual(type(found).__name__, kind)
        if expected is not None:
            self.assertEqual(signature(getattr(found, "__func__", found), expected), expected)


if __name__ == "__main__":
    unittest.main()
'''


def is_importable(path: str) -> bool:
    """True for a module that can be imported by name, without running a program."""
    parts = PurePosixPath(path).parts
    names = [*parts[:-1], parts[-1].removesuffix(".py")]
    return path.endswith(".py") and parts[-1] not in _NOT_IMPORTED and names[-1].isidentifier()


def characterise(path: str, test_path: str, tree: ast.Module) -> bytes | None:
    """The text of a test file for the module, in unittest's style; None where nothing can be said.

    Args:
        path: the module's file, normalised.
        test_path: where the tests will be, normalised; it says where the repository's root is.
        tree: the module.
    """
    if not is_importable(path):
        return None
    found = surface(tree)
    public = _certain(found.public(path))
    constants = {name: one.value for name, one in public.items() if one.kind is Kind.CONSTANT}
    long = {name: repr(value) for name, value in constants.items() if len(repr(value)) > _LONGEST_VALUE}
    exported = _exported(found)
    sections = {
        "names": [name for name, one in public.items() if one.kind in (Kind.OTHER, Kind.IMPORT)],
        "functions": {name: one.signature for name, one in public.items() if one.kind is Kind.FUNCTION},
        "classes": {name: _class(one) for name, one in public.items() if one.kind is Kind.CLASS},
        "constants": {name: value for name, value in constants.items() if name not in long},
        "hashes": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in long.items()},
    }
    shown = {name: pformat(section, width=100, sort_dicts=False) for name, section in sections.items()}
    depth = len(PurePosixPath(test_path).parts) - 1
    text = _TEMPLATE.format(path=path, test_path=test_path, depth=depth, exported=exported, **shown)
    return text.encode(errors="surrogatepass")


def _exported(found: Surface) -> str:
    return "None" if found.exported is None else pformat(list(found.exported), width=100)


def _certain(definitions: Mapping[str, Definition]) -> dict[str, Definition]:
    return {name: one for name, one in definitions.items() if one.certain}


def _class(definition: Definition) -> tuple[list[str] | None, dict[str, object], dict[str, object]]:
    """Bases, public methods, and public attributes that are short literals."""
    members = _certain(definition.members)
    methods: dict[str, object] = {
        name: (str(one.kind), one.signature)
        for name, one in members.items()
        if one.kind in _METHODS and (not name.startswith("_") or name == "__init__")
    }
    attributes: dict[str, object] = {
        name: one.value
        for name, one in members.items()
        if one.kind is Kind.CONSTANT and not name.startswith("_") and len(repr(one.value)) <= _LONGEST_VALUE
    }
    bases = definition.bases
    # What a metaclass or decorator makes of an attribute (Enum) is not in the text.
    if bases is None or any("Enum" in base or "Flag" in base for base in bases):
        attributes = {}
    return (None if bases is None else list(bases)), methods, attributes
