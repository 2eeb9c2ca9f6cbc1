"""What every worker does around its work: reading at one moment, and saying what came of it."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast
from unittest.mock import patch

import msgspec
import pytest

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.events import CodeModified, Event
from codeconvoy.schemas.file_history import Edit
from codeconvoy.schemas.hunks import make_patch
from codeconvoy.schemas.job_facts import JobFact, Planned, Reviewed, TaskDone, TaskFailed, Worked
from codeconvoy.schemas.job_spec import TaskSpec
from codeconvoy.schemas.tasks import EditWork, Former, MustSee, Task
from codeconvoy.schemas.topics import Topics, file_key, partition_of
from codeconvoy.workers.desk import COLLECTS, Desk, emitted, visible_in
from codeconvoy.workers.engine.bus import Outgoing, TopicPartition
from codeconvoy.workers.engine.memory_bus import MemoryBus, MemoryReader
from codeconvoy.workers.file_states import Content
from codeconvoy.workers.projection import FileView, Projection, Wanted
from codeconvoy.workers.redact import MARK, Redactor

CODEC, TOPICS = Codec.create(), Topics(partitions=2)
A, B = "a.txt", "b.txt"
"""Two files on different partitions."""
PARTITION = {path: partition_of(file_key("w", path), TOPICS.partitions) for path in (A, B)}
TASK = Task(
    task_id="t", job_id="j", workspace="w", role="generator", path=A, round=1, goal="g", work=EditWork()
)


class Log(MemoryReader):
    """Partitions that end one later each time they are asked about."""

    def __init__(self) -> None:
        self.end = 0

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        self.end += 1
        return dict.fromkeys(partitions, self.end)


class Files:
    """A projection that shows of each file what is next on a list, the last of it for ever."""

    def __init__(self, **shown: Sequence[str]) -> None:
        self.shown = {f"{name}.txt": list(versions) for name, versions in shown.items()}
        self.points: list[list[MustSee]] = []

    async def views(
        self, workspace: str, wanted: Wanted, points: Sequence[MustSee], known: Mapping[str, FileView]
    ) -> Mapping[str, FileView]:
        self.points.append(list(points))
        found = {path: self.shown[path][0] for path in wanted}
        self.shown = {path: some[1:] or some for path, some in self.shown.items()}
        return {path: view(path, event_id) for path, event_id in found.items()}


def view(path: str, event_id: str) -> FileView:
    edit = Edit(parents=(), live=True, content=event_id.encode(), sha256=None)
    content = Content(event_id=event_id, seq=0, role="r", summary="s", edit=edit)
    return FileView(path, event_id, (event_id,), {event_id: content})


def desk_on(files: Files) -> Desk:
    return Desk(CODEC, TOPICS, cast(Projection, files), Log(), lambda: 0, "generator/1")


def read(files: Files, *paths: str, must_see: tuple[MustSee, ...] = ()) -> dict[str, str]:
    """The versions that a task on these files is shown."""
    task = Task(**{name: getattr(TASK, name) for name in TASK.__struct_fields__} | {"must_see": must_see})
    views = asyncio.run(desk_on(files).views(task, dict.fromkeys(paths, ()), {}))
    assert all(visible_in(view).content == view.visible.encode() for view in views.values())
    return {path: view.visible for path, view in views.items()}


def test_one_file_is_read_once_where_the_projection_has_passed_the_end_of_its_log() -> None:
    files, told = Files(a=["a1", "a2"]), MustSee(partition=1, offset=7)
    assert read(files, A, must_see=(told,)) == {A: "a1"}
    assert files.points == [[told, MustSee(partition=PARTITION[A], offset=0)]]


def test_several_files_are_read_until_nothing_moves() -> None:
    """Each time behind the ends as they were after the last read."""
    files = Files(a=["a1", "a2"], b=["b1", "b1", "b2"])
    assert PARTITION[A] != PARTITION[B]
    assert read(files, A, B) == {A: "a2", B: "b2"}
    assert files.points == [
        [MustSee(partition=number, offset=offset) for number in range(2)] for offset in range(4)
    ]


def test_files_that_never_stand_still_are_waited_for() -> None:
    files = Files(a=[f"a{number}" for number in range(COLLECTS + 2)], b=["b"])
    with pytest.raises(Unavailable, match="faster than they can be read"):
        read(files, A, B)


def test_an_earlier_edit_is_read_from_the_log() -> None:
    """Of one that was refused nothing else is left."""

    async def go() -> None:
        bus = MemoryBus()
        await bus.create_topics({TOPICS.events: {}}, TOPICS.partitions)
        event, key = edited(b"1\n"), file_key("w", A)
        producer = await bus.producer("p")
        await producer.transaction([Outgoing(TOPICS.events, key, CODEC.encode(event))] * 2)
        desk = replace(desk_on(Files()), reader=bus.reader())
        found = []
        for event_id, offset in ((event.event_id, 1), ("another", 1), (event.event_id, 99)):
            former = Former(event_id=event_id, partition=PARTITION[A], offset=offset)
            found.append(await desk.former_edit(msgspec.structs.replace(TASK, former=former)))
        assert found == [event, None, None]
        assert await desk.former_edit(TASK) is None

    with patch("codeconvoy.workers.desk.READ_SECONDS", 0.01):
        asyncio.run(go())


def edited(content: bytes, summary: str = "s") -> Event:
    payload = CodeModified(patch=make_patch(None, content), summary=summary)
    return desk_on(Files()).event(TASK, A, payload)


def said(outputs: Sequence[Outgoing]) -> list[Any]:
    """The payloads, in order."""
    return [
        CODEC.decode(output.value, Event).payload
        if output.topic == TOPICS.events
        else CODEC.decode(output.value, JobFact).payload
        for output in outputs
    ]


def test_the_events_come_with_the_word() -> None:
    event = edited(b"1\n")
    outputs = desk_on(Files()).done(TASK, (event,), Worked())
    assert [type(payload) for payload in said(outputs)] == [CodeModified, TaskDone]


@pytest.mark.parametrize(
    ("events", "result", "retryable"),
    [
        ((edited(b"1\n", summary="s" * 2_000_000),), Worked(), False),
        ((edited(b"1\n", summary="half a \ud83d"),), Worked(), True),
        ((), Worked(summary="half a \ud83d"), True),
    ],
)
def test_what_can_not_be_written_is_a_failure_of_the_task(
    events: tuple[Event, ...], result: Worked, retryable: bool
) -> None:
    """What is too large would be so again; a model that slipped may do better."""
    (failed,) = said(desk_on(Files()).done(TASK, events, result))
    assert isinstance(failed, TaskFailed)
    assert (failed.task_id, failed.retryable) == ("t", retryable)
    assert failed.reason


def test_a_reason_from_anywhere_can_be_told() -> None:
    (failed,) = said(desk_on(Files()).failed(TASK, "name \udcff" + "x" * 9_000, retryable=True))
    assert isinstance(failed, TaskFailed)
    assert failed.reason.startswith("name ?xxx")


def test_what_agents_say_holds_no_secret_and_what_they_write_is_their_own() -> None:
    key = "sk-" + "0123456789abcdef" * 2
    desk = replace(desk_on(Files()), redact=Redactor(frozenset({"canary-1"})))
    payload = CodeModified(patch=make_patch(None, key.encode()), summary=f"uses {key} and canary-1")
    event = desk.event(TASK, A, payload)
    planned = Planned(tasks=(TaskSpec(role="generator", path=A, goal=f"use {key}"),))
    vote = Reviewed(event=emitted(event), version="e", approved=False, lens="x", comments=("ok", key))
    for result in (Worked(events=(emitted(event),), summary=key), planned, vote):
        outputs = desk.done(TASK, (event,), result)
        assert said(outputs[:1]) == [msgspec.structs.replace(payload, summary=f"uses {MARK} and {MARK}")]
        assert key.encode() not in outputs[1].value and MARK.encode() in outputs[1].value
    [failed] = said(desk.failed(TASK, f"Bearer {key}", retryable=False))
    assert failed.reason == f"Bearer {MARK}"
