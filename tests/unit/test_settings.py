"""Reads a made-up environment: the settings, and that no secret shows."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from codeconvoy.orchestrator.settings import Settings, load_settings
from codeconvoy.schemas.errors import BadInput


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        for variable in (f"CONVOY_{name.upper()}", name.upper()):
            if "API" in variable or "BASE_URL" in variable or variable.startswith("CONVOY_"):
                monkeypatch.delenv(variable, raising=False)


def test_the_environment_is_read_and_the_command_line_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOY_KAFKA", "broker:9092")
    monkeypatch.setenv("CONVOY_KAFKA_OPTIONS", '{"sasl.mechanism": "PLAIN", "sasl.password": "s3cret"}')
    monkeypatch.setenv("CONVOY_PARTITIONS", "24")
    monkeypatch.setenv("CONVOY_ROLES", "/etc/roles.toml")
    monkeypatch.setenv("CONVOY_PREFIX", "")
    settings = load_settings(metrics_port=9100, partitions=6)
    assert settings.kafka == "broker:9092"
    assert settings.kafka_options["sasl.mechanism"] == "PLAIN"
    assert (settings.partitions, settings.metrics_port) == (6, 9100)
    assert settings.roles == Path("/etc/roles.toml")
    # An empty variable is an unset one, as compose files write it.
    assert settings.prefix == "convoy"


def test_our_key_goes_before_the_vendor_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    first = load_settings().openai_api_key
    monkeypatch.setenv("CONVOY_OPENAI_API_KEY", "ours")
    second = load_settings().openai_api_key
    assert first is not None
    assert second is not None
    assert (first.get_secret_value(), second.get_secret_value()) == ("theirs", "ours")


def test_no_secret_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOY_REDIS", "rediss://:s3cret@host/0")
    monkeypatch.setenv("CONVOY_KAFKA_OPTIONS", '{"sasl.password": "s3cret"}')
    monkeypatch.setenv("ANTHROPIC_API_KEY", "s3cret")
    assert "s3cret" not in repr(load_settings()) + str(load_settings())


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CONVOY_PARTITIONS", "s3cret"),
        ("CONVOY_PARTITIONS", "0"),
        ("CONVOY_METRICS_PORT", "70000"),
        ("CONVOY_GROUP_PROTOCOL", "s3cret"),
        ("CONVOY_PREFIX", "a:b"),
        ("CONVOY_KAFKA_OPTIONS", "s3cret"),
        ("CONVOY_KAFKA_OPTIONS", '["s3cret"]'),
    ],
)
def test_a_bad_value_is_named_and_not_shown(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadInput) as caught:
        load_settings()
    assert caught.value.field == variable
    assert "s3cret" not in str(caught.value)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        load_settings().kafka = "other"
