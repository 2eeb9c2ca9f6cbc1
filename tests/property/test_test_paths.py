"""The test file of a source file: one for each, whatever the paths look like."""

from hypothesis import example, given
from hypothesis import strategies as st

from codeconvoy.schemas import test_paths
from codeconvoy.schemas.paths import is_normal

parts = st.text("aAbB_.-1é", min_size=1, max_size=6)
sources = st.lists(parts, min_size=1, max_size=4).map("/".join).map(lambda path: f"{path}.py")


@given(sources, sources)
@example("a/b_c.py", "a_b/c.py")
@example("a/b.py", "a_b.py")
@example("A.py", "a.py")
@example("a/__init__.py", "a/init.py")
@example("a.py", "a.rst")
def test_two_sources_never_share_a_test_file(one: str, other: str) -> None:
    names = {test_paths.test_path_for(path, "tests/convoy").casefold() for path in (one, other)}
    assert len(names) == len({one, other})


@given(sources)
def test_the_name_is_a_path_that_is_accepted_and_a_module_that_unittest_imports(path: str) -> None:
    test_path = test_paths.test_path_for(path, "tests/convoy")
    assert is_normal(test_path)
    assert test_path.startswith("tests/convoy/test_")
    assert test_path.rsplit("/", 1)[1].removesuffix(".py").isidentifier()


def test_a_plain_path_is_readable() -> None:
    written = test_paths.test_path_for("docutils/parsers/rst/states.py", "tests/convoy")
    assert written == "tests/convoy/test_docutils_parsers_rst_states.py"


def test_a_long_path_gives_a_short_name() -> None:
    assert len(test_paths.test_path_for("a/" * 500 + "b.py", "tests")) < 150
