"""Reads the selected tests, writes a world for each: every test of the contract runs on all buses."""

import pytest

from codeconvoy.workers.engine.kafka_bus import KafkaBus
from codeconvoy.workers.engine.memory_bus import MemoryBus
from tests.contract.worlds import World


@pytest.fixture(params=["memory", "kafka", "kafka-848"])
def world(request: pytest.FixtureRequest, prefix: str) -> World:
    if request.param == "memory":
        first = MemoryBus()
        return World(first.another, prefix)
    settings = {"bootstrap.servers": request.getfixturevalue("kafka")}
    if request.param == "kafka-848":
        settings["group.protocol"] = "consumer"
    return World(lambda: KafkaBus(settings), prefix)
