"""Reads the environment through tests.services: the fixtures that all suites share."""

import signal
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.services import erase_prefix, kafka_for_tests, redis_for_tests

# A busy machine must not fail a test: neither how long an example takes nor how long it takes to draw it is
# looked at. What fails is printed in a form that can be played again.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Whoever starts the tests in the background of a script may have turned SIGINT off, for all that they
    start too: what a command does when it is interrupted could not be seen."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
