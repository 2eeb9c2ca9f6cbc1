"""The demo's material: only what was pinned, nothing outside its directory, a job that is one."""

import zipfile
from hashlib import sha256
from pathlib import Path

import pygit2
import pytest

from codeconvoy.orchestrator.demo import HERE
from codeconvoy.orchestrator.demo_repository import download, make_repository, uncompilable
from codeconvoy.orchestrator.job_file import check, load
from codeconvoy.schemas.errors import BadInput, Unavailable
from codeconvoy.workers.roles.registry import load_roles
from codeconvoy.workers.roles.role import RoleKind


def wheel(tmp_path: Path, members: dict[str, str]) -> Path:
    path = tmp_path / "some-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def pin(tmp_path: Path, *digests: str) -> Path:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("some==1 " + " ".join(f"--hash=sha256:{digest}" for digest in digests))
    return requirements


def test_a_wheel_becomes_a_repository_with_the_same_commit_everywhere(tmp_path: Path) -> None:
    made = wheel(tmp_path, {"pkg/a.py": "a = 1\n", "pkg/b/c.txt": "c\n"})
    commits = {make_repository(made, tmp_path / name) for name in ("one", "two", "one")}
    assert len(commits) == 1
    repo = pygit2.Repository(str(tmp_path / "one"))
    assert repo.head.shorthand == "main" and not repo.status()
    assert (tmp_path / "one/pkg/b/c.txt").read_text() == "c\n"


@pytest.mark.parametrize("name", ["../out.py", "/out.py", "pkg/../../out.py", ".git/hooks/post-commit"])
def test_a_member_that_leaves_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput):
        make_repository(wheel(tmp_path, {name: "x"}), tmp_path / "deep" / "repo")
    assert not list(tmp_path.rglob("out.py")) and not list(tmp_path.rglob("post-commit"))


def test_a_wheel_with_too_many_members_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="over"):
        make_repository(wheel(tmp_path, {f"{number}.py": "" for number in range(2_001)}), tmp_path / "repo")


def test_files_that_do_not_compile_are_named(tmp_path: Path) -> None:
    made = wheel(tmp_path, {"good.py": "a = 1\n", "pkg/bad.py": "a =\n", "pkg/text.txt": "a =\n"})
    commit = make_repository(made, tmp_path / "repo")
    assert [line.partition(":")[0] for line in uncompilable(tmp_path / "repo", commit)] == ["pkg/bad.py"]


def test_a_wheel_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    made = wheel(tmp_path, {"a.py": ""})
    assert download(pin(tmp_path, sha256(made.read_bytes()).hexdigest()), tmp_path) == made


def test_a_wheel_with_another_hash_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path, {"a.py": ""})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Unavailable, match="package index"):
        download(pin(tmp_path, "0" * 64), tmp_path)


def test_one_hash_is_pinned(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="pins 2 hashes"):
        download(pin(tmp_path, "0" * 64, "1" * 64), tmp_path)


def test_the_job_can_be_done_by_roles_that_ship() -> None:
    roles = load_roles()
    spec = load(HERE / "job.yaml")
    check(spec, roles)
    editors = spec.pipeline.generate
    assert len(editors) >= 5 and spec.together
    rules = {roles[name].options["rules"] for name in editors}
    assert len(rules) == len(editors)
    assert {roles[name].provider for name in (*editors, *spec.pipeline.review, *spec.pipeline.test)} == {
        "codemod"
    }
    assert {roles[name].kind for name in editors} == {RoleKind.EDIT}
