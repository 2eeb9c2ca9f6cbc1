"""One fleet of rule-based agents for all tests of the command line."""

from collections.abc import Iterator

import pytest

from tests.fleets import CORE, Fleet, unique_prefix
from tests.services import erase_prefix

EDITORS = ("pyupgrade", "isort", "unused-imports", "simplify", "tidy")


@pytest.fixture(scope="session")
def fleet(kafka: str, redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """It runs all the time; nobody works as `comprehensions`."""
    prefix = unique_prefix()
    with Fleet(kafka, redis_server, prefix, tmp_path_factory.mktemp("fleet")) as started:
        started.start(*CORE, *EDITORS, "lint-reviewer", "api-tester")
        yield started
    erase_prefix(redis_server, prefix)
