"""Reads nothing, writes nothing: whether a process makes progress.

Health means progress, not a running process: a consumer that polls but does not get on is as
dead as one that has crashed, and harder to see.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from codeconvoy.workers.engine.bus import TopicPartition

TURN_LIMIT = 30.0
"""Seconds that a loop may need for one turn."""
PROGRESS_LIMIT = 120.0
"""Seconds that a loop with work before it may need to get on."""


@dataclass(slots=True)
class Health:
    """What the engine of a process says of itself. Times are seconds of `clock`."""

    clock: Callable[[], float]
    turn_limit: float = TURN_LIMIT
    progress_limit: float = PROGRESS_LIMIT
    turned_at: float = field(init=False)
    progressed_at: float = field(init=False)
    behind: bool = False
    stopped: dict[TopicPartition, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.turned_at = self.progressed_at = self.clock()

    def turned(self, *, progressed: bool, behind: bool) -> None:
        """The loop has turned once; `behind` says whether it has work before it."""
        now = self.clock()
        self.turned_at = now
        self.behind = behind
        if progressed or not behind:
            self.progressed_at = now

    @property
    def progress_age(self) -> float:
        """Seconds since the loop last got on, or had nothing to do."""
        return max(0.0, self.clock() - self.progressed_at)

    def problems(self) -> tuple[str, ...]:
        """Why the process is not healthy; empty if it is."""
        now = self.clock()
        found = [f"{at.topic}/{at.partition} is stopped: {why}" for at, why in self.stopped.items()]
        if now - self.turned_at > self.turn_limit:
            found.append(f"the loop has not turned for {now - self.turned_at:.0f} s")
        if self.behind and now - self.progressed_at > self.progress_limit:
            found.append(f"no progress for {now - self.progressed_at:.0f} s though there is work")
        return tuple(found)
