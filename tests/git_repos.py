"""Runs the git command, writes temporary repositories: what the tests of git in and out begin with."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec

from codeconvoy.schemas.events import EventType
from codeconvoy.schemas.file_history import Edit, Entry, FileHistory
from codeconvoy.schemas.ids import sha256
from codeconvoy.schemas.job_facts import VerdictKind
from codeconvoy.schemas.persistent import PersistentMap
from codeconvoy.workers.git.plan import Commit
from codeconvoy.workers.git.trailers import Trailers


def git(directory: Path, *arguments: str) -> str:
    """What the git command prints, run apart from any configuration of the machine."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Ann",
        "GIT_AUTHOR_EMAIL": "ann@example.org",
        "GIT_COMMITTER_NAME": "Ann",
        "GIT_COMMITTER_EMAIL": "ann@example.org",
    }
    done = subprocess.run(
        ["git", *arguments], cwd=directory, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8", "surrogateescape").strip()


def repository(directory: Path, files: Mapping[str, bytes], *, bare: bool = False) -> Path:
    """A repository with one commit on `main` that holds these files."""
    directory.mkdir(parents=True)
    git(directory, "init", "--quiet", "--initial-branch=main")
    commit(directory, files)
    if bare:
        git(directory, "clone", "--quiet", "--bare", ".", f"{directory}.git")
        return Path(f"{directory}.git")
    return directory


def commit(directory: Path, files: Mapping[str, bytes | None], message: str = "change") -> str:
    """One more commit of a work tree, in which these files are so (None: gone). Gives its id."""
    for path, content in files.items():
        target = directory / path
        if content is None:
            target.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--allow-empty", "-m", message)
    return git(directory, "rev-parse", "HEAD")


def tree_of(directory: Path, ref: str) -> dict[str, tuple[str, bytes]]:
    """Mode and content of every file of a commit, as the git command sees them."""
    listed = git(directory, "ls-tree", "-r", "-z", ref).split("\0")
    tree = {}
    for line in filter(None, listed):
        about, path = line.split("\t", 1)
        mode, kind, oid = about.split()
        content = b""
        if kind == "blob":
            argv = ["git", "cat-file", "blob", oid]
            content = subprocess.run(argv, cwd=directory, capture_output=True, check=True).stdout
        tree[path] = (mode, content)
    return tree


def planned(path: str, content: bytes | None, event: str, *joins: str, executable: bool = False) -> Commit:
    """A commit as the plan would hold it."""
    trailers = Trailers(event=event, joins=joins, task="t", agent="a", job="j")
    return Commit(path, content, executable, f"generator: {path}", "generator", 1_600_000_000_000, trailers)


def history_of(path: str, *entries: Entry) -> FileHistory:
    """A history that holds these entries, whose heads are what has no live child."""
    parents = {parent for entry in entries if entry.edit for parent in entry.edit.parents}
    shown = [entry.event_id for entry in entries if entry.edit and entry.edit.shown]
    return FileHistory(
        workspace="w",
        path=path,
        entries=PersistentMap({entry.event_id: entry for entry in entries}),
        next_seq=len(entries),
        heads=tuple(e.event_id for e in entries if e.edit and e.edit.live and e.event_id not in parents),
        visible=shown[-1] if shown else "",
    )


def entry(
    seq: int,
    event_id: str,
    parents: tuple[str, ...],
    content: bytes | None,
    *,
    event_type: EventType = EventType.CODE_MODIFIED,
    shown: bool = True,
    live: bool = True,
) -> Entry:
    """An edit as the fold remembers it."""
    edit = Edit(
        parents=parents,
        live=live,
        content=content,
        sha256=None if content is None else sha256(content),
        shown=shown,
    )
    return Entry(
        seq=seq,
        event_id=event_id,
        event_type=event_type,
        job_id="job",
        task_id=f"task-{event_id}",
        round=1,
        role="generator",
        agent_id="generator-1",
        timestamp=1_700_000_000_000 + seq,
        verdict=VerdictKind.ACCEPTED if shown else VerdictKind.FORKED,
        edit=edit,
        summary=f"summary of {event_id}",
    )


def forgotten(history: FileHistory, event_id: str) -> FileHistory:
    """The history after it has forgotten an edit's content."""
    gone = msgspec.structs.replace(history.entries[event_id], edit=None)
    return msgspec.structs.replace(history, entries=history.entries.updated({event_id: gone}))
