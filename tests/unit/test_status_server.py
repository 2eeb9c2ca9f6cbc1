"""Asks a status server: metrics as Prometheus reads them, health as anyone does."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from codeconvoy.orchestrator.probe import Probe, probe
from codeconvoy.orchestrator.processes import free_ports
from codeconvoy.orchestrator.status_server import StatusServer
from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.engine.bus import TopicPartition
from codeconvoy.workers.engine.health import Health
from codeconvoy.workers.engine.metrics import EngineMetrics, Families


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


@pytest.fixture
def server(health: Health) -> Iterator[StatusServer]:
    registry = CollectorRegistry()
    families = Families(registry)
    for name in ("files", "jobs"):
        metrics = EngineMetrics(families, name)
        metrics.in_flight.set(2)
        metrics.queued.set(5)
        metrics.records.inc(10)
        metrics.dead_letters.inc()
    server = StatusServer(registry, health, "127.0.0.1", 0)
    yield server
    server.close()


def get(server: StatusServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_health_means_progress(server: StatusServer, health: Health, clock: Clock) -> None:
    assert get(server, "/healthz") == (200, '{"healthy": true, "problems": []}\n')
    clock.now = 31.0
    status, body = get(server, "/healthz")
    assert status == 503 and "has not turned for 31 s" in json.loads(body)["problems"][0]
    health.turned(progressed=True, behind=False)
    assert get(server, "/healthz")[0] == 200
    health.stopped[TopicPartition("convoy.events", 3)] = "offset 7: unknown schema"
    status, body = get(server, "/healthz?verbose")
    assert status == 503 and "convoy.events/3 is stopped: offset 7" in body


def test_metrics_hold_health_too(server: StatusServer, health: Health, clock: Clock) -> None:
    clock.now = 12.5
    status, text = get(server, "/metrics")
    assert status == 200
    assert "convoy_progress_age_seconds 12.5" in text and "convoy_healthy 1.0" in text
    assert 'convoy_records_total{service="files"} 10.0' in text
    clock.now = 40.0
    assert "convoy_healthy 0.0" in get(server, "/metrics")[1]


def test_a_probe_adds_up_the_engines_of_a_process(server: StatusServer, clock: Clock) -> None:
    assert asyncio.run(probe(server.port)) == Probe((), in_flight=4, queued=10, records=20, dead_letters=2)
    clock.now = 31.0
    found = asyncio.run(probe(server.port))
    assert found is not None and found.problems == ("the loop has not turned for 31 s",)


def test_who_does_not_answer_is_not_probed() -> None:
    [port] = free_ports(1)
    assert asyncio.run(probe(port)) is None


def test_nothing_else_is_served(server: StatusServer) -> None:
    assert get(server, "/")[0] == 404


def test_a_port_that_is_taken_is_said(server: StatusServer, health: Health) -> None:
    with pytest.raises(Unavailable, match=f"port {server.port}.*--metrics-port"):
        StatusServer(CollectorRegistry(), health, "127.0.0.1", server.port)
