"""Reads the projection and the ends of the events log; writes nothing itself: what every kind of
worker does around its work.

`Desk.views` (and `snapshot`, with whole histories) waits until the projection holds what a task must
see, and reads the files of the task as one consistent whole; `Desk.event`, `done` and `failed` make
the records that the pool engine writes in one transaction.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeVar

import msgspec

from codeconvoy.schemas import ids
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import AgentError, BusError, TooLarge, Unavailable, Undecodable, Unencodable
from codeconvoy.schemas.events import TYPE_OF, Event, Payload, Read, Usage
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.job_facts import (
    Emitted,
    FactPayload,
    JobFact,
    JobStatus,
    Planned,
    Result,
    TaskDone,
    TaskFailed,
)
from codeconvoy.schemas.job_state import TaskStatus
from codeconvoy.schemas.tasks import MustSee, Task
from codeconvoy.schemas.topics import MAX_FILE_BYTES, Topics, file_key, partition_of
from codeconvoy.workers.engine.bus import Outgoing, Reader, Record, TopicPartition
from codeconvoy.workers.moves import Hints
from codeconvoy.workers.positions import Ends
from codeconvoy.workers.projection import FileView, Projection, Wanted
from codeconvoy.workers.redact import BY_SHAPE, Redact
from codeconvoy.workers.roles.role import Version
from codeconvoy.workers.tracing import OFF, Tracing

_OVER = frozenset((TaskStatus.CANCELLED, TaskStatus.FAILED, TaskStatus.REPORTED, TaskStatus.DONE))
"""Its word is on the log, and with it the offset of its record; or nobody waits for it."""
COLLECTS = 5
"""Times that a snapshot is tried before the task waits."""
WATCH_SECONDS = 1.0
"""Between two looks at what concerns a running call, where no hint comes sooner."""
READ_SECONDS = 5.0
"""For one record of the log."""
MAX_REASON = 4_000
"""Characters of a reason that a job is told."""

_SPOKEN = ("summary", "comments", "reason", "detail", "output_tail")
"""Fields of results and payloads that hold the words of an agent or a program."""

T = TypeVar("T")
W = TypeVar("W", bound=msgspec.Struct)


class Stopped(Enum):
    """Why work was cut short."""

    VOID = auto()
    """Nobody waits for it any more."""
    MOVED = auto()
    """It is to begin anew."""


Look = Callable[[], Awaitable[bool]]
"""Looks whether running work is to begin anew."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What a worker of any role works with."""

    codec: Codec
    topics: Topics
    projection: Projection
    reader: Reader
    now: Callable[[], int]
    agent_id: str
    redact: Redact = BY_SHAPE
    """Takes the secrets out of what agents and programs say in their own words."""
    tracing: Tracing = OFF
    hints: Hints = field(default_factory=Hints)
    _ends: Ends = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", Ends(self.reader, self.topics.events))

    async def close(self) -> None:
        """Give up its reader: an engine that starts anew has another desk."""
        await self.reader.close()

    # Before the work ----------------------------------------------------------------------------

    async def is_void(self, task: Task) -> bool:
        """True where nobody waits for this round any more: its job has ended, a later one runs, or it
        was done by somebody else, while this process did not know that it had lost the task.
        A job that the projection has not heard of yet is waited for."""
        standing = await self.projection.standing(task.job_id, task.task_id)
        if standing is None:
            return False
        if standing.job not in (JobStatus.RUNNING, JobStatus.ENDING):
            return True
        over = standing.task in _OVER
        return standing.round > task.round or (standing.round == task.round and over)

    async def snapshot(self, task: Task, paths: Sequence[str]) -> Mapping[str, FileHistory]:
        """The histories of these files at one moment that holds all the task must see.

        Raises:
            Unavailable: the projection is too far behind, or the files change too fast.
        """
        for _ in range(COLLECTS):
            seen = await self.views(task, dict.fromkeys(paths, ()), {})
            histories = await self.projection.histories(task.workspace, paths)
            if all(histories[path].visible == seen[path].visible for path in paths):
                return histories
        raise _too_fast()

    async def views(
        self, task: Task, wanted: Wanted, known: Mapping[str, FileView]
    ) -> Mapping[str, FileView]:
        """What readers see of these files, and what else is wanted of them, at one moment that holds
        all the task must see.

        A double collect: read, wait until the projection has passed the ends of the files'
        partitions as they were after the read, read again, and accept when nothing has moved.

        Raises:
            Unavailable: the projection is too far behind, or the files change too fast.
        """
        told = {"convoy.context.files": len(wanted), "convoy.context.must_see": len(task.must_see)}
        with self.tracing.span("convoy.context", told):
            return await self._views(task, wanted, known)

    async def _views(
        self, task: Task, wanted: Wanted, known: Mapping[str, FileView]
    ) -> Mapping[str, FileView]:
        points = [*task.must_see, *await self._ends_of(task.workspace, wanted)]
        before = await self.projection.views(task.workspace, wanted, points, known)
        if len(before) < 2:
            return before
        for _ in range(COLLECTS):
            points = await self._ends_of(task.workspace, wanted)
            after = await self.projection.views(task.workspace, wanted, points, before)
            if all(before[path].visible == after[path].visible for path in before):
                return after
            before = after
        raise _too_fast()

    async def former_edit(self, task: Task) -> Event | None:
        """The edit that the task made in an earlier round, from the log: of one that was refused nothing
        else is left. None where it made none, or where the log does not give it."""
        if task.former is None:
            return None
        at = TopicPartition(self.topics.events, task.former.partition)
        try:
            records = await self.reader.read(at, task.former.offset, 1, READ_SECONDS)
        except BusError:  # erased: the task is done without it
            return None
        found = [self.codec.decode(record.value, Event) for record in records]
        return next((event for event in found if event.event_id == task.former.event_id), None)

    async def glance(self, task: Task, shown: Mapping[str, FileView]) -> Mapping[str, FileView]:
        """The same files as the projection shows them now, wherever it stands; where it can't be read,
        as they were shown: nothing that may have cost a model call is thrown away for that."""
        try:
            return await self.projection.views(task.workspace, dict.fromkeys(shown, ()), (), shown)
        except Unavailable:
            return shown

    async def _ends_of(self, workspace: str, paths: Iterable[str]) -> list[MustSee]:
        """The last offsets of the files' partitions."""
        return await self._ends.of(
            partition_of(file_key(workspace, p), self.topics.partitions) for p in paths
        )

    async def unless_void(self, task: Task, work: Awaitable[T]) -> T | None:
        """Do the work within the task's deadline; None where its job ended meanwhile.

        Raises:
            AgentError: the deadline passed.
        """
        deadline = asyncio.get_running_loop().time() + task.deadline_seconds
        done = await self.watched(task, work, deadline, asyncio.Event(), None)
        return None if isinstance(done, Stopped) else done

    async def watched(
        self, task: Task, work: Awaitable[T], deadline: float, hint: asyncio.Event, look: Look | None
    ) -> T | Stopped:
        """Do the work, and look now and then, and at each hint, whether it is still wanted as it is.

        Raises:
            AgentError: the deadline (in seconds of the loop's clock) passed.
        """
        clock = asyncio.get_running_loop().time
        running = asyncio.ensure_future(work)
        running.add_done_callback(lambda _: hint.set())
        try:
            while True:
                if (left := deadline - clock()) <= 0:
                    raise AgentError(f"not done within {task.deadline_seconds} s", retryable=True)
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, WATCH_SECONDS)):
                        await hint.wait()
                hint.clear()
                if running.done():
                    return running.result()
                if await self._is_known_void(task):
                    return Stopped.VOID
                if look is not None and await look():
                    return Stopped.MOVED
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait({running})

    async def _is_known_void(self, task: Task) -> bool:
        """As `is_void`; False where nobody can tell just now: work that may have cost a model call is
        not thrown away for that."""
        try:
            return await self.is_void(task)
        except Unavailable:
            return False

    # After the work -----------------------------------------------------------------------------

    def event(
        self,
        task: Task,
        path: str,
        payload: Payload,
        *,
        parents: tuple[str, ...] = (),
        reads: tuple[Read, ...] = (),
        usage: Usage | None = None,
        reworks: str | None = None,
    ) -> Event:
        """An event of this task's round."""
        event_type = TYPE_OF[type(payload)]
        return Event(
            event_id=ids.event_id(task.task_id, task.round, path, event_type),
            event_type=event_type,
            workspace=task.workspace,
            file_path=path,
            job_id=task.job_id,
            task_id=task.task_id,
            round=task.round,
            agent_id=self.agent_id,
            role=task.role,
            timestamp=self.now(),
            parent_event_ids=parents,
            reworks=reworks,
            reads=reads,
            consistency=task.consistency,
            policy=task.policy,
            usage=usage,
            payload=spoken(payload, self.redact),
        )

    def done(
        self,
        task: Task,
        events: Sequence[Event],
        result: Result,
        seconds: float = 0.0,
        usage: Usage | None = None,
    ) -> Sequence[Outgoing]:
        """The events and the task's word, to be written together."""
        word = TaskDone(
            task_id=task.task_id,
            round=task.round,
            agent_id=self.agent_id,
            result=spoken(result, self.redact),
            usage=usage,
            seconds=seconds,
        )
        try:
            outputs = [self._outgoing(event) for event in events]
            return [*outputs, self._fact(task, word)]
        except Unencodable as error:
            # What is too large will be so again; what can't be written otherwise may be a model's slip.
            return self.failed(task, str(error), retryable=not isinstance(error, TooLarge))

    def failed(
        self, task: Task, reason: str, *, retryable: bool, over_budget: bool = False
    ) -> Sequence[Outgoing]:
        """The task's word that it could not be done."""
        self.tracing.fail("TaskFailed")
        self.tracing.note({"convoy.task.retryable": retryable})
        word = TaskFailed(
            task_id=task.task_id,
            round=task.round,
            agent_id=self.agent_id,
            reason=_printable(self.redact(reason))[:MAX_REASON],
            retryable=retryable,
            over_budget=over_budget,
        )
        return [self._fact(task, word)]

    def gave_up(self, record: Record, reason: str) -> Sequence[Outgoing]:
        """The word on a task that the engine gave up; nothing where the record is no task."""
        try:
            task = self.codec.decode(record.value, Task)
        except Undecodable:
            return ()
        return self.failed(task, reason, retryable=False)

    def _outgoing(self, event: Event) -> Outgoing:
        key = file_key(event.workspace, event.file_path)
        return Outgoing(self.topics.events, key, self.codec.encode(event))

    def _fact(self, task: Task, payload: FactPayload) -> Outgoing:
        fact = JobFact(
            fact_id=ids.derived("fact", task.job_id, type(payload).__name__, task.task_id, task.round),
            job_id=task.job_id,
            timestamp=self.now(),
            source=self.agent_id,
            payload=payload,
        )
        return Outgoing(self.topics.jobs, task.job_id, self.codec.encode(fact))


