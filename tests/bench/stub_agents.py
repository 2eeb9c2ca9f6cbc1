"""Reads nothing, writes a log of its calls where it is told to: the agents in place of models.

They are a provider `bench`, as an installed package would bring one: the fleets of the bench run the
commands that a user runs. Options: `seconds` that each call takes, and `log`, a file to which each call
appends `PID PATH TIME` when it begins (seconds of the machine's monotonic clock).
"""

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from codeconvoy.workers.llm.provider import Credentials
from codeconvoy.workers.roles.role import Agent, Answer, Context, Edits, FileEdit, Role, RoleKind, Vote

PROVIDER = "bench"


class _Stub:
    """Changes one line of its file, approves of everything, writes no test."""

    def __init__(self, role: Role) -> None:
        self._kind = role.kind
        self._seconds = float(role.options.get("seconds", "0"))
        self._log = role.options.get("log", "")

    async def work(self, context: Context) -> Answer:
        """See `Agent`."""
        if self._log:
            with open(self._log, "a") as log:  # noqa: ASYNC230 - one short write
                log.write(f"{os.getpid()} {context.task.path} {time.monotonic()}\n")
        if self._seconds:
            await asyncio.sleep(self._seconds)
        match self._kind:
            case RoleKind.REVIEW:
                return Vote(approved=True)
            case RoleKind.TEST:
                return Edits((), summary="nothing to test")
        return Edits((FileEdit(context.task.path, _changed(context)),), summary="one line")

    async def close(self) -> None:
        """See `Agent`."""


def _changed(context: Context) -> bytes:
    """The file with one line, which depends on the task, made the task's own."""
    lines = (context.file.content or b"\n").splitlines(keepends=True)
    task = context.task.task_id.encode()
    lines[sum(task) % len(lines)] = b"    note = %r\n" % task.decode()
    return b"".join(lines)


def make(role: Role, credentials: Credentials) -> Agent:
    """The provider: see the entry points of group `codeconvoy.providers`."""
    return _Stub(role)


def installed(directory: Path) -> Mapping[str, str]:
    """The environment in which the provider is installed; `directory` is to hold what says so."""
    about = directory / "convoy_bench-0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: convoy-bench\nVersion: 0\n")
    (about / "entry_points.txt").write_text(f"[codeconvoy.providers]\n{PROVIDER} = {__name__}:make\n")
    # What this process imports from, its children find too: the tests are no installed package.
    paths = [str(directory), *(path or str(Path.cwd()) for path in sys.path)]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def roles_file(concurrency: int, **options: str) -> str:
    """A generator, a reviewer and a tester of this provider, as the text of a roles file."""
    given = ", ".join(f'{name} = "{value}"' for name, value in options.items())
    return "".join(
        f'[roles.{name}]\nprovider = "{PROVIDER}"\nconcurrency = {concurrency}\noptions = {{ {given} }}\n'
        for name in ("generator", "reviewer", "tester")
    )
