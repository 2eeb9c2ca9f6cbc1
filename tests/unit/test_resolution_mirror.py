"""Reads nothing, writes a temporary git attributes file: git's merge of a file's heads, case by case."""

import subprocess
import sys
from pathlib import Path

import pytest

from codeconvoy.workers.resolution.mirror import merge_heads
from codeconvoy.workers.resolution.object_store import GaveUp, Merged, object_store
from codeconvoy.workers.resolution.standalone import merge_files
from tests.fork_histories import Version, fork_of, history_of

BASE = b"one\ntwo\nthree\nfour\nfive\n"


def merge(base: bytes | None, *sides: bytes | None) -> Merged | GaveUp:
    return merge_heads(*fork_of(base, *sides))


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "expected"),
    [
        (
            BASE,
            b"ONE\ntwo\nthree\nfour\nfive\n",
            b"one\ntwo\nthree\nfour\nFIVE\n",
            b"ONE\ntwo\nthree\nfour\nFIVE\n",
        ),
        (b"a\r\nb\r\nc\r\n", b"A\r\nb\r\nc\r\n", b"a\r\nb\r\nC\r\n", b"A\r\nb\r\nC\r\n"),
        (
            b"\xef\xbb\xbfa\nb\nc\n",
            b"\xef\xbb\xbfA\nb\nc\n",
            b"\xef\xbb\xbfa\nb\nC\n",
            b"\xef\xbb\xbfA\nb\nC\n",
        ),
        (b"\xff\nb\n\xfe\n", b"\xff\xff\nb\n\xfe\n", b"\xff\nb\n\x80\n", b"\xff\xff\nb\n\x80\n"),
        (b"a\nb\nc", b"A\nb\nc", b"a\nb\nc\n", b"A\nb\nc\n"),
        (b"a\nb\nc", b"A\nb\nc", b"a\nb\nC", b"A\nb\nC"),
        (b"a\n", b"", b"a\n", b""),
        (b"", b"a\n", b"", b"a\n"),
        (b"a\n", None, b"a\n", None),
        (b"a\n", None, None, None),
        (None, b"same\n", b"same\n", b"same\n"),
        (None, b"", b"b\n", b"b\n"),
    ],
    ids=[
        "lines",
        "crlf",
        "bom",
        "bytes",
        "newline added",
        "no newline",
        "emptied",
        "empty",
        "delete",
        "both",
        "create",
        "create empty",
    ],
)
def test_clean(base: bytes | None, ours: bytes | None, theirs: bytes | None, expected: bytes | None) -> None:
    assert merge(base, ours, theirs) == merge(base, theirs, ours) == Merged(expected, False)


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "reason"),
    [
        (b"a\n", b"b\n", b"c\n", "same or adjacent lines"),
        (b"a\nb\n", b"A\nb\n", b"a\nB\n", "same or adjacent lines"),
        (b"\0a\nb\nc\n", b"\0A\nb\nc\n", b"\0a\nb\nC\n", "binary"),
        (b"a\n", None, b"b\n", "deleted"),
        (b"a\n", b"", b"a\nb\n", "same or adjacent lines"),
        (None, b"a\n", b"b\n", "created"),
    ],
)
def test_conflict(base: bytes | None, ours: bytes | None, theirs: bytes | None, reason: str) -> None:
    for merged in (merge(base, ours, theirs), merge(base, theirs, ours)):
        assert isinstance(merged, GaveUp)
        assert reason in merged.reason


def test_the_executable_bit_of_the_side_that_changed_it_is_kept() -> None:
    versions = {
        "base": Version(BASE, executable=True),
        "edit": Version(b"zero\n" + BASE, ["base"], executable=True),
        "mode": Version(BASE + b"six\n", ["base"], executable=False),
    }
    assert merge_heads(history_of(versions), ("edit", "mode")) == Merged(b"zero\n" + BASE + b"six\n", False)
    flipped = {name: Version(v.content, v.parents, not v.executable) for name, v in versions.items()}
    assert merge_heads(history_of(flipped), ("edit", "mode")) == Merged(b"zero\n" + BASE + b"six\n", True)


