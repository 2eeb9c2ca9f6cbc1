"""A job is refused by field, reason and remedy before anything is submitted; or shown as it will be."""

from pathlib import Path

import pytest

from codeconvoy.orchestrator.submit import preview
from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.topics import MAX_FILE_BYTES
from codeconvoy.workers.git.publish import write_branch
from codeconvoy.workers.git.source import open_source
from codeconvoy.workers.roles.registry import load_roles
from tests.git_repos import commit, git, planned, repository

ROLES = load_roles()
EDITS = "pipeline: {generate: [isort, tidy], review: [], test: []}\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    files = {
        "a.py": b"a = 1\n",
        "pkg/b.py": b"b = 1\n",
        "big.py": b"#" * (MAX_FILE_BYTES + 1),
        "binary.py": b"\x00\x01",
    }
    repo = repository(tmp_path / "repo", files)
    (repo / "link.py").symlink_to("a.py")
    (tmp_path / "empty").mkdir()
    return tmp_path


def write(place: Path, text: str) -> Path:
    path = place / "job.yaml"
    path.write_text(text)
    return path


def test_the_plan_is_files_times_roles_with_what_is_skipped(place: Path) -> None:
    job = write(place, f"repository: repo\ngoal: g\nfiles: ['**/*.py']\n{EDITS}")
    looked = preview(job, ROLES, place / "cache")
    assert looked.files == ("a.py", "pkg/b.py")
    assert {skip.path for skip in looked.skipped} == {"big.py", "binary.py"}
    assert [(task.path, task.role) for task in looked.tasks] == [
        (path, role) for path in looked.files for role in ("isort", "tidy")
    ]
    assert looked.spec.repository == str(place / "repo") and looked.spec.workspace.startswith("repo-head-")


def test_explicit_tasks_and_files_that_are_not_there_yet(place: Path) -> None:
    job = write(
        place,
        "repository: repo\ngoal: g\ntasks:\n- {role: isort, path: a.py}\n- {role: tidy, path: new/c.py}\n"
        + EDITS,
    )
    looked = preview(job, ROLES, place / "cache")
    assert [(task.path, task.role) for task in looked.tasks] == [("a.py", "isort"), ("new/c.py", "tidy")]
    assert looked.absent == ("new/c.py",)


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("repository: nowhere\ngoal: g\nfiles: ['*.py']\n", "repository", "nowhere"),
        ("repository: empty\ngoal: g\nfiles: ['*.py']\n", "repository", "empty"),
        ("repository: repo\nref: v9\ngoal: g\nfiles: ['*.py']\n", "ref", "v9"),
        ("repository: repo\ngoal: g\nfiles: ['*.rs']\n", "files[0]", ""),
        ("repository: repo\ngoal: g\nfiles: ['big.py']\n", "", "big.py"),
        ("repository: repo\ngoal: g\nfiles: ['binary.py']\n", "", "binary.py"),
        ("repository: repo\ngoal: g\ntasks: [{role: isort, path: ../x}]\n", "tasks[0].path", ""),
        (
            "repository: repo\ngoal: g\ntasks: [{role: isort, path: a.py}, {role: tidy, path: big.py}]\n",
            "tasks[1].path",
            "big.py",
        ),
        (
            "repository: repo\ngoal: g\ntasks: [{role: isort, path: a.py, reads: [pkg/b.py, binary.py]}]\n",
            "tasks[0].reads[1]",
            "binary.py",
        ),
        ("repository: repo\ngoal: g\nfiles: ['*.py']\nstrategies: [magic]\n", "strategies[0]", "magic"),
        ("repository: [\n", "job", "YAML"),
    ],
)
def test_what_can_not_be_done_is_refused(place: Path, text: str, field: str, reason: str) -> None:
    if "pipeline" not in text and text.startswith("repository: r"):
        text += EDITS
    with pytest.raises(BadInput) as caught:
        preview(write(place, text), ROLES, place / "cache")
    assert caught.value.field.startswith(field) and reason in str(caught.value)
    assert caught.value.remedy


# The branch ---------------------------------------------------------------------------------------


