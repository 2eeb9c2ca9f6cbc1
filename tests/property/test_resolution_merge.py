"""Reads and writes temporary git repositories: merging any causal graph, compared with git itself."""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from codeconvoy.schemas.events import Strategy
from codeconvoy.workers.resolution import mirror
from codeconvoy.workers.resolution.mirror import merge_heads
from codeconvoy.workers.resolution.object_store import GaveUp, Merged
from codeconvoy.workers.resolution.overlap import overlapping
from codeconvoy.workers.resolution.standalone import merge_files
from codeconvoy.workers.resolution.strategies import ClaimNeeded, Resolved, resolve
from tests.fork_histories import Version, fork_of, history_of

BASE_LINES = 6
texts = st.lists(
    st.sampled_from([b"a\n", b"b\n", b"c\r\n", b"\n", b"\xff\n", b"\xef\xbb\xbfd\n", b"  a\n"]), max_size=8
).flatmap(lambda lines: st.sampled_from([b"".join(lines), b"".join(lines) + b"end"]))
"""Small texts that collide often, with everything that a line of bytes may hold."""


@st.composite
def edited(draw: st.DrawFn, content: bytes, tag: str) -> bytes:
    """The content with one line replaced, added or removed; every new line is unlike any other."""
    lines = content.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines)))
    removed = draw(st.integers(0, 1))
    added = [f"{tag}\n".encode()] * draw(st.integers(0, 1))
    return b"".join([*lines[:at], *added, *lines[at + removed :]])


@st.composite
def graphs(draw: st.DrawFn) -> Mapping[str, Version]:
    """Two lanes of edits that are merged into one or, criss-cross, into both; "x" and "y" are the heads."""
    versions = {"v00": Version(b"".join(b"%d\n" % number for number in range(BASE_LINES)))}
    tips = ["v00", "v00"]

    def land(lane: int, parents: list[str], content: bytes, *, name: str = "") -> str:
        name = name or f"v{len(versions):02}"
        mode = versions[tips[lane]].executable ^ (draw(st.integers(0, 9)) == 0)
        versions[name] = Version(content, parents, executable=mode)
        return name

    def edit(lane: int, *, name: str = "") -> str:
        content = draw(edited(versions[tips[lane]].content or b"", name or f"v{len(versions):02}"))
        return land(lane, [tips[lane]], content, name=name)

    def join(lane: int, parents: list[str]) -> str:
        merged = merge_heads(history_of(versions), tuple(parents))
        if isinstance(merged, GaveUp) or draw(st.integers(0, 3)) == 0:
            return land(
                lane, parents, draw(edited(versions[tips[lane]].content or b"", f"v{len(versions):02}"))
            )
        return land(lane, parents, merged.content or b"")

    for step in draw(st.lists(st.sampled_from(["left", "right", "both", "join", "cross"]), max_size=8)):
        parents = sorted(set(tips))
        if step in ("left", "both"):
            tips[0] = edit(0)
        if step in ("right", "both"):
            tips[1] = edit(1)
        if step == "join" and len(parents) == 2:
            tips[0] = join(0, parents)
        if step == "cross" and len(parents) == 2:
            tips = [join(0, parents), join(1, parents)]
    edit(0, name="x")
    edit(1, name="y")
    return versions


def git(*arguments: str, stdin: bytes = b"", at: Path) -> subprocess.CompletedProcess[bytes]:
    isolated = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(at), "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        ["git", *arguments], input=stdin, cwd=at, env=isolated, capture_output=True, check=False
    )


def merged_by_git(versions: Mapping[str, Version], ours: str, theirs: str) -> Merged | None:
    """What `git merge-tree` makes of two heads; None is a conflict."""
    marks = {name: number for number, name in enumerate(versions, start=1)}
    stream = b""
    for name, version in versions.items():
        stream += b"commit refs/heads/%d\nmark :%d\ncommitter a <a> %d +0000\ndata 0\n" % (
            marks[name],
            marks[name],
            marks[name],
        )
        words = [b"from", *[b"merge"] * len(version.parents)]
        stream += b"".join(
            b"%s :%d\n" % (word, marks[p]) for word, p in zip(words, version.parents, strict=False)
        )
        stream += b"deleteall\n"
        if version.content is not None:
            mode = b"100755" if version.executable else b"100644"
            stream += b"M %s inline file\ndata %d\n%s\n" % (mode, len(version.content), version.content)
    with tempfile.TemporaryDirectory() as directory:
        at = Path(directory)
        git("init", "-q", "--bare", at=at)
        assert git("fast-import", "--quiet", stdin=stream, at=at).returncode == 0
        run = git("merge-tree", "--write-tree", str(marks[ours]), str(marks[theirs]), at=at)
        if run.returncode:
            return None
        tree = run.stdout.decode().strip()
        listed = git("ls-tree", tree, at=at).stdout
        return Merged(git("show", f"{tree}:file", at=at).stdout, listed.startswith(b"100755"))


@settings(max_examples=150)
@given(graphs())
def test_two_heads_of_any_graph_merge_as_git_merges_them(versions: Mapping[str, Version]) -> None:
    merged = merge_heads(history_of(versions), ("x", "y"))
    assert (None if isinstance(merged, GaveUp) else merged) == merged_by_git(versions, "x", "y")


