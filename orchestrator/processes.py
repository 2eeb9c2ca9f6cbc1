"""Reads a child's exit state and its log file, writes signals to it and a note of which process it is.

A daemon gets a session of its own, so that Ctrl-C in a terminal reaches only the program in front,
which then stops its daemons in the right order. It outlives a program that is killed: the note beside
its log tells the next start which process to end before it starts its own.
"""

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
import psutil

from codeconvoy.schemas.errors import Unavailable

READY_SECONDS = 60.0
STOP_SECONDS = 15.0
_POLL_SECONDS = 0.05
_LOG_TAIL_BYTES = 2_000
logger = logging.getLogger(__name__)


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listened on just now. Another process may take one before
    its user does; a service that finds its port taken says so in its log and ends."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(held.getsockname()[1]) for held in sockets]
    finally:
        for held in sockets:
            held.close()


class _Note(msgspec.Struct, frozen=True):
    """Which process a daemon is. A pid alone may be another's by the time that this is read."""

    name: str
    pid: Annotated[int, msgspec.Meta(ge=1)]
    parent: int
    """The pid of who started it; the system gives it another parent when that one ends."""
    started: float
    """In seconds since the machine was booted, which no change of the clock moves."""
    command: tuple[str, ...]
    """As the system shows it: a Redis gives itself another than it was started with."""


def note_beside(log: Path) -> Path:
    """The file that says which process writes this log."""
    return log.with_suffix(".pid")


def end_left_over(log: Path, seconds: float = STOP_SECONDS) -> None:
    """End the daemon that writes this log and whose parent is gone: SIGTERM, then SIGKILL after `seconds`.

    One that this very process started is ended as well: whoever calls this is about to start the only
    one that shall run. A process that merely has the pid of the note is left alone, and a note that
    can't be read is none: those that are written here are written whole.

    Raises:
        Unavailable: its parent runs, or it can't be ended.
    """
    note = _read_note(note_beside(log))
    if note is None:
        return
    with suppress(psutil.NoSuchProcess):
        # Taken before it is compared: it stays the same process, whoever gets its pid.
        process = psutil.Process(note.pid)
        now = _look(note.name, process)
        if now is not None and msgspec.structs.replace(now, parent=note.parent) == note:
            if now.parent == note.parent != os.getpid():
                reason = f"process {note.pid}, which process {note.parent} started, writes {log}"
                raise Unavailable(note.name, reason, f"Stop process {note.parent} first")
            _end(note.name, process, seconds)
            said = "%s: process %d was left over by an earlier start that was killed; it has been ended"
            logger.warning(said, note.name, note.pid)
    note_beside(log).unlink(missing_ok=True)


def _look(name: str, process: psutil.Process) -> _Note | None:
    """What there is to say of a process that runs; None for one that has ended, or may not be seen.

    Also for one that the kernel is just starting or ending: it has no command line for a moment.
    """
    try:
        started = round(process.create_time() - psutil.boot_time(), 2)
        # What is not UTF-8 in it could not be written.
        command = (part.encode(errors="backslashreplace").decode() for part in process.cmdline())
        note = _Note(name, process.pid, process.ppid(), started, tuple(command))
    except psutil.Error:
        return None
    return note if note.command else None


def _read_note(path: Path) -> _Note | None:
    with suppress(FileNotFoundError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=_Note)
    return None


def _end(name: str, process: psutil.Process, seconds: float) -> None:
    """SIGTERM to a left-over daemon and all that it started, SIGKILL when it has not ended in time."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _has_ended(process):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                return
            except PermissionError as error:
                reason = f"process {process.pid}, which an earlier start left over, is another user's"
                raise Unavailable(name, reason, f"Have it ended: sudo kill {process.pid}") from error
        deadline = time.monotonic() + seconds
        while not _has_ended(process):
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        else:
            return
    reason = f"process {process.pid}, which an earlier start left over, does not end"
    raise Unavailable(name, reason, f"End it by hand: kill -9 {process.pid}")


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Daemon:
    """One child process whose output goes to a log file. It can be started again after it ended.

    No two run with one log: what an owner that was killed has left over is ended first.
    """

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.argv, self.log = name, tuple(argv), log
        self._env = dict(env) if env is not None else None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id, while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self, is_ready: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
        """End what was left over, start it and wait until `is_ready()`.

        Raises:
            Unavailable: it ended at once or was not ready within `seconds`; it is stopped then. Or one
                with this log belongs to another process that runs, or can't be ended.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        end_left_over(self.log)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._env,
            )
        deadline = time.monotonic() + seconds
        try:
            # This may be killed at any moment, and until it is ready it may change its own command line.
            while not (self._note() and is_ready() and self._note()):
                if self.pid is None:
                    raise self._failed(f"ended with status {self._process.poll()}")
                if time.monotonic() > deadline:
                    raise self._failed(f"was not ready within {seconds:.0f} s")
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self.kill()
            raise

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM, then SIGKILL when it has not ended within `seconds`."""
        self._signal(signal.SIGTERM)
        if self._process is not None:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
            self._forget()

    def kill(self) -> None:
        """SIGKILL to it and all that it started, and wait for its end."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._forget()

    def _signal(self, number: int) -> None:
        if (pid := self.pid) is not None:
            os.killpg(pid, number)

    def _note(self) -> bool:
        """Write which process it is, whole or not at all; False where that can't be told (yet)."""
        if (pid := self.pid) is None:
            return False
        # It was not waited for, so nobody else has its pid.
        note = _look(self.name, psutil.Process(pid))
        path = note_beside(self.log)
        if note is not None and note != _read_note(path):
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            partial.write_bytes(msgspec.json.encode(note) + b"\n")
            partial.replace(path)
        return note is not None

    def _forget(self) -> None:
        """Remove the note, unless it is of another daemon, which was started after this one."""
        path = note_beside(self.log)
        note = _read_note(path)
        if note is not None and self._process is not None and note.pid == self._process.pid:
            path.unlink(missing_ok=True)

    def _failed(self, how: str) -> Unavailable:
        tail = self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return Unavailable(self.name, f"it {how}", f"Its log {self.log} ends with:\n{tail}")
