"""What a worker shows its agent, and how what was shown comes into the read set of what it writes."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import Event, Read, Strategy
from codeconvoy.schemas.file_history import Edit
from codeconvoy.schemas.tasks import EditWork, MustSee, ResolveWork, ReviewWork, Task, TestWork, Work
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.agent_worker import AgentWorker
from codeconvoy.workers.desk import Desk
from codeconvoy.workers.engine.bus import Record, TopicPartition
from codeconvoy.workers.engine.memory_bus import MemoryReader
from codeconvoy.workers.engine.pool_engine import Earlier
from codeconvoy.workers.file_states import Content
from codeconvoy.workers.llm.repo_map import RepoMap
from codeconvoy.workers.llm.spent import MovedCalls
from codeconvoy.workers.mapper import Mapper
from codeconvoy.workers.projection import FileView, Projection, Standing, Wanted
from codeconvoy.workers.roles.role import Answer, Context, Edits, FileEdit, Role, RoleKind, Vote
from tests.contexts import at_once

CODEC, TOPICS = Codec.create(), Topics(partitions=2)
MAP = RepoMap(tokens=1, lines=(), paths=(), own=(), files=0)


class Log(MemoryReader):
    """An empty events log."""

    def __init__(self) -> None:
        """There is no broker."""

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)


class Files:
    """A projection where each file `x.py` is visible at `x1`, and remembers `x0` and `x2` too."""

    visible = 1

    async def views(
        self, workspace: str, wanted: Wanted, points: Sequence[MustSee], known: Mapping[str, FileView]
    ) -> Mapping[str, FileView]:
        return {path: _view(path, self.visible) for path in wanted}

    async def standing(self, job_id: str, task_id: str) -> Standing | None:
        return None


def _view(path: str, visible: int) -> FileView:
    name = path[0]
    contents = {
        event_id: Content(
            event_id=event_id,
            seq=seq,
            role="r",
            summary="",
            edit=Edit(parents=(), live=True, content=b"%s = %d\n" % (name.encode(), seq), sha256=None),
        )
        for seq, event_id in enumerate((f"{name}0", f"{name}1", f"{name}2"))
    }
    return FileView(path, f"{name}{visible}", (f"{name}1", f"{name}2"), contents)


@dataclass
class Maps:
    """Makes one map for all, and keeps what it was asked."""

    asked: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    async def of(self, task: Task, own: Sequence[str]) -> RepoMap:
        self.asked.append((task.path, tuple(own)))
        return MAP


class Writer:
    """Votes for, or writes new content into every file that it may."""

    def __init__(self) -> None:
        self.shown: list[Context] = []

    async def work(self, context: Context) -> Answer:
        self.shown.append(context)
        match context.task.work:
            case ReviewWork():
                return Vote(approved=True)
            case EditWork(also=also):
                return Edits(tuple(FileEdit(path, b"n = 1\n") for path in (context.task.path, *also)))
            case TestWork(test_path=test_path):
                return Edits((FileEdit(test_path, b"n = 1\n"),))
        return Edits((FileEdit(context.task.path, b"a = 1\n"),))

    async def close(self) -> None:
        pass


RESOLVE = ResolveWork(
    conflict_id="c", attempt=1, heads=("a1", "a2"), base="a0", own="a2", strategy=Strategy.REWORK
)


def worked(
    work: Work, kind: RoleKind, *, files: Files | None = None, earlier: Earlier = at_once
) -> tuple[Context, list[Event], Maps]:
    """What the agent was shown, the events that came of it, and the maps that were asked for."""
    desk = Desk(CODEC, TOPICS, cast(Projection, files or Files()), Log(), lambda: 0, "r/1")
    agent, maps = Writer(), Maps()
    role = Role(name="r", kind=kind, description="", provider="openai")
    calls = MovedCalls(CollectorRegistry())
    worker = AgentWorker(role, agent, desk, CODEC, calls, cast(Mapper, maps))
    task = Task(
        task_id="t",
        job_id="j",
        workspace="w",
        role="r",
        path="a.py",
        round=1,
        goal="",
        reads=("r.py",),
        work=work,
    )
    record = Record(TOPICS.tasks("r"), 0, 0, "w:a.py", CODEC.encode(task))
    outputs = asyncio.run(worker.handle(record, earlier))
    events = [CODEC.decode(output.value, Event) for output in outputs if output.topic == TOPICS.events]
    (context,) = agent.shown
    return context, events, maps


@pytest.mark.parametrize(
    ("work", "kind", "reads"),
    [
        (EditWork(), RoleKind.EDIT, {"a.py": ["r1"]}),
        (EditWork(also=("b.py",)), RoleKind.EDIT, {"a.py": ["b1", "r1"], "b.py": ["a1", "r1"]}),
        (TestWork(base="a0", test_path="t.py"), RoleKind.TEST, {"t.py": ["a1", "r1"]}),
        (ReviewWork(version="a1", base="a0"), RoleKind.REVIEW, {"a.py": ["r1"]}),
        (RESOLVE, RoleKind.EDIT, {"a.py": ["r1"]}),
    ],
)
def test_all_that_an_agent_was_shown_of_other_files_is_read(
    work: Work, kind: RoleKind, reads: dict[str, list[str]]
) -> None:
    context, events, _ = worked(work, kind)
    assert {event.file_path: [read.event_id for read in event.reads] for event in events} == reads
    shown = {version.path for version in (context.file, *context.others)}
    for event in events:
        assert {read.path for read in event.reads} | {event.file_path} == shown


def test_an_agent_is_shown_what_the_task_before_made_of_its_file() -> None:
    """It begins before that is committed. Were its file read at once, the two edits would fork."""
    files = Files()

    async def earlier() -> None:
        await asyncio.sleep(0)
        files.visible = 2

    context, (event, *_), _ = worked(EditWork(), RoleKind.EDIT, files=files, earlier=earlier)
    assert (context.file.event_id, event.parent_event_ids) == ("a2", ("a2",))


def test_the_map_is_asked_for_with_the_files_that_the_task_names_and_is_not_read() -> None:
    context, events, maps = worked(EditWork(also=("b.py",)), RoleKind.EDIT)
    assert context.map is MAP and maps.asked == [("a.py", ("b.py", "r.py"))]
    assert Read(path="r.py", event_id="r1") in events[0].reads


def test_a_conflict_needs_no_map() -> None:
    context, _, maps = worked(RESOLVE, RoleKind.EDIT)
    assert context.map is None and maps.asked == []
