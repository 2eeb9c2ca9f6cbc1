"""Reads `tasks.<role>` and the projection, writes `events` and `jobs`: the worker of a role.

task → wait for what it must see → context → agent → answer → events and the task's word.

The agent does not know the log; this does not know the agent. What an agent answers is checked
again here, whatever it is: nothing outside of the task's files is ever written.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import AgentError, OverBudget
from codeconvoy.schemas.events import (
    CodeGenerated,
    CodeModified,
    ConflictResolved,
    Event,
    FileDeleted,
    Payload,
    Read,
    ReviewSubmitted,
    Strategy,
    TestWritten,
)
from codeconvoy.schemas.hunks import make_patch
from codeconvoy.schemas.job_facts import Planned, Reviewed, Worked
from codeconvoy.schemas.job_spec import OnMove
from codeconvoy.schemas.tasks import EditWork, PlanWork, ResolveWork, ReviewWork, Task, TestWork
from codeconvoy.schemas.topics import file_key
from codeconvoy.workers.desk import Desk, Stopped, check_size, emitted, version_in, visible_in
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.engine.pool_engine import Earlier
from codeconvoy.workers.former import former_of, with_former
from codeconvoy.workers.llm.spent import MovedCalls
from codeconvoy.workers.mapper import Mapper
from codeconvoy.workers.merge_context import merge_context
from codeconvoy.workers.moved import MAX_RESTARTS, Reaction, moved, reaction
from codeconvoy.workers.projection import FileView, Wanted
from codeconvoy.workers.resolution.validate import objections
from codeconvoy.workers.roles.role import Agent, Answer, Context, Edits, FileEdit, Plan, Role, Version, Vote
from codeconvoy.workers.roles.validators import sound_merge

MAX_COMMENTS = 50
MAX_COMMENT_CHARS = 2_000


@dataclass(slots=True)
class _Watch:
    """Looks at the files that a running call was shown."""

    desk: Desk
    calls: MovedCalls
    task: Task
    shown: Mapping[str, FileView]
    restarts: int
    is_over: bool = False

    async def look(self) -> bool:
        """True where the call is to begin anew. Once it is known that a file moved nobody looks again."""
        task = self.task
        if self.is_over or not self.shown or task.on_move is OnMove.IGNORE:
            return False
        now = await self.desk.glance(task, self.shown)
        if not moved(task, self.shown, now):
            return False
        self.is_over, what = True, reaction(task, self.restarts)
        self.calls.moved(task.role, what)
        return what is Reaction.RESTART


class AgentWorker:
    """Does the tasks of one role with one agent."""

    def __init__(
        self,
        role: Role,
        agent: Agent,
        desk: Desk,
        codec: Codec,
        calls: MovedCalls,
        mapper: Mapper | None = None,
    ) -> None:
        """`mapper` makes the repository's map, where the role's agent is shown one."""
        self._role, self._agent, self._desk, self._codec = role, agent, desk, codec
        self._calls, self._mapper = calls, mapper

    async def close(self) -> None:
        """See `Handler`."""
        await self._agent.close()
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
        # Its agent is shown what the task before it made of the file: else the two would fork.
        await earlier()
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            done = await self._work(task)
            if done is None:
                return ()
            context, answer = done
            if task.former is not None and task.former.moved and context.former is not None:
                self._calls.wasted(task.role, context.former.tokens)
            return self._outputs(context, answer, clock() - began)
        except AgentError as error:
            over = isinstance(error, OverBudget)
            return self._desk.failed(task, error.reason, retryable=error.retryable, over_budget=over)

    async def _work(self, task: Task) -> tuple[Context, Answer] | None:
        """What the agent was shown and what it answers; None where nobody waits for it any more.
        It is shown anew what has moved meanwhile, where the job wants that, but given no more time."""
        is_told = task.on_move is not OnMove.IGNORE
        keys = [file_key(task.workspace, path) for path in _wanted(task)] if is_told else []
        deadline = 0.0
        for restarts in range(MAX_RESTARTS + 1):
            # A hint that comes while the files are read is not missed.
            with self._desk.hints.about(keys) as hint, self._calls.go(task) as spent:
                context, shown = await self._context(task)
                deadline = deadline or asyncio.get_running_loop().time() + task.deadline_seconds
                watch = _Watch(self._desk, self._calls, task, shown, restarts)
                work = self._agent.work(await self._mapped(context))
                answer = await self._desk.watched(task, work, deadline, hint, watch.look)
            if answer is not Stopped.MOVED:
                return None if answer is Stopped.VOID else (context, answer)
            self._calls.restarted(spent)
        raise AssertionError("the last go is not begun anew")

    # What the agent is shown ------------------------------------------------------------------------

    async def _context(self, task: Task) -> tuple[Context, Mapping[str, FileView]]:
        """What the agent is shown, and the files as they were read for it."""
        if isinstance(task.work, ResolveWork) and task.work.strategy is Strategy.SEMANTIC:
            return await merge_context(self._desk, task, task.work), {}
        before = await self._desk.former_edit(task)
        wanted = with_former(_wanted(task), before)
        views = await self._desk.views(task, wanted, {}) if wanted else {}
        context = self._shown(task, views)
        if before is not None:
            context = replace(context, former=former_of(before, views))
        return context, views

    def _shown(self, task: Task, views: Mapping[str, FileView]) -> Context:
        if isinstance(task.work, PlanWork):
            return Context(task, Version("", "", None))
        file = views[task.path]
        others = tuple(visible_in(view) for path, view in views.items() if path != task.path)
        match task.work:
            case EditWork(base=base):
                shown = version_in(file, base) if base else visible_in(file)
                return Context(task, shown, others=others)
            case ReviewWork(version=version, base=base):
                return Context(task, version_in(file, version), base=version_in(file, base), others=others)
            case TestWork(base=base):
                before = version_in(file, base) if base else None
                return Context(task, visible_in(file), base=before, others=others)
            case ResolveWork():
                return _conflict_context(task, task.work, file, others)
        raise AgentError(f"role {self._role.name} can't do {type(task.work).__name__}")

    async def _mapped(self, context: Context) -> Context:
        """With the map; a conflict is about what the sides changed, and nothing else."""
        task = context.task
        if self._mapper is None or isinstance(task.work, ResolveWork):
            return context
        return replace(context, map=await self._mapper.of(task, (*_further(task), *task.reads)))

    # What becomes of its answer ---------------------------------------------------------------------

    def _outputs(self, context: Context, answer: Answer, seconds: float) -> Sequence[Outgoing]:
        task, desk = context.task, self._desk
        match task.work, answer:
            case PlanWork(), Plan(tasks=tasks, usage=usage):
                return desk.done(task, (), Planned(tasks=tasks), seconds, usage)
            case ReviewWork(), Vote():
                return self._vote(context, task.work, answer, seconds)
            case ResolveWork(), Edits():
                event = self._resolution(context, task.work, answer)
                result = Worked(events=(emitted(event),), summary=answer.summary)
                return desk.done(task, (event,), result, seconds, answer.usage)
            case EditWork() | TestWork(), Edits():
                events = self._edits(context, answer)
                result = Worked(events=tuple(map(emitted, events)), summary=answer.summary)
                return desk.done(task, events, result, seconds, answer.usage)
        raise AgentError(f"{type(answer).__name__} is no answer to {type(task.work).__name__}")

    def _vote(self, context: Context, work: ReviewWork, vote: Vote, seconds: float) -> Sequence[Outgoing]:
        comments = tuple(comment[:MAX_COMMENT_CHARS] for comment in vote.comments[:MAX_COMMENTS])
        payload = ReviewSubmitted(
            version=work.version, approved=vote.approved, lens=self._role.lens, comments=comments
        )
        path, reads = context.task.path, _reads(context.others, context.task.path)
        event = self._desk.event(context.task, path, payload, reads=reads, usage=vote.usage)
        result = Reviewed(
            event=emitted(event),
            version=work.version,
            approved=vote.approved,
            lens=self._role.lens,
            comments=comments,
        )
        return self._desk.done(context.task, (event,), result, seconds, vote.usage)

    def _edits(self, context: Context, answer: Edits) -> tuple[Event, ...]:
        """An event for each file that the agent changed."""
        task = context.task
        shown = {version.path: version for version in (context.file, *context.others)}
        allowed = _writable(task)
        events = []
        for edit in answer.files:
            if edit.path not in allowed:
                raise AgentError(f"{edit.path} is outside of the task")
            check_size(edit.path, edit.content)
            before = shown[edit.path]
            if before.content == edit.content:
                continue
            parents = (before.event_id,) if before.event_id else ()
            payload = _payload(task, before, edit, answer.summary)
            events.append(
                self._desk.event(
                    task,
                    edit.path,
                    payload,
                    parents=parents,
                    reads=_reads(shown.values(), edit.path),
                    usage=answer.usage,
                    reworks=task.work.reworks if isinstance(task.work, EditWork | TestWork) else None,
                )
            )
        return tuple(events)

    def _resolution(self, context: Context, work: ResolveWork, answer: Edits) -> Event:
        task = context.task
        if len(answer.files) != 1 or answer.files[0].path != task.path:
            raise AgentError("a conflict is resolved by the content of its one file")
        content = answer.files[0].content
        check_size(task.path, content)
        versions = {version.event_id: version for version in (context.file, *context.heads)}
        if context.merge is not None:
            against, executable = sound_merge(context, answer), context.merge.partial.executable
        else:
            sides = [version.content for version in versions.values() if version.content is not None]
            against, executable = objections(task.path, content, sides), context.file.executable
        if against:
            raise AgentError("its resolution is not accepted: " + "; ".join(against))
        parents = tuple(sorted(work.heads))
        patch = make_patch(versions[parents[0]].content, content, executable=executable)
        payload = ConflictResolved(
            patch=patch,
            conflict_id=work.conflict_id,
            strategy=work.strategy,
            tried=work.tried,
            summary=answer.summary,
        )
        reads = _reads(context.others, task.path)
        return self._desk.event(task, task.path, payload, parents=parents, reads=reads, usage=answer.usage)


def _reads(shown: Iterable[Version], path: str) -> tuple[Read, ...]:
    """The read set of an event in one file: all that the agent was shown of others."""
    return tuple(
        Read(path=version.path, event_id=version.event_id) for version in shown if version.path != path
    )


def _wanted(task: Task) -> Wanted:
    """The files that a task's agent is shown, its own first, with the versions that the task speaks of."""
    if isinstance(task.work, PlanWork):
        return {}
    further = dict.fromkeys((*_further(task), *task.reads), ())
    return {task.path: (), **further, task.path: _named(task)}


