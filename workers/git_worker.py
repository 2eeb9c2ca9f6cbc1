"""Reads `tasks.git`, git and the projection, writes `events`, `jobs` and a branch: git in and out.

The service role `git` imports a job's files, sets files back, and publishes the result. Its work
is idempotent: an import writes only what the workspace does not hold yet, and a branch that has
been written is found as it should be.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import AgentError, BadInput, Unavailable
from codeconvoy.schemas.events import CodeReverted, Event, FileDeleted, FileImported, Payload
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.hunks import make_patch
from codeconvoy.schemas.job_facts import Imported, ImportedFile, Published, SkippedFile, Worked
from codeconvoy.schemas.tasks import ImportWork, PublishWork, RevertWork, Task
from codeconvoy.schemas.test_paths import test_path_for
from codeconvoy.workers.desk import Desk, emitted, version_of, visible_of
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.engine.pool_engine import Earlier
from codeconvoy.workers.git.plan import import_parent, plan_commits
from codeconvoy.workers.git.publish import Written, write_branch
from codeconvoy.workers.git.selection import Selection, SourceFile, content_at, select
from codeconvoy.workers.git.source import Source, open_source
from codeconvoy.workers.git.trailers import newest_events
from codeconvoy.workers.git.undo import undone
from codeconvoy.workers.resolution.object_store import GaveUp


class GitWorker:
    """Does the tasks of the role `git`."""

    def __init__(self, desk: Desk, codec: Codec, cache: Path) -> None:
        self._desk, self._codec, self._cache = desk, codec, cache

    async def close(self) -> None:
        """See `Handler`."""
        await self._desk.close()

    def gave_up(self, record: Record, reason: str) -> Sequence[Outgoing]:
        """See `Handler`."""
        return self._desk.gave_up(record, reason)

    async def handle(self, record: Record, earlier: Earlier) -> Sequence[Outgoing]:
        """See `Handler`."""
        task = self._codec.decode(record.value, Task)
        self._desk.tracing.describe(task)
        if await self._desk.is_void(task):
            return ()
        try:
            match task.work:
                case ImportWork():
                    return await self._import(task, task.work)
                case RevertWork():
                    return await self._revert(task, task.work)
                case PublishWork():
                    return await self._publish(task, task.work)
        except BadInput as bad:
            return self._desk.failed(task, str(bad), retryable=False)
        except AgentError as error:
            return self._desk.failed(task, error.reason, retryable=error.retryable)
        except Unavailable as unavailable:
            if not unavailable.service.startswith("git"):
                raise  # the fleet's own: broker, Redis, projection. The task waits
            return self._desk.failed(task, str(unavailable), retryable=True)
        return self._desk.failed(task, f"role git can't do {type(task.work).__name__}", retryable=False)

    async def _import(self, task: Task, work: ImportWork) -> Sequence[Outgoing]:
        source, selection = await asyncio.to_thread(self._select, work)
        found = {file.path: file for file in selection.files}
        paths = sorted({*found, *selection.absent})
        histories = await self._desk.snapshot(task, paths)
        committed = await asyncio.to_thread(newest_events, source.repo, source.commit, paths)
        files: list[ImportedFile] = []
        events: list[Event] = []
        for path in paths:
            history = histories[path]
            imported, event = self._import_file(task, history, found.get(path), source, committed)
            files.append(imported)
            if event is not None:
                events.append(event)
        skipped = tuple(SkippedFile(path=skip.path, reason=skip.reason) for skip in selection.skipped)
        result = Imported(commit=source.commit, files=tuple(files), skipped=skipped)
        return self._desk.done(task, events, result)

    def _select(self, work: ImportWork) -> tuple[Source, Selection]:
        source = open_source(work.repository, work.ref, self._cache)
        selection = select(source, work.files, work.exclude, work.paths)
        if not work.test_directory:
            return source, selection
        tests = {test_path_for(file.path, work.test_directory) for file in selection.files}
        tests -= {file.path for file in selection.files} | set(selection.absent)
        existing = [file for path in sorted(tests) if (file := content_at(source, path)) is not None]
        absent = tests - {file.path for file in existing}
        return source, Selection(
            files=(*selection.files, *existing),
            absent=(*selection.absent, *sorted(absent)),
            skipped=selection.skipped,
        )

    def _import_file(
        self,
        task: Task,
        history: FileHistory,
        file: SourceFile | None,
        source: Source,
        committed: Mapping[str, str],
    ) -> tuple[ImportedFile, Event | None]:
        content = file.content if file else None
        executable = file.executable if file else False
        path = history.path
        plan = import_parent(history, content, executable, committed.get(path, ""))
        if not plan.needed:
            known = ImportedFile(path=path, event_id=plan.event_id, visible=history.visible, written=False)
            return known, None
        before = version_of(history, plan.parent)
        patch = make_patch(before.content, content, executable=executable)
        payload: Payload = FileImported(patch=patch, commit=source.commit)
        if content is None:
            payload = FileDeleted(patch=patch, summary=f"not in git at {source.commit[:12]}")
        event = self._desk.event(task, path, payload, parents=(plan.parent,) if plan.parent else ())
        return ImportedFile(path=path, event_id=event.event_id, visible=history.visible), event

    async def _revert(self, task: Task, work: RevertWork) -> Sequence[Outgoing]:
        history = (await self._desk.snapshot(task, [task.path]))[task.path]
        now, then = visible_of(history), await asyncio.to_thread(undone, history, task.job_id)
        if isinstance(then, GaveUp):
            raise AgentError(then.reason)
        if then is None or (now.content, now.executable) == (then.content, then.executable):
            return self._desk.done(task, (), Worked(summary="nothing of this job is in it"))
        patch = make_patch(now.content, then.content, executable=then.executable)
        payload = CodeReverted(patch=patch, reverts_to=then.event_id, reason=work.reason[:2000])
        event = self._desk.event(task, task.path, payload, parents=(now.event_id,) if now.event_id else ())
        return self._desk.done(task, (event,), Worked(events=(emitted(event),), summary="set back"))

    async def _publish(self, task: Task, work: PublishWork) -> Sequence[Outgoing]:
        histories = await self._desk.snapshot(task, work.paths)
        imports = dict(zip(work.paths, work.imports, strict=True))
        commits = plan_commits(histories, imports)

        def write() -> Written:
            source = open_source(work.repository, work.commit, self._cache)
            return write_branch(source, work.commit, commits, work.branch)

        told = {"convoy.publish.files": len(work.paths), "convoy.publish.commits": len(commits)}
        with self._desk.tracing.span("convoy.publish", told):
            written = await asyncio.to_thread(write)
        result = Published(
            branch=written.branch, commit=written.commit, base_commit=work.commit, commits=written.count
        )
        return self._desk.done(task, (), result)
