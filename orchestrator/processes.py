"""Reads a child's exit state and its log file, writes signals to it: processes that are started here.

A daemon gets a session of its own, so that Ctrl-C in a terminal reaches only the program in front,
which then stops its daemons in the right order.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from codeconvoy.schemas.errors import Unavailable

READY_SECONDS = 60.0
STOP_SECONDS = 15.0
_POLL_SECONDS = 0.05
_LOG_TAIL_BYTES = 2_000


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listened on just now. Another process may take one before
    its user does; a service that finds its port taken says so in its log and ends."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(held.getsockname()[1]) for held in sockets]
    finally:
        for held in sockets:
            held.close()


class Daemon:
    """One child process whose output goes to a log file. It can be started again after it ended."""

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
        """Start it and wait until `is_ready()`.

        Raises:
            Unavailable: it ended at once or was not ready within `seconds`; it is stopped then.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
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
            while not is_ready():
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

    def kill(self) -> None:
        """SIGKILL to it and all that it started, and wait for its end."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def _signal(self, number: int) -> None:
        if (pid := self.pid) is not None:
            os.killpg(pid, number)

    def _failed(self, how: str) -> Unavailable:
        tail = self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return Unavailable(self.name, f"it {how}", f"Its log {self.log} ends with:\n{tail}")
