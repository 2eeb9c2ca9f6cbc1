"""Reads README.md: its examples are ones that codeconvoy takes."""

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from codeconvoy.orchestrator.job_file import check
from codeconvoy.orchestrator.job_yaml import parse
from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.roles.agents import make_agent
from codeconvoy.workers.roles.registry import load_roles
from codeconvoy.workers.roles.role import Role

TEXT = (Path(__file__).parents[2] / "README.md").read_text()
KEYS = {"anthropic": "a", "openai": "o", "gpu": "g"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def roles(tmp_path: Path) -> dict[str, Role]:
    [example] = blocks("toml")
    file = tmp_path / "roles.toml"
    file.write_text(example)
    return dict(load_roles(file))


def test_the_roles_can_run(roles: dict[str, Role]) -> None:
    for name in ("generator", "reviewer", "security", "tester", "merger", "formatter"):
        make_agent(roles[name], KEYS)
    assert [one.provider for one in roles["generator"].next] == ["openai"]


def test_the_jobs_are_taken(roles: dict[str, Role]) -> None:
    jobs = [parse(text.encode()) for text in blocks("yaml")]
    assert len(jobs) == 2
    for job in jobs:
        check(msgspec.structs.replace(job, repository="/tmp"), roles)
    priceless = replace(roles["security"], options={"base_url": "http://gpu.internal:8000/v1", "key": "gpu"})
    with pytest.raises(BadInput, match="security"):
        check(jobs[1], {**roles, "security": priceless})
