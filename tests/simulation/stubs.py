"""Reads a simulated repository, writes what its seed draws: agents, git and a runner without IO.

The agents edit lines of small files and really collide: they append, replace and drop the same
lines, create the same new file, delete a file under another's hands. What they answer differs from
one delivery of a task to the next, as a model's answers do.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import cast

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import AgentError
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.job_facts import Imported, ImportedFile, Published
from codeconvoy.schemas.tasks import CheckWork, EditWork, ImportWork, PublishWork, RunWork, Task
from codeconvoy.schemas.test_paths import test_path_for
from codeconvoy.workers.desk import Desk
from codeconvoy.workers.engine.bus import Outgoing
from codeconvoy.workers.git.plan import Commit, plan_commits
from codeconvoy.workers.git.selection import SourceFile
from codeconvoy.workers.git.source import Source
from codeconvoy.workers.git_worker import GitWorker
from codeconvoy.workers.resolution.regions import PartialMerge
from codeconvoy.workers.roles.checkout import Overlay
from codeconvoy.workers.roles.role import Answer, Context, Edits, FileEdit, RoleKind, Version, Vote
from codeconvoy.workers.roles.sandbox import Outcome
from codeconvoy.workers.runner_worker import RunnerWorker

Repository = Mapping[str, Mapping[str, bytes]]
"""Contents by path, by ref."""


@dataclass(frozen=True, slots=True)
class Moods:
    """How often agents misbehave, as shares of their tasks."""

    gives_up: float = 0.03
    tries_again: float = 0.05
    rejects: float = 0.25
    deletes: float = 0.04
    strays: float = 0.2
    seconds: float = 3.0
    """The longest that a task takes."""
    clings: float = 0.3
    """Share of cancelled tasks that take a while to end."""


@dataclass(slots=True)
class StubAgent:
    """An agent of one role."""

    kind: RoleKind
    name: str
    random: Random
    moods: Moods

    async def work(self, context: Context) -> Answer:
        random, moods = self.random, self.moods
        try:
            await asyncio.sleep(random.random() * moods.seconds)
        except asyncio.CancelledError:
            if random.random() < moods.clings:
                await asyncio.sleep(random.random() * moods.seconds)
            raise
        if random.random() < moods.gives_up:
            raise AgentError("it is beyond me")
        if random.random() < moods.tries_again:
            raise AgentError("something went wrong", retryable=True)
        if self.kind is RoleKind.REVIEW:
            return Vote(random.random() >= moods.rejects, ("hm",))
        if context.merge is not None:
            return self._merge(context, context.merge.partial)
        if context.heads:
            return self._reconcile(context)
        if self.kind is RoleKind.TEST:
            test = context.others[0]
            if context.file.content is None:
                return Edits(())
            text = f"not python, so that no linter is asked {random.randrange(10**6)}\n"
            return Edits((FileEdit(test.path, text.encode()),), "tests")
        work = context.task.work
        also = work.also if isinstance(work, EditWork) else ()
        files = (context.file, *(one for one in context.others if one.path in also and random.random() < 0.5))
        return Edits(tuple(self._edit(version, version is context.file) for version in files), "edited")

    def _edit(self, version: Version, own: bool) -> FileEdit:
        random = self.random
        if version.content is not None and own and random.random() < self.moods.deletes:
            return FileEdit(version.path, None)
        lines = (version.content or b"").splitlines(keepends=True)
        fresh = f"{self.name} {random.randrange(10**9)}\n".encode()
        at = random.randrange(len(lines)) if lines else 0
        match random.randrange(4) if lines else 0:
            case 0:
                lines.append(fresh)
            case 1:
                lines[at] = fresh
            case 2:
                lines.insert(at, fresh)
            case _:
                lines[at : at + 1] = [fresh] if len(lines) == 1 else []
        return FileEdit(version.path, b"".join(lines))

    def _reconcile(self, context: Context) -> Edits:
        """Its own lines, and those of the others that it does not have."""
        lines = (context.file.content or b"").splitlines(keepends=True)
        for head in context.heads:
            lines += [line for line in (head.content or b"").splitlines(keepends=True) if line not in lines]
        return Edits((FileEdit(context.file.path, b"".join(lines)),), "reconciled")

    def _merge(self, context: Context, partial: PartialMerge) -> Edits:
        """One side or both in each region; now and then a line that is nobody's to change."""
        random = self.random
        filled = {
            region.number: random.choice((*region.sides, b"".join(region.sides)))
            for region in partial.regions
        }
        content = partial.assembled(filled)
        if random.random() < self.moods.strays:
            content = b"stray\n" + content + b"stray\n"
        return Edits((FileEdit(context.file.path, content),), "merged")

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(slots=True)
class Branches:
    """What was published: the planned commits of each job."""

    commits: dict[str, Sequence[Commit]] = field(default_factory=dict)


class StubGit(GitWorker):
    """Git in and out, without git: reverts are the real thing."""

    def __init__(self, desk: Desk, codec: Codec, repository: Repository, branches: Branches) -> None:
        super().__init__(desk, codec, Path())
        self._repository, self._branches = repository, branches

    async def _import(self, task: Task, work: ImportWork) -> Sequence[Outgoing]:
        contents = self._repository[work.ref]
        source = cast(Source, SimpleNamespace(commit=work.ref))
        matched = set(contents) if work.files else set[str]()
        paths = matched | set(work.paths)
        if work.test_directory:
            paths |= {test_path_for(path, work.test_directory) for path in matched}
        histories = await self._desk.snapshot(task, sorted(paths))
        files: list[ImportedFile] = []
        events: list[Event] = []
        for path in sorted(paths):
            found = SourceFile(path, contents[path], False) if path in contents else None
            imported, event = self._import_file(task, histories[path], found, source, {})
            files.append(imported)
            events += [event] if event is not None else []
        return self._desk.done(task, events, Imported(commit=work.ref, files=tuple(files)))

    async def _publish(self, task: Task, work: PublishWork) -> Sequence[Outgoing]:
        histories = await self._desk.snapshot(task, work.paths)
        commits = plan_commits(histories, dict(zip(work.paths, work.imports, strict=True)))
        self._branches.commits[task.job_id] = commits
        commit = f"{work.commit}+{len(commits)}"
        result = Published(branch=work.branch, commit=commit, base_commit=work.commit, commits=len(commits))
        return self._desk.done(task, (), result)


class StubRunner(RunnerWorker):
    """Runs nothing: the outcome of a test is drawn."""

    def __init__(self, desk: Desk, codec: Codec, random: Random) -> None:
        # Not the base's: it makes directories.
        self._desk, self._codec, self._known, self._random = desk, codec, {}, random

    async def close(self) -> None:
        """Nothing is held."""

    async def _execute(
        self, task: Task, work: RunWork | CheckWork, overlay: Overlay, command: str
    ) -> Outcome:
        await asyncio.sleep(self._random.random())
        exit_code = int(self._random.random() < 0.2)
        return Outcome(exit_code, False, 1, b"", "bubblewrap")
