"""`convoy merge`, as the program that git runs: with git itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.git_repos import commit, git, repository

BASE = b"import os\n\n\ndef one():\n    return 1\n\n\ndef two():\n    return os.getcwd()\n"
PROGRAM = [sys.executable, "-m", "codeconvoy.orchestrator.cli", "merge"]
HEAVY = ("confluent_kafka", "redis", "openai", "anthropic", "fastavro", "prometheus_client", "libcst")


def merge(tmp_path: Path, base: bytes, ours: bytes, theirs: bytes, *more: str) -> tuple[int, bytes, str]:
    """Exit code, stdout and stderr of a merge of these contents."""
    names = []
    for name, content in (("base", base), ("ours", ours), ("theirs", theirs)):
        (tmp_path / name).write_bytes(content)
        names.append(str(tmp_path / name))
    done = subprocess.run([*PROGRAM, *names, "--path", "a.py", *more], capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


def test_what_merges(tmp_path: Path) -> None:
    ours, theirs = BASE.replace(b"return 1", b"return 11"), BASE.replace(b"os.getcwd()", b"os.sep")
    code, out, err = merge(tmp_path, BASE, ours, theirs)
    assert (code, out, err) == (0, ours.replace(b"os.getcwd()", b"os.sep"), "")


def test_what_does_not_merge(tmp_path: Path) -> None:
    ours, theirs = BASE.replace(b"return 1", b"return 11"), BASE.replace(b"return 1", b"return 12")
    code, out, err = merge(tmp_path, BASE, ours, theirs)
    assert code == 1
    assert out.count(b"<<<<<<<") == out.count(b">>>>>>>") == 1
    assert "three_way: both sides changed the same or adjacent lines" in err


def test_a_clean_merge_that_is_broken_is_refused(tmp_path: Path) -> None:
    ours = BASE.replace(b"import os\n", b"")
    ours = ours.replace(b"os.getcwd()", b"2")
    theirs = BASE.replace(b"return 1\n", b"return os.sep\n")
    code, _, err = merge(tmp_path, BASE, ours, theirs)
    assert code == 1
    assert "F821" in err


def test_it_writes_where_it_is_told(tmp_path: Path) -> None:
    ours = BASE.replace(b"return 1", b"return 11")
    target = tmp_path / "merged"
    assert merge(tmp_path, BASE, ours, BASE, "--output", str(target)) == (0, b"", "")
    assert target.read_bytes() == ours


def test_no_base(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"same\n")
    done = subprocess.run(
        [*PROGRAM, "/dev/null", "one", "one"], cwd=tmp_path, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"same\n")


@pytest.mark.parametrize("content", [None, b"x" * (512 * 1024 + 1)])
def test_a_file_that_can_not_be_merged(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "one").write_bytes(b"1\n")
    if content is not None:
        (tmp_path / "two").write_bytes(content)
    done = subprocess.run([*PROGRAM, "one", "one", "two"], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Error: THEIRS: two" in done.stderr
    assert b"Remedy: " in done.stderr


def test_it_loads_nothing_that_a_fleet_needs(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x = 1\n")
    program = (
        "import sys; sys.argv = ['convoy', 'merge', 'one', 'one', 'one']\n"
        "from codeconvoy.orchestrator.cli import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert done.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def driven(tmp_path: Path, ours: bytes, theirs: bytes) -> Path:
    """A repository whose branches `ours` (checked out) and `theirs` changed a.py, with our driver."""
    repo = repository(tmp_path / "repo", {"a.py": BASE, ".gitattributes": b"*.py merge=convoy\n"})
    program = " ".join(PROGRAM)
    git(repo, "config", "merge.convoy.driver", f"{program} %O %A %B --path %P --output %A")
    git(repo, "checkout", "--quiet", "-b", "theirs")
    commit(repo, {"a.py": theirs})
    git(repo, "checkout", "--quiet", "-b", "ours", "main")
    commit(repo, {"a.py": ours})
    return repo


def test_as_a_merge_driver_of_git(tmp_path: Path) -> None:
    ours, theirs = BASE.replace(b"return 1", b"return 11"), BASE.replace(b"os.getcwd()", b"os.sep")
    repo = driven(tmp_path, ours, theirs)
    git(repo, "merge", "--quiet", "--no-edit", "theirs")
    assert (repo / "a.py").read_bytes() == ours.replace(b"os.getcwd()", b"os.sep")


def test_as_a_merge_driver_it_stops_what_git_would_let_through(tmp_path: Path) -> None:
    ours = BASE.replace(b"import os\n", b"").replace(b"os.getcwd()", b"2")
    repo = driven(tmp_path, ours, BASE.replace(b"return 1\n", b"return os.sep\n"))
    stopped = subprocess.run(
        ["git", "merge", "--no-edit", "theirs"], cwd=repo, capture_output=True, check=False
    )
    assert stopped.returncode == 1
    assert b"CONFLICT (content)" in stopped.stdout
    assert git(repo, "diff", "--name-only", "--diff-filter=U") == "a.py"
    git(repo, "merge", "--abort")
    git(repo, "config", "--unset", "merge.convoy.driver")
    git(repo, "merge", "--quiet", "--no-edit", "theirs")