def test_a_change_of_mode_against_a_deletion_is_a_conflict() -> None:
    versions = {
        "base": Version(BASE),
        "gone": Version(None, ["base"]),
        "mode": Version(BASE, ["base"], executable=True),
    }
    assert isinstance(merge_heads(history_of(versions), ("gone", "mode")), GaveUp)


def test_a_file_made_again_on_its_tombstone_forks_like_any_other() -> None:
    versions = {
        "base": Version(BASE),
        "gone": Version(None, ["base"]),
        "again": Version(BASE, ["gone"]),
        "x": Version(b"zero\n" + BASE, ["again"]),
        "y": Version(BASE + b"six\n", ["again"]),
    }
    assert merge_heads(history_of(versions), ("x", "y")) == Merged(b"zero\n" + BASE + b"six\n", False)


CRISS_CROSS = {
    "start": Version(b"p\n1\n2\n3\nq\n"),
    "left": Version(b"P\n1\n2\n3\nq\n", ["start"]),
    "right": Version(b"p\n1\n2\n3\nQ\n", ["start"]),
    "m1": Version(b"P\n1\n2\n3\nQ\n", ["left", "right"]),
    "m2": Version(b"P\n1\n2\n3\nQ\n", ["left", "right"]),
    "takes P back": Version(b"p\n1\n2\n3\nQ\n", ["m1"]),
    "adds": Version(b"P\n1\n2\n3\nQ\nmore\n", ["m2"]),
}


def test_a_criss_cross_needs_a_virtual_base() -> None:
    """With one of the two real ancestors as base, an edit is undone without a word."""
    heads = ("takes P back", "adds")
    assert merge_heads(history_of(CRISS_CROSS), heads) == Merged(b"p\n1\n2\n3\nQ\nmore\n", False)
    ours, theirs = (CRISS_CROSS[head].content or b"" for head in heads)
    single = merge_files(CRISS_CROSS["right"].content, ours, theirs, "file.txt")
    assert single.clean
    assert single.content == b"P\n1\n2\n3\nQ\nmore\n"


def test_a_deep_criss_cross_ends() -> None:
    versions = {
        "start": Version(BASE),
        "a0": Version(b"a\n" + BASE, ["start"]),
        "b0": Version(BASE + b"b\n", ["start"]),
    }
    for step in range(1, 120):
        for side in "ab":
            versions[f"{side}{step}"] = Version(b"a\n" + BASE + b"b\n", [f"a{step - 1}", f"b{step - 1}"])
    versions["x"] = Version(b"a\nx\n" + BASE + b"b\n", ["a119"])
    versions["y"] = Version(b"a\n" + BASE + b"y\nb\n", ["b119"])
    assert merge_heads(history_of(versions), ("x", "y")) == Merged(b"a\nx\n" + BASE + b"y\nb\n", False)


def test_three_heads_are_folded_in_the_order_of_their_ids() -> None:
    sides = (
        b"ONE\ntwo\nthree\nfour\nfive\n",
        b"one\ntwo\nTHREE\nfour\nfive\n",
        b"one\ntwo\nthree\nfour\nFIVE\n",
    )
    assert merge(BASE, *sides) == Merged(b"ONE\ntwo\nTHREE\nfour\nFIVE\n", False)
    clash = merge(BASE, *sides, b"one\ntwo\n3\nfour\nfive\n")
    assert isinstance(clash, GaveUp)
    assert "side3" in clash.reason