def _too_fast() -> Unavailable:
    return Unavailable("projection", "the files of a task change faster than they can be read", "Wait")


def version_of(history: FileHistory, event_id: str) -> Version:
    """A file as it was at one event; absent where the event is empty or forgotten.

    Raises:
        AgentError: the history does not hold the event's content any more.
    """
    if not event_id:
        return Version(history.path, "", None)
    entry = history.entries.get(event_id)
    if entry is None or entry.edit is None:
        raise _too_old(history.path, event_id)
    edit = entry.edit
    return Version(history.path, event_id, edit.content, edit.executable, entry.role, entry.summary)


def visible_of(history: FileHistory) -> Version:
    """A file as readers see it."""
    return version_of(history, history.visible)


def version_in(view: FileView, event_id: str) -> Version:
    """As `version_of`, of what was read of a file."""
    if not event_id:
        return Version(view.path, "", None)
    content = view.contents.get(event_id)
    if content is None:
        raise _too_old(view.path, event_id)
    edit = content.edit
    return Version(view.path, event_id, edit.content, edit.executable, content.role, content.summary)


def visible_in(view: FileView) -> Version:
    """A file as readers see it."""
    return version_in(view, view.visible)


def _too_old(path: str, event_id: str) -> AgentError:
    return AgentError(f"{path}: version {event_id} is too old to be worked on", retryable=True)


