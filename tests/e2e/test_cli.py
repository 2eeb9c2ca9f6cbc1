"""The main job on a small repository, and every command that looks at it or acts on it, as a user would."""

import ast
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codeconvoy.schemas.events import Strategy
from tests.e2e.conftest import EDITORS
from tests.fleets import Done, Fleet, until
from tests.git_repos import commit, git, repository, tree_of

ACCOUNTS = '''"""Accounts."""
import sys
import os
from typing import List, Optional


class Account(object):
    """Money of somebody."""

    def __init__(self, owner):
        super(Account, self).__init__()
        self.owner = owner
        self.entries = []

    def is_empty(self):
        return 0 == len(self.entries)

    def names(self) -> List[str]:
        if not "x" in self.owner:
            if self.entries:
                return list(set([str(entry) for entry in self.entries]))
        return [u"nobody"]
'''
REPORTS = '''"""Reports."""
import json
import collections, os


def report(rows, title = None):
    text = "%s: %s" % (title, len(rows))
    if title == None: return text
    try:
        os.remove(text)
    except OSError:
        pass
    return json.dumps({"text": text})
'''
FILES = {
    "bank/accounts.py": ACCOUNTS,
    "bank/reports.py": REPORTS,
    "bank/__init__.py": "",
    "README.md": "# Bank\n",
}
WORKSPACE = "bank"
TRAILERS = ("Convoy-Event", "Convoy-Task", "Convoy-Agent", "Convoy-Job")


@dataclass(frozen=True)
class MainJob:
    """The job that all tests look at."""

    repo: Path
    job: Mapping[str, Any]

    @property
    def branch(self) -> str:
        return str(self.job["branch"])


def spec(repo: Path, **changed: object) -> dict[str, object]:
    return {
        "repository": str(repo),
        "workspace": WORKSPACE,
        "goal": "modernise the bank",
        "files": ["bank/**/*.py"],
        "together": True,
        "pipeline": {"generate": list(EDITORS), "review": ["lint-reviewer"], "test": ["api-tester"]},
        **changed,
    }


