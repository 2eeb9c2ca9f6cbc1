"""Runs the command line: every error that is expected is a message and an exit code, never a traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup

from codeconvoy.orchestrator.cli import GROUPS, make_app, report, report_bug
from codeconvoy.orchestrator.processes import free_ports
from codeconvoy.schemas.errors import AgentError, BadInput, ConvoyError, TooLarge, Unavailable
from tests.git_repos import repository
from tests.models_endpoint import KEY, endpoint

JOB = """
repository: repo
goal: modernise
files: ["*.py"]
pipeline: {generate: [pyupgrade, isort], review: [lint-reviewer], test: []}
"""


def convoy(directory: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `convoy` there, with no settings but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONVOY_")}
    return subprocess.run(
        [sys.executable, "-m", "codeconvoy.orchestrator.cli", *arguments],
        cwd=directory,
        env={**kept, "NO_COLOR": "1", "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def job(tmp_path: Path) -> Path:
    repository(tmp_path / "repo", {"a.py": b"x = 1\n", "b.py": b"y = 2\n", "c.txt": b"no\n"})
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (
            BadInput("files", "no match", "Use another glob"),
            2,
            ["Error: files: no match", "Remedy: Use another glob"],
        ),
        (Unavailable("Kafka", "away", "Start it"), 3, ["Error: Kafka: away", "Remedy: Start it"]),
        (TooLarge("2 MB"), 1, ["Error: 2 MB"]),
        (AgentError("a\x1b[31mred"), 1, ["Error: a\\x1b[31mred"]),
    ],
)
def test_errors_have_exit_codes(
    error: ConvoyError, code: int, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == code
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == lines


def test_no_message_and_no_traceback_holds_a_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVOY_REDIS", "redis://:canary-77@127.0.0.1:1/0")
    monkeypatch.setenv("CONVOY_PARTITIONS", "none")  # the rest of the settings can't be read
    report(Unavailable("Redis at redis://:canary-77@127.0.0.1:1/0", "it refuses canary-77", "Start it"))
    try:
        raise ValueError("canary-77")
    except ValueError as error:
        assert report_bug(error) == 1
    _, err = capsys.readouterr()
    assert "Traceback" in err and "Redis at redis://:[secret]@127.0.0.1" in err
    assert err.count("[secret]") == 4 and "canary-77" not in err


def commands() -> Iterator[tuple[str, str]]:
    """Name and help of every command."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, str]]:
        if isinstance(command, TyperGroup):
            for part, inner in command.commands.items():
                yield from walk(f"{name} {part}", inner)
        else:
            yield name, command.help or ""

    yield from walk("convoy", typer.main.get_command(make_app()))


def test_every_command_shows_an_example() -> None:
    found = dict(commands())
    assert len(found) > 20
    assert [name for name, text in found.items() if name not in text] == []


def test_every_group_loads_alone() -> None:
    for group in GROUPS:
        assert make_app((group,)).registered_commands or make_app((group,)).registered_groups


def test_version(tmp_path: Path) -> None:
    done = convoy(tmp_path, "--version")
    assert done.returncode == 0 and done.stdout.startswith("convoy 0.")


@pytest.mark.parametrize("command", ["detector", "jobs", "watch", "rebuild", "worker isort", "dlq list"])
def test_without_a_broker_it_says_what_to_set(command: str, tmp_path: Path) -> None:
    done = convoy(tmp_path, *command.split())
    assert done.returncode == 3
    assert done.stderr.startswith("Error: Kafka: no broker is set\nRemedy: Set CONVOY_KAFKA=")


def test_a_redis_that_is_away_is_said(tmp_path: Path) -> None:
    [port] = free_ports(1)
    done = convoy(
        tmp_path,
        "projector",
        CONVOY_KAFKA=f"127.0.0.1:{port}",
        CONVOY_REDIS=f"redis://:secret@127.0.0.1:{port}/0",
    )
    assert done.returncode == 3
    assert "Error: Redis: " in done.stderr and "Remedy: Check CONVOY_REDIS" in done.stderr
    assert "secret" not in done.stderr


def test_a_broker_that_is_away_is_said(tmp_path: Path, redis_url: str) -> None:
    [port] = free_ports(1)
    done = convoy(tmp_path, "jobs", CONVOY_KAFKA=f"127.0.0.1:{port}", CONVOY_REDIS=redis_url)
    assert done.returncode == 0, "jobs are in Redis alone"
    assert "Note: whether CONVOY_PARTITIONS is right can't be told: Kafka at" in done.stderr
    done = convoy(tmp_path, "detector", CONVOY_KAFKA=f"127.0.0.1:{port}", CONVOY_REDIS=redis_url)
    assert done.returncode == 3 and f"Error: Kafka at 127.0.0.1:{port}: " in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr) < 2_000, "said once"


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    done = convoy(tmp_path, "doctor", CONVOY_PARTITIONS="many")
    assert done.returncode == 2 and done.stderr.startswith("Error: CONVOY_PARTITIONS: ")


