"""Reads and writes `events`, runs a projector: how soon a running call knows that its file has moved.

A worker has many calls in flight, one a file, none of which ever answers. Somebody else appends an edit of
one file after the other; the clock runs from before an edit is sent until the file's call is cancelled, as
the job's `on_move: restart` asks for. In between are a Kafka transaction, the projector in a process of its
own, its write to Redis, the hint, and the worker's look at the projection.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import median, quantiles
from time import monotonic

from prometheus_client import CollectorRegistry

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.job_spec import OnMove
from codeconvoy.schemas.tasks import EditWork, Task
from codeconvoy.schemas.topics import Topics, file_key
from codeconvoy.workers.agent_worker import AgentWorker
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.llm.spent import MovedCalls
from codeconvoy.workers.moves import Hints
from codeconvoy.workers.projector import FILES
from codeconvoy.workers.roles.role import Answer, Context, Role, RoleKind
from tests.bench import load
from tests.bench.events import Log, path_of
from tests.bench.figures import Figure
from tests.bench.fleet_parts import fleet_on, run_process
from tests.bench.ground import Ground, check_alive, children, in_child
from tests.bench.projected import ends_of, wait_projected
from tests.contexts import at_once

ROLE = "generator"
CALLS = 200
SECONDS = 60.0
TARGET_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds, one for each edit that was appended."""

    noticed: list[float]
    appended: list[float]


def measure(ground: Ground) -> Iterator[Figure]:
    """From the append of an edit to the end of the call that was working on the version before."""
    calls = ground.count(CALLS, 20)
    with ground.topics(ROLE) as topics:
        load.send(ground.kafka, topics.events, Log(Codec.create()).events(calls, 0, 1))
        with children((run_process, (ground.kafka, ground.redis, topics, "projector"))) as processes:
            wait_projected(ground, topics, FILES, ends_of(ground, topics), partial(check_alive, processes))
            delays: Delays = in_child(watch, ground.kafka, ground.redis, topics, calls)
    p50, p99 = median(delays.noticed), quantiles(delays.noticed, n=100)[98]
    ground.say(f"moved head: noticed after {1e3 * p50:.0f} ms, p99 {1e3 * p99:.0f} ms")
    how = (
        f"{calls} calls in flight in one worker, an edit of each one's file, one after the other; from "
        "before the edit is sent to the cancelling of the call; limit: the transaction that appends it"
    )
    yield Figure("moved head noticed, p50", 1e3 * p50, "ms", "append", 1e3 * median(delays.appended), how=how)
    yield Figure("moved head noticed, p99", 1e3 * p99, "ms", "aim", 1e3 * TARGET_SECONDS, 1.0, at_most=True)


@dataclass(slots=True)
class Hanging:
    """An agent that never answers, and notes when it is cancelled for the first time."""

    calls: int
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """All calls have."""
    cancelled: dict[str, "asyncio.Future[float]"] = field(default_factory=dict)
    """By path, from the beginning of its call on."""

    async def work(self, context: Context) -> Answer:
        """See `Agent`."""
        made: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        first = self.cancelled.setdefault(context.task.path, made)
        if len(self.cancelled) == self.calls:
            self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            if not first.done():
                first.set_result(monotonic())
        raise AssertionError("nobody sets the event")

    async def close(self) -> None:
        """See `Agent`."""


def watch(kafka: str, redis_url: str, topics: Topics, calls: int) -> Delays:
    """In a child: a worker with calls in flight, and somebody else who appends."""

    async def run() -> Delays:
        async with fleet_on(kafka, redis_url, topics) as fleet:
            hints, agent = Hints(), Hanging(calls)
            desk = fleet.desk("generator/bench", hints)
            role = Role(ROLE, RoleKind.EDIT, "", "stub")
            worker = AgentWorker(role, agent, desk, fleet.codec, MovedCalls(CollectorRegistry()))
            running = [asyncio.create_task(_call(worker, fleet.codec, file)) for file in range(calls)]
            running.append(asyncio.create_task(fleet.moves().listen(hints)))
            producer = await fleet.bus.producer("bench-appends")
            async with asyncio.timeout(SECONDS):
                await agent.begun.wait()
            delays, log = Delays([], []), Log(fleet.codec)
            for file in range(calls):
                keyed, began = log.event(file, 1), monotonic()
                await producer.transaction([Outgoing(topics.events, keyed.key, keyed.value)])
                delays.appended.append(monotonic() - began)
                async with asyncio.timeout(SECONDS):
                    noticed = await agent.cancelled[path_of(file)]
                delays.noticed.append(noticed - began)
            for one in running:
                one.cancel()
            await asyncio.wait(running)
            return delays

    return asyncio.run(run())


async def _call(worker: AgentWorker, codec: Codec, file: int) -> None:
    """One task, which is never done."""
    task = Task(
        task_id=f"task/{file}",
        job_id="job",
        workspace=load.WORKSPACE,
        role=ROLE,
        path=path_of(file),
        round=1,
        goal=load.GOAL,
        on_move=OnMove.RESTART,
        work=EditWork(),
    )
    record = Record("tasks", 0, 0, file_key(load.WORKSPACE, task.path), codec.encode(task))
    await worker.handle(record, at_once)