@pytest.fixture(scope="module")
def main(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> MainJob:
    """Submitted, watched to its end, while the projection is rebuilt beneath it."""
    repo = tmp_path_factory.mktemp("bank") / "repo"
    repository(repo, {path: content.encode() for path, content in FILES.items()})
    running = fleet.begin("run", fleet.job_file(spec(repo)), "-o", "json")
    rebuilt = fleet.convoy("rebuild", "-o", "json").good().json()
    assert rebuilt["equal"] is True, rebuilt
    return MainJob(repo, fleet.end(running).good().json())


def test_the_branch_is_good_commit_by_commit(fleet: Fleet, main: MainJob) -> None:
    repo, job = main.repo, main.job
    assert job["status"] == "succeeded", job
    assert job["tally"]["forks"] >= 3
    assert job["tally"]["tests_written"] >= 1
    base, hashes = git(repo, "rev-parse", "main"), git(repo, "rev-list", "--reverse", f"main..{main.branch}")
    assert base == job["base_commit"]
    assert len(hashes.split()) == job["commits"] > 3
    parent = base
    for commit_id in hashes.split():
        assert git(repo, "rev-list", "--parents", "-1", commit_id).split() == [commit_id, parent]
        parent = commit_id
        message = git(repo, "log", "-1", "--format=%(trailers:only,unfold)", commit_id)
        keys = {line.partition(":")[0] for line in message.splitlines()}
        assert keys >= set(TRAILERS), message
        assert f"Convoy-Job: {job['job_id']}" in message
        changed = git(repo, "diff-tree", "-r", "--name-only", "--no-commit-id", commit_id).split()
        assert len(changed) == 1
        for path, (_, content) in tree_of(repo, commit_id).items():
            if path.endswith(".py"):
                ast.parse(content)
    after = tree_of(repo, main.branch)["bank/accounts.py"][1].decode()
    # What each of the five came for is in what they made together.
    for gone in ("(object)", "import sys", "super(Account", 'not "x" in', "0 == len"):
        assert gone not in after, after
    assert git(repo, "status", "--porcelain") == ""
    assert git(repo, "symbolic-ref", "HEAD") == "refs/heads/main"


def test_what_is_shown_of_a_file(fleet: Fleet, main: MainJob) -> None:
    path, here = "bank/accounts.py", ("-w", WORKSPACE)
    content = tree_of(main.repo, main.branch)[path][1].decode()
    line = content.splitlines().index("class Account:") + 1
    where = ("--branch", main.branch, "--repository", str(main.repo))
    raw, state, log, drawn, why, told = (
        done.good()
        for done in fleet.together(
            ("state", path, *here, "--raw"),
            ("state", path, *here, "-o", "json"),
            ("log", path, *here, "-o", "json"),
            ("log", path, *here),
            ("why", f"{path}:{line}", *here, *where, "-o", "json"),
            ("why", f"{path}:{line}", *here),
        )
    )
    assert raw.out == state.json()["content"] == content
    moments = log.json()
    assert moments[0]["event_type"] == "FILE_IMPORTED"
    assert {m["role"] for m in moments if m["event_type"] == "CODE_MODIFIED"} <= set(EDITORS)
    assert [m["event_id"] for m in moments if m["visible"]] == [state.json()["visible"]]
    assert all(m["event_id"][:8] in drawn.out for m in moments)
    assert "pyupgrade" in why.out and "pyupgrade" in told.out
    assert main.job["job_id"] in why.out
    old, by_offset, beyond, nowhere = fleet.together(
        ("state", path, *here, "--raw", "--at", moments[0]["event_id"]),
        ("state", path, *here, "--raw", "--at", str(moments[0]["offset"])),
        ("state", path, *here, "--raw", "--at", "999999"),
        ("state", "bank/nothing.py", *here),
    )
    assert old.good().out == by_offset.good().out == ACCOUNTS
    assert (nowhere.status, nowhere.err.count("\n")) == (2, 2)
    assert (beyond.status, beyond.out) == (2, "")
    last = re.search(r"the last one of the file's partition is (\d+)", beyond.err)
    assert last is not None and int(last[1]) >= moments[-1]["offset"], beyond
    assert fleet.convoy("state", path, *here, "--raw", "--at", last[1]).good().out == content


def test_what_is_shown_of_the_fleet(fleet: Fleet, main: MainJob) -> None:
    jobs, audit, one, doctor, roles = fleet.together(
        ("jobs", "-o", "json"),
        ("audit", "-o", "json"),
        ("audit", main.job["job_id"][:8], "-o", "json"),
        ("doctor", "-o", "json"),
        ("roles", "-o", "json"),
    )
    listed = {job["job_id"]: job for job in jobs.good().json()}
    assert listed[main.job["job_id"]]["status"] == "succeeded"
    for report in (audit.good().json(), one.good().json()):
        assert report["clean"] is True, report
        assert report["counts"]["commits"] >= main.job["commits"]
    assert {finding["grade"] for finding in doctor.good().json()} <= {"good", "note"}
    runnable = {role["name"] for role in roles.good().json() if role["can_run"]}
    assert runnable >= {*EDITORS, "lint-reviewer", "api-tester"}
    assert "generator" not in runnable


def test_a_second_job_merges_what_the_user_committed_meanwhile(fleet: Fleet, main: MainJob) -> None:
    repo, path = main.repo, "bank/accounts.py"
    by_hand = "        self.entries = []\n\n    def by_hand(self):\n        return 'mine'\n"
    mine = ACCOUNTS.replace("        self.entries = []\n", by_hand)
    new = b"import sys\nimport os\n\nprint(os, sys)\n"
    head = commit(repo, {path: mine.encode(), "bank/new.py": new}, "mine")
    job = fleet.run_job(spec(repo, pipeline={"generate": ["isort"], "review": ["lint-reviewer"], "test": []}))
    assert job["status"] == "succeeded", job
    assert job["base_commit"] == head
    tree = {path: content.decode() for path, (_, content) in tree_of(repo, job["branch"]).items()}
    assert by_hand in tree[path]
    assert "class Account:" in tree[path], "the first job's edits are still there"
    assert tree["bank/new.py"].startswith("import os\nimport sys\n")
    assert tree_of(repo, "main")[path][1].decode() == mine
    report = fleet.audit()
    assert report.clean, report.findings.kept


def test_a_dry_run_submits_nothing(fleet: Fleet, main: MainJob) -> None:
    before = len(fleet.convoy("jobs", "-o", "json").json())
    shown = fleet.convoy("submit", fleet.job_file(spec(main.repo)), "--dry-run", "-o", "json").good().json()
    planned = {(task["path"], task["role"]) for task in shown["tasks"]}
    assert planned >= {("bank/reports.py", role) for role in EDITORS}
    assert shown["commit"] == git(main.repo, "rev-parse", "HEAD")
    assert len(fleet.convoy("jobs", "-o", "json").json()) == before


def test_a_job_that_is_cancelled_ends_at_once(fleet: Fleet, main: MainJob) -> None:
    idle = spec(main.repo, pipeline={"generate": ["comprehensions"], "review": [], "test": []})
    job_id = fleet.submit({**idle, "workspace": "idle"})
    fleet.wait_job(job_id, lambda job: job.imported is not None, "it waits for a role that nobody works as")
    fleet.convoy("cancel", job_id[:8], "--reason", "wrong branch").good()
    ended = fleet.ended(job_id)
    assert (str(ended.status), "wrong branch" in ended.reason) == ("cancelled", True)
    watched = fleet.convoy("watch", job_id)
    assert (watched.status, "cancelled" in watched.out) == (1, True)


def test_who_interrupts_a_run_is_told_that_the_job_goes_on(fleet: Fleet, main: MainJob) -> None:
    idle = spec(main.repo, pipeline={"generate": ["comprehensions"], "review": [], "test": []})
    running = fleet.begin("run", fleet.job_file({**idle, "workspace": "interrupted"}, "interrupted.yaml"))
    assert running.stderr is not None
    job_id = running.stderr.readline().decode().removeprefix("Job ").partition(":")[0]
    fleet.wait_job(job_id, lambda job: job.imported is not None, "it waits for a role that nobody works as")
    running.send_signal(signal.SIGINT)
    done = fleet.end(running)
    assert done.status == 130, done
    assert f"Job {job_id} goes on" in done.err, done
    assert f"convoy watch {job_id}" in done.err and f"convoy cancel {job_id}" in done.err
    assert not fleet.wait_job(job_id, lambda job: True, "it is there").ended
    fleet.convoy("cancel", job_id).good()


def test_a_conflict_waits_for_a_person_who_settles_it(fleet: Fleet, tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo", {"a.py": ACCOUNTS.encode()})
    here = ("-w", "by-hand")
    job_id = fleet.submit(
        spec(
            repo,
            workspace="by-hand",
            files=["a.py"],
            strategies=["human"],
            pipeline={"generate": ["isort", "unused-imports"], "review": [], "test": []},
        )
    )

    def waiting() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = fleet.convoy("conflicts", "list", "-o", "json").good().json()
        return [each for each in found if each["workspace"] == "by-hand"]

    def claimed() -> bool:
        open_ones = fleet.ask(lambda connected: connected.projection().conflicts())
        return any(each.workspace == "by-hand" and each.claim is not None for each in open_ones)

    until(claimed, "the conflict is there")
    [conflict] = waiting()
    assert (conflict["path"], conflict["strategy"]) == ("a.py", "human")
    shown = fleet.convoy("conflicts", "show", "a.py", *here, "-o", "json").good().json()
    assert {side["role"] for side in shown["sides"]} == {"isort", "unused-imports"}
    assert shown["overlaps"]
    answer = tmp_path / "answer.py"
    answer.write_text("def broken(:\n")
    refused = fleet.convoy("conflicts", "resolve", "a.py", *here, "--file", str(answer))
    assert (refused.status, "does not parse" in refused.err) == (2, True), refused
    answer.write_text('"""Accounts, by hand."""\n')
    fleet.convoy("conflicts", "resolve", "a.py", *here, "--file", str(answer)).good()
    ended = fleet.ended(job_id)
    assert str(ended.status) == "succeeded", ended.reason
    assert ended.tally.resolved == {Strategy.HUMAN: 1}
    assert tree_of(repo, f"convoy/{job_id}")["a.py"][1] == answer.read_bytes()
    assert waiting() == []
    report = fleet.audit()
    assert report.clean, report.findings.kept


def test_merge_stands_alone(fleet: Fleet, tmp_path: Path) -> None:
    contents = {"base": ACCOUNTS, "ours": ACCOUNTS + "x = 1\n", "theirs": ACCOUNTS.replace("(object)", "")}
    clash = ACCOUNTS + "x = 2\n"
    for name, content in {**contents, "clash": clash}.items():
        (tmp_path / name).write_text(content)

    def merge(theirs: str) -> Done:
        names = [str(tmp_path / name) for name in ("base", "ours", theirs)]
        nowhere = {"CONVOY_KAFKA": "127.0.0.1:1", "CONVOY_REDIS": "redis://127.0.0.1:1/0"}
        return fleet.convoy("merge", *names, "--path", "a.py", **nowhere)

    assert merge("theirs").good().out == contents["ours"].replace("(object)", "")
    conflict = merge("clash")
    assert (conflict.status, conflict.out.count("<<<<<<<")) == (1, 1)


def test_a_forgotten_workspace_is_gone_until_its_log_is_read_again(
    main: MainJob, fleet: Fleet, tmp_path: Path
) -> None:
    """`main` is another workspace on the same topics: they can't be erased for the sake of one."""
    repo = repository(tmp_path / "repo", {"a.py": ACCOUNTS.encode()})
    one = {"generate": ["isort"], "review": [], "test": []}
    job = fleet.run_job(spec(repo, workspace="secret", files=["a.py"], pipeline=one))
    assert job["status"] == "succeeded", job
    asked = fleet.convoy("forget", "secret")
    assert asked.status == 1, "it asks first, and nobody answers"
    fleet.convoy("forget", "secret", "--yes").good()
    gone, jobs = fleet.together(("state", "a.py", "-w", "secret"), ("jobs", "-o", "json"))
    assert gone.status == 2
    assert job["job_id"] not in {each["job_id"] for each in jobs.good().json()}
    refused = fleet.convoy("forget", "secret", "--topics", "--yes")
    assert (refused.status, "other workspaces" in refused.err) == (2, True)
    rebuilt = fleet.convoy("rebuild", "-o", "json")
    assert (rebuilt.status, rebuilt.json()["equal"]) == (1, False)
    assert fleet.convoy("state", "a.py", "-w", "secret", "--raw").good().out.startswith('"""Accounts."""')
    report = fleet.audit()
    assert report.clean, report.findings.kept


def test_the_repository_is_sound(main: MainJob, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--branch", main.branch, str(main.repo), "clone")
    assert git(tmp_path / "clone", "fsck", "--strict", "--no-dangling") == ""