def test_three_heads_of_which_two_share_a_later_base() -> None:
    versions = {
        "start": Version(BASE),
        "later": Version(b"zero\n" + BASE, ["start"]),
        "a": Version(b"zero\n" + BASE.replace(b"two", b"TWO"), ["later"]),
        "b": Version(BASE + b"six\n", ["start"]),
        "c": Version(b"zero\n" + BASE.replace(b"four", b"FOUR"), ["later"]),
    }
    expected = b"zero\none\nTWO\nthree\nFOUR\nfive\nsix\n"
    assert merge_heads(history_of(versions), ("a", "b", "c")) == Merged(expected, False)


def test_a_forgotten_ancestor_is_no_base() -> None:
    versions = {
        "base": Version(BASE, forgotten=True),
        "x": Version(b"zero\n" + BASE, ["base"]),
        "y": Version(BASE + b"six\n", ["base"]),
    }
    merged = merge_heads(history_of(versions), ("x", "y"))
    assert isinstance(merged, GaveUp)
    assert "too old" in merged.reason


def test_a_forgotten_ancestor_beside_a_known_one_is_a_base_that_is_missing() -> None:
    versions = {
        "old": Version(b"old\n", forgotten=True),
        "base": Version(BASE),
        "m1": Version(BASE, ["base", "old"]),
        "m2": Version(BASE, ["base", "old"]),
        "x": Version(b"zero\n" + BASE, ["m1"]),
        "y": Version(BASE + b"six\n", ["m2"]),
    }
    merged = merge_heads(history_of(versions), ("x", "y"))
    assert isinstance(merged, GaveUp)
    assert "too old" in merged.reason
    # Where only one side knows it, it can't be a common ancestor.
    versions["m2"] = Version(BASE, ["base"])
    assert merge_heads(history_of(versions), ("x", "y")) == Merged(b"zero\n" + BASE + b"six\n", False)


def test_what_is_forgotten_below_the_base_does_not_matter() -> None:
    versions = {
        "old": Version(b"old\n", forgotten=True),
        "base": Version(BASE, ["old"]),
        "x": Version(b"zero\n" + BASE, ["base"]),
        "y": Version(BASE + b"six\n", ["base"]),
    }
    assert merge_heads(history_of(versions), ("x", "y")) == Merged(b"zero\n" + BASE + b"six\n", False)


def test_a_criss_cross_with_a_forgotten_base_of_its_bases_gives_up() -> None:
    versions = {**CRISS_CROSS, "start": Version(None, forgotten=True)}
    assert isinstance(merge_heads(history_of(versions), ("takes P back", "adds")), GaveUp)


def test_only_what_the_merge_looks_at_is_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a long past is merged as fast as a young one."""
    versions = {"e0": Version(BASE)}
    for number in range(1, 200):
        versions[f"e{number}"] = Version(BASE + b"%d\n" % number, [f"e{number - 1}"])
    versions["x"] = Version(b"zero\n" + BASE + b"199\n", ["e199"])
    versions["y"] = Version(BASE + b"y\n", ["e199"])
    names: list[str] = []
    with object_store() as store:
        whole = type(store).commit

    def commit(self: object, content: bytes | None, **how: object) -> object:
        names.append(str(how["name"]))
        return whole(self, content, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(type(store), "commit", commit)
    assert merge_heads(history_of(versions), ("x", "y")) == Merged(b"zero\n" + BASE + b"y\n", False)
    assert sorted(names[:3]) == ["e199", "x", "y"]
    assert len(names) == 4


def test_the_attributes_of_whoever_runs_it_decide_nothing(tmp_path: Path) -> None:
    """Run on its own: libgit2 reads HOME once, when it is loaded."""
    (tmp_path / "git").mkdir()
    (tmp_path / "git" / "attributes").write_text("* merge=union\n")
    (tmp_path / "git" / "config").write_text("[merge]\n\tdefault = union\n")
    program = (
        "from codeconvoy.workers.resolution.standalone import merge_files\n"
        "print(merge_files(b'a\\n', b'b\\n', b'c\\n', 'x').clean)"
    )
    environment = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert run.stdout.strip() == b"False"
