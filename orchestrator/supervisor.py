"""Reads exit states and status endpoints of processes, writes signals and logs: keeps processes running.

A process that ends by itself is started again after a pause that grows while it does not hold; it is
never given up, since what it needs may come back. At the end processes drain stage by stage.
"""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from codeconvoy.orchestrator.probe import Probe, probe
from codeconvoy.orchestrator.processes import free_ports

PROBE_EVERY_SECONDS = 1.0
_LOG_TAIL_BYTES = 4_000


@dataclass(frozen=True, slots=True)
class Service:
    """One process that shall run."""

    name: str
    command: Callable[[int], Sequence[str]]
    """The argument vector, given the port at which it shall serve its status."""
    log: Path
    """What it writes is appended here."""
    stage: int = 0
    """Lower stages drain first."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Times of the supervisor, in seconds."""

    shortest: float = 0.5
    longest: float = 30.0
    """First and longest pause before a restart."""
    holds: float = 60.0
    """A process that ran so long has held: the next pause is the shortest again."""
    drain: float = 20.0
    """What one stage may take to end after SIGTERM, before SIGKILL."""
    loop: int = 3
    """So many ends in a row without holding are called a crash loop."""


class State(StrEnum):
    """Where a process stands."""

    STARTING = "starting"
    """It runs, and its status endpoint has not answered yet."""
    RUNNING = "running"
    UNHEALTHY = "unhealthy"
    WAITING = "waiting"
    """It ended, and is started again after a pause."""
    CRASH_LOOP = "crash loop"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(slots=True)
class Child:
    """One service and the process that runs it now."""

    service: Service
    state: State = State.WAITING
    pid: int | None = None
    port: int = 0
    restarts: int = 0
    ends_in_a_row: int = 0
    status: Probe | None = None
    said: str = ""
    """The last line of its log, when it ended by itself."""
    draining: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Keeps services running until it is told to stop."""

    def __init__(
        self,
        services: Sequence[Service],
        environment: Mapping[str, str],
        *,
        patience: Patience | None = None,
        changed: Callable[[Child], None] = lambda child: None,
    ) -> None:
        """`changed` is called after each change of a child's state."""
        self.children = tuple(Child(service) for service in services)
        self._environment = dict(environment)
        self._patience = patience or Patience()
        self._changed = changed

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Start everything, keep it running until `stop`, then drain; `hurry` cuts the drain short."""
        keepers = {child.service.name: asyncio.create_task(self._keep(child)) for child in self.children}
        prober = asyncio.create_task(self._probe_all())
        stopping = asyncio.create_task(stop.wait())
        try:
            # A keeper that ends before it was told to has failed itself, not its process.
            await asyncio.wait([stopping, prober, *keepers.values()], return_when=asyncio.FIRST_COMPLETED)
            for stage in sorted({child.service.stage for child in self.children}):
                await self._drain(
                    [child for child in self.children if child.service.stage == stage], keepers, hurry
                )
        finally:
            for task in (stopping, prober, *keepers.values()):
                task.cancel()
            for child in self.children:
                self._signal(child, signal.SIGKILL)
        for task in (prober, *keepers.values()):
            with suppress(asyncio.CancelledError):
                await task

    async def _keep(self, child: Child) -> None:
        """Start the child, and start it again whenever it ends, until it is draining."""
        while not child.draining.is_set():
            began = time.monotonic()
            status = await self._run_once(child)
            if child.draining.is_set():
                break
            held = time.monotonic() - began >= self._patience.holds
            child.ends_in_a_row = 1 if held else child.ends_in_a_row + 1
            child.said = f"ended with {_named(status)}: {_last_line(child.service.log)}"
            self._become(
                child,
                State.CRASH_LOOP if child.ends_in_a_row >= self._patience.loop else State.WAITING,
            )
            await self._pause(child)
            child.restarts += 1
        self._become(child, State.STOPPED)

    async def _run_once(self, child: Child) -> int:
        """One process from start to end; answers its exit status."""
        service = child.service
        service.log.parent.mkdir(parents=True, exist_ok=True)
        [child.port] = free_ports(1)
        with service.log.open("ab") as log:
            # A session of its own: Ctrl-C is for the supervisor, which then drains in order. Its standard
            # input stays open as long as the supervisor lives, whatever ends that.
            process = await asyncio.create_subprocess_exec(
                *service.command(child.port),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment,
            )
        child.pid = process.pid
        if child.draining.is_set():
            self._signal(child, signal.SIGTERM)
        else:
            self._become(child, State.STARTING)
        try:
            return await process.wait()
        finally:
            child.pid, child.status = None, None

    async def _pause(self, child: Child) -> None:
        """Wait before a restart, twice as long each time; a drain ends the wait."""
        patience = self._patience
        seconds = min(patience.shortest * 2 ** min(child.ends_in_a_row - 1, 10), patience.longest)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await child.draining.wait()

    async def _drain(
        self, children: Sequence[Child], keepers: Mapping[str, asyncio.Task[None]], hurry: asyncio.Event
    ) -> None:
        """SIGTERM to all of a stage, SIGKILL to those that take too long."""
        for child in children:
            if child.state is not State.STOPPED:
                self._become(child, State.DRAINING)
            child.draining.set()
            self._signal(child, signal.SIGTERM)
        ends = {keepers[child.service.name] for child in children}
        deadline = time.monotonic() + self._patience.drain
        hurried = asyncio.create_task(hurry.wait())
        while not hurry.is_set() and ends and time.monotonic() < deadline:
            await asyncio.wait(
                {hurried, *ends}, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED
            )
            ends = {end for end in ends if not end.done()}
        hurried.cancel()
        for child in children:
            self._signal(child, signal.SIGKILL)
        if ends:
            await asyncio.wait(ends)

    async def _probe_all(self) -> None:
        """Ask every process how it is, again and again."""
        while True:
            alive = [child for child in self.children if child.pid is not None]
            found = await asyncio.gather(*(probe(child.port) for child in alive))
            for child, status in zip(alive, found, strict=True):
                if child.pid is None or child.draining.is_set():
                    continue
                child.status = status
                if status is not None:
                    self._become(child, State.UNHEALTHY if status.problems else State.RUNNING)
                elif child.state is not State.STARTING:
                    self._become(child, State.UNHEALTHY)
            await asyncio.sleep(PROBE_EVERY_SECONDS)

    def _become(self, child: Child, state: State) -> None:
        if child.state is not state:
            child.state = state
            self._changed(child)

    def _signal(self, child: Child, number: int) -> None:
        if child.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)


def _named(status: int) -> str:
    return f"exit code {status}" if status >= 0 else signal.Signals(-status).name


def _last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
