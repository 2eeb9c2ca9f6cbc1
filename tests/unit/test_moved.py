"""A file moves under a running call: whether it counts, who hears of it, and what becomes of the call."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import cast

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from codeconvoy.schemas import ids
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.events import CodeModified, Event, EventType, Strategy, Usage
from codeconvoy.schemas.file_history import Edit
from codeconvoy.schemas.job_facts import JobFact, TaskFailed
from codeconvoy.schemas.job_spec import OnMove
from codeconvoy.schemas.tasks import EditWork, MustSee, ResolveWork, ReviewWork, Task, Work
from codeconvoy.schemas.topics import Topics, file_key
from codeconvoy.workers.agent_worker import AgentWorker
from codeconvoy.workers.desk import Desk
from codeconvoy.workers.engine.bus import Record, TopicPartition
from codeconvoy.workers.engine.memory_bus import MemoryReader
from codeconvoy.workers.file_states import Content
from codeconvoy.workers.llm.chain import CountedProvider
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.provider import Call, Message, Origin, Reply, Stop
from codeconvoy.workers.llm.spent import MovedCalls
from codeconvoy.workers.moved import MAX_RESTARTS, Reaction, moved, reaction
from codeconvoy.workers.moves import MAX_MOVES, Hints, moves_of, pass_on
from codeconvoy.workers.projection import FileView, Projection, Standing, Wanted
from codeconvoy.workers.roles.role import Answer, Context, Edits, FileEdit, Role, RoleKind
from tests.builders import FileLog
from tests.contexts import at_once
from tests.simulation.loop import SimulationLoop

CODEC, TOPICS = Codec.create(), Topics(partitions=2)
A, B = "a.txt", "b.txt"
RESOLVE = ResolveWork(
    conflict_id="c", attempt=1, heads=("1", "2"), base=None, own="1", strategy=Strategy.REWORK
)


def task(work: Work | None = None, on_move: OnMove = OnMove.RESTART, round_: int = 1) -> Task:
    return Task(
        task_id="t",
        job_id="j",
        workspace="w",
        role="generator",
        path=A,
        round=round_,
        goal="g",
        reads=(B,),
        on_move=on_move,
        work=work or EditWork(),
    )


def view(path: str, event_id: str = "", content: bytes | None = None, seq: int = 0) -> FileView:
    """A file whose readers see this event; the content is the event's id, unless it is given."""
    if not event_id:
        return FileView(path)
    text = event_id.encode() if content is None else content
    edit = Edit(parents=(), live=True, content=text, sha256=ids.sha256(text))
    one = Content(event_id=event_id, seq=seq, role="r", summary="s", edit=edit)
    return FileView(path, event_id, (event_id,), {event_id: one})


# What counts -----------------------------------------------------------------------------------------


def own(round_: int, kind: EventType = EventType.CODE_MODIFIED) -> str:
    return ids.event_id("t", round_, A, kind)


@pytest.mark.parametrize(
    ("work", "before", "after", "counts"),
    [
        (EditWork(), view(A, "1"), view(A, "1"), False),
        (EditWork(), view(A, "1"), view(A, "2", seq=1), True),
        (EditWork(), view(A, "1"), view(A, "2", b"1", seq=1), False),  # the same content
        (EditWork(), view(A, "1", seq=5), view(A, "0", seq=4), False),  # the projection was set back
        (EditWork(), view(A, "1"), view(A), False),  # it was lost
        (EditWork(), view(A), view(A, "1"), True),  # somebody created it
        (EditWork(), view(A), view(A), False),
        (EditWork(), view(A, "1"), view(A, own(1), seq=1), False),
        (EditWork(), view(A, "1"), view(A, own(2, EventType.FILE_DELETED), seq=1), False),
        (EditWork(), view(A, "1"), view(A, own(3), seq=1), True),  # there was no third round yet
        (EditWork(base="1"), view(A, "1"), view(A, "2", seq=1), False),  # it shall start from there
        (ReviewWork(version="1", base=""), view(A, "1"), view(A, "2", seq=1), True),
    ],
)
def test_what_counts_as_a_move(work: Work, before: FileView, after: FileView, counts: bool) -> None:
    shown, now = {A: before, B: view(B, "b")}, {A: after, B: view(B, "b")}
    assert moved(task(work, round_=2), shown, now) == ({A} if counts else frozenset())


def test_a_file_that_was_only_read_counts_too() -> None:
    shown = {A: view(A, "1"), B: view(B, "b")}
    assert moved(task(EditWork(base="1")), shown, {**shown, B: view(B, "b2", seq=1)}) == {B}


@pytest.mark.parametrize(
    ("on_move", "work", "restarts", "what"),
    [
        (OnMove.REPAIR, EditWork(), 0, Reaction.REPAIR),
        (OnMove.RESTART, EditWork(), 0, Reaction.RESTART),
        (OnMove.RESTART, EditWork(), MAX_RESTARTS - 1, Reaction.RESTART),
        (OnMove.RESTART, EditWork(), MAX_RESTARTS, Reaction.REPAIR),
        (OnMove.RESTART, RESOLVE, 0, Reaction.RESTART),
        (OnMove.RESTART, ReviewWork(version="1", base=""), 0, Reaction.REPAIR),
    ],
)
def test_what_follows(on_move: OnMove, work: Work, restarts: int, what: Reaction) -> None:
    assert reaction(task(work, on_move), restarts) is what


