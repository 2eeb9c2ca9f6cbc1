"""Reads the seeds that were selected, writes their simulations: on all cores, ahead of the tests."""

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from tests.simulation.simulation import Verdict, simulate


def _quiet() -> None:
    """What a simulated process logs while it is struck is of no use to anybody."""
    logging.disable(logging.CRITICAL)


@pytest.fixture(scope="session")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes for simulations, as many as there are cores."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(os.cpu_count() or 1, context, _quiet)
    yield pool
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def verdict_of(request: pytest.FixtureRequest, pool: ProcessPoolExecutor) -> Callable[[str, int], Verdict]:
    """The verdict on a seed of a world; all that this session will ask for are begun at once."""
    runs: dict[tuple[str, int], Future[Verdict]] = {}
    for item in request.session.items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        world, seed = params.get("world"), params.get("seed")
        if isinstance(world, str) and isinstance(seed, int):
            runs[world, seed] = pool.submit(simulate, world, seed)
    return lambda world, seed: runs[world, seed].result()
