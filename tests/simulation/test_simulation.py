"""The engines' real code, and the whole fleet from it, under faults drawn from a seed.

Processes are killed at any await, paused past their session, put out of their groups and restarted,
while partitions are held back, transactions abort, and stores fail or lose everything. In the end
everything is done exactly once, and all that is left is what one undisturbed fold of the logs gives.

    engines   pool engines → fold engines, several processes of each, tens of tasks of every kind
    fleet     one to three jobs over shared files: every process of a fleet but agents and git
    kill …    the smallest world of engines, struck once: at its first point, its second, and so on

`CONVOY_SIM_WORLD` and `CONVOY_SIM_SEED` select what `-k replay` runs.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from codeconvoy.orchestrator.job_file import check
from codeconvoy.workers.roles.role import Role, RoleKind
from tests.simulation.faults import STRIKES
from tests.simulation.plans import EDITORS, plan_of
from tests.simulation.simulation import SEED_VARIABLE, WORLD_VARIABLE, Verdict, simulate

ENGINE_SEEDS = 1_000
FLEET_SEEDS = 150
ROOT = Path(__file__).parents[2]

VerdictOf = Callable[[str, int], Verdict]


@pytest.mark.parametrize("seed", range(ENGINE_SEEDS))
@pytest.mark.parametrize("world", ["engines"])
def test_engines(world: str, seed: int, verdict_of: VerdictOf) -> None:
    verdict = verdict_of(world, seed)
    assert not verdict.problems, verdict.report()


@pytest.mark.parametrize("seed", range(FLEET_SEEDS))
@pytest.mark.parametrize("world", ["fleet"])
def test_fleet(world: str, seed: int, verdict_of: VerdictOf) -> None:
    verdict = verdict_of(world, seed)
    assert not verdict.problems, verdict.report()


@pytest.mark.parametrize("world", STRIKES)
def test_a_strike_at_every_point(world: str, pool: ProcessPoolExecutor) -> None:
    """Right before and right after whatever a process does to the world."""
    points = simulate(world, 0).points
    assert points > 200
    runs = [pool.submit(simulate, world, point) for point in range(1, points + 1)]
    for verdict in (run.result() for run in runs):
        assert not verdict.problems, verdict.report()


def test_replay() -> None:
    """One seed, in this process: with all logs, and open to a debugger."""
    world, seed = os.environ.get(WORLD_VARIABLE, "engines"), int(os.environ.get(SEED_VARIABLE, "0"))
    verdict = simulate(world, seed)
    assert not verdict.problems, verdict.report()


@pytest.mark.parametrize("world", ["engines", "fleet"])
def test_a_seed_replays_byte_for_byte(world: str) -> None:
    """Whatever the process: not even the order of its sets shows in a log or in a state."""
    seed = 1
    code = f"from tests.simulation.simulation import simulate; print(simulate({world!r}, {seed}).digest)"
    digests = {simulate(world, seed).digest, simulate(world, seed).digest}
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1
    assert simulate(world, seed + 1).digest not in digests


def test_the_jobs_that_are_simulated_are_jobs() -> None:
    kinds = dict.fromkeys(EDITORS, RoleKind.EDIT)
    kinds |= {"reviewer": RoleKind.REVIEW, "tester": RoleKind.TEST, "merger": RoleKind.MERGE}
    roles = {name: Role(name, kind, "a stub", "stub") for name, kind in kinds.items()}
    for seed in range(FLEET_SEEDS):
        for job in plan_of(seed).jobs:
            check(job.spec, roles)
