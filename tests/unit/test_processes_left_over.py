"""Kills what started a daemon: the next start ends what was left over, and nobody else's process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from codeconvoy.orchestrator.local_fleet import only_here
from codeconvoy.orchestrator.processes import Daemon, end_left_over, note_beside
from codeconvoy.schemas.errors import Unavailable

DEADLINE = 30.0
SLEEPS = ("sleep", "600")
IGNORES = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text("ready")
time.sleep(600)
"""
OWNER = """
import os, pathlib, signal, sys
from codeconvoy.orchestrator.processes import Daemon
log, ready, then, *argv = sys.argv[1:]
daemon = Daemon("Sleeper", argv, pathlib.Path(log))
daemon.start(lambda: not ready or pathlib.Path(ready).exists())
print(daemon.pid, flush=True)
if then == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
daemon.stop()
"""


LeftOver = Callable[..., psutil.Process]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a daemon's log shall be."""
    return tmp_path / "daemon" / "it.log"


@pytest.fixture
def left_over() -> Iterator[LeftOver]:
    """Makes a daemon whose owner was killed."""
    made: list[psutil.Process] = []

    def make(log: Path, *argv: str, ready: str = "") -> psutil.Process:
        with owner(log, "dies", *(argv or SLEEPS), ready=ready) as process:
            out, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == -signal.SIGKILL
        made.append(psutil.Process(int(out)))
        assert runs(made[-1])
        return made[-1]

    yield make
    for each in made:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def owner(log: Path, then: str, *argv: str, ready: str = "") -> "subprocess.Popen[bytes]":
    """A process that starts a daemon and says its pid; it `dies` at once, or `lives` until it is told."""
    program = (sys.executable, "-c", OWNER, str(log), ready, then, *argv)
    return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def bystander() -> Iterator[psutil.Process]:
    """A process with the command line of the daemon that is none."""
    with subprocess.Popen(SLEEPS, start_new_session=True) as process:
        try:
            found = psutil.Process(process.pid)
            # The kernel shows it a moment after the program was loaded.
            until(lambda: found.cmdline() == list(SLEEPS))
            yield found
        finally:
            process.kill()


@contextmanager
def started(log: Path) -> Iterator[psutil.Process]:
    daemon = Daemon("Sleeper", SLEEPS, log)
    daemon.start(lambda: True)
    assert daemon.pid is not None
    try:
        yield psutil.Process(daemon.pid)
    finally:
        daemon.kill()


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not look():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def noted(log: Path) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(note_beside(log).read_bytes())
    return found


def rewrite(log: Path, **changed: object) -> None:
    note_beside(log).write_bytes(msgspec.json.encode({**noted(log), **changed}))


def test_the_next_start_ends_what_was_left_over_and_only_that(
    log: Path, left_over: LeftOver, caplog: pytest.LogCaptureFixture
) -> None:
    old = left_over(log)
    other = left_over(log.with_name("other.log"))
    with bystander() as neighbour, started(log) as new:
        assert not runs(old)
        assert runs(new) and runs(other) and runs(neighbour)
        assert noted(log)["pid"] == new.pid
        [line] = caplog.messages
        assert "Sleeper" in line and str(old.pid) in line
        end_left_over(log.with_name("other.log"))
        assert not runs(other)
    assert not list(log.parent.glob("*.pid*"))


def test_a_foreign_process_that_has_got_the_pid_is_left_alone(
    log: Path, left_over: LeftOver, caplog: pytest.LogCaptureFixture
) -> None:
    old = left_over(log)
    os.killpg(old.pid, signal.SIGKILL)
    until(lambda: not runs(old))
    with bystander() as foreign:
        # The same command line, started at another time: that of a later process, never of this one.
        rewrite(log, pid=foreign.pid, started=noted(log)["started"] - 5)
        with started(log) as new:
            assert runs(foreign) and runs(new)
    assert not caplog.messages


def test_a_process_with_another_command_line_is_left_alone(
    log: Path, left_over: LeftOver, caplog: pytest.LogCaptureFixture
) -> None:
    old = left_over(log)
    real = noted(log)["command"]
    rewrite(log, command=[*SLEEPS, "more"])
    with started(log) as new:
        assert runs(old) and runs(new)
        assert not caplog.messages
        rewrite(log, pid=old.pid, command=real, started=round(old.create_time() - psutil.boot_time(), 2))
        end_left_over(log)
        # It was the command line that had saved it.
        assert not runs(old) and runs(new)


def test_what_ignores_to_be_told_is_killed(log: Path, left_over: LeftOver, tmp_path: Path) -> None:
    ready = str(tmp_path / "ready")
    old = left_over(log, sys.executable, "-c", IGNORES, ready, ready=ready)
    end_left_over(log, 0.2)
    assert not runs(old)
    assert not note_beside(log).exists()


