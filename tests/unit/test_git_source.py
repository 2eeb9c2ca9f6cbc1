"""Runs git, writes temporary repositories: opening a repository at a ref, and choosing its files."""

import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from codeconvoy.schemas.errors import BadInput, ConvoyError, Unavailable
from codeconvoy.schemas.topics import MAX_FILE_BYTES, MAX_FILES_PER_JOB
from codeconvoy.workers.git import command, source
from codeconvoy.workers.git.selection import Selection, content_at, select
from codeconvoy.workers.git.source import Local, Remote, Source, locate, open_source
from tests.git_repos import commit, git, repository

FILES = {"a.py": b"a\n", "docs/b.py": b"b\n", "docs/deep/c.py": b"c\n", "README": b"r\n"}


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repository(tmp_path / "repo", FILES)


def opened(repo: Path, ref: str = "HEAD") -> Source:
    return open_source(str(repo), ref, repo.parent / "cache")


def refused(repo: Path | str, ref: str = "HEAD") -> BadInput:
    with pytest.raises(BadInput) as caught:
        open_source(str(repo), ref, Path("unused"))
    return caught.value


def paths(selection: Selection) -> list[str]:
    return [file.path for file in selection.files]


def test_every_kind_of_ref(repo: Path) -> None:
    first = git(repo, "rev-parse", "HEAD")
    git(repo, "tag", "-a", "v1", "-m", "annotated")
    second = commit(repo, {"a.py": b"2\n"})
    git(repo, "branch", "side/way")
    for ref in (first, first[:8], "v1", "HEAD~1", "main^", "refs/tags/v1"):
        assert opened(repo, ref).commit == first
    for ref in ("HEAD", "main", "side/way", "refs/heads/main", "@"):
        assert opened(repo, ref).commit == second


