"""Reads pyproject.toml and the lock files: what is declared is what is there, and what is installed."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
TOP = ("schemas", "workers", "orchestrator")
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+) \\$", re.M)


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(name: str) -> dict[str, str]:
    return {
        canonicalize_name(found): version for found, version in _PINNED.findall((ROOT / name).read_text())
    }


def test_every_subpackage_is_listed() -> None:
    folders = {path.parent.relative_to(ROOT) for top in TOP for path in (ROOT / top).rglob("__init__.py")}
    names = {f"codeconvoy.{'.'.join(folder.parts)}" for folder in folders}
    assert set(project()["tool"]["setuptools"]["packages"]) == names


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_file_holds_every_dependency_with_hashes_and_no_place(name: str) -> None:
    text = (ROOT / name).read_text()
    pinned, about = pins(name), project()["project"]
    wanted = [*about["dependencies"], *about["optional-dependencies"]["embedded"], "setuptools>=77"]
    if "dev" in name:
        wanted += project()["dependency-groups"]["dev"]
    for requirement in map(Requirement, wanted):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}"
    assert len(re.findall(r"^\S.*==", text, re.M)) == len(pinned)
    for block in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        assert "--hash=sha256:" in block
    assert not re.search(r"https?://|--index|--find-links=|--trusted|/home/|/root/|/tmp/|file://", text)


def test_both_lock_files_agree() -> None:
    runtime, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    assert runtime.items() <= dev.items()


def test_the_licence_is_the_whole_one() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License\n" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_the_version_is_in_the_changelog() -> None:
    assert f"## [{project()['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text()
