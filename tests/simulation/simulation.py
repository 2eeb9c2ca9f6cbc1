"""Reads a seed, writes a verdict: one whole simulation, from the first process to the last check."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random

from tests.simulation.checks import problems as fleet_problems
from tests.simulation.engine_checks import engine_problems
from tests.simulation.engine_plans import engine_plan_of, tiny_plan
from tests.simulation.engine_world import EngineWorld
from tests.simulation.faults import STRIKES, Chaos
from tests.simulation.fleet import SimFleet
from tests.simulation.loop import SimulationLoop, Stuck
from tests.simulation.plans import plan_of
from tests.simulation.process import Killed, SimProcess
from tests.simulation.world import Engines, World

MAX_STEPS = 300_000
END_SECONDS = 1_000.0
"""Virtual time in which everything has to be done, and to come to rest."""
SEED_VARIABLE = "CONVOY_SIM_SEED"
WORLD_VARIABLE = "CONVOY_SIM_WORLD"

Checked = tuple[World, Callable[[], list[str]]]
"""A world, and what finds all that is wrong in it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one seed."""

    world: str
    seed: int
    problems: tuple[str, ...]
    struck: tuple[str, ...]
    """The faults, with their times."""
    digest: str
    """Of every record of every topic, and of every state."""
    ends: tuple[str, ...]
    seconds: float
    """Virtual ones."""
    steps: int
    points: int
    """How often a process came to where it can be killed."""

    def report(self) -> str:
        """For whoever reads the failure of a test."""
        ends = ", ".join(self.ends)
        lines = [f"{self.world}, seed {self.seed}: {ends} after {self.seconds:.0f} virtual seconds"]
        lines += [f"  problem: {problem}" for problem in self.problems[:20]]
        lines += [f"  fault: {fault}" for fault in self.struck]
        lines.append(
            f"replay: {WORLD_VARIABLE}={self.world} {SEED_VARIABLE}={self.seed} "
            "pytest tests/simulation -k replay"
        )
        return "\n".join(lines)


def simulate(
    world: str,
    seed: int,
    engines: Engines | None = None,
    *,
    stormy: bool = False,
    end_seconds: float = END_SECONDS,
) -> Verdict:
    """Run one seed of a world to its end, and check what is left.

    Args:
        world: which of `WORLDS`.
        seed: decides everything.
        engines: other engines than the real ones.
        stormy: many faults, whatever the seed says.
        end_seconds: virtual time in which everything has to be done, and to come to rest.
    """
    order = "a tiny world" if world in STRIKES else str(seed)
    # A loop without IO leaves the methods for IO out.
    loop = SimulationLoop(  # type: ignore[abstract]
        Random(f"loop {order}"), MAX_STEPS, SimProcess.track, lambda error: isinstance(error, Killed)
    )
    here, problems = WORLDS[world](seed, loop, engines or Engines(), stormy)
    chaos = Chaos(here)
    try:
        loop.run_until_complete(_live(here, chaos, end_seconds))
    except Stuck as stuck:
        here.problems.append(str(stuck))
    finally:
        loop.close()
    return Verdict(
        world=world,
        seed=seed,
        problems=(*here.problems, *here.deliveries.problems, *problems(), *loop.errors),
        struck=tuple(chaos.struck),
        digest=here.digest(),
        ends=tuple(here.ends()),
        seconds=loop.time(),
        steps=loop.steps,
        points=here.weather.points,
    )


async def _live(world: World, chaos: Chaos, seconds: float) -> None:
    await world.start()
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(world.work(), chaos.strike())
    except TimeoutError:
        world.problems.append("its work could not be brought in")
    await world.rest(seconds)


def _fleet(seed: int, loop: SimulationLoop, engines: Engines, stormy: bool) -> Checked:
    fleet = SimFleet(plan_of(seed, stormy=stormy), loop, engines)
    return fleet, partial(fleet_problems, fleet)


def _engines(seed: int, loop: SimulationLoop, engines: Engines, stormy: bool) -> Checked:
    world = EngineWorld(engine_plan_of(seed, stormy=stormy), loop, engines)
    return world, partial(engine_problems, world)


def _at_point(
    strike: Callable[[SimProcess], None], point: int, loop: SimulationLoop, engines: Engines, stormy: bool
) -> Checked:
    """A tiny world, struck once: at this point of whichever process comes to it."""
    world = EngineWorld(tiny_plan(), loop, engines)
    world.weather.strike_at, world.weather.strike = point, strike
    return world, partial(engine_problems, world)


WORLDS: Mapping[str, Callable[[int, SimulationLoop, Engines, bool], Checked]] = {
    "fleet": _fleet,
    "engines": _engines,
} | {name: partial(_at_point, strike) for name, strike in STRIKES.items()}
"""What can be simulated, by the name that selects it. Where a tiny world is struck at a point, the
number of the point is the seed."""