def test_bare_repositories_worktrees_and_file_urls(repo: Path, tmp_path: Path) -> None:
    head = git(repo, "rev-parse", "HEAD")
    git(repo, "clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    git(repo, "worktree", "add", "--quiet", "-b", "linked", str(tmp_path / "linked"))
    for path in (tmp_path / "bare.git", tmp_path / "linked", f"file://{repo}"):
        found = open_source(str(path), "HEAD", tmp_path)
        assert found.commit == head
        assert isinstance(found.location, Local)


@pytest.mark.parametrize("ref", ["nowhere", "HEAD~5", "0" * 40, "HEAD^{tree}", "-x", "a b", ""])
def test_a_ref_that_is_no_commit(repo: Path, ref: str) -> None:
    problem = refused(repo, ref)
    assert problem.field == "ref"
    assert problem.remedy


def test_what_is_no_repository(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert "not a git repository" in refused(tmp_path / "plain").reason
    assert "does not exist" in refused(tmp_path / "gone").reason
    # The repository around it is not meant, but named.
    assert str(repo) in refused(repo / "docs").remedy
    git(tmp_path, "init", "--quiet", "empty")
    assert "no commits" in refused(tmp_path / "empty").remedy


@pytest.mark.parametrize(
    "repository",
    [
        "",
        " ",
        "a\nb",
        "--upload-pack=x",
        "ext::sh -c x",
        "fd::3",
        "ftp://h/x",
        "https:///x",
        "https://u:p@h/x",
        f"https://{'ghp_' + 'aB3' * 12}@h/x",
    ],
)
def test_what_is_not_safe_to_hand_to_git(repository: str) -> None:
    with pytest.raises(BadInput) as caught:
        locate(repository)
    assert caught.value.field == "repository"


def test_paths_and_urls_are_told_apart(tmp_path: Path) -> None:
    assert locate("git@example.org:a/b.git") == Remote("git@example.org:a/b.git")
    assert locate("https://example.org/b") == Remote("https://example.org/b")
    assert locate("./a:b") == Local(Path("a:b"))
    assert locate("a/b:c") == Local(Path("a/b:c"))


def test_globs_mean_what_they_mean_in_a_gitignore(repo: Path) -> None:
    every = ["a.py", "docs/b.py", "docs/deep/c.py"]
    assert paths(select(opened(repo), ["*.py"])) == every
    assert paths(select(opened(repo), ["/*.py"])) == ["a.py"]
    assert paths(select(opened(repo), ["docs/*.py"])) == ["docs/b.py"]
    assert paths(select(opened(repo), ["docs/**/*.py"])) == ["docs/b.py", "docs/deep/c.py"]
    assert paths(select(opened(repo), ["docs/"])) == ["docs/b.py", "docs/deep/c.py"]
    assert paths(select(opened(repo), ["*.py"], exclude=["deep/"])) == ["a.py", "docs/b.py"]
    assert paths(select(opened(repo), ["*.py"], exclude=["docs/**"], paths=["docs/b.py"])) == [
        "a.py",
        "docs/b.py",
    ]


def test_a_named_path_that_is_absent_may_be_created(repo: Path) -> None:
    selection = select(opened(repo), [], paths=["new/x.py", "a.py"])
    assert selection.absent == ("new/x.py",)
    assert paths(selection) == ["a.py"]


def test_contents_come_as_git_holds_them(tmp_path: Path) -> None:
    odd = {
        "crlf": b"a\r\nb\r\n",
        "bom": b"\xef\xbb\xbfa\n",
        "latin": b"\xe9\xff\n",
        "empty": b"",
        "none": b"a",
        "late-nul": b"x" * 8000 + b"\0",
    }
    repo = repository(
        tmp_path / "repo", {".gitattributes": b"* text eol=crlf filter=bad ident\n", "run": b"#!\n"}
    )
    git(repo, "config", "core.autocrlf", "true")
    git(repo, "config", "filter.bad.smudge", f"touch {tmp_path}/filtered; cat")
    (repo / ".gitattributes").unlink()
    (repo / "run").chmod(0o755)
    git(repo, "config", "core.autocrlf", "false")
    commit(repo, odd)
    (repo / ".gitattributes").write_bytes(b"* text eol=crlf filter=bad\n")
    selection = select(opened(repo), ["*"])
    assert {file.path: file.content for file in selection.files} == {**odd, "run": b"#!\n"}
    assert [file.path for file in selection.files if file.executable] == ["run"]
    assert not (tmp_path / "filtered").exists()
    found = content_at(opened(repo), "crlf")
    assert found is not None
    assert found.content == odd["crlf"]
    assert content_at(opened(repo), "gone") is None


UNFIT = {
    "link": "symlink",
    "module": "submodule",
    "pointer": "LFS",
    "binary": "binary",
    "big": "bytes",
    "aux:stream": "safe path",
}


@pytest.fixture
def unfit(repo: Path) -> Path:
    (repo / "link").symlink_to("a.py")
    git(repo, "init", "--quiet", "module")
    commit(repo / "module", {"x": b"x"})
    commit(
        repo,
        {
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "binary": b"a\0b",
            "big": b"x" * (MAX_FILE_BYTES + 1),
            "aux:stream": b"x",
        },
    )
    return repo


def test_what_cannot_be_edited_is_skipped_with_the_reason(unfit: Path) -> None:
    selection = select(opened(unfit), ["*"])
    assert paths(selection) == ["README", "a.py", "docs/b.py", "docs/deep/c.py"]
    reasons = {skipped.path: skipped.reason for skipped in selection.skipped}
    assert reasons.keys() == UNFIT.keys()
    assert all(word in reasons[path] for path, word in UNFIT.items())


@pytest.mark.parametrize("path", UNFIT)
def test_what_is_named_and_cannot_be_edited_is_an_error(unfit: Path, path: str) -> None:
    with pytest.raises(BadInput) as caught:
        select(opened(unfit), ["*.py", path])
    assert caught.value.field == "files[1]"
    with pytest.raises(BadInput) as caught:
        select(opened(unfit), ["*.py"], paths=["a.py", path])
    assert caught.value.field == "paths[1]"


@pytest.mark.parametrize(
    ("globs", "exclude", "named", "field"),
    [
        (["*.py", "*.rs"], [], [], "files[1]"),
        (["gone.py"], [], [], "files[0]"),
        (["[z-a]"], [], [], "files[0]"),
        (["*.py"], ["*"], [], "exclude"),
        ([], [], ["docs"], "paths[0]"),
        ([], [], ["a.py/b"], "paths[0]"),
        ([], [], ["../x"], "paths[0]"),
    ],
)
def test_a_choice_that_means_nothing(
    repo: Path, globs: list[str], exclude: list[str], named: list[str], field: str
) -> None:
    with pytest.raises(BadInput) as caught:
        select(opened(repo), globs, exclude, named)
    assert caught.value.field == field


def test_only_unfit_files_are_an_error(unfit: Path) -> None:
    with pytest.raises(BadInput, match="none can be edited"):
        select(opened(unfit), ["bin*"])


def test_too_many_files(repo: Path) -> None:
    commit(repo, {f"many/{i}": b"" for i in range(MAX_FILES_PER_JOB + 1)})
    with pytest.raises(BadInput, match="more than"):
        select(opened(repo), ["many/"])


def test_a_name_that_is_not_utf8_is_skipped(repo: Path) -> None:
    (repo / os.fsdecode(b"\xff.py")).write_bytes(b"")
    git(repo, "add", "--all")
    git(repo, "commit", "--quiet", "-m", "odd")
    [skipped] = select(opened(repo), ["*.py"]).skipped
    assert "UTF-8" in skipped.reason


def test_reading_changes_nothing(repo: Path) -> None:
    def everything() -> dict[str, tuple[int, bytes]]:
        found = sorted(path for path in repo.rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    (repo / "a.py").write_bytes(b"not committed\n")
    before = everything()
    select(opened(repo), ["*"])
    assert everything() == before


class AsRemote:
    """Lets a local repository be reached as a URL would be: by the git command, in a mirror."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(source, "locate", lambda repository: Remote(repository))

    def open(self, repo: Path, ref: str = "HEAD") -> Source:
        return open_source(f"file://{repo}", ref, repo.parent / "cache")


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> AsRemote:
    return AsRemote(monkeypatch)


def test_a_url_is_mirrored_and_brought_up_to_date(repo: Path, remote: AsRemote) -> None:
    first = git(repo, "rev-parse", "HEAD")
    assert remote.open(repo).commit == first
    second = commit(repo, {"a.py": b"2\n"})
    git(repo, "tag", "v2")
    assert remote.open(repo).commit == second
    for ref, expected in (("main", second), ("v2", second), ("HEAD~1", first), (first, first)):
        assert remote.open(repo, ref).commit == expected
    # The remote's history was rewritten.
    git(repo, "reset", "--quiet", "--hard", first)
    third = commit(repo, {"a.py": b"3\n"})
    assert remote.open(repo, "main").commit == third
    assert paths(select(remote.open(repo), ["/a.py"])) == ["a.py"]


def test_a_ref_outside_of_branches_is_fetched_by_name(repo: Path, remote: AsRemote) -> None:
    git(repo, "checkout", "--quiet", "--detach")
    pull = commit(repo, {"a.py": b"pull request\n"})
    git(repo, "update-ref", "refs/pull/7/head", pull)
    git(repo, "checkout", "--quiet", "main")
    assert remote.open(repo, "refs/pull/7/head").commit == pull
    with pytest.raises(BadInput, match="is no commit"):
        remote.open(repo, "refs/pull/8/head")


def test_a_url_without_a_repository(tmp_path: Path, remote: AsRemote) -> None:
    with pytest.raises(BadInput, match="not appear to be a git repo"):
        remote.open(tmp_path / "gone")
    git(tmp_path, "init", "--quiet", "--bare", "empty.git")
    with pytest.raises(BadInput, match="no commits"):
        remote.open(tmp_path / "empty.git")


def test_two_processes_share_a_mirror(repo: Path, remote: AsRemote) -> None:
    found: list[str | ConvoyError] = []

    def work() -> None:
        try:
            found.append(remote.open(repo).commit)
        except ConvoyError as error:
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [git(repo, "rev-parse", "HEAD")] * 4


def test_an_unreachable_remote_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        open_source("http://127.0.0.1:1/x.git", "HEAD", tmp_path)


def test_a_command_that_hangs_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "git"
    fake.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {tmp_path}/child\nwait\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Unavailable, match="took over"):
        command.git(None, ["fetch"], deadline=2.0)
    child = int((tmp_path / "child").read_text())
    ends = time.monotonic() + 30.0
    while not _is_dead(child):  # a killed process takes a moment to end
        assert time.monotonic() < ends
        time.sleep(0.01)


def _is_dead(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
