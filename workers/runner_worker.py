"""Reads `tasks.runner`, git and the projection, writes `events` and `jobs`: runs tests and checks.

The service role `runner` executes what agents wrote, in the sandbox, on a private copy of the tree:
the job's commit with everything on top that readers of the workspace see. What fails there is run
on the bare commit too, since only the difference says something about the change.
"""

import asyncio
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import AgentError, BadInput, Unavailable
from codeconvoy.schemas.events import Read, TestExecuted
from codeconvoy.schemas.job_facts import Checked, Tested
from codeconvoy.schemas.tasks import CheckWork, RunWork, Task
from codeconvoy.workers.desk import Desk, emitted, visible_in
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.engine.pool_engine import Earlier
from codeconvoy.workers.git.source import open_source
from codeconvoy.workers.projection import FileView
from codeconvoy.workers.roles.checkout import Checkouts, Overlay, place_for
from codeconvoy.workers.roles.role import Version
from codeconvoy.workers.roles.sandbox import Limits, Outcome, run

OUTPUT_CHARS = 8_000


class RunnerWorker:
    """Does the tasks of the role `runner`."""

    def __init__(self, desk: Desk, codec: Codec, cache: Path) -> None:
        self._desk, self._codec, self._cache = desk, codec, cache
        self._trees = tempfile.TemporaryDirectory(prefix="codeconvoy-trees-")
        self._checkouts = Checkouts(Path(self._trees.name))
        self._known: Mapping[str, Mapping[str, FileView]] = {}
        """What the last task's workspace held: most of it has not moved since."""

    async def close(self) -> None:
        """See `Handler`."""
        await asyncio.to_thread(self._trees.cleanup)
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
        work = task.work
        try:
            if isinstance(work, RunWork):
                outputs = await self._desk.unless_void(task, self._test(task, work))
            elif isinstance(work, CheckWork):
                outputs = await self._desk.unless_void(task, self._check(task, work))
            else:
                raise AgentError(f"role runner can't do {type(work).__name__}")
            return outputs or ()
        except (BadInput, AgentError) as error:
            return self._desk.failed(
                task, str(error), retryable=isinstance(error, AgentError) and error.retryable
            )
        except Unavailable as unavailable:
            if not unavailable.service.startswith(("git", "Sandbox")):
                raise  # the fleet's own: broker, Redis, projection. The task waits
            return self._desk.failed(task, str(unavailable), retryable=True)

    async def _test(self, task: Task, work: RunWork) -> Sequence[Outgoing]:
        seen = await self._tree(task, (task.path, *work.subjects))
        test = seen[task.path]
        if test.content is None:
            raise AgentError(f"{task.path} is not there any more", retryable=True)
        command = work.command.replace("{python}", shlex.quote(sys.executable))
        command = command.replace("{path}", shlex.quote(task.path))
        whole = _overlay(seen)
        here = await self._execute(task, work, whole, command)
        base: Outcome | None = None
        if here.sandbox != "none" and here.exit_code != 0:
            base = await self._execute(task, work, {task.path: whole[task.path]}, command)
        outcome = _outcome(here, base)
        output = here.output_tail.decode("utf-8", "replace")[-OUTPUT_CHARS:]
        payload = TestExecuted(
            version=test.event_id,
            outcome=outcome,
            exit_code=here.exit_code,
            base_exit_code=base.exit_code if base else None,
            duration_ms=here.duration_ms,
            output_tail=output,
            sandbox=here.sandbox,
            unset_limits=here.unset_limits,
        )
        reads = tuple(Read(path=path, event_id=seen[path].event_id) for path in work.subjects)
        event = self._desk.event(task, task.path, payload, reads=reads)
        return self._desk.done(
            task, (event,), Tested(event=emitted(event), outcome=outcome, detail=output[-2000:])
        )

    async def _check(self, task: Task, work: CheckWork) -> Sequence[Outgoing]:
        whole = _overlay(await self._tree(task, work.paths))
        outcome = await self._execute(task, work, whole, work.command)
        result = Checked(
            passed=outcome.exit_code == 0,
            executed=outcome.sandbox != "none",
            exit_code=outcome.exit_code,
            detail=outcome.output_tail.decode("utf-8", "replace")[-OUTPUT_CHARS:],
        )
        return self._desk.done(task, (), result)

    async def _tree(self, task: Task, together: Sequence[str]) -> Mapping[str, Version]:
        """All files of the workspace, those in `together` as they were at one moment."""
        known = self._known.get(task.workspace, {})
        projection = self._desk.projection
        paths = dict.fromkeys(await projection.paths(task.workspace), ())
        whole = await projection.views(task.workspace, paths, (), known)
        seen = {**whole, **await self._desk.views(task, dict.fromkeys(together, ()), whole)}
        self._known = {task.workspace: seen}
        return {path: visible_in(view) for path, view in seen.items()}

    async def _execute(
        self, task: Task, work: RunWork | CheckWork, overlay: Overlay, command: str
    ) -> Outcome:
        limits = Limits(wall_seconds=task.deadline_seconds / 3)
        source = await asyncio.to_thread(open_source, work.repository, work.commit, self._cache)
        place = place_for(await asyncio.to_thread(self._checkouts.size, source))
        with tempfile.TemporaryDirectory(prefix="codeconvoy-tree-", dir=place) as directory:
            target = Path(directory, "tree")
            await asyncio.to_thread(self._checkouts.checkout, source, overlay, target)
            return await run(command, target, limits, unsandboxed=work.unsandboxed)


def _overlay(seen: Mapping[str, Version]) -> Overlay:
    """The files as they are written on top of the commit."""
    return {path: (version.content, version.executable) for path, version in seen.items()}


def _outcome(here: Outcome, base: Outcome | None) -> str:
    """What a run says of the change, as a difference from the base."""
    if here.sandbox == "none":
        return "not_executed"
    if here.exit_code == 0:
        return "passed"
    return "regressed" if base is not None and base.exit_code == 0 else "failed"
