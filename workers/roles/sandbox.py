"""Reads and writes a private checkout: runs one command in it, walled in and limited.

bubblewrap is the wall: no network, nothing of the host but the checkout, the interpreter and the
system's libraries, an empty environment, a process tree of its own that ends with the command.
Where it is missing or forbidden nothing is run, unless the caller allows it without the wall.
"""

import asyncio
import contextlib
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.roles import cgroups

_LAUNCHER = Path(__file__).with_name("launch_limited.py")
_INSIDE = "/checkout"
_NOBODY = "65534"
_PROBE_SECONDS = 10.0
_DRAIN_SECONDS = 5.0
"""How long the pipe may stay open after everything was killed."""
_OVERHEAD = 4
"""Processes of the sandbox itself, which the limit must not count."""
_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What a command may use."""

    wall_seconds: float = 120.0
    cpu_seconds: int = 120
    """Of each process."""
    memory_bytes: int = 1024**3
    """Of all processes together."""
    processes: int = 64
    """At once, threads counted."""
    file_bytes: int = 64 * 1024**2
    """Of each file."""
    output_bytes: int = 16 * 1024
    """Kept of stdout and stderr, from the end."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the command ended."""

    exit_code: int
    """128 + N where signal N ended it; -1: not executed."""
    timed_out: bool
    duration_ms: int
    output_tail: bytes
    """The end of stdout and stderr, in one."""
    sandbox: str
    """`bubblewrap`, `unsandboxed` or `none` (not executed)."""
    unset_limits: tuple[str, ...] = ()
    """Those that do not hold; `memory` is one of them where it holds for each process alone."""


@functools.cache
def bubblewrap() -> str | None:
    """The program's path, if it is installed and may be used here; tried once in a process."""
    program = shutil.which("bwrap")
    if program is None:
        return None
    with tempfile.TemporaryDirectory(prefix="codeconvoy-probe-") as directory:
        # The interpreter is started, not just `true`: behind the wall it must find its own files.
        command = [*_wall(program, Path(directory), Limits()), sys.executable, "-c", ""]
        try:
            tried = subprocess.run(
                command, env=environment("/"), capture_output=True, timeout=_PROBE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired):  # it can't be used, and `run` says so
            return None
    return program if tried.returncode == 0 else None


async def run(
    command: Sequence[str] | str, checkout: Path, limits: Limits, *, unsandboxed: bool = False
) -> Outcome:
    """Run a command in the checkout. Cancelling kills all of its processes.

    Args:
        command: arguments, or a line for /bin/sh.
        checkout: a directory of the caller's own: the command may write to it, and to nothing else.
        limits: what the command may use; at the time limit all of its processes are killed.
        unsandboxed: run it without the wall where bubblewrap can't be used.

    Raises:
        Unavailable: the command could not be started at all.
    """
    program = await asyncio.to_thread(bubblewrap)
    if program is None and not unsandboxed:
        return Outcome(-1, False, 0, b"bubblewrap is not installed, or may not be used here", "none")
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    with tempfile.TemporaryDirectory(prefix="codeconvoy-run-", ignore_cleanup_errors=True) as directory:
        if program is None:
            return await _run(argv, environment(directory), checkout, limits, "unsandboxed")
        walled = [*_wall(program, checkout, limits), *argv]
        return await _run(walled, environment("/tmp"), checkout, limits, "bubblewrap")