# Who hears of it -------------------------------------------------------------------------------------


def test_only_what_readers_see_is_told() -> None:
    log = FileLog()
    log.edit("1", b"1\n")
    first = log.history
    log.edit("2", b"2\n", "1")
    second = log.history
    log.edit("2b", b"3\n", "1")
    assert log.history.forked
    assert moves_of({"new": (None, first), "w:a": (first, second)}) == [("new", "1"), ("w:a", "2")]
    assert moves_of({"w:a": (second, log.history)}) == [], "a fork is seen by nobody"


def test_hints_reach_those_whom_they_concern() -> None:
    async def go() -> None:
        hints = Hints()
        with hints.about(["w:a", "w:b", "w:a"]) as both, hints.about(["w:b"]) as one:
            pass_on({"type": "message", "data": msgspec.msgpack.encode([("w:a", "1"), ("w:c", "2")])}, hints)
            assert (both.is_set(), one.is_set()) == (True, False)
            both.clear()
            pass_on({"type": "message", "data": b"from another version"}, hints)
            assert both.is_set() and one.is_set()
            both.clear()
            pass_on({"type": "subscribe", "data": 1}, hints)
            assert both.is_set(), "something may have been missed before"
        both.clear()
        hints.tell([("w:a", "2")])
        hints.tell_all()
        assert not both.is_set()

    asyncio.run(go())


def test_a_message_is_bounded() -> None:
    assert len(msgspec.msgpack.encode([("w:" + "p" * 1_000, "e" * 36)] * MAX_MOVES)) < 2**20


# What becomes of the call ----------------------------------------------------------------------------


class Ends(MemoryReader):
    """The ends of an events log."""

    def __init__(self) -> None:
        """There is no broker."""

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, 1)


class Files:
    """A projection that a test changes, or takes away."""

    def __init__(self) -> None:
        self.shown = {A: view(A, "a1"), B: view(B, "b1")}
        self.away, self.looks = False, 0

    async def views(
        self, workspace: str, wanted: Wanted, points: Sequence[MustSee], known: Mapping[str, FileView]
    ) -> Mapping[str, FileView]:
        if self.away:
            raise Unavailable("projection", "it is away", "Wait")
        self.looks += not points
        return {path: self.shown[path] for path in wanted}

    async def standing(self, job_id: str, task_id: str) -> Standing | None:
        return None


@dataclass
class Slow:
    """An agent that answers after so many seconds, or never, and notes what it was shown."""

    seconds: list[float]
    saw: list[str] = field(default_factory=list)
    cancelled: int = 0

    async def work(self, context: Context) -> Answer:
        self.saw.append(f"{context.file.event_id} {context.others[0].event_id}")
        try:
            await asyncio.sleep(self.seconds.pop(0))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Edits((FileEdit(A, b"mine\n"),))

    async def close(self) -> None:
        """There is nothing to close."""


@dataclass
class Place:
    """A worker with a task, on a virtual clock."""

    agent: Slow
    files: Files = field(default_factory=Files)
    hints: Hints = field(default_factory=Hints)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    calls: MovedCalls | None = None
    moves: int = 0

    async def handle(self, given: Task) -> Event | TaskFailed:
        """What the worker writes."""
        reader, projection = Ends(), cast(Projection, self.files)
        desk = Desk(CODEC, TOPICS, projection, reader, lambda: 0, "generator/1", hints=self.hints)
        role = Role("generator", RoleKind.EDIT, "", "test")
        worker = AgentWorker(role, self.agent, desk, CODEC, self.calls or MovedCalls(self.registry))
        outputs = await worker.handle(
            Record(TOPICS.tasks("generator"), 0, 0, A, CODEC.encode(given)), at_once
        )
        if len(outputs) == 2:
            return CODEC.decode(outputs[0].value, Event)
        failed = CODEC.decode(outputs[0].value, JobFact).payload
        assert isinstance(failed, TaskFailed)
        return failed

    def move(self, path: str, event_id: str, *, told: bool = True) -> None:
        self.moves += 1
        self.files.shown[path] = view(path, event_id, seq=self.moves)
        if told:
            self.hints.tell([(file_key("w", path), event_id)])

    def counted(self, policy: str) -> float:
        labels = {"role": "generator", "policy": policy}
        return self.registry.get_sample_value("convoy_moved_calls_total", labels) or 0.0


