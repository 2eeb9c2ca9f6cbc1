"""Reads and writes a task queue: how soon a worker that starts has its first result, and how soon the tasks
of a worker that was killed run elsewhere.

Workers are the commands that a user runs, with the product's own settings; the model is a stub. Nothing else
runs: no file has a history yet, so nobody has to wait for the projector.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from confluent_kafka.admin import AdminClient

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.job_facts import JobFact, TaskDone
from codeconvoy.schemas.topics import Topics
from tests.bench import load, w1_pipeline
from tests.bench.figures import Figure, Wrong
from tests.bench.fleet_parts import commands
from tests.bench.ground import Ground, children, wait_for
from tests.bench.stub_agents import roles_file
from tests.bench.w1_pipeline import Stage

ROLE, DONE = "generator", "done"
STARTS, KILLS = 3, 2
FIRST_SECONDS, KILL_SECONDS = 60.0, 90.0
CALL_SECONDS = 120
SLOTS = 100
TASKS = 24
"""In flight when a worker is killed. Its share fits into the slots that suspects of a crash are given."""
DEFAULT_SECONDS = 45.0
"""`session.timeout.ms` of librdkafka and of Java's clients."""
TARGET_SECONDS = 15.0


def measure_start(ground: Ground) -> Iterator[Figure]:
    """From `convoy worker` to its first result on the log."""
    ours = [_start(ground) for _ in range(STARTS)]
    by_hand = [_start_by_hand(ground) for _ in range(STARTS)]
    how = f"from starting the process to the first record on the jobs log; median of {STARTS}"
    yield Figure("start to first result", median(ours), "s", "by hand", median(by_hand), how=how)


def measure_kill(ground: Ground) -> Iterator[Figure]:
    """From SIGKILL of a worker to the start of its tasks in another."""
    taken = [_kill(ground) for _ in range(KILLS)]
    how = (
        f"two workers of {SLOTS} slots with {TASKS} calls in flight; from the SIGKILL of one to the start of "
        f"the last of its tasks in the other; worst of {KILLS}"
    )
    worst = max(one.last for one in taken)
    yield Figure(
        "kill to running elsewhere",
        worst,
        "s",
        "default settings",
        DEFAULT_SECONDS,
        TARGET_SECONDS / DEFAULT_SECONDS,
        at_most=True,
        how=how,
    )
    yield Figure("kill to first elsewhere", max(one.first for one in taken), "s")


def _tasks(count: int, mark: str) -> list[load.Keyed]:
    return load.tasks(Codec.create(), count, count, ROLE, mark=mark)


def _start(ground: Ground) -> float:
    """Seconds of one start of ours, in a fleet of its own: no file has a history that has to be projected."""
    codec = Codec.create()
    with ground.topics(ROLE) as topics, commands(ground, topics.prefix, roles_file(SLOTS)) as started:
        load.send(ground.kafka, topics.tasks(ROLE), _tasks(1, "start"))
        with load.sink(ground.kafka, topics.jobs) as sink:
            began = time.monotonic()
            started.start(ROLE)
            [value] = sink.take(1)
            seconds = time.monotonic() - began
    fact = codec.decode(value, JobFact)
    if not isinstance(fact.payload, TaskDone):
        raise Wrong(f"the worker did not do its task: {fact.payload}")
    ground.say(f"start: {seconds:.2f} s")
    return seconds


def _start_by_hand(ground: Ground) -> float:
    with ground.topics(ROLE, DONE) as topics:
        load.send(ground.kafka, topics.tasks(ROLE), _tasks(1, "start"))
        stage = Stage(ground.kafka, ground.redis, topics, ROLE, DONE)
        with load.sink(ground.kafka, topics.tasks(DONE)) as sink:
            began = time.monotonic()
            with children((w1_pipeline.run_loop, (stage, True))):
                sink.take(1)
                return time.monotonic() - began


@dataclass(frozen=True, slots=True)
class Taken:
    """How long after its worker was killed a task of it ran elsewhere, in seconds."""

    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Begun:
    """One start of a call, as the stub noted it."""

    pid: int
    path: str
    at: float


def _kill(ground: Ground) -> Taken:
    log = ground.directory / f"calls-{time.monotonic_ns()}"
    log.touch()
    roles = roles_file(SLOTS, seconds=str(CALL_SECONDS), log=str(log))
    with ground.topics(ROLE) as topics, commands(ground, topics.prefix, roles) as started:
        first, second = f"{ROLE}/0", f"{ROLE}/1"
        started.start(first, second)
        wait_for(lambda: _shares(ground, topics) == 2, "both workers have partitions", FIRST_SECONDS, 0.2)
        load.send(ground.kafka, topics.tasks(ROLE), _tasks(TASKS, "kill"))
        wait_for(lambda: len(_begun(log)) >= TASKS, "all calls have begun", FIRST_SECONDS)
        victim = started[first].pid
        its = {one.path for one in _begun(log) if one.pid == victim}
        if not its:
            raise RuntimeError("the worker to be killed had no task")
        killed = time.monotonic()
        started[first].kill()
        wait_for(lambda: its <= _elsewhere(log, victim).keys(), "its tasks run elsewhere", KILL_SECONDS)
        starts = [at - killed for path, at in _elsewhere(log, victim).items() if path in its]
    ground.say(f"kill: {len(its)} tasks elsewhere after {min(starts):.1f} to {max(starts):.1f} s")
    return Taken(min(starts), max(starts))


def _shares(ground: Ground, topics: Topics) -> int:
    """How many members of the workers' group have partitions, once all are given out."""
    group = topics.group(f"worker.{ROLE}")
    admin = AdminClient({"bootstrap.servers": ground.kafka, "log_level": 2})
    admin.list_topics(timeout=10.0)  # connected: see `BrokerAdmin`
    described = admin.describe_consumer_groups([group], request_timeout=10.0)[group].result()
    shares = [len(member.assignment.topic_partitions) for member in described.members]
    return sum(share > 0 for share in shares) if sum(shares) == topics.partitions else 0


def _begun(log: Path) -> list[Begun]:
    """All whole lines of the log."""
    lines = log.read_text().split("\n")[:-1]
    return [Begun(int(pid), path, float(at)) for pid, path, at in map(str.split, lines)]


def _elsewhere(log: Path, victim: int) -> Mapping[str, float]:
    """When each path was first begun by another process than the victim."""
    found: dict[str, float] = {}
    for one in _begun(log):
        if one.pid != victim:
            found.setdefault(one.path, one.at)
    return found