def environment(home: str) -> Mapping[str, str]:
    """All that the command finds in its environment: nothing of the worker's."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
    }


def _wall(program: str, checkout: Path, limits: Limits) -> list[str]:
    """bubblewrap's arguments. Everything but the checkout, /tmp and /dev/shm is read-only."""
    size = str(limits.memory_bytes)
    wall = [program, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    wall += ["--uid", _NOBODY, "--gid", _NOBODY, "--proc", "/proc", "--dev", "/dev"]
    for directory in ("/dev/shm", "/tmp"):
        wall += ["--size", size, "--tmpfs", directory]
    wall += ["--remount-ro", "/dev", "--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(name):
            wall += ["--symlink", os.readlink(name), name]
        else:
            wall += ["--ro-bind-try", name, name]
    for name in ("/etc/ld.so.cache", "/etc/alternatives", *_interpreter()):
        wall += ["--ro-bind-try", name, name]
    return [*wall, "--bind", str(checkout), _INSIDE, "--remount-ro", "/", "--chdir", _INSIDE, "--"]


def _interpreter() -> list[str]:
    """The directories of the interpreter and its virtual environment that are not below /usr."""
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    prefixes |= {os.path.realpath(prefix) for prefix in prefixes}
    # A prefix of "/" would be the whole host; what is outside of it is not found, and nothing runs.
    return sorted(
        prefix
        for prefix in prefixes
        if len(Path(prefix).parts) > 1 and not Path(prefix).is_relative_to("/usr")
    )


async def _run(
    argv: Sequence[str], env: Mapping[str, str], checkout: Path, limits: Limits, sandbox: str
) -> Outcome:
    """Start the command with its limits, wait for it, and leave nothing of it behind."""
    async with contextlib.AsyncExitStack() as stack:
        groups = await asyncio.to_thread(cgroups.create, limits.memory_bytes, limits.processes + _OVERHEAD)
        for group in groups:
            stack.push_async_callback(asyncio.to_thread, group.remove)
        report, writing = os.pipe()
        stack.callback(os.close, report)
        plan = {
            "groups": [(group.limits, str(group.procs)) for group in groups],
            "rlimits": await asyncio.to_thread(_rlimits, limits),
            "report": writing,
        }
        started = time.monotonic()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S", str(_LAUNCHER), json.dumps(plan), *argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=env,
                cwd=checkout,
                start_new_session=True,
                pass_fds=(writing,),
            )
        finally:
            os.close(writing)
        tail, timed_out = await _watch(process, groups, limits)
        duration_ms = round((time.monotonic() - started) * 1000)
        held = os.read(report, _CHUNK)  # the launcher is gone: this never waits
    if not held:
        raise Unavailable("Sandbox", tail.decode(errors="replace")[-500:], "Look at the worker's host")
    code = process.returncode or 0
    unset = _unset(frozenset(json.loads(held)), frozenset(one for group in groups for one in group.limits))
    return Outcome(code if code >= 0 else 128 - code, timed_out, duration_ms, tail, sandbox, unset)


async def _watch(
    process: asyncio.subprocess.Process, groups: Sequence[cgroups.Group], limits: Limits
) -> tuple[bytes, bool]:
    """The end of its output, and whether it ran into the time limit. Afterwards it is gone."""
    tail = bytearray()
    output = asyncio.create_task(_keep_tail(process, tail, limits.output_bytes))
    timed_out = False
    try:
        async with asyncio.timeout(limits.wall_seconds):
            await process.wait()
    except TimeoutError:
        timed_out = True
    finally:
        _kill(process, groups)
        await process.wait()
        await asyncio.wait({output}, timeout=_DRAIN_SECONDS)
        output.cancel()
    return bytes(tail), timed_out


async def _keep_tail(process: asyncio.subprocess.Process, tail: bytearray, keep: int) -> None:
    """Read all output and keep its end."""
    while process.stdout and (chunk := await process.stdout.read(_CHUNK)):
        tail += chunk
        del tail[:-keep]


def _kill(process: asyncio.subprocess.Process, groups: Sequence[cgroups.Group]) -> None:
    """Kill the process, its descendants, and what they left in the background."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for descendant in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                descendant.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for group in groups:
        group.kill()


def _rlimits(limits: Limits) -> list[tuple[str, int, int]]:
    """Name, number and value of each; `memory` and `processes` count where no cgroup holds them."""
    # The kernel counts all threads of the user, so those that are there come on top.
    running = sum(
        process.info["num_threads"] or 0
        for process in psutil.process_iter(["num_threads", "uids"])
        if process.info["uids"] and process.info["uids"].real == os.getuid()
    )
    return [
        ("cpu", resource.RLIMIT_CPU, limits.cpu_seconds),
        ("file size", resource.RLIMIT_FSIZE, limits.file_bytes),
        ("core", resource.RLIMIT_CORE, 0),
        ("memory", resource.RLIMIT_AS, limits.memory_bytes),
        ("processes", resource.RLIMIT_NPROC, running + limits.processes + _OVERHEAD),
    ]


def _unset(held: frozenset[str], grouped: frozenset[str]) -> tuple[str, ...]:
    """The limits that do not hold as they were meant."""
    weak = {"memory"}  # RLIMIT_AS is per process
    if os.geteuid() == 0:
        weak.add("processes")  # RLIMIT_NPROC is not enforced for root
    wanted = {"cpu", "file size", "memory", "processes"}
    return tuple(sorted(limit for limit in wanted if limit not in held or limit in weak - grouped))
