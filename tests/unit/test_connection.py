"""How a command finds its fleet: settings, then fleet.json, and never half of each of two fleets."""

import asyncio
import stat
from pathlib import Path

import pytest
import redis.asyncio as redis

from codeconvoy.orchestrator.connection import (
    FLEET_FILE,
    Connection,
    check_partitions,
    credentials_of,
    find_connection,
    forget_connection,
    kafka_settings,
    read_connection,
    redactor_of,
    roles_of,
    write_connection,
)
from codeconvoy.orchestrator.redis_client import Cancellable, open_redis
from codeconvoy.orchestrator.settings import load_settings
from codeconvoy.schemas.errors import BadInput, Unavailable
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.memory_bus import MemoryBus
from codeconvoy.workers.redact import MARK
from codeconvoy.workers.roles.role import NextProvider, Role, RoleKind

THERE = Connection(kafka="k:1", redis="redis://r:1/0", prefix="p", partitions=4, embedded=True)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAFKA", "REDIS", "PREFIX", "PARTITIONS", "DATA", "ROLES", "OPENAI_API_KEY"):
        monkeypatch.delenv(f"CONVOY_{name}", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_a_fleet_that_is_up_here_is_found(tmp_path: Path) -> None:
    write_connection(tmp_path / "new", THERE)
    settings = load_settings(data=tmp_path / "new")
    assert find_connection(settings) == THERE
    forget_connection(tmp_path / "new")
    forget_connection(tmp_path / "new")
    with pytest.raises(Unavailable, match="CONVOY_KAFKA"):
        find_connection(settings)


def test_fleet_json_is_for_its_owner_only(tmp_path: Path) -> None:
    write_connection(tmp_path, THERE)
    assert stat.S_IMODE((tmp_path / FLEET_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FLEET_FILE]


def test_the_settings_go_before_it(tmp_path: Path) -> None:
    write_connection(tmp_path, THERE)
    other = load_settings(data=tmp_path, kafka="other:1", redis="redis://other:1/0")
    assert find_connection(other) == Connection(
        kafka="other:1", redis="redis://other:1/0", prefix="convoy", partitions=12
    )
    same = load_settings(data=tmp_path, kafka="k:1", redis="redis://r:2/0", prefix="q", partitions=7)
    assert find_connection(same) == Connection(
        kafka="k:1", redis="redis://r:2/0", prefix="q", partitions=7, embedded=True
    )


def test_another_broker_never_goes_with_its_redis(tmp_path: Path) -> None:
    write_connection(tmp_path, THERE)
    with pytest.raises(Unavailable, match="CONVOY_REDIS"):
        find_connection(load_settings(data=tmp_path, kafka="other:1"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"kafka": 1}'])
def test_a_broken_fleet_json_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FLEET_FILE).write_bytes(content)
    with pytest.raises(BadInput, match="Remove it"):
        read_connection(tmp_path)


def test_options_of_the_client_are_text() -> None:
    settings = load_settings(kafka_options={"a": True, "b": 1, "bootstrap.servers": "evil:1"})
    found = kafka_settings(settings, "k:1")
    assert found == {"group.protocol": "classic", "a": "true", "b": "1", "bootstrap.servers": "k:1"}


def test_a_key_of_a_role_of_ones_own_comes_from_the_environment() -> None:
    def role(name: str, **options: str) -> Role:
        return Role(name, RoleKind.EDIT, "", "openai", options=options)

    roles = {"a": role("a", key="my-gateway"), "b": role("b"), "c": role("c", key="absent")}
    settings = load_settings(openai_api_key="sk-1")
    environment = {"MY_GATEWAY_API_KEY": "sk-2", "OPENAI_API_KEY": "not this one", "ABSENT_API_KEY": ""}
    assert credentials_of(settings, roles, environment) == {"openai": "sk-1", "my-gateway": "sk-2"}


def test_the_base_url_of_the_settings_is_for_roles_without_one(tmp_path: Path) -> None:
    toml = tmp_path / "roles.toml"
    toml.write_text(
        """
        [roles.generator]
        provider = "openai"
        model = "m"
        [roles.planner]
        provider = "openai"
        model = "m"
        options = { base_url = "http://own/v1" }
        """
    )
    roles = roles_of(load_settings(roles=toml, openai_base_url="http://all/v1"))
    assert roles["generator"].options["base_url"] == "http://all/v1"
    assert roles["planner"].options["base_url"] == "http://own/v1"
    assert "base_url" not in roles["isort"].options


def test_a_bad_redis_url_is_not_shown() -> None:
    with pytest.raises(BadInput) as caught:
        open_redis("http://:secret@host")
    assert caught.value.field == "CONVOY_REDIS" and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://h:1/0", redis.Connection),
        ("rediss://h:1/0", redis.SSLConnection),
        ("unix:///a/socket", redis.UnixDomainSocketConnection),
    ],
)
def test_connections_of_every_kind_of_url_can_be_cancelled(url: str, kind: type) -> None:
    found = open_redis(url).connection_pool.connection_class
    assert issubclass(found, kind) and issubclass(found, Cancellable)


def test_every_secret_that_a_process_holds_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("openai", "ours", "sasl", "redis", "registry", "url", "next", "other")
    held = {name: f"canary-{name}-77" for name in names}
    monkeypatch.setenv("OPENAI_API_KEY", held["openai"])
    options = {"sasl.username": "convoy-user", "sasl.password": held["sasl"]}
    registry = f"https://me:{held['registry']}@registry:8081"
    settings = load_settings(kafka_options=options, schema_registry=registry)
    urls = {"base_url": f"http://me:{held['url']}@host/v1", "key": "ours"}
    following = NextProvider("anthropic", "m", {"base_url": f"http://me:{held['next']}@host"})
    role = Role("r", RoleKind.EDIT, "", "openai", options=urls, next=(following,))
    environment = {"OURS_API_KEY": held["ours"], "DB_PASSWORD": held["other"], "HOME": "canary-home-77"}
    redact = redactor_of(settings, {"r": role}, environment, f"redis://:{held['redis']}@h:1/0")
    assert redact(" ".join(held.values())) == " ".join([MARK] * len(held))
    assert redact("convoy-user canary-home-77") == "convoy-user canary-home-77"


def test_another_partition_count_than_that_of_the_topics_is_refused() -> None:
    there = Topics("p", 12)

    async def look(settings: Topics) -> None:
        bus = MemoryBus()
        await check_partitions(bus, settings)  # topics that are not there yet are no fault
        await bus.create_topics({there.jobs: {}}, 12)
        await check_partitions(bus, settings)

    asyncio.run(look(there))
    asyncio.run(look(Topics("q", 5)))
    with pytest.raises(BadInput, match=r"p\.jobs has 12 partitions, the settings say 5") as caught:
        asyncio.run(look(Topics("p", 5)))
    assert caught.value.remedy.startswith("Set CONVOY_PARTITIONS=12")
