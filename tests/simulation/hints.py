"""Reads what a projector says, writes the hints of workers: a channel that loses, delays and doubles them."""

from collections.abc import Mapping
from random import Random

from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.workers.engine.fold_consumer import Stored
from codeconvoy.workers.moves import Hints, Move, moves_of
from tests.simulation.loop import SimulationLoop
from tests.simulation.process import SimProcess

LOST = 0.3
"""Share of the messages that a worker never gets."""
LATE_SECONDS = 3.0


class SimMoves:
    """Redis' pub/sub, as a fleet without luck knows it."""

    def __init__(self, random: Random, loop: SimulationLoop) -> None:
        self._random, self._loop = random, loop
        self._hints: dict[SimProcess, Hints] = {}

    def of(self, process: SimProcess) -> Hints:
        """Where a process hears of what moved."""
        return self._hints.setdefault(process, Hints())

    def channel(self, process: SimProcess) -> Stored[FileHistory]:
        """Where a process says what moved."""

        async def publish(changes: Mapping[str, tuple[FileHistory | None, FileHistory]]) -> None:
            await process.point("moves.publish")
            if moves := moves_of(changes):
                for listening, hints in self._hints.items():
                    if not listening.dead:
                        self._send(hints, moves)

        return publish

    def _send(self, hints: Hints, moves: list[Move]) -> None:
        random = self._random
        if random.random() >= LOST:
            for _ in range(random.choice((1, 1, 2))):
                self._loop.call_later(random.random() * LATE_SECONDS, hints.tell, moves)
