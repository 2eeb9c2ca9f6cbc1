"""Runs git, writes temporary repositories: a branch by plumbing, and what it must never touch."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pygit2
import pytest

from codeconvoy.schemas.errors import BadInput, Unavailable
from codeconvoy.workers.git import publish, source
from codeconvoy.workers.git.plan import Commit
from codeconvoy.workers.git.publish import Written, check_branch, write_branch
from codeconvoy.workers.git.source import Remote, Source, open_source
from codeconvoy.workers.git.trailers import MAX_SUBJECT, Trailers, message, newest_events, of_commit, parse
from tests.git_repos import commit, git, planned, repository, tree_of

FILES = {"a.py": b"a\n", "docs/b.py": b"b\n", "docs/deep/c.py": b"c\n"}
BRANCH = "convoy/job"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repository(tmp_path / "repo", FILES)


def write(repo: Path, commits: Sequence[Commit], branch: str = BRANCH, ref: str = "main") -> Written:
    opened = open_source(str(repo), ref, repo.parent / "cache")
    return write_branch(opened, opened.commit, commits, branch)


def contents(repo: Path, ref: str = BRANCH) -> dict[str, bytes]:
    return {path: content for path, (_, content) in tree_of(repo, ref).items()}


def test_a_commit_per_change_with_author_date_and_trailers(repo: Path) -> None:
    written = write(repo, [planned("a.py", b"1\n", "e1"), planned("a.py", b"2\n", "e2", "e0", "e3")])
    assert written == Written(BRANCH, git(repo, "rev-parse", BRANCH), 2)
    assert git(repo, "log", "-1", "--format=%an <%ae> %at %cn", BRANCH) == (
        "generator <generator@codeconvoy.invalid> 1600000000 codeconvoy"
    )
    body = git(repo, "log", "-1", "--format=%B", BRANCH)
    shown = subprocess.run(
        ["git", "interpret-trailers", "--parse"], input=body.encode(), capture_output=True, check=True
    ).stdout.decode()
    assert shown.splitlines() == [
        "Convoy-Event: e2",
        "Convoy-Joins: e0",
        "Convoy-Joins: e3",
        "Convoy-Task: t",
        "Convoy-Agent: a",
        "Convoy-Job: j",
    ]
    assert git(repo, "rev-list", "--count", f"main..{BRANCH}") == "2"
    assert contents(repo) == {**FILES, "a.py": b"2\n"}
    git(repo, "fsck", "--strict")


def test_odd_bytes_and_modes_survive(repo: Path) -> None:
    odd = {
        "crlf": b"a\r\nb\r\n",
        "bom": b"\xef\xbb\xbfa\n",
        "latin": b"\xe9\xff\n",
        "empty": b"",
        "no-end": b"a",
        "new/nested/très/x": b"x",
    }
    git(repo, "config", "core.autocrlf", "true")
    (repo / ".git" / "info" / "attributes").write_text("* text eol=lf\n")
    commits = [planned(path, content, path) for path, content in odd.items()]
    write(
        repo,
        [
            *commits,
            planned("run.sh", b"#!\n", "run", executable=True),
            planned("a.py", b"a\n", "x", executable=True),
        ],
    )
    assert contents(repo) == {**FILES, **odd, "run.sh": b"#!\n"}
    modes = {path: mode for path, (mode, _) in tree_of(repo, BRANCH).items()}
    assert {path for path, mode in modes.items() if mode == "100755"} == {"run.sh", "a.py"}
    git(repo, "fsck", "--strict")


def test_a_linked_work_tree_is_written_to(repo: Path, tmp_path: Path) -> None:
    git(repo, "worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    write(tmp_path / "linked", [planned("a.py", b"1\n", "e1")])
    assert contents(repo) == {**FILES, "a.py": b"1\n"}


def test_names_that_are_no_text_stay(repo: Path) -> None:
    """Beside what is written, in a directory that is rebuilt."""
    (repo / "docs" / "odd").write_bytes(b"o\n")
    os.rename(bytes(repo / "docs" / "odd"), bytes(repo / "docs") + b'/\xff\n"')
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "odd")
    write(repo, [planned("docs/b.py", None, "e1"), planned('docs/"q\\".py', b"q\n", "e2")])
    names = git(repo, "ls-tree", "-r", "--name-only", BRANCH)
    assert "\\377\\n" in names and "docs/b.py" not in names and '"docs/\\"q\\\\\\".py"' in names


def test_hundreds_of_commits_are_one_pack(repo: Path) -> None:
    commits = [planned("a.py", b"%d\n" % number, f"e{number}") for number in range(300)]
    assert write(repo, commits).count == 300
    assert git(repo, "rev-list", "--count", f"main..{BRANCH}") == "300"
    assert len(list((repo / ".git" / "objects" / "pack").glob("*.pack"))) == 1
    git(repo, "fsck", "--strict")


def test_a_repository_that_can_t_be_written_is_unavailable(repo: Path) -> None:
    objects = repo / ".git" / "objects"
    opened = open_source(str(repo), "main", repo.parent / "cache")
    shutil.move(objects, repo / ".git" / "elsewhere")
    objects.write_text("in the way")
    with pytest.raises(Unavailable, match="can't be written"):
        write_branch(opened, opened.commit, [planned("new/x.py", b"1\n", "e1")], BRANCH)


def test_a_directory_goes_with_its_last_file(repo: Path) -> None:
    write(repo, [planned("docs/deep/c.py", None, "1"), planned("docs/b.py", None, "2")])
    assert contents(repo) == {"a.py": b"a\n"}
    assert git(repo, "ls-tree", "--name-only", BRANCH) == "a.py"


def test_deleting_everything_leaves_the_empty_tree(repo: Path) -> None:
    write(repo, [planned(path, None, path) for path in FILES])
    assert contents(repo) == {}


@pytest.mark.parametrize("turned", [False, True])
def test_a_file_becomes_a_directory_and_back_in_any_order(repo: Path, turned: bool) -> None:
    commits = [planned("a.py", None, "1"), planned("a.py/x", b"x", "2")]
    write(repo, commits[::-1] if turned else commits)
    assert contents(repo) == {"a.py/x": b"x", "docs/b.py": b"b\n", "docs/deep/c.py": b"c\n"}
    back = [planned("docs/b.py", None, "3"), planned("docs/deep/c.py", None, "4"), planned("docs", b"d", "5")]
    write(repo, back[::-1] if turned else back, branch="back")
    assert contents(repo, "back") == {"a.py": b"a\n", "docs": b"d"}
    git(repo, "fsck", "--strict")


@pytest.mark.parametrize(
    "commits",
    [
        [planned("a.py/x", b"x", "1")],
        [planned("docs", b"x", "1")],
        [planned("docs", b"x", "1"), planned("docs/b.py", None, "2")],
        [planned("n", b"x", "1"), planned("n/m", b"x", "2")],
        [planned("n/m", b"x", "1"), planned("n", b"x", "2")],
    ],
)
def test_a_file_that_would_be_lost_is_refused(repo: Path, commits: list[Commit]) -> None:
    with pytest.raises(BadInput, match="both a file and a directory"):
        write(repo, commits)
    assert BRANCH not in git(repo, "branch", "--list", "--all")


def test_publishing_twice_is_publishing_once(repo: Path) -> None:
    commits = [planned("a.py", b"1\n", "e1"), planned("new", b"2\n", "e2")]
    first = write(repo, commits)
    assert write(repo, commits) == first
    # Another clone comes to the same ids.
    git(repo, "clone", "--quiet", ".", str(repo.parent / "clone"))
    assert write(repo.parent / "clone", commits, ref="origin/main") == first


def test_an_earlier_publication_of_the_same_edits_is_replaced(repo: Path) -> None:
    write(repo, [planned("a.py", b"1\n", "e1"), planned("new", b"2\n", "e2", "e3")])
    later = write(
        repo,
        [planned("a.py", b"1\n", "e1"), planned("b", b"0\n", "e4"), planned("new", b"3\n", "e5", "e2", "e3")],
    )
    assert git(repo, "rev-parse", BRANCH) == later.commit


def test_a_branch_that_would_lose_edits_stays(repo: Path) -> None:
    first = write(repo, [planned("a.py", b"1\n", "e1"), planned("new", b"2\n", "e2", "e3")])
    with pytest.raises(BadInput, match="commits of others"):
        write(repo, [planned("a.py", b"1\n", "e1"), planned("b", b"0\n", "e4"), planned("new", b"2\n", "e2")])
    assert git(repo, "rev-parse", BRANCH) == first.commit


@pytest.mark.parametrize("amend", [False, True])
def test_a_branch_with_a_commit_of_a_person_stays(repo: Path, amend: bool) -> None:
    commits = [planned("a.py", b"1\n", "e1")]
    write(repo, commits)
    git(repo, "checkout", "--quiet", BRANCH)
    if amend:
        (repo / "a.py").write_bytes(b"mine\n")
        git(repo, "commit", "--quiet", "--amend", "--all", "--no-edit")
    else:
        commit(repo, {"a.py": b"mine\n"})
    theirs = git(repo, "rev-parse", "HEAD")
    git(repo, "checkout", "--quiet", "main")
    with pytest.raises(BadInput, match="commits of others"):
        write(repo, commits)
    assert git(repo, "rev-parse", BRANCH) == theirs


def test_a_branch_that_the_result_builds_on_moves_forward(repo: Path) -> None:
    git(repo, "branch", "result")
    write(repo, [planned("a.py", b"1\n", "e1")], branch="result")
    assert contents(repo, "result")["a.py"] == b"1\n"


def test_a_checked_out_branch_is_never_moved(repo: Path) -> None:
    head = git(repo, "rev-parse", "HEAD")
    git(repo, "worktree", "add", "--quiet", "-b", "linked", str(repo.parent / "linked"))
    for branch in ("main", "linked"):
        with pytest.raises(BadInput, match="checked out"):
            write(repo, [planned("a.py", b"1\n", "e1")], branch=branch)
        assert git(repo, "rev-parse", branch) == head
    git(repo, "checkout", "--quiet", "--orphan", "unborn")
    with pytest.raises(BadInput, match="checked out"):
        write(repo, [planned("a.py", b"1\n", "e1")], branch="unborn", ref="main")


def test_a_branch_that_moves_meanwhile_is_not_moved(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(repo, [planned("a.py", b"1\n", "e1")])

    def somebody_moves_it(*_: object) -> None:
        git(repo, "update-ref", f"refs/heads/{BRANCH}", "main")

    monkeypatch.setattr(publish, "check_movable", somebody_moves_it)
    with pytest.raises(BadInput, match="can't be written"):
        write(repo, [planned("a.py", b"2\n", "e1")])
    assert git(repo, "rev-parse", BRANCH) == git(repo, "rev-parse", "main")


def test_a_branch_below_another_branch_is_refused(repo: Path) -> None:
    git(repo, "branch", "convoy")
    with pytest.raises(BadInput, match="can't be written"):
        write(repo, [planned("a.py", b"1\n", "e1")])


@pytest.mark.parametrize(
    "name", ["", "-x", "a..b", "a b", "a~1", "HEAD", "a.lock", "/a", "a/", "a@{b", "x" * 300]
)
def test_what_is_no_branch_name(name: str) -> None:
    with pytest.raises(BadInput):
        check_branch(name)


def plant(repo: Path, proof: Path) -> None:
    """Everything of a repository that git would run, each leaving a proof that it was."""
    hooks = repo / ".git" / "hooks" if (repo / ".git").exists() else repo / "hooks"
    hooks.mkdir(exist_ok=True)
    script = f"#!/bin/sh\necho $0 >> {proof}\n"
    for name in (
        *("pre-commit", "commit-msg", "post-commit", "post-checkout", "reference-transaction", "update"),
        *(
            "pre-receive",
            "post-receive",
            "post-update",
            "pre-push",
            "fsmonitor-watchman",
            "post-index-change",
        ),
    ):
        (hooks / name).write_text(script)
        (hooks / name).chmod(0o755)
    git(repo, "config", "core.fsmonitor", str(hooks / "fsmonitor-watchman"))
    git(repo, "config", "core.sshCommand", str(hooks / "update"))
    git(repo, "config", "filter.bad.clean", str(hooks / "update"))
    git(repo, "config", "filter.bad.smudge", str(hooks / "update"))
    git(repo, "config", "uploadpack.packObjectsHook", str(hooks / "update"))
    (hooks.parent / "info").mkdir(exist_ok=True)
    (hooks.parent / "info" / "attributes").write_text("* filter=bad\n")


@pytest.mark.parametrize("url", [False, True])
def test_nothing_of_the_target_is_executed(repo: Path, tmp_path: Path, url: bool) -> None:
    proof = tmp_path / "proof"
    before = git(repo, "status", "--porcelain")
    plant(repo, proof)
    place = f"file://{repo}" if url else str(repo)
    opened = open_source(place, "main", tmp_path / "cache")
    write_branch(opened, opened.commit, [planned("a.py", b"1\n", "e1")], BRANCH)
    assert not proof.exists()
    assert contents(repo)["a.py"] == b"1\n"
    assert before == ""
    assert (repo / "a.py").read_bytes() == b"a\n"
    # The trap works: an ordinary git command falls into it.
    git(repo, "branch", "trap")
    assert proof.exists()


@pytest.fixture
def remote(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bare repository that is reached as a URL would be."""
    git(repo, "clone", "--quiet", "--bare", ".", str(tmp_path / "remote.git"))
    monkeypatch.setattr(source, "locate", lambda repository: Remote(repository))
    return tmp_path / "remote.git"


