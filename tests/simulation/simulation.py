"""Reads a seed, writes a verdict: one whole simulation, from the first process to the last check."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from codeconvoy.schemas.job_facts import JobFact, JobFinished
from codeconvoy.workers.detector import NAME as DETECTOR
from codeconvoy.workers.detector import Detector, DetectorState
from codeconvoy.workers.engine.bus import TopicPartition
from codeconvoy.workers.engine.memory_broker import Outcome
from codeconvoy.workers.engine.state import OFFSET
from codeconvoy.workers.projector import FILES
from tests.simulation.checks import problems
from tests.simulation.faults import Chaos
from tests.simulation.fleet import CODEC, Engines, SimFleet
from tests.simulation.loop import SimulationLoop, Stuck
from tests.simulation.plans import plan_of
from tests.simulation.process import Killed, SimProcess
from tests.simulation.refold import refold

MAX_STEPS = 3_000_000
END_SECONDS = 1_500.0
"""Virtual time in which every job has to end."""
STOP_SECONDS = 60.0
QUIET_LOOKS = 3
LOOK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one seed."""

    seed: int
    problems: tuple[str, ...]
    struck: tuple[str, ...]
    """The faults, with their times."""
    digest: str
    """Of every record of every topic, and of every state."""
    statuses: tuple[str, ...]
    seconds: float
    """Virtual ones."""
    steps: int

    def report(self) -> str:
        """For whoever reads the failure of a test."""
        lines = [f"seed {self.seed}: {', '.join(self.statuses)} after {self.seconds:.0f} virtual seconds"]
        lines += [f"  problem: {problem}" for problem in self.problems[:20]]
        lines += [f"  fault: {fault}" for fault in self.struck]
        lines.append(f"replay: CONVOY_SIM_SEED={self.seed} pytest tests/simulation -k replay")
        return "\n".join(lines)


def simulate(
    seed: int, engines: Engines | None = None, *, stormy: bool = False, end_seconds: float = END_SECONDS
) -> Verdict:
    """Run one seed to its end, and check what is left.

    Args:
        seed: decides everything.
        engines: other engines than the real ones.
        stormy: many faults, whatever the seed says.
        end_seconds: virtual time in which every job has to end, and the fleet to come to rest.
    """
    plan = plan_of(seed, stormy=stormy)
    # A loop without IO leaves the methods for IO out.
    loop = SimulationLoop(  # type: ignore[abstract]
        Random(f"loop {seed}"), MAX_STEPS, SimProcess.track, lambda error: isinstance(error, Killed)
    )
    fleet = SimFleet(plan, loop, engines or Engines())
    chaos = Chaos(fleet)
    try:
        loop.run_until_complete(_live(fleet, chaos, end_seconds))
    except Stuck as stuck:
        fleet.problems.append(str(stuck))
    finally:
        loop.close()
    return Verdict(
        seed=seed,
        problems=tuple(problems(fleet)),
        struck=tuple(chaos.struck),
        digest=digest(fleet),
        statuses=tuple(str(payload.status) for payload in JobWatch(fleet).look()),
        seconds=loop.time(),
        steps=loop.steps,
    )


async def _live(fleet: SimFleet, chaos: Chaos, seconds: float) -> None:
    await fleet.start()
    await asyncio.gather(fleet.submit_all(), chaos.strike(fleet.plan.faults))
    watch = JobWatch(fleet)
    ended = await _until(fleet, seconds, lambda: len(watch.look()) >= len(fleet.plan.jobs))
    if ended and await _quiet(fleet, seconds):
        await fleet.stop(STOP_SECONDS)
    else:
        fleet.problems.append("it never came to rest")
    await fleet.abandon()


async def _until(fleet: SimFleet, seconds: float, done: Callable[[], bool]) -> bool:
    deadline = fleet.loop.time() + seconds
    while not done():
        if fleet.loop.time() > deadline:
            return False
        await asyncio.sleep(LOOK_SECONDS)
    return True


async def _quiet(fleet: SimFleet, seconds: float) -> bool:
    """Wait until nothing is written any more, all of it is folded, and no claim is open."""
    before, looks = -1, 0
    deadline = fleet.loop.time() + seconds
    while looks < QUIET_LOOKS:
        if fleet.loop.time() > deadline:
            return False
        await asyncio.sleep(LOOK_SECONDS)
        size = sum(len(log.entries) for log in fleet.broker.logs.values())
        looks = looks + 1 if size == before and _folded(fleet) else 0
        before = size
        if looks == QUIET_LOOKS and _claimed(fleet):
            looks = 0
    return True


def _folded(fleet: SimFleet) -> bool:
    """Every store stands at the end of its log."""
    for name, store in fleet.stores.items():
        topic = fleet.topics.events if name in (FILES, DETECTOR) else fleet.topics.jobs
        snapshot = store.snapshot()
        for number in range(fleet.topics.partitions):
            end = len(fleet.broker.logs[TopicPartition(topic, number)].entries)
            if int(snapshot.get(number, {}).get(OFFSET, b"0")) != end:
                return False
    return True


def _claimed(fleet: SimFleet) -> bool:
    states = refold(Detector(CODEC, fleet.topics), fleet.broker).states.values()
    return any(isinstance(state, DetectorState) and state.history.claim is not None for state in states)


class JobWatch:
    """Looks for the ends of jobs on the jobs log, and never twice at the same record."""

    def __init__(self, fleet: SimFleet) -> None:
        self._broker, self._topic = fleet.broker, fleet.topics.jobs
        self._seen: dict[TopicPartition, int] = {}
        self.found: list[JobFinished] = []

    def look(self) -> list[JobFinished]:
        """All ends so far."""
        for number in range(self._broker.topics.get(self._topic, 0)):
            at = TopicPartition(self._topic, number)
            log = self._broker.logs[at]
            end = min([len(log.entries), *log.first_of_open])
            for entry in log.entries[self._seen.get(at, 0) : end]:
                if entry.record is None or entry.transaction.outcome is not Outcome.COMMITTED:
                    continue
                payload = CODEC.decode(entry.record.value, JobFact).payload
                self.found += [payload] if isinstance(payload, JobFinished) else []
            self._seen[at] = end
        return self.found


def digest(fleet: SimFleet) -> str:
    """Hex digest of all that the fleet left behind."""
    sha = hashlib.sha256()
    for part in _left(fleet):
        sha.update(part)
    return sha.hexdigest()


def _left(fleet: SimFleet) -> Iterator[bytes]:
    for at, log in fleet.broker.logs.items():
        for offset, entry in enumerate(log.entries):
            yield f"{at} {offset} {entry.transaction.outcome} {entry.visible_at}".encode()
            if entry.record is not None:
                yield f"{entry.record.key} {entry.record.timestamp} {entry.record.headers}".encode()
                yield entry.record.value
    for name, store in fleet.stores.items():
        yield f"{name} {store.snapshot()}".encode()
