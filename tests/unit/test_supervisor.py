"""Starts small processes: they are kept running, shown as what they are, and drained in order."""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from codeconvoy.orchestrator.supervisor import Child, Patience, Service, State, Supervisor

QUICK = Patience(shortest=0.02, longest=0.1, holds=60.0, drain=20.0, loop=3)
DEADLINE = 30.0
SERVES = """
import json, signal, sys, http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        healthy = self.path == "/healthz"
        body = json.dumps({"problems": []}) if healthy else 'convoy_in_flight{service="x"} 3\\n'
        self.send_response(200); self.end_headers(); self.wfile.write(body.encode())
    def log_message(self, *_): pass
def end(*_):
    open(sys.argv[2], "a").write(sys.argv[3] + "\\n"); sys.exit(0)
signal.signal(signal.SIGTERM, end)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""
FAILS = "import sys; print('no such thing'); print(); sys.exit(7)"
IGNORES = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[2]).write_text("ready")
time.sleep(600)
"""


def service(tmp_path: Path, name: str, code: str, *arguments: str, stage: int = 0) -> Service:
    def command(port: int) -> Sequence[str]:
        return (sys.executable, "-c", code, str(port), *arguments)

    return Service(name, command, tmp_path / f"{name}.log", stage)


def child(supervisor: Supervisor, name: str) -> Child:
    return next(each for each in supervisor.children if each.service.name == name)


async def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not look():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.01)


def supervise(supervisor: Supervisor, *looks: Callable[[], bool], hurry: bool = False) -> None:
    """Run until all looks have come true, one after the other; then stop."""

    async def run() -> None:
        stop, hurried = asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(supervisor.run(stop, hurried))
        try:
            for look in looks:
                await until(look)
        finally:
            stop.set()
            if hurry:
                hurried.set()
            async with asyncio.timeout(DEADLINE):
                await running

    asyncio.run(run())


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_what_runs_is_probed_and_drains_stage_by_stage(tmp_path: Path) -> None:
    order = tmp_path / "order"
    names = {"reader": 2, "writer": 0, "between": 1}
    services = [
        service(tmp_path, name, SERVES, str(order), name, stage=stage) for name, stage in names.items()
    ]
    supervisor = Supervisor(services, os.environ, patience=QUICK)
    pids: list[int] = []

    def all_run() -> bool:
        pids[:] = [each.pid for each in supervisor.children if each.pid is not None]
        return all(each.state is State.RUNNING for each in supervisor.children)

    def probed() -> bool:
        return all(each.status is not None and each.status.in_flight == 3 for each in supervisor.children)

    supervise(supervisor, all_run, probed)
    assert order.read_text().split() == ["writer", "between", "reader"]
    assert {each.state for each in supervisor.children} == {State.STOPPED}
    assert len(pids) == 3 and all(gone(pid) for pid in pids)


def test_a_process_that_is_killed_is_started_again(tmp_path: Path) -> None:
    supervisor = Supervisor(
        [service(tmp_path, "a", SERVES, str(tmp_path / "order"), "a")], os.environ, patience=QUICK
    )
    [watched] = supervisor.children
    first: list[int] = []

    def kill() -> bool:
        if watched.state is not State.RUNNING or watched.pid is None:
            return False
        first.append(watched.pid)
        os.kill(watched.pid, 9)
        return True

    def runs_again() -> bool:
        return watched.state is State.RUNNING and watched.pid not in (None, *first)

    supervise(supervisor, kill, runs_again)
    assert watched.restarts == 1
    assert "SIGKILL" in watched.said


def test_a_crash_loop_is_shown_with_its_last_line_and_goes_on(tmp_path: Path) -> None:
    states: list[State] = []
    supervisor = Supervisor(
        [service(tmp_path, "a", FAILS)],
        os.environ,
        patience=QUICK,
        changed=lambda each: states.append(each.state),
    )
    [watched] = supervisor.children
    supervise(supervisor, lambda: watched.restarts >= QUICK.loop + 1)
    assert states[: 2 * QUICK.loop] == [
        *[State.STARTING, State.WAITING] * (QUICK.loop - 1),
        State.STARTING,
        State.CRASH_LOOP,
    ]
    assert watched.said == "ended with exit code 7: no such thing"


def test_what_does_not_drain_in_time_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    patience = Patience(drain=0.2)
    supervisor = Supervisor([service(tmp_path, "a", IGNORES, str(ready))], os.environ, patience=patience)
    supervise(supervisor, ready.exists)
    assert supervisor.children[0].state is State.STOPPED


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    patience = Patience(drain=10 * DEADLINE)
    supervisor = Supervisor([service(tmp_path, "a", IGNORES, str(ready))], os.environ, patience=patience)
    supervise(supervisor, ready.exists, hurry=True)
    assert supervisor.children[0].state is State.STOPPED


def test_a_drain_ends_the_pause_before_a_restart(tmp_path: Path) -> None:
    patience = Patience(shortest=10 * DEADLINE, longest=10 * DEADLINE)
    supervisor = Supervisor([service(tmp_path, "a", FAILS)], os.environ, patience=patience)
    [watched] = supervisor.children
    supervise(supervisor, lambda: watched.said != "")
    assert watched.state is State.STOPPED and watched.restarts <= 1