def _printable(text: str) -> str:
    """The text, with a mark for what is no character: it may come from anywhere."""
    return text.encode("utf-8", "replace").decode()


def spoken(words: W, redact: Redact) -> W:
    """A result or payload without secrets in its free text. Contents of files stay as they are."""
    if isinstance(words, Planned):
        goals = tuple(msgspec.structs.replace(task, goal=redact(task.goal)) for task in words.tasks)
        return msgspec.structs.replace(words, tasks=goals)
    said = {name: getattr(words, name) for name in _SPOKEN if name in words.__struct_fields__}
    clean = {
        name: redact(text) if isinstance(text, str) else tuple(map(redact, text))
        for name, text in said.items()
    }
    return msgspec.structs.replace(words, **clean) if clean != said else words


def emitted(event: Event) -> Emitted:
    """How a task's word names an event."""
    return Emitted(
        path=event.file_path,
        event_id=event.event_id,
        is_edit=event.edit is not None,
        reads=len(event.reads),
    )


def check_size(path: str, content: bytes | None) -> None:
    """Raises AgentError where a file has become too large to be edited."""
    if content is not None and len(content) > MAX_FILE_BYTES:
        raise AgentError(f"{path} would have {len(content)} bytes, the limit is {MAX_FILE_BYTES}")