def from_url(remote: Path) -> Source:
    return open_source(f"file://{remote}", "main", remote.parent / "cache")


def test_a_url_is_pushed_to(remote: Path) -> None:
    opened = from_url(remote)
    commits = [planned("a.py", b"1\n", "e1")]
    written = write_branch(opened, opened.commit, commits, BRANCH)
    assert git(remote, "rev-parse", BRANCH) == written.commit
    assert contents(remote)["a.py"] == b"1\n"
    assert write_branch(from_url(remote), opened.commit, commits, BRANCH) == written
    more = write_branch(opened, opened.commit, [*commits, planned("z", b"z", "e2")], BRANCH)
    assert git(remote, "rev-parse", BRANCH) == more.commit
    replaced = write_branch(
        opened, opened.commit, [planned("a.py", b"2\n", "e3", "e1"), planned("z", b"z", "e2")], BRANCH
    )
    assert git(remote, "rev-parse", BRANCH) == replaced.commit


def test_a_url_s_branch_of_somebody_else_stays(remote: Path, repo: Path) -> None:
    opened = from_url(remote)
    theirs = commit(repo, {"a.py": b"mine\n"})
    git(repo, "push", "--quiet", str(remote), f"HEAD:refs/heads/{BRANCH}")
    with pytest.raises(BadInput, match="commits of others"):
        write_branch(opened, opened.commit, [planned("a.py", b"1\n", "e1")], BRANCH)
    assert git(remote, "rev-parse", BRANCH) == theirs