def test_a_role_that_can_not_run_here_is_not_brought_up(tmp_path: Path) -> None:
    done = convoy(tmp_path, "up", "--roles", "isort,generator")
    assert done.returncode == 2 and "roles.generator.provider: no provider is set" in done.stderr
    done = convoy(tmp_path, "up", "--roles", "izort")
    assert done.returncode == 2 and "there is no role 'izort'" in done.stderr
    assert not (tmp_path / ".convoy" / "fleet.json").exists()


def test_a_dry_run_shows_the_plan_and_needs_no_fleet(job: Path) -> None:
    done = convoy(job.parent, "submit", "job.yaml", "--dry-run", "-o", "json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["files"] == ["a.py", "b.py"]
    assert [(task["path"], task["role"]) for task in plan["tasks"]] == [
        (path, role) for path in ("a.py", "b.py") for role in ("pyupgrade", "isort")
    ]
    shown = convoy(job.parent, "submit", "job.yaml", "--dry-run")
    assert "tasks       4, by isort, pyupgrade" in shown.stdout and "Nothing was submitted" in shown.stdout


def test_a_bad_job_is_refused_before_the_broker_is_asked(job: Path) -> None:
    job.write_text(JOB.replace("isort", "izort"))
    done = convoy(job.parent, "run", "job.yaml")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "Error: pipeline.generate[1]: there is no role 'izort'",
        "Remedy: Did you mean isort?",
    ]


def roles_file(directory: Path, url: str, model: str = "m") -> str:
    """A roles file whose generator asks the server at this URL; answers its path."""
    path = directory / "roles.toml"
    path.write_text(
        f'[roles.generator]\nprovider = "openai"\nmodel = "{model}"\noptions = {{ base_url = "{url}/v1" }}\n'
    )
    return str(path)


def test_a_key_or_model_that_is_not_known_is_said_at_start(tmp_path: Path) -> None:
    with endpoint("m") as server:
        roles = roles_file(tmp_path, server.url)
        wrong = convoy(tmp_path, "up", "--roles", "generator", CONVOY_ROLES=roles, OPENAI_API_KEY="sk-wrong")
        doctor = convoy(tmp_path, "doctor", "-o", "json", CONVOY_ROLES=roles, OPENAI_API_KEY=KEY)
        roles = roles_file(tmp_path, server.url, "gone")
        unknown = convoy(tmp_path, "up", "--roles", "generator", CONVOY_ROLES=roles, OPENAI_API_KEY=KEY)
    assert wrong.returncode == unknown.returncode == 2
    assert "Error: roles.generator.provider: openai: the key is not accepted" in wrong.stderr
    assert "Remedy: Correct the key 'openai'" in wrong.stderr and "sk-wrong" not in wrong.stderr
    assert "Error: roles.generator.model: the server of 'openai' has no model 'gone'" in unknown.stderr
    [model] = [finding for finding in json.loads(doctor.stdout) if finding["what"] == "model"]
    assert model["grade"] == "good" and "key and model are known: openai:127.0.0.1:" in model["says"]


def test_the_doctor_shows_breakers_and_whether_limits_are_shared(tmp_path: Path, redis_url: str) -> None:
    [port] = free_ports(1)
    roles = roles_file(tmp_path, f"http://127.0.0.1:{port}")
    kafka = f"127.0.0.1:{port}"
    done = convoy(
        tmp_path, "doctor", "-o", "json", CONVOY_KAFKA=kafka, CONVOY_REDIS=redis_url, CONVOY_ROLES=roles
    )
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert found["limits"]["grade"] == "good" and found["model"]["grade"] == "note"
    assert found["breaker"]["says"] == f"generator: openai:127.0.0.1:{port}:m CLOSED, no rate set"
    assert [state["breaker"] for state in found["breaker"]["models"]] == ["closed"]


def test_a_job_for_a_role_that_can_not_run_here_is_said_and_goes_on(job: Path) -> None:
    job.write_text(JOB.replace("isort", "generator"))
    done = convoy(job.parent, "submit", "job.yaml", "--dry-run", "-o", "json")
    assert done.returncode == 0 and json.loads(done.stdout)["tasks"]
    [note] = done.stderr.splitlines()
    assert note.startswith("Note: role generator can't run here") and "no provider is set" in note


def test_roles_and_doctor_speak_json(tmp_path: Path) -> None:
    roles = {role["name"]: role for role in json.loads(convoy(tmp_path, "roles", "-o", "json").stdout)}
    assert roles["isort"]["can_run"] and not roles["generator"]["can_run"]
    assert "provider" in roles["generator"]["remedy"]
    done = convoy(tmp_path, "doctor", "-o", "json", CONVOY_OPENAI_API_KEY="sk-secret")
    assert done.returncode == 1 and "sk-secret" not in done.stdout + done.stderr
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert found["connection"]["grade"] == "bad" and "CONVOY_KAFKA" in found["connection"]["remedy"]
    assert found["git"]["grade"] == "good" and "openai" in found["keys"]["says"]
