"""Runs the `git` command: the only way to a remote repository, and the fast one to many commits.

Only `ls-remote`, `init`, `fetch`, `push` and `fast-import` go through here, always on a bare repository
of our own, with hooks, file system monitors, prompts, commit-graph upkeep and unusual transports off.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from codeconvoy.schemas.errors import Unavailable

DEADLINE_SECONDS = 600.0
_LS_REMOTE_SECONDS = 60.0
_MAX_OUTPUT = 16 * 1024 * 1024
_OFF = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.askPass": "",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "fetch.writeCommitGraph": "false",
    "submodule.recurse": "false",
    "protocol.ext.allow": "never",
}
_ELSEWHERE = (
    # They would aim git at another repository than ours.
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_SHALLOW_FILE",
    "GIT_TEMPLATE_DIR",
    "GIT_WORK_TREE",
)
_HARMLESS = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
    "GCM_INTERACTIVE": "never",
    "LC_ALL": "C",
}


class GitFailed(Exception):
    """The command ended with a status other than 0. `reason` is the end of what it said."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def git(
    repository: Path | None,
    arguments: Sequence[str],
    *,
    deadline: float = DEADLINE_SECONDS,
    given: bytes = b"",
    further: Mapping[str, str] | None = None,
) -> str:
    """Run `git` on a bare repository of our own (None: on none) and give its standard output.

    Args:
        repository: the git directory.
        arguments: the subcommand and what follows; the caller puts `--` before what a user gave.
        deadline: seconds until the command and all of its children are killed.
        given: what it reads from its standard input.
        further: variables of its environment, besides this process's own.

    Raises:
        GitFailed: it ended with another status than 0.
        Unavailable: there is no git, or the deadline passed.
    """
    command = ["git", *(part for key, value in _OFF.items() for part in ("-c", f"{key}={value}"))]
    if repository is not None:
        command.append(f"--git-dir={repository}")
    environment = {key: value for key, value in os.environ.items() if key not in _ELSEWHERE}
    try:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"GIT_SSH_COMMAND": "ssh -oBatchMode=yes", **environment, **_HARMLESS, **(further or {})},
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable("git", f"it can't be started: {error}", "Install git") from error
    try:
        output, complaint = process.communicate(given, timeout=deadline)
    except subprocess.TimeoutExpired as late:
        raise Unavailable(
            "git", f"`git {arguments[0]}` took over {deadline:.0f} seconds", "Try again, or see why"
        ) from late
    finally:
        if process.poll() is None:
            # Its helpers (ssh, remote-https) are in its session: none is left behind.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        raise GitFailed(_reason(complaint))
    return output[:_MAX_OUTPUT].decode("utf-8", "surrogateescape")


def remote_refs(url: str) -> dict[str, str]:
    """Every ref of a remote repository, `HEAD` included, with the object it points to.

    Raises:
        GitFailed: git could not list them.
        Unavailable: there is no git, or the remote did not answer in a minute.
    """
    listed = git(None, ["ls-remote", "--", url], deadline=_LS_REMOTE_SECONDS)
    pairs = (line.split("\t", 1) for line in listed.splitlines() if "\t" in line)
    return {name: oid for oid, name in pairs}


def _reason(complaint: bytes) -> str:
    """The last lines of standard error, without the hints."""
    lines = complaint.decode("utf-8", "replace").splitlines()
    kept = [line.strip() for line in lines if line.strip() and not line.startswith("hint:")]
    return "; ".join(kept[-4:])[-1000:] or "git gave no reason"