@settings(max_examples=150)
@given(graphs())
def test_nothing_depends_on_names_order_or_what_is_left_out(versions: Mapping[str, Version]) -> None:
    history = history_of(versions)
    merged = merge_heads(history, ("x", "y"))
    assert merge_heads(history, ("y", "x")) == merged
    turned = {name: f"{100 - number:03}" for number, name in enumerate(versions)}
    renamed = {
        turned[name]: Version(
            version.content, sorted(turned[parent] for parent in version.parents), version.executable
        )
        for name, version in versions.items()
    }
    assert merge_heads(history_of(renamed), (turned["x"], turned["y"])) == merged
    with patch.object(mirror, "_needed", lambda history, order: history.ancestors(order)):
        assert merge_heads(history, ("x", "y")) == merged


@settings(max_examples=150)
@given(texts, texts, texts)
def test_a_clean_merge_of_three_texts_is_what_git_merge_file_gives(
    base: bytes, ours: bytes, theirs: bytes
) -> None:
    result = merge_files(base, ours, theirs, "file.txt", [Strategy.THREE_WAY])
    with tempfile.TemporaryDirectory() as directory:
        at = Path(directory)
        for name, content in (("base", base), ("ours", ours), ("theirs", theirs)):
            (at / name).write_bytes(content)
        run = git("merge-file", "-p", "-q", "--diff3", "ours", "base", "theirs", at=at)
    assert result.clean == (run.returncode == 0)
    if result.clean:
        assert result.content == run.stdout
    swapped = merge_files(base, theirs, ours, "file.txt", [Strategy.THREE_WAY])
    assert swapped.clean == result.clean
    if result.clean:
        assert swapped.content == result.content
        assert set(result.content.splitlines()) <= set((base + b"\n" + ours + b"\n" + theirs).splitlines())


@settings(max_examples=100)
@given(st.data())
def test_many_heads_converge_to_every_change_or_to_a_named_conflict(data: st.DataObject) -> None:
    """Lines are all different, so what a clean merge must hold is known: no edit is lost."""
    base = [b"%d\n" % number for number in range(BASE_LINES)]
    count = data.draw(st.integers(2, 5))
    sides = [data.draw(edited(b"".join(base), f"side {number}")) for number in range(count)]
    history, heads = fork_of(b"".join(base), *sides)
    merged = merge_heads(history, heads)
    assert merge_heads(history, tuple(data.draw(st.permutations(heads)))) == merged
    if isinstance(merged, Merged):
        lines = [set(side.splitlines(keepends=True)) for side in sides]
        expected = set(base).intersection(*lines) | set().union(*lines) - set(base)
        assert set((merged.content or b"").splitlines(keepends=True)) == expected
        assert not [r for r in overlapping(b"".join(base), sides) if r.end > r.start]


@settings(max_examples=100)
@given(
    st.none() | texts,
    st.lists(st.none() | texts, min_size=2, max_size=4),
    st.lists(st.sampled_from(Strategy), max_size=4),
    st.sampled_from([Strategy.FIRST_WRITER_WINS, Strategy.LAST_WRITER_WINS]),
)
def test_there_is_always_an_outcome(
    base: bytes | None, sides: list[bytes | None], strategies: list[Strategy], default: Strategy
) -> None:
    history, heads = fork_of(base, *sides)
    outcome = resolve(history, heads, strategies, default=default)
    assert outcome == resolve(history, heads[::-1], strategies, default=default)
    if isinstance(outcome, ClaimNeeded):
        at = strategies.index(outcome.strategy)
        assert tuple(strategies[at + 1 :]) == outcome.remaining
    else:
        assert isinstance(outcome, Resolved)
        assert outcome.candidate.parents == heads
        assert set(outcome.candidate.losers) < set(heads)
        if outcome.strategy in (Strategy.FIRST_WRITER_WINS, Strategy.LAST_WRITER_WINS):
            assert outcome.candidate.content in sides


@pytest.mark.parametrize("kind", [Merged, GaveUp])
@pytest.mark.parametrize("many", [False, True])
def test_the_graphs_hold_what_the_properties_are_about(kind: type, many: bool) -> None:
    """Clean merges and conflicts, on one base and on several (criss-cross)."""

    def wanted(versions: Mapping[str, Version]) -> bool:
        history = history_of(versions)
        common = history.ancestors(["x"]) & history.ancestors(["y"])
        bases = common - {parent for name in common for parent in versions[name].parents}
        return (len(bases) > 1) is many and isinstance(merge_heads(history, ("x", "y")), kind)

    search = settings(phases=[Phase.generate], database=None, derandomize=True, max_examples=500)
    assert find(graphs(), wanted, settings=search)


@pytest.mark.parametrize("sides", [(b"X\n1\n2\n", b"0\n1\nY\n")])
def test_git_is_there_to_compare_with(sides: tuple[bytes, bytes]) -> None:
    ours, theirs = sides
    versions = {"base": Version(b"0\n1\n2\n"), "x": Version(ours, ["base"]), "y": Version(theirs, ["base"])}
    assert merged_by_git(versions, "x", "y") == Merged(b"X\n1\nY\n", False)
