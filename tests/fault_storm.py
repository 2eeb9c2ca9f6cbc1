"""Reads what a fleet does, writes misfortune: lets the faults of a schedule strike while jobs run."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGKILL, SIGSTOP, SIGTERM

from tests.fault_process import Sprung
from tests.fault_schedule import MORE, OTHER, SCALED, Fault, Kind
from tests.fault_world import Tasks, World, paths_of
from tests.fleets import until

BACKLOG = 10
"""Calls that are still to come when there is a next job: there is always something to do."""
CALLS_A_FILE = 3
"""Two roles sign its last line, and one of them has to reconcile that."""


class Storm:
    """A fleet under a schedule of faults."""

    def __init__(self, world: World, directory: Path) -> None:
        self._world, self._directory = world, directory
        self._jobs: list[tuple[str, Path, Tasks]] = []
        self._expected = 0
        """Calls that all jobs so far will come to."""
        self._wakes: dict[str, float] = {}
        """When those that are stopped go on."""
        self._stops: dict[str, float] = {}
        """For how long a process that runs into its trap is stopped."""
        self._seen: set[Sprung] = set()

    def strike(self, faults: Sequence[Fault]) -> None:
        """Let them strike one after the other."""
        for fault in faults:
            print(f"{len(self._world.gates.calls())} calls; {fault}")
            self._submit()
            wanted = len(self._world.gates.calls()) + fault.after
            self._until(lambda wanted=wanted: len(self._world.gates.calls()) >= wanted, f"{wanted} calls")  # type: ignore[misc]
            self._strike(fault)

    def recover(self) -> None:
        """Let everybody be well again, and all jobs end."""
        world = self._world
        self._until(lambda: not self._wakes, "all go on")
        world.traps.clear()
        for name in world.running():
            world.fleet[name].wait_ready()
        for job in self._jobs:
            world.wait_end(*job)

    def _submit(self) -> None:
        """One more job, where the others are nearly through."""
        if self._expected - len(self._world.gates.calls()) > BACKLOG:
            return
        workspace = self._directory / f"{self._directory.name}-{len(self._jobs)}"
        paths = paths_of(workspace.name, "file", 1)
        tasks = {SCALED: paths, OTHER: paths}
        self._jobs.append((self._world.submit(workspace / "repo", tasks), workspace / "repo", tasks))
        self._expected += CALLS_A_FILE * len(paths)

    def _strike(self, fault: Fault) -> None:
        world, name = self._world, fault.process
        match fault.kind:
            case Kind.KILL:
                self._wakes.pop(name, None)
                world.kill(name)
                world.launch(name)
            case Kind.STOP:
                world.stop(name)
                self._wakes[name] = time.monotonic() + fault.seconds
            case Kind.KILL_AT if fault.step:
                world.traps.set(name, fault.step, SIGKILL, fault.time)
            case Kind.STOP_AT if fault.step:
                self._stops[name] = fault.seconds
                world.traps.set(name, fault.step, SIGSTOP, fault.time)
            case Kind.ADD:
                world.launch(name)
                if name == MORE[-1]:
                    self._until(lambda: world.fleet.shares(SCALED).keys() >= set(MORE), "all have a share")
            case Kind.RESTART:
                self._end(name)
                world.launch(name)
            case Kind.REMOVE:
                self._end(name)

    def _end(self, name: str) -> None:
        """SIGTERM, and wait for the end, while the others are looked after."""
        world = self._world
        world.traps.remove(name)
        self._tend()
        if self._wakes.pop(name, None) is not None:
            world.resume(name)
        world.fleet[name].signal(SIGTERM)
        self._until(
            lambda: not world.fleet[name].runs, lambda: f"{name} has drained\n{world.fleet[name].log()}"
        )

    def _until(self, so: Callable[[], bool], what: str | Callable[[], str]) -> None:
        def look() -> bool:
            self._tend()
            return so()

        until(look, what)

    def _tend(self) -> None:
        """What a supervisor does, and the end of the stops."""
        world, now = self._world, time.monotonic()
        for one in set(world.sprung()) - self._seen:
            self._seen.add(one)
            if one.signal is SIGSTOP:
                self._wakes[one.name] = now + self._stops[one.name]
            else:
                world.launch(one.name)
        for name in [name for name, wakes in self._wakes.items() if wakes <= now]:
            del self._wakes[name]
            world.resume(name)