def test_a_daemon_that_becomes_another_program_is_known_again(
    log: Path, left_over: LeftOver, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    inner = f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(600)"
    old = left_over(log, "sh", "-c", 'exec "$0" -c "$1"', sys.executable, inner, ready=str(ready))
    assert old.cmdline()[0] == sys.executable
    with started(log):
        assert not runs(old)


def test_a_daemon_whose_owner_runs_is_not_left_over(log: Path) -> None:
    with owner(log, "lives", *SLEEPS) as process:
        assert process.stdout is not None
        theirs = psutil.Process(int(process.stdout.readline()))
        ours = Daemon("Sleeper", SLEEPS, log)
        with pytest.raises(Unavailable) as refused:
            ours.start(lambda: True)
        assert str(theirs.pid) in refused.value.reason
        assert str(process.pid) in refused.value.remedy
        assert ours.pid is None and runs(theirs)
        process.communicate(timeout=DEADLINE)
    assert not runs(theirs) and not note_beside(log).exists()


def test_a_daemon_that_this_process_has_forgotten_is_ended(log: Path) -> None:
    forgotten = Daemon("Sleeper", SLEEPS, log)
    forgotten.start(lambda: True)
    assert forgotten.pid is not None
    with started(log) as new:
        assert forgotten.pid is None
        # Whoever remembers it after all does not take the other's note away.
        forgotten.stop()
        assert noted(log)["pid"] == new.pid


def test_a_daemon_that_was_killed_is_started_again(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    daemon = Daemon("Sleeper", SLEEPS, log)
    for end in (daemon.kill, daemon.stop, daemon.kill):
        daemon.start(lambda: True)
        assert noted(log)["pid"] == daemon.pid
        end()
        assert daemon.pid is None and not note_beside(log).exists()
    assert not caplog.messages


def test_a_daemon_is_noted_before_it_is_ready_and_as_it_is_then(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, looks, noted_then = Daemon("Sleeper", SLEEPS, log), [0], list[bool]()

    def cmdline(process: psutil.Process) -> list[str]:
        # None, as long as the kernel loads the program; then its first one, then that which it takes itself.
        looks[0] += 1
        return [] if looks[0] <= 2 else ["ready"] if noted_then else ["starts"]

    def is_ready() -> bool:
        noted_then.append(note_beside(log).exists())
        return True

    monkeypatch.setattr(psutil.Process, "cmdline", cmdline)
    daemon.start(is_ready)
    assert noted_then == [True]
    assert noted(log)["command"] == ["ready"]
    daemon.stop()


def test_a_daemon_that_does_not_start_leaves_no_note(log: Path) -> None:
    with pytest.raises(Unavailable, match="was not ready"):
        Daemon("Sleeper", SLEEPS, log).start(lambda: False, 0.1)
    assert not note_beside(log).exists()


@pytest.mark.parametrize("content", [b"", b"4711", b'{"pid": 4711}', b"\xff\xfe", b'{"pid": -1}'])
def test_a_note_that_cannot_be_read_is_none(log: Path, content: bytes) -> None:
    log.parent.mkdir()
    note_beside(log).write_bytes(content)
    with started(log) as new:
        assert noted(log)["pid"] == new.pid


def test_an_argument_that_is_not_utf_8_can_be_noted(log: Path, left_over: LeftOver) -> None:
    strange = os.fsdecode(b"import time; '\xff'; time.sleep(600)")
    old = left_over(log, sys.executable, "-c", "import time; time.sleep(600)", strange)
    end_left_over(log)
    assert not runs(old)


@pytest.mark.parametrize("place", ["redis/redis.log", "fleet/redis/redis.log", "kafka/kafka.log"])
def test_a_fleet_begins_with_the_end_of_what_was_left_over(
    tmp_path: Path, left_over: LeftOver, place: str
) -> None:
    old = left_over(tmp_path / place)
    with only_here(tmp_path):
        assert not runs(old)


def git(repo: Path, *arguments: str) -> str:
    argv = ["git", "-C", str(repo), *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_the_directory_of_a_fleet_is_none_of_git_s_business(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    for data in (tmp_path / ".convoy" / "demo", tmp_path / ".convoy", tmp_path / "fleets" / "one"):
        for _ in range(2):
            with only_here(data):
                (data / "fleet.json").touch()
    assert git(tmp_path, "status", "--porcelain", "--untracked-files=all") == ""


def test_what_the_user_wrote_stays(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").touch()
    with only_here(tmp_path):
        assert "?? code.py" in git(tmp_path, "status", "--porcelain").splitlines()
    own = tmp_path / ".convoy" / ".gitignore"
    own.parent.mkdir()
    own.write_text("logs/")
    with only_here(own.parent):
        assert own.read_text() == "logs/"
