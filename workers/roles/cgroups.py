"""Reads /proc and the cgroup file systems, writes child groups there: limits on a whole process tree.

Rlimits can't do it: RLIMIT_AS is per process, and RLIMIT_NPROC is not enforced for root. Version 1
has a hierarchy for each controller (`memory`, `pids`), version 2 has one for all.
"""

import os
import secrets
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_PREFIX = "codeconvoy-"
_REMOVE_SECONDS = 5.0
_Settings = tuple[tuple[str, int, bool], ...]
"""File, value, and whether the limit stands or falls with it."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group that was made for one command."""

    limits: tuple[str, ...]
    """What it limits: `memory`, `processes` or both."""
    path: Path

    @property
    def procs(self) -> Path:
        """The file that a process joins by."""
        return self.path / "cgroup.procs"

    def kill(self) -> None:
        """Kill whatever is in the group and may be seen from here. What may not is listed as 0, and to kill
        0 is to kill one's own process group."""
        for pid in {int(line) for line in _read(self.procs).split()} - {0}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def remove(self) -> None:
        """Kill what is in the group and remove it. One that does not go within five seconds (the
        kernel holds a process) is left to `create`, which sweeps."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        while not _rmdir(self.path) and time.monotonic() < deadline:
            self.kill()
            time.sleep(0.005)


def create(memory_bytes: int, processes: int, proc: Path = Path("/proc/self")) -> tuple[Group, ...]:
    """Groups with these limits, as far as this process may make them: for neither, one or both.

    Groups that a killed process of codeconvoy left behind are removed on the way.

    Args:
        memory_bytes: of all processes together.
        processes: threads count, as the kernel counts them.
        proc: where it says which groups and mounts this process has.
    """
    found = homes(_read(proc / "cgroup"), _read(proc / "mountinfo"))
    name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    pids: _Settings = (("pids.max", processes, True),)
    if "memory" in found or "pids" in found:
        memory: _Settings = (
            ("memory.limit_in_bytes", memory_bytes, True),
            ("memory.memsw.limit_in_bytes", memory_bytes, False),
        )
        wanted = ((found.get("memory"), {"memory": memory}), (found.get("pids"), {"processes": pids}))
        groups = (_make(home, name, limits) for home, limits in wanted if home)
        return tuple(group for group in groups if group)
    if "" not in found:
        return ()
    both = {
        "memory": (("memory.max", memory_bytes, True), ("memory.swap.max", 0, False)),
        "processes": pids,
    }
    # A group that holds processes can't have limited children (but for the root): a sibling then.
    group = _make(found[""], name, both) or _make(found[""].parent, name, both)
    return (group,) if group else ()


def homes(cgroup: str, mountinfo: str) -> Mapping[str, Path]:
    """The directory of this process's own group, by controller; "" stands for version 2.

    Args:
        cgroup: the text of /proc/self/cgroup: `4:memory:/a/b`, and `0::/a/b` for version 2.
        mountinfo: the text of /proc/self/mountinfo (proc_pid_mountinfo(5)).
    """
    own: dict[str, str] = {}
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    found = {}
    for line in mountinfo.splitlines():
        fields, _, mounted = line.partition(" - ")
        root, point = fields.split()[3:5]
        kind, _, options = mounted.split()[:3]
        names = options.split(",") if kind == "cgroup" else [""] if kind == "cgroup2" else []
        for name in names:
            path = own.get(name, "")
            if path.startswith(root) and ".." not in path.split("/"):
                found[name] = Path(point) / path[len(root) :].lstrip("/")
    return found


def _make(home: Path, name: str, limits: Mapping[str, _Settings]) -> Group | None:
    """A group in `home` that holds at least one of the limits, or None."""
    _sweep(home)
    path = home / name
    try:
        path.mkdir()
    except OSError:  # not ours to write to: the caller names the limits that are missing
        return None
    held = tuple(limit for limit, settings in limits.items() if _set(path, settings))
    if not held or not os.access(path / "cgroup.procs", os.W_OK):
        _rmdir(path)
        return None
    return Group(held, path)


def _set(path: Path, settings: _Settings) -> bool:
    """True where every setting took that the limit stands or falls with."""
    held = True
    for name, value, needed in settings:
        try:
            descriptor = os.open(path / name, os.O_WRONLY)
            try:
                os.write(descriptor, str(value).encode())
            finally:
                os.close(descriptor)
        except OSError:  # no such controller here, or no swap accounting
            held = held and not needed
    return held


def _sweep(home: Path) -> None:
    """Remove the groups of processes that are gone (one that is in use can't be removed)."""
    for left in home.glob(f"{_PREFIX}*-*"):
        owner = left.name.removeprefix(_PREFIX).split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            _rmdir(left)


def _rmdir(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # busy
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # no such file system here
        return ""
