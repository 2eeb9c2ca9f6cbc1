"""Settings of the Kafka clients: what a user gave, without what is another kind of client's."""

import logging
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, Producer

from codeconvoy.workers.engine import kafka_client
from codeconvoy.workers.engine.kafka_client import Settings

GIVEN = {
    "bootstrap.servers": "127.0.0.1:1",
    "fetch.min.bytes": "2",
    "isolation.level": "read_uncommitted",
    "linger.ms": "7",
    "max.poll.interval.ms": "20000",
    "session.timeout.ms": "6000",
    "socket.timeout.ms": "5000",
    "transaction.timeout.ms": "20000",
}
SETTINGS: dict[str, Callable[[], Settings]] = {
    "consumer": lambda: kafka_client.consumer_settings(GIVEN, "g", "c"),
    "reader": lambda: kafka_client.reader_settings(GIVEN, "read_committed"),
    "producer": lambda: kafka_client.producer_settings(GIVEN, "t"),
    "appender": lambda: kafka_client.appender_settings(GIVEN, "a"),
    "admin": lambda: kafka_client.admin_settings(GIVEN),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_options_of_another_kind_of_client_are_left_out_without_a_word(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = SETTINGS[kind]()
    reads = kind in ("consumer", "reader")
    assert settings["socket.timeout.ms"] == "5000"
    assert ("fetch.min.bytes" in settings, "linger.ms" in settings) == (reads, not reads)
    caplog.set_level(logging.WARNING)
    client = Consumer(settings) if reads else Producer(settings)
    client.poll(0.0)  # hands over what there is to log
    assert "CONFWARN" not in caplog.text
    if isinstance(client, Consumer):
        client.close()


def test_what_correctness_rests_on_is_not_overridden() -> None:
    assert SETTINGS["consumer"]()["isolation.level"] == "read_committed"
