"""Reads traps, writes nothing but its own end: `convoy`, in a process that stops at an exact step.

    python fault_process.py TRAPS worker ROLE --instance test-0 …

A trap is a file in TRAPS, set by a test for one process: at this step, for the so-manieth time,
that process sends itself this signal. The program is the product's own; around its agents and
around the Kafka client's producer and consumer there is a look at the trap, and nothing else.
"""

import os
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from signal import Signals, pthread_kill
from threading import get_ident
from typing import Any
from unittest.mock import patch

from confluent_kafka import Consumer, Producer

from codeconvoy.orchestrator import cli, fleet
from codeconvoy.workers.engine import kafka_consumer, kafka_producer
from codeconvoy.workers.roles.agents import make_agent
from codeconvoy.workers.roles.role import Agent, Answer, Context

FLUSH_SECONDS = 10.0


class Step(StrEnum):
    """Where a process can be stopped. Only what writes something counts, but for `SILENT` processes."""

    REPLIED = "replied"
    """The model has answered; nothing of it is on the log."""
    PRODUCED = "produced"
    """The outputs are with the broker, the offsets are not, and nothing is committed."""
    SENT = "sent"
    """The outputs and the offsets are with the broker, and nothing is committed."""
    COMMITTED = "committed"
    """All is committed, and the process does not know it yet. A fold has not written its state."""


SILENT = ("projector", "orchestrator")
"""They have nothing to write but offsets, always or often: their commits of offsets alone count too."""
IN_TRANSACTIONS = (Step.PRODUCED, Step.SENT, Step.COMMITTED)


@dataclass(frozen=True)
class Sprung:
    """A trap that has done its work."""

    name: str
    signal: Signals
    pid: int
    at: int
    """Nanoseconds of the monotonic clock."""


class Traps:
    """The test's side: sets traps by the name of a process in its fleet (`ROLE`, `ROLE/1`)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def set(self, name: str, step: Step, signal: Signals, nth: int = 1) -> None:
        """At the `nth` `step` from now on the process sends itself the signal."""
        file = self._file(name)
        partial = file.with_name(f".{file.name}")
        partial.write_text(f"{step} {nth} {signal.value}")
        partial.rename(file)

    def remove(self, name: str) -> None:
        """Set no trap for this process any more."""
        self._file(name).unlink(missing_ok=True)

    def sprung(self) -> list[Sprung]:
        """Those that have done their work."""
        found = []
        for file in self.directory.glob("sprung-*"):
            process, pid, at = file.name.removeprefix("sprung-").rsplit("-", 2)
            role, _, instance = process.rpartition(".")
            number = instance.removeprefix("test-")
            signal = Signals(int(file.read_text().split()[2]))
            found.append(Sprung(role if number == "0" else f"{role}/{number}", signal, int(pid), int(at)))
        return found

    def _file(self, name: str) -> Path:
        role, _, number = name.partition("/")
        return self.directory / f"{role}.test-{number or 0}"

    def clear(self) -> None:
        """Remove all, set or sprung."""
        for file in self.directory.iterdir():
            file.unlink()


class Trap:
    """The process's side: the trap that is set for it, if one is."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def is_set(self, step: Step) -> bool:
        """Whether it waits for this step."""
        return self._read()[0] == step

    def at(self, step: Step) -> None:
        """The process is at this step: stop here, if it is the one."""
        wanted, left, number = self._read()
        if wanted != step:
            return
        if left > 1:
            self._file.write_text(f"{wanted} {left - 1} {number}")
            return
        pid = os.getpid()
        self._file.rename(self._file.with_name(f"sprung-{self._file.name}-{pid}-{time.monotonic_ns()}"))
        # Not to the process: another of its threads would be woken to stop it, while this one goes on.
        pthread_kill(get_ident(), number)

    def _read(self) -> tuple[str, int, int]:
        try:
            wanted, left, number = self._file.read_text().split()
        except FileNotFoundError:
            return "", 0, 0
        return wanted, int(left), int(number)


class TrappedAgent:
    """An agent after whose answers there may be a trap."""

    def __init__(self, agent: Agent, trap: Trap) -> None:
        self._agent, self._trap = agent, trap

    async def work(self, context: Context) -> Answer:
        """See `Agent`."""
        answer = await self._agent.work(context)
        self._trap.at(Step.REPLIED)
        return answer

    async def close(self) -> None:
        """See `Agent`."""
        await self._agent.close()


def trapped(trap: Trap, is_silent: bool) -> type[Producer]:
    """The client's producer, with a trap at each step of a transaction."""

    class Trapped(Producer):
        counts = is_silent

        def begin_transaction(self) -> None:
            self.counts = is_silent
            super().begin_transaction()

        def produce(self, *arguments: Any, **named: Any) -> None:
            super().produce(*arguments, **named)
            self.counts = True

        def send_offsets_to_transaction(self, *arguments: Any) -> None:
            self._at(Step.PRODUCED)
            super().send_offsets_to_transaction(*arguments)

        def commit_transaction(self, *arguments: Any) -> None:
            self._at(Step.SENT)
            super().commit_transaction(*arguments)
            self._at(Step.COMMITTED)

        def _at(self, step: Step) -> None:
            if self.counts and trap.is_set(step):
                self.flush(FLUSH_SECONDS)
                trap.at(step)

    return Trapped


def trapped_consumer(trap: Trap, is_silent: bool) -> type[Consumer]:
    """The client's consumer, with a trap before and after a commit of offsets alone."""

    class Trapped(Consumer):
        def commit(self, *arguments: Any, **named: Any) -> Any:
            for step in (Step.PRODUCED, Step.SENT) if is_silent else ():
                trap.at(step)
            answer = super().commit(*arguments, **named)
            if is_silent:
                trap.at(Step.COMMITTED)
            return answer

    return Trapped


def main() -> None:
    """Run the command line with the trap of its process."""
    directory = Path(sys.argv.pop(1))
    kind = sys.argv[2] if sys.argv[1] == "worker" else sys.argv[1]
    instance = sys.argv[sys.argv.index("--instance") + 1]
    trap = Trap(directory / f"{kind}.{instance}")

    def make(*given: Any, **named: Any) -> Agent:
        return TrappedAgent(make_agent(*given, **named), trap)

    with (
        patch.object(fleet, "make_agent", make),
        patch.object(kafka_producer, "Producer", trapped(trap, kind in SILENT)),
        patch.object(kafka_consumer, "Consumer", trapped_consumer(trap, kind in SILENT)),
    ):
        cli.main()


if __name__ == "__main__":
    main()
