"""Reads nothing, writes nothing: what speaks against a merged file."""

import warnings

import pytest

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.topics import MAX_FILE_BYTES
from codeconvoy.workers.resolution import validate
from codeconvoy.workers.resolution.validate import MAX_YAML_BYTES, objections

GOOD = b"import os\n\n\ndef f() -> str:\n    return os.sep\n"


def test_nothing_speaks_against_a_deletion_or_a_format_that_is_not_known() -> None:
    assert objections("a.py", None, [GOOD]) == ()
    assert objections("a.txt", b"def (", [b"x", b"y"]) == ()
    assert objections("Makefile", b"def (", [b"x", b"y"]) == ()


@pytest.mark.parametrize(
    ("path", "good", "bad"),
    [
        ("a.py", GOOD, b"def f(:\n"),
        ("a.PY", GOOD, b"x = 1\n\0"),
        ("a.py", GOOD, b"x = '\xff'\n"),
        ("a.py", GOOD, b"# coding: nonsense\n"),
        ("a.py", GOOD, b"-" * 100_000 + b"1\n"),
        ("a.py", GOOD, b"(" * 100_000),
        ("a.pyi", GOOD, b"def f(self) ->: ...\n"),
        ("a.json", b'{"a": 1}', b'{"a": 1'),
        ("a.json", b'{"a": 1}', b'{"a": 1, "a": 2}'),
        ("a.json", b"[]", b"[" * 100_000),
        ("a.toml", b"a = 1\n", b"a = 1\na = 2\n"),
        ("a.toml", b"a = 1\n", b"a = '\xff'\n"),
        ("a.yaml", b"a: [1]\n", b"a: [1\n"),
        ("a.yml", b"a: [1]\n", b"a: *nowhere\n"),
    ],
)
def test_what_all_sides_parsed_must_parse(path: str, good: bytes, bad: bytes) -> None:
    assert objections(path, good, [good, good]) == ()
    (reason,) = objections(path, bad, [good, good])
    assert "does not parse" in reason
    assert objections(path, bad, [good, bad]) == ()


def test_yaml_with_tags_of_its_own_and_several_documents_parses() -> None:
    assert objections("a.yaml", b"a: !Ref b\n---\nc: 1\n", [b"a: 1\n"]) == ()


def test_large_yaml_is_not_looked_at() -> None:
    large = b"a: 1\n" + b"# \n" * MAX_YAML_BYTES
    assert objections("a.yaml", large + b"]", [large, large]) == ()
    assert objections("a.yaml", large + b"]", [b"a: 1\n"]) == ()


def test_a_merge_over_the_cap_of_a_file() -> None:
    (reason,) = objections("a.txt", b"x" * (MAX_FILE_BYTES + 1), [b"x"])
    assert "over the cap" in reason


def test_a_ruff_that_fails_speaks_against_the_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "find_ruff_bin", lambda: "/bin/false")
    assert objections("a.py", GOOD, [GOOD]) == ("ruff failed: ",)


def test_a_coding_cookie_is_respected() -> None:
    latin = b"# coding: latin-1\nx = '\xe9'\n"
    assert objections("a.py", latin + b"y = x\n", [latin, latin]) == ()
    assert objections("a.py", latin + b"y = z\n", [latin, latin]) == ("F821: Undefined name `z`",)


def test_a_name_that_only_the_merge_lost() -> None:
    assert objections("a.py", b"def g():\n    return f()\n", [GOOD, GOOD]) == ("F821: Undefined name `f`",)


def test_what_a_side_has_already_is_not_held_against_the_merge() -> None:
    broken = b"print(gone)\n"
    assert objections("a.py", b"import os\nprint(gone)\n", [GOOD, broken]) == ()
    moved = b"def f(): pass\n\n\ndef f(): pass\n"
    assert objections("a.py", b"# moved\n" + moved, [GOOD, moved]) == ()


def test_a_definition_that_both_sides_added() -> None:
    (reason,) = objections("a.py", b"def f(): pass\n\n\ndef f(): pass\n", [b"def f(): pass\n"] * 2)
    assert reason.startswith("F811")


def test_an_import_that_nobody_uses_any_more_is_untidy_and_no_more() -> None:
    assert objections("a.py", b"import os\n", [GOOD, GOOD]) == ()


def test_no_warning_gets_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert objections("a.py", b"x = '\\d'\n", [b"x = 1\n", b"x = 2\n"]) == ()


def test_conflict_markers() -> None:
    marked = b"<<<<<<< ours\na\n=======\nb\n>>>>>>> theirs\n"
    (reason,) = objections("a.txt", marked, [b"a\n", b"b\n"])
    assert "<<<<<<< ours" in reason
    assert objections("a.txt", marked, [marked, b"b\n"]) == ()
    assert objections("a.rst", b"Title\n=======\n>> quoted\n", [b"x\n"]) == ()


def test_a_lint_run_that_does_not_end_speaks_against_the_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "LINT_SECONDS", 0)
    assert objections("a.py", GOOD, [GOOD]) == ("ruff did not end in 0 s",)


def test_a_missing_ruff_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise FileNotFoundError("no ruff here")

    monkeypatch.setattr(validate, "find_ruff_bin", missing)
    with pytest.raises(Unavailable, match=r"no ruff here.*Reinstall"):
        objections("a.py", GOOD, [GOOD])
