"""Reads the environment through tests.services: the fixtures that all suites share."""

import uuid
from collections.abc import Iterator

import pytest

from tests.services import erase_prefix, kafka_for_tests, redis_for_tests


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address of one real Kafka for the whole session."""
    with kafka_for_tests(tmp_path_factory.mktemp("kafka")) as address:
        yield address


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of one real Redis for the whole session; tests use `redis_url`."""
    with redis_for_tests(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def prefix() -> str:
    """Unique for each test: the prefix of its topics and of its Redis keys."""
    return f"t{uuid.uuid4().hex[:10]}"


@pytest.fixture
def redis_url(redis_server: str, prefix: str) -> Iterator[str]:
    """URL of a real Redis in which keys with this test's `prefix` are erased afterwards."""
    yield redis_server
    erase_prefix(redis_server, prefix)