def _further(task: Task) -> tuple[str, ...]:
    """The files besides its own that a task may write."""
    match task.work:
        case EditWork(also=also):
            return also
        case TestWork(test_path=test_path):
            return (test_path,)
        case _:
            return ()


def _named(task: Task) -> tuple[str, ...]:
    """The versions of its own file that a task speaks of."""
    match task.work:
        case EditWork(base=base) | TestWork(base=base):
            named: tuple[str | None, ...] = (base,)
        case ReviewWork(version=version, base=base):
            named = (version, base)
        case ResolveWork(own=own, base=origin, heads=heads):
            named = (own, origin, *heads)
        case _:
            named = ()
    return tuple(dict.fromkeys(event_id for event_id in named if event_id))


def _writable(task: Task) -> frozenset[str]:
    if isinstance(task.work, TestWork):
        return frozenset({task.work.test_path})
    return frozenset({task.path, *_further(task)})


def _payload(task: Task, before: Version, edit: FileEdit, summary: str) -> Payload:
    patch = make_patch(before.content, edit.content, executable=before.executable)
    if edit.content is None:
        return FileDeleted(patch=patch, summary=summary)
    if isinstance(task.work, TestWork):
        return TestWritten(patch=patch, covers=(task.path,), summary=summary)
    if before.content is None:
        return CodeGenerated(patch=patch, summary=summary)
    return CodeModified(patch=patch, summary=summary)


def _conflict_context(task: Task, work: ResolveWork, file: FileView, others: tuple[Version, ...]) -> Context:
    """A conflict as its later author sees it: its own edit, and what moved under it."""
    if any(head not in file.heads for head in work.heads):
        raise AgentError("the conflict is over: its heads have been joined")
    in_order: Mapping[str, int] = {head: file.contents[head].seq for head in work.heads}
    heads = sorted((head for head in work.heads if head != work.own), key=in_order.__getitem__)
    base = version_in(file, work.base) if work.base else None
    return Context(
        task,
        version_in(file, work.own),
        base=base,
        others=others,
        heads=tuple(version_in(file, head) for head in heads),
    )
