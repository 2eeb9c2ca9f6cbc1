"""Reads deploy/ and the command line: what is deployed is what there is."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import AliasChoices

from codeconvoy.orchestrator.fleet import SERVICE_ROLES
from codeconvoy.orchestrator.settings import Settings
from codeconvoy.workers.roles.registry import builtin_roles, load_roles

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ENGINES = {"orchestrator", "projector", "detector"}
METRICS = ["--metrics-port", "9100"]


def compose() -> dict[str, Any]:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert isinstance(document, dict)
    return document


def processes() -> dict[str, dict[str, Any]]:
    """The services that are processes of the fleet: not the command line, not what others made."""
    services = compose()["services"].items()
    return {name: service for name, service in services if service.get("command", [])[-2:] == METRICS}


def variables() -> set[str]:
    """Every environment variable that the settings read."""
    names: set[str] = set()
    for name, field in Settings.model_fields.items():
        if isinstance(field.validation_alias, AliasChoices):
            names |= {str(choice) for choice in field.validation_alias.choices}
        else:
            names.add(f"CONVOY_{name.upper()}")
    return names


def test_every_process_of_the_fleet_is_a_service() -> None:
    roles = {role.name for role in builtin_roles()} | set(SERVICE_ROLES)
    expected = {name: [name, *METRICS] for name in ENGINES}
    expected |= {role: ["worker", role, *METRICS] for role in roles}
    assert {name: service["command"] for name, service in processes().items()} == expected


@pytest.mark.parametrize("name", sorted(ENGINES | {"git", "pyupgrade", "generator"}))
def test_every_command_is_one(name: str) -> None:
    argv = [str(Path(sys.executable).with_name("convoy")), *processes()[name]["command"], "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--metrics-port" in done.stdout


def test_every_variable_is_a_setting() -> None:
    set_here = {key for service in processes().values() for key in service["environment"]}
    assert set_here <= variables()
    assert {"CONVOY_KAFKA", "CONVOY_REDIS", "CONVOY_PREFIX", "CONVOY_PARTITIONS"} <= set_here


def test_the_addresses_are_those_of_the_services() -> None:
    services = compose()["services"]
    for service in processes().values():
        assert service["environment"]["CONVOY_KAFKA"] == "kafka:9092"
        assert service["environment"]["CONVOY_REDIS"] == "redis://redis:6379/0"
        assert service["depends_on"].keys() <= services.keys()
    # Where orchestrator.services asks Docker for the published ports.
    assert any(port.endswith(":9094") for port in services["kafka"]["ports"])
    assert any(port.endswith(":6379") for port in services["redis"]["ports"])


def test_a_broker_of_one_node_waits_for_no_replica() -> None:
    environment = compose()["services"]["kafka"]["environment"]
    replicas = {key: value for key, value in environment.items() if "REPLICATION" in key or "MIN_ISR" in key}
    assert set(replicas.values()) == {1}
    assert len(replicas) == 5


def test_prometheus_scrapes_every_process() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    targets = [t for job in config["scrape_configs"] for s in job["static_configs"] for t in s["targets"]]
    assert sorted(targets) == sorted(f"{name}:9100" for name in processes())


def test_what_is_mounted_and_built_from_is_there() -> None:
    for service in compose()["services"].values():
        for volume in service.get("volumes", []):
            source = str(volume).partition(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).is_file()
    copied = (DEPLOY.parent / ".dockerignore").read_text().split("!")[1:]
    for name in ("requirements.lock", "schemas", "workers", "orchestrator", "pyproject.toml"):
        assert any(line.strip().startswith(name) for line in copied)


def test_the_roles_file_is_one() -> None:
    assert load_roles(DEPLOY / "roles.toml")
