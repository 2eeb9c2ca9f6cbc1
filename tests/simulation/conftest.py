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
def verdict_of(request: pytest.FixtureRequest, pool: ProcessPoolExecutor) -> Callable[[int], Verdict]:
    """The verdict on a seed; all seeds of this session are begun at once."""
    runs: dict[int, Future[Verdict]] = {}
    for item in request.session.items:
        seed = (
            item.callspec.params.get("seed")
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else None
        )
        if isinstance(seed, int):
            runs[seed] = pool.submit(simulate, seed)
    return lambda seed: runs[seed].result()
