"""A test of the tests: bugs that are planted in the engines are found, each within a few seeds."""

from concurrent.futures import ProcessPoolExecutor, as_completed

import pytest

from tests.simulation.planted import PLANTED
from tests.simulation.simulation import simulate

MAX_SEEDS = 120
END_SECONDS = 300.0


def shows(bug: str, seed: int) -> bool:
    """True where the seed finds the bug by a check that is there to find it."""
    planted = PLANTED[bug]
    verdict = simulate("engines", seed, planted.engines, stormy=True, end_seconds=END_SECONDS)
    return any(problem.startswith(tuple(planted.shows)) for problem in verdict.problems)


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str, pool: ProcessPoolExecutor) -> None:
    runs = [pool.submit(shows, bug, seed) for seed in range(MAX_SEEDS)]
    found = any(run.result() for run in as_completed(runs))
    for run in runs:
        run.cancel()
    assert found, f"{bug}: it did not show in {MAX_SEEDS} seeds"
