"""Reads a seed, writes nothing: which faults strike a fleet at work, and in what order.

    CONVOY_FAULT_SEED=7 pytest tests/faults/test_faults.py -k schedule

Every schedule scales a role from one worker to four and back, and restarts every process in turn;
what is killed, stopped or restarted besides, at which step and when, is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from codeconvoy.schemas.job_state import GIT_ROLE
from tests.fault_process import IN_TRANSACTIONS, Step
from tests.fleets import FOLDS

SCALED, OTHER = "scribe", "clerk"
MORE = tuple(f"{SCALED}/{number}" for number in (1, 2, 3))
DRAWN = 6
"""Faults besides those of every schedule."""
LONGEST_STOP = 8.0
"""Seconds; a session ends after half of it."""


class Kind(StrEnum):
    """What happens to a process. One that dies of it is started again, as by a supervisor."""

    KILL = "kill"
    """SIGKILL, wherever it is."""
    KILL_AT = "kill at"
    """SIGKILL when it comes to a step."""
    STOP = "stop"
    """SIGSTOP, and SIGCONT after a while."""
    STOP_AT = "stop at"
    """The same when it comes to a step."""
    RESTART = "restart"
    """SIGTERM; it drains, and is started again."""
    ADD = "add"
    REMOVE = "remove"
    """SIGTERM, and that is its end."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them."""

    kind: Kind
    process: str
    after: int
    """Calls that are made between the fault before and this one."""
    step: Step | None = None
    time: int = 1
    """The so-manieth time that it comes to the step."""
    seconds: float = 0.0
    """How long it is stopped."""

    def __str__(self) -> str:
        at = f" {self.step}, time {self.time}" if self.step else ""
        seconds = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.after} calls later {self.kind}{at}: {self.process}{seconds}"


def schedule(seed: int) -> Sequence[Fault]:
    """The faults that a seed stands for, in order."""
    random = Random(f"faults {seed}")
    up, down = sorted(random.sample(range(DRAWN + 1), 2))
    roll = random.randrange(DRAWN + 1)
    there = [SCALED, OTHER, GIT_ROLE, *FOLDS]
    found: list[Fault] = []
    for number in range(DRAWN + 1):
        if number == up:
            found += [Fault(Kind.ADD, name, 0) for name in MORE]
            there += MORE
        if number == roll:
            rolled = random.sample(there, len(there))
            found += [Fault(Kind.RESTART, name, 0) for name in rolled]
        if number == down:
            found += [Fault(Kind.REMOVE, name, 2) for name in MORE]
            there = [name for name in there if name not in MORE]
        if number < DRAWN:
            found.append(_drawn(random, there))
    return found


def _drawn(random: Random, there: Sequence[str]) -> Fault:
    (kind,) = random.choices((Kind.KILL, Kind.KILL_AT, Kind.STOP, Kind.STOP_AT), (1, 3, 2, 2))
    process, after = random.choice(there), random.randrange(4)
    at = kind in (Kind.KILL_AT, Kind.STOP_AT)
    steps = IN_TRANSACTIONS if process in (GIT_ROLE, *FOLDS) else tuple(Step)
    return Fault(
        kind=kind,
        process=process,
        after=after,
        step=random.choice(steps) if at else None,
        time=random.randrange(1, 4) if at else 1,
        seconds=0.5 + random.random() * (LONGEST_STOP - 0.5) if kind in (Kind.STOP, Kind.STOP_AT) else 0.0,
    )
