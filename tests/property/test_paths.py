"""Paths: one spelling each, and none that git, a file system or a reader could be fooled by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.paths import check_workspace, is_normal, normalise

PIECES = st.sampled_from(
    ["a", ".git", "GIT~1", "..", ".", "-x", "é", "e\u0301", "\u200b", " ", ":", "b.py", "\\", "\n", "～"]
)
PATHS = st.one_of(
    st.text(),
    st.lists(PIECES, max_size=8).map("/".join),
    st.lists(PIECES, max_size=8).map("".join),
    st.from_regex(r"[a-z_.\-/]{1,20}", fullmatch=True),
)


@given(PATHS)
def test_normalising_twice_changes_nothing(path: str) -> None:
    try:
        once = normalise(path)
    except BadInput:
        assert not is_normal(path)
        return
    assert normalise(once) == once
    assert is_normal(once)
    assert is_normal(path) == (path == once)
    assert all(part not in ("", ".", "..") for part in once.split("/"))


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("./a", "a"),
        ("a//b", "a/b"),
        ("a/./b", "a/b"),
        (".github/workflows/ci.yml", ".github/workflows/ci.yml"),
        (".gitignore", ".gitignore"),
        (".gitattributes", ".gitattributes"),
        ("src/aux.c", "src/aux.c"),
        ("a b/c'd\"e$(f).py", "a b/c'd\"e$(f).py"),
        ("backup~", "backup~"),
        ("git~", "git~"),
        ("été/数据.py", "été/数据.py"),
        ("a/...b", "a/...b"),
        ("[id]/page*.tsx", "[id]/page*.tsx"),
    ],
)
def test_what_is_safe_is_kept(path: str, normal: str) -> None:
    assert normalise(path) == normal


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "no file"),
        (".", "no file"),
        ("./.", "directory"),
        ("a/", "directory"),
        ("/etc/passwd", "absolute"),
        ("../a", "leaves"),
        ("a/../b", "leaves"),
        ("-rf", "option"),
        ("a/-rf", "option"),
        ("a\nb", "control"),
        ("a\0b", "control"),
        ("a\x85b", "control"),
        ("a\u2028b", "control"),
        ("a\\b", "backslash"),
        ("C:\\a", "backslash"),
        ("C:/a", "colon"),
        ("a.py:stream", "colon"),
        ("a\u202eb", "invisible"),
        ("a\u2066b", "invisible"),
        ("a\u200bb", "invisible"),
        ("\ufeffa", "invisible"),
        (".g\u200cit/config", "invisible"),
        (".git/config", "git's own"),
        ("sub/.git", "git's own"),
        (".GIT/hooks/x", "git's own"),
        (".Git", "git's own"),
        (".git /config", "git's own"),
        (".git. ./config", "git's own"),
        ("git~1/config", "git's own"),
        ("GIT~1", "git's own"),
        (".git::$INDEX_ALLOCATION/config", "git's own"),
        (".gitmodules", "git's own"),
        (".GitModules", "git's own"),
        (".gitmodule\u017f", "git's own"),
        ("GITMOD~1", "git's own"),
        ("gi7eba~1", "git's own"),
        ("a.py.", "dot or space"),
        ("a.py ", "dot or space"),
        ("a /b", "dot or space"),
        (".../b", "dot or space"),
        ("e\u0301.py", "NFC"),
        ("a\ud800b", "UTF-8"),
        ("a" * 256, "255 bytes"),
        ("é" * 128, "255 bytes"),
        ("/".join(["a" * 200] * 6), "1024 bytes"),
    ],
)
def test_what_could_fool_somebody_is_refused_with_a_remedy(path: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason) as caught:
        normalise(path, "tasks[0].path")
    assert caught.value.field == "tasks[0].path"
    assert caught.value.remedy
    assert str(caught.value).isprintable()
    assert not is_normal(path)


@pytest.mark.parametrize("name", ["a", "my-repo_2.main", "x" * 100])
def test_workspace_names(name: str) -> None:
    assert check_workspace(name) == name


@pytest.mark.parametrize("name", ["", "a:b", "a b", "a/b", "x" * 101, "a\n", "é"])
def test_bad_workspace_names(name: str) -> None:
    with pytest.raises(BadInput, match="workspace"):
        check_workspace(name)
