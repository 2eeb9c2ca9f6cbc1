"""A job is refused by field, reason and remedy before anything is submitted; or shown as it will be."""

from pathlib import Path

import pytest

from codeconvoy.orchestrator.submit import preview
from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.topics import MAX_FILE_BYTES
from codeconvoy.workers.roles.registry import load_roles
from tests.git_repos import repository

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
