"""Trees written from git objects: nothing runs, nothing leads out, nothing is shared."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pygit2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.git.source import Source, open_source
from codeconvoy.workers.roles.checkout import Checkouts, Overlay, place_for, stays_inside


@pytest.fixture
def source(tmp_path: Path) -> Source:
    root = tmp_path / "repo"
    (root / "pkg" / "sub").mkdir(parents=True)
    (root / "pkg" / "a.py").write_bytes(b"a = 1\r\n")
    (root / "pkg" / "sub" / "b.py").write_text("b = 1\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "pkg" / "link").symlink_to("sub")
    (root / "pkg" / "out").symlink_to("../../secret")
    (root / "abs").symlink_to("/etc/passwd")
    (root / ".gitattributes").write_text("*.py filter=evil text eol=lf\n")
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "filter.evil.clean=cat")
    for command in (("init", "-q", "."), ("add", "-A"), ("commit", "-qm", "one")):
        subprocess.run(["git", *identity, *command], cwd=root, check=True)
    subprocess.run(
        ["git", "config", "filter.evil.smudge", f"touch {tmp_path}/ran; cat"], cwd=root, check=True
    )
    return open_source(str(root), "HEAD", tmp_path / "mirrors")


def write(source: Source, target: Path, overlay: Overlay | None = None) -> tuple[str, ...]:
    return Checkouts(target.with_suffix(".kept")).checkout(source, overlay or {}, target)


def test_the_tree_is_written_as_the_objects_are(source: Source, tmp_path: Path) -> None:
    left_out = write(source, tmp_path / "t")
    assert (tmp_path / "t/pkg/sub/b.py").read_text() == "b = 1\n"
    assert (tmp_path / "t/run.sh").stat().st_mode & 0o777 == 0o755
    assert os.readlink(tmp_path / "t/pkg/link") == "sub"
    assert left_out == ("abs", "pkg/out")
    assert not (tmp_path / "ran").exists()


def test_the_overlay_takes_the_place_of_the_commit(source: Source, tmp_path: Path) -> None:
    overlay = {
        "pkg/a.py": (b"a = 2\n", True),
        "pkg/sub/b.py": (None, False),
        "new/deep/c.py": (b"c", False),
        "absent.py": (None, False),
    }
    write(source, tmp_path / "t", overlay)
    assert (tmp_path / "t/pkg/a.py").read_bytes() == b"a = 2\n"
    assert os.access(tmp_path / "t/pkg/a.py", os.X_OK)
    assert not (tmp_path / "t/pkg/sub").exists()  # as in git, no empty directories
    assert (tmp_path / "t/new/deep/c.py").read_bytes() == b"c"


def test_a_file_may_become_a_directory_and_the_reverse(source: Source, tmp_path: Path) -> None:
    overlay = {
        "run.sh/inner.py": (b"x", False),
        "run.sh": (None, False),
        "pkg/sub": (b"y", False),
        "pkg/sub/b.py": (None, False),
    }
    write(source, tmp_path / "t", overlay)
    assert (tmp_path / "t/run.sh/inner.py").read_bytes() == b"x"
    assert (tmp_path / "t/pkg/sub").read_bytes() == b"y"


def test_one_checkout_shares_nothing_with_the_next(source: Source, tmp_path: Path) -> None:
    checkouts = Checkouts(tmp_path / "kept")
    checkouts.checkout(source, {}, tmp_path / "one")
    with (tmp_path / "one/pkg/a.py").open("ab") as file:
        file.write(b"changed")
    assert checkouts.checkout(source, {}, tmp_path / "two") == ("abs", "pkg/out")
    assert (tmp_path / "two/pkg/a.py").read_bytes() == b"a = 1\n"  # what git add made of it


@pytest.mark.parametrize("path", ["../x", "/etc/x", "pkg/../../x", "./pkg/a.py", ".git/hooks/x"])
def test_a_path_that_is_not_a_files_is_refused(source: Source, tmp_path: Path, path: str) -> None:
    with pytest.raises(BadInput):
        write(source, tmp_path / "t", {path: (b"x", False)})
    assert not (tmp_path / "x").exists()


def test_nothing_is_written_through_a_symlink(source: Source, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no directory"):
        write(source, tmp_path / "t", {"pkg/link/b.py": (b"x", False)})
    write(source, tmp_path / "u", {"pkg/link": (b"a file now", False)})
    assert (tmp_path / "u/pkg/link").read_bytes() == b"a file now"
    assert (tmp_path / "u/pkg/sub/b.py").read_text() == "b = 1\n"


def test_only_the_last_commits_are_kept(source: Source, tmp_path: Path) -> None:
    checkouts, tree = Checkouts(tmp_path / "kept"), source.repo[source.commit].peel(pygit2.Tree).id
    author = pygit2.Signature("a", "a@example.com", 0, 0)
    for number in range(6):
        commit = source.repo.create_commit(None, author, author, str(number), tree, [])
        checkouts.checkout(Source(source.repo, str(commit), source.location), {}, tmp_path / str(number))
    assert len(list((tmp_path / "kept").iterdir())) == 4


def test_a_tree_is_put_into_memory_only_where_it_fits_and_runs(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(source, tmp_path / "t")
    files = [path for path in (tmp_path / "t").rglob("*") if path.is_file() and not path.is_symlink()]
    size = Checkouts(tmp_path / "kept").size(source)
    # Of a symlink the size is that of what it names.
    assert size == sum(path.stat().st_size for path in files) + len("sub../../secret/etc/passwd")
    assert place_for(size, tmp_path) == tmp_path
    assert place_for(1 << 60, tmp_path) is None
    assert place_for(size, tmp_path / "absent") is None
    noexec = SimpleNamespace(f_flag=os.ST_NOEXEC, f_bavail=1 << 30, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: noexec)
    assert place_for(size, tmp_path) is None


@given(
    st.dictionaries(
        st.sampled_from(["a", "d/b", "d/e/c"]),
        st.lists(st.sampled_from(["..", ".", "a", "b", "c", "d", "e"]), min_size=1, max_size=5).map("/".join),
    )
)
def test_symlinks_that_are_written_never_lead_out(links: dict[str, str]) -> None:
    """Resolved by hand as the kernel does, with every mixture of links that are let through."""
    kept = {path: destination for path, destination in links.items() if stays_inside(path, destination)}
    for path in kept:
        here, waiting, steps = list[str](), path.split("/"), 0
        while waiting and steps < 60:
            part, steps = waiting.pop(0), steps + 1
            if part == "..":
                assert here, f"{path} leads out in {kept}"
                here.pop()
            elif part != ".":
                here.append(part)
                if (destination := kept.get("/".join(here))) is not None:
                    here.pop()
                    waiting = destination.split("/") + waiting
