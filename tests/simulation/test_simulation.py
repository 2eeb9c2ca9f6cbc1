"""The whole fleet, from the engines' real code, under faults drawn from a seed.

Each seed runs one to three jobs over shared files while processes are killed at any await, paused
past their session, put out of their groups and restarted, while partitions are held back, stores
fail or lose everything. In the end every job has ended, and everything that the fleet holds is what
one undisturbed fold of its logs gives. See `checks` for what is looked at.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from codeconvoy.orchestrator.job_file import check
from codeconvoy.workers.roles.role import Role, RoleKind
from tests.simulation.plans import EDITORS, plan_of
from tests.simulation.simulation import Verdict, simulate

SEEDS = 200
SEED_VARIABLE = "CONVOY_SIM_SEED"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_seed(seed: int, verdict_of: Callable[[int], Verdict]) -> None:
    verdict = verdict_of(seed)
    assert not verdict.problems, verdict.report()


def test_replay() -> None:
    """The seed in CONVOY_SIM_SEED, in this process: with all logs, and open to a debugger."""
    verdict = simulate(int(os.environ.get(SEED_VARIABLE, "0")))
    assert not verdict.problems, verdict.report()


def test_a_seed_replays_byte_for_byte() -> None:
    """Whatever the process: not even the order of its sets shows in a log or in a state."""
    seed = 1
    code = f"from tests.simulation.simulation import simulate; print(simulate({seed}).digest)"
    digests = {simulate(seed).digest, simulate(seed).digest}
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
    assert simulate(seed + 1).digest not in digests


def test_the_jobs_that_are_simulated_are_jobs() -> None:
    kinds = dict.fromkeys(EDITORS, RoleKind.EDIT) | {"reviewer": RoleKind.REVIEW, "tester": RoleKind.TEST}
    roles = {name: Role(name, kind, "a stub", "stub") for name, kind in kinds.items()}
    for seed in range(SEEDS):
        for job in plan_of(seed).jobs:
            check(job.spec, roles)