def test_a_url_s_branch_that_appears_meanwhile_stays(
    remote: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = from_url(remote)
    refs = source.remote_refs_of(f"file://{remote}")
    theirs = commit(repo, {"a.py": b"mine\n"})
    git(repo, "push", "--quiet", str(remote), f"HEAD:refs/heads/{BRANCH}")
    monkeypatch.setattr(publish, "remote_refs_of", lambda url: refs)
    with pytest.raises(BadInput, match="refuses"):
        write_branch(opened, opened.commit, [planned("a.py", b"1\n", "e1")], BRANCH)
    assert git(remote, "rev-parse", BRANCH) == theirs


def test_a_remote_that_refuses_is_said(remote: Path) -> None:
    opened = from_url(remote)
    (remote / "hooks").mkdir(exist_ok=True)
    (remote / "hooks" / "pre-receive").write_text("#!/bin/sh\necho not today; exit 1\n")
    (remote / "hooks" / "pre-receive").chmod(0o755)
    with pytest.raises((BadInput, Unavailable), match="pre-receive hook declined"):
        write_branch(opened, opened.commit, [planned("a.py", b"1\n", "e1")], BRANCH)


def test_trailers_come_back_from_a_message() -> None:
    trailers = Trailers("e", ("j1", "j2"), "t", "generator 1\nConvoy-Event: forged", "job", ("p1", "p2"))
    text = message("generator: several\n\nlines " + "x" * 300, trailers)
    found = parse(text)
    assert found is not None
    assert found.event == "e"
    assert found.joins == ("j1", "j2")
    assert found.parents == ("p1", "p2")
    assert found.edits == {"e", "j1", "j2"}
    assert len(text.splitlines()[0]) == MAX_SUBJECT


@pytest.mark.parametrize(
    "text",
    [
        "",
        "subject",
        "s\n\nConvoy-Event: ",
        "s\n\nConvoy-Event: a\n\nmore",
        "s\n\nConvoy-Event: a\nConvoy-Event: b",
    ],
)
def test_a_message_of_a_person_has_no_trailers(text: str) -> None:
    assert parse(text) is None


def test_a_squash_of_several_commits_names_no_single_event() -> None:
    one = message("s", Trailers("a"))
    assert parse(f"all of it\n\n{one}\n{message('s', Trailers('b'))}") is None


def test_the_newest_event_of_a_path_is_found_behind_a_person_s_merge(repo: Path) -> None:
    write(
        repo, [planned("a.py", b"1\n", "e1"), planned("a.py", b"2\n", "e2"), planned("docs/b.py", None, "e3")]
    )
    commit(repo, {"a.py": b"mine\n"})
    git(repo, "merge", "--quiet", "-X", "ours", "--no-edit", BRANCH)
    tip = commit(repo, {"a.py": b"after\n"})
    found = newest_events(pygit2.Repository(str(repo)), tip, ["a.py", "docs/b.py", "docs/deep/c.py"])
    assert found == {"a.py": "e2", "docs/b.py": "e3"}


def test_hostile_names_do_not_break_a_commit(repo: Path) -> None:
    hostile = Commit("a.py", b"1", False, "a\nb", "<evil>\n", -5, Trailers("e1", agent="x\n\ny"))
    write(repo, [hostile])
    tip = pygit2.Repository(str(repo)).revparse_single(BRANCH).peel(pygit2.Commit)
    found = of_commit(tip)
    assert found is not None
    assert (found.event, found.agent) == ("e1", "x y")
    git(repo, "fsck", "--strict")