def virtually(test: Callable[[], Awaitable[None]]) -> None:
    loop = SimulationLoop(  # type: ignore[abstract]
        Random(7), 100_000, lambda task: None, lambda error: False
    )
    try:
        loop.run_until_complete(test())
    finally:
        loop.close()


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("told", [True, False], ids=["told", "the message was lost"])
@pytest.mark.parametrize("path", [A, B])
def test_restart_begins_anew_on_what_there_is_now(path: str, told: bool) -> None:
    async def go() -> None:
        place = Place(Slow([500.0, 5.0]))
        asyncio.get_running_loop().call_later(10.5, lambda: place.move(path, "x", told=told))
        event = await place.handle(task())
        assert place.agent.saw == ["a1 b1", "x b1" if path == A else "a1 x"]
        assert place.agent.cancelled == 1
        assert isinstance(event, Event) and isinstance(event.payload, CodeModified)
        assert event.parent_event_ids == ("x" if path == A else "a1",)
        assert (event.round, event.event_id) == (1, own(1)), "the same round"
        assert now() == (15.5 if told else pytest.approx(16.0, abs=0.6))
        assert (place.counted("restart"), place.counted("repair")) == (1, 0)

    virtually(go)


def test_restarts_are_bounded_and_share_one_deadline() -> None:
    async def go() -> None:
        place = Place(Slow([550.0] * 9))
        for number in range(1, 8):
            asyncio.get_running_loop().call_later(50.0 * number, place.move, A, f"x{number}")
        failed = await place.handle(task())
        assert isinstance(failed, TaskFailed) and failed.retryable and "600 s" in failed.reason
        assert now() == 600.0
        assert place.agent.saw == ["a1 b1", "x1 b1", "x2 b1"]
        assert (place.counted("restart"), place.counted("repair")) == (2, 1)

    virtually(go)


def test_repair_lets_it_finish_on_what_it_read() -> None:
    async def go() -> None:
        place = Place(Slow([20.0]))
        asyncio.get_running_loop().call_later(10.0, place.move, A, "x")
        asyncio.get_running_loop().call_later(11.0, place.move, A, "y")
        event = await place.handle(task(on_move=OnMove.REPAIR))
        assert isinstance(event, Event) and event.parent_event_ids == ("a1",)
        assert (now(), place.agent.cancelled) == (20.0, 0)
        assert (place.counted("restart"), place.counted("repair")) == (0, 1)

    virtually(go)


def test_ignore_is_not_told_and_does_not_look() -> None:
    async def go() -> None:
        place = Place(Slow([20.0]))
        asyncio.get_running_loop().call_later(10.0, place.move, A, "x")
        event = await place.handle(task(on_move=OnMove.IGNORE))
        assert isinstance(event, Event) and event.parent_event_ids == ("a1",)
        assert (place.files.looks, place.counted("restart"), place.counted("repair")) == (0, 0, 0)

    virtually(go)


def test_its_own_former_event_interrupts_nothing() -> None:
    async def go() -> None:
        place = Place(Slow([20.0]))
        asyncio.get_running_loop().call_later(10.0, place.move, A, own(1))
        event = await place.handle(task())
        assert isinstance(event, Event) and event.parent_event_ids == ("a1",)
        assert place.files.looks > 0 and place.agent.cancelled == 0

    virtually(go)


def test_a_projection_that_is_away_interrupts_nothing() -> None:
    async def go() -> None:
        place = Place(Slow([20.0]))

        def lose() -> None:
            place.files.away = True
            place.hints.tell_all()

        asyncio.get_running_loop().call_later(10.0, lose)
        assert isinstance(await place.handle(task()), Event)
        assert (now(), place.agent.cancelled) == (20.0, 0)

    virtually(go)


# What it cost ----------------------------------------------------------------------------------------


@dataclass
class Model:
    """A provider that takes its time."""

    name: str = "p"

    async def call(self, request: Call) -> Reply:
        await asyncio.sleep(10.0)
        usage = Usage(
            provider="p",
            model="m",
            tokens_in=90,
            tokens_cached=0,
            tokens_out=10,
            cost_usd=0.0,
            prompt_sha256="",
        )
        return Reply("done", usage, Stop.FINISHED)

    async def close(self) -> None:
        """There is nothing to close."""


class Asking(Slow):
    """An agent that asks a model twice."""

    def __init__(self, model: CountedProvider) -> None:
        super().__init__([0.0, 0.0])
        self.model = model

    async def work(self, context: Context) -> Answer:
        origin = Origin("w", "j", context.task.task_id, context.task.round)
        for _ in range(2):
            await self.model.call(Call("m", "s" * 300, (Message("user", "u" * 299),), origin=origin))
        return await super().work(context)


def test_tokens_that_were_wasted_and_saved_are_counted() -> None:
    """A cancelled call's input counts as spent; what it did not say is what the role says on average."""

    async def go() -> None:
        registry = CollectorRegistry()
        metrics = ModelMetrics(registry)
        place = Place(Asking(CountedProvider(Model(), "m", metrics)), registry=registry, calls=metrics.moved)
        asyncio.get_running_loop().call_later(15.0, place.move, A, "x")
        await place.handle(task())
        assert now() == 35.0
        tokens = {
            what: registry.get_sample_value("convoy_moved_tokens_total", {"role": "generator", "what": what})
            for what in ("wasted", "saved")
        }
        assert tokens == {"wasted": 90 + 10 + 200, "saved": 10}

    virtually(go)