def branched(place: Path, branch: str) -> Path:
    named = f"branch: {branch}\n" if branch else ""
    return write(place, f"repository: repo\ngoal: g\nfiles: [a.py]\n{named}{EDITS}")


def refusal(place: Path, branch: str) -> BadInput:
    with pytest.raises(BadInput) as caught:
        preview(branched(place, branch), ROLES, place / "cache")
    assert caught.value.field == "branch" and caught.value.remedy
    return caught.value


def publish(place: Path, branch: str, ref: str = "main") -> None:
    """What the git worker does at the end of a job."""
    source = open_source(str(place / "repo"), ref, place / "cache")
    write_branch(source, source.commit, [planned("a.py", b"a = 2\n", "e1")], branch)


def published_refusal(place: Path, branch: str) -> BadInput:
    with pytest.raises(BadInput) as caught:
        publish(place, branch)
    return caught.value


def test_a_branch_that_is_checked_out_is_refused_as_it_would_be_at_the_end(place: Path) -> None:
    git(place / "repo", "worktree", "add", "-q", "-b", "side", str(place / "linked"))
    for branch in ("main", "side"):
        assert str(refusal(place, branch)) == str(published_refusal(place, branch))
    assert "'main' is checked out" in str(refusal(place, "main"))


def test_a_branch_with_commits_of_others_is_refused_as_it_would_be_at_the_end(place: Path) -> None:
    repo = place / "repo"
    git(repo, "checkout", "-q", "-b", "theirs")
    commit(repo, {"a.py": b"theirs\n"})
    git(repo, "checkout", "-q", "main")
    assert str(refusal(place, "theirs")) == str(published_refusal(place, "theirs"))
    assert "'theirs' has commits of others" in str(refusal(place, "theirs"))
    publish(place, "convoy/amended")
    git(repo, "checkout", "-q", "convoy/amended")
    git(repo, "commit", "-q", "--amend", "--no-edit", "--reset-author")
    git(repo, "checkout", "-q", "main")
    assert "has commits of others" in str(refusal(place, "convoy/amended"))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("there", "branch"), [("convoy/5f0c", "convoy"), ("taken", "taken/deep/name"), ("convoy", "")]
)
def test_a_branch_that_git_can_not_hold_beside_another_is_refused(
    place: Path, there: str, branch: str, packed: bool
) -> None:
    git(place / "repo", "branch", there)
    if packed:
        git(place / "repo", "pack-refs", "--all")
    found, late = refusal(place, branch), published_refusal(place, branch or "convoy/5f0c")
    assert f"{branch or 'convoy/…'!r} can't be written: {there!r} is there" in found.reason
    assert "can't be written" in late.reason and late.remedy == found.remedy


def test_a_branch_that_can_take_the_result_is_no_problem(place: Path) -> None:
    repo = place / "repo"
    publish(place, "convoy/5f0c")
    git(repo, "branch", "behind")
    commit(repo, {"a.py": b"more\n"})
    git(repo, "branch", "level")
    for branch in ("", "new", "convoy/new", "convoy/5f0c", "behind", "level"):
        assert preview(branched(place, branch), ROLES, place / "cache").spec.branch == branch


# What is no repository of ours --------------------------------------------------------------------


def test_a_repository_of_sha_256_objects_is_not_supported_and_said_so(place: Path) -> None:
    new = place / "new"
    new.mkdir()
    git(new, "init", "--quiet", "--object-format=sha256")
    (new / "inner").mkdir()
    for where in ("new", "new/inner"):
        with pytest.raises(BadInput, match="SHA-256 objects, which are not supported yet") as caught:
            preview(write(place, f"repository: {where}\ngoal: g\nfiles: ['*']\n{EDITS}"), ROLES, place / "c")
        assert caught.value.field == "repository"


def test_who_names_a_directory_in_a_repository_is_told_its_root(place: Path) -> None:
    job = write(place, f"repository: repo/pkg\ngoal: g\nfiles: ['*']\n{EDITS}")
    with pytest.raises(BadInput, match="is not a git repository") as caught:
        preview(job, ROLES, place / "cache")
    assert caught.value.remedy == f"Name the root of the repository around it ({place / 'repo'})"
