"""Reads and writes task queues: W1a, how many tasks a second go through three chained pool engines.

Tasks go generator → reviewer → tester → done. Each stage is one process, on both sides: a pool engine
as it is wired for real (Kafka bus, exactly-once, offsets in the commit's metadata) around a stub that
decodes a Task and writes the next role's, or a hand-written loop that does the same with fastavro, a
transaction a batch. The limit of both is a loop by hand that passes the bytes on as they are.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing.process import BaseProcess
from statistics import median

import msgspec

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.tasks import Task
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.engine.pool_engine import Earlier
from tests.bench import baselines, load
from tests.bench.figures import Figure, Wrong
from tests.bench.fleet_parts import fleet_on, run_pool
from tests.bench.ground import Ground, check_alive, children, cpu_seconds, run_until_terminated, server_cpu

TASKS = 20_000
WARM_UP = 2_000
KEYS = 200
ROUNDS = 3
STAGES = ("generator", "reviewer", "tester", "done")
SIDES = ("engines", "by hand", "bytes by hand")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its role, and whose queue it writes to."""

    kafka: str
    redis: str
    topics: Topics
    role: str
    next_role: str


class PassOn:
    """A handler without latency: the task becomes the next role's."""

    def __init__(self, stage: Stage, codec: Codec) -> None:
        self._role, self._codec = stage.next_role, codec
        self._topic = stage.topics.tasks(stage.next_role)

    async def handle(self, record: Record, earlier: Earlier) -> Sequence[Outgoing]:
        """See `Handler`."""
        task = msgspec.structs.replace(self._codec.decode(record.value, Task), role=self._role)
        return [Outgoing(self._topic, record.key, self._codec.encode(task))]

    def gave_up(self, record: Record, reason: str) -> Sequence[Outgoing]:
        """See `Handler`."""
        return ()

    async def close(self) -> None:
        """See `Handler`."""


def run_engine(stage: Stage) -> None:
    """In a child: one stage of ours."""

    async def run(stop: asyncio.Event) -> None:
        async with fleet_on(stage.kafka, stage.redis, stage.topics) as fleet:
            await run_pool(fleet, stage.role, PassOn(stage, fleet.codec), KEYS, stop)

    run_until_terminated(run)


def run_loop(stage: Stage, decode: bool) -> None:
    """In a child: one stage by hand."""
    topics = stage.topics
    baselines.pass_on(
        baselines.Hop(
            kafka=stage.kafka,
            source=topics.tasks(stage.role),
            target=topics.tasks(stage.next_role),
            group=topics.group(f"hand.{stage.role}"),
            next_role=stage.next_role,
            decode=decode,
        )
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """One side, once."""

    rate: float
    """Tasks a second."""
    cpu: Mapping[str, float]
    """Seconds of CPU a task, of each part."""


def measure(ground: Ground) -> Iterator[Figure]:
    """The figures of W1a.

    Raises:
        Wrong: a task was lost, doubled, or overtook another one of its key.
    """
    runners: dict[str, Callable[[Stage], None]] = {
        "engines": run_engine,
        "by hand": partial(run_loop, decode=True),
        "bytes by hand": partial(run_loop, decode=False),
    }
    found: dict[str, list[Measured]] = {side: [] for side in SIDES}
    for number in range(ROUNDS):
        for side in reversed(SIDES):
            measured = _side(ground, runners[side], "" if side == "bytes by hand" else STAGES[-1])
            found[side].append(measured)
            ground.say(f"W1a {side}, round {number + 1}: {measured.rate:,.0f} tasks/s")
    rates = {side: median(one.rate for one in found[side]) for side in SIDES}
    how = (
        f"{ground.count(TASKS):,} tasks, {KEYS} keys, three hops; a process a stage on both sides; "
        f"median of {ROUNDS}"
    )
    yield Figure("W1a pipeline", rates["engines"], "tasks/s", "by hand", rates["by hand"], 0.5, how=how)
    yield Figure(
        "W1a pipeline, bytes", rates["engines"], "tasks/s", "bytes passed on by hand", rates["bytes by hand"]
    )
    for part in found["engines"][0].cpu:
        ours, by_hand = (1e6 * median(one.cpu[part] for one in found[side]) for side in SIDES[:2])
        yield Figure(f"W1a CPU {part}", ours, "µs/task", "by hand", by_hand)


def by_hand(ground: Ground) -> float:
    """Tasks a second of the loop by hand."""
    return _side(ground, partial(run_loop, decode=True), STAGES[-1]).rate


def _side(ground: Ground, runner: Callable[[Stage], None], last_role: str) -> Measured:
    """Start one side, see tasks come through, then take the time of all the others."""
    count, warm_up = ground.count(TASKS), ground.count(WARM_UP, KEYS)
    codec = Codec.create()
    first = load.tasks(codec, warm_up, KEYS, STAGES[0], mark="warm-up")
    second = load.tasks(codec, count, KEYS, STAGES[0], mark="task")
    with ground.topics(*STAGES) as topics:
        stages = [Stage(ground.kafka, ground.redis, topics, role, after) for role, after in pairwise(STAGES)]
        with (
            load.sink(ground.kafka, topics.tasks(STAGES[-1])) as sink,
            children(*((runner, [stage]) for stage in stages)) as processes,
        ):
            alive = partial(check_alive, processes)
            load.send(ground.kafka, topics.tasks(STAGES[0]), first)
            values = sink.take(warm_up, alive)
            used = _cpu(ground, processes)
            began = load.send(ground.kafka, topics.tasks(STAGES[0]), second)
            values += sink.take(count, alive)
            elapsed = time.monotonic() - began
            after = _cpu(ground, processes)
            _check(codec, values, sink.surplus(1.0), last_role or STAGES[0])
    return Measured(count / elapsed, {part: (after[part] - used[part]) / count for part in used})


def _cpu(ground: Ground, stages: Sequence[BaseProcess]) -> Mapping[str, float]:
    """Seconds of CPU so far."""
    return {"stages": cpu_seconds([stage.pid for stage in stages]), **server_cpu(ground)}


def _check(codec: Codec, values: Sequence[bytes], surplus: int, role: str) -> None:
    """Each task has come once, in the order of its key, as a task of this role."""
    arrived = [codec.decode(value, Task) for value in values]
    late = load.out_of_order([task.task_id for task in arrived])
    strange = [task.task_id for task in arrived if task.role != role]
    if late or strange or surplus:
        raise Wrong(
            f"{len(late)} lost, doubled or out of order such as {late[:3]}; "
            f"{len(strange)} not through all stages; {surplus} too many"
        )
