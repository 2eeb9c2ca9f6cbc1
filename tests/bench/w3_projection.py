"""Reads the events log, writes Redis: W3, how many events a second the projector folds into Redis.

The log is there before the clock starts, with all files worked on at once. The projector is the fleet's
own process, with all its checks: every event decoded and looked at, its hunks applied, both hashes compared,
its verdict reached, a transaction with the consumed offset in Kafka, then the state in Redis. By hand the
same fields are written, unchecked: for each event, or once a batch for each file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from confluent_kafka.admin import AdminClient
from redis import Redis

from codeconvoy.orchestrator.fleet import state_name
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.projector import FILES, JOBS
from tests.bench import baselines, load
from tests.bench.events import Log
from tests.bench.figures import Figure
from tests.bench.fleet_parts import run_process
from tests.bench.ground import Ground, check_alive, children, cpu_seconds
from tests.bench.projected import check_shown, ends_of, hash_of, wait_projected

FILE_COUNT = 1_000
EVENTS = 200
"""Of each file."""
ROUNDS = 3


def measure(ground: Ground) -> Iterator[Figure]:
    """The figures of W3.

    Raises:
        Wrong: the projection does not show each file's last event.
    """
    each = ground.count(EVENTS, 2)
    rates: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    written: dict[str, str] = {}
    with ground.topics() as topics:
        log = Log(Codec.create())
        load.send(ground.kafka, topics.events, log.events(FILE_COUNT, 0, each))
        ground.say(f"W3: {FILE_COUNT * each:,} events are there")
        ends = ends_of(ground, topics)
        for number in range(ROUNDS):
            for side, stem, target, arguments in _sides(ground, topics, number):
                with children((target, arguments)) as processes:
                    alive = partial(check_alive, processes)
                    passed = wait_projected(ground, topics, stem, ends, alive)
                    used = cpu_seconds([one.pid for one in processes]) / sum(ends.values())
                if stem == FILES:
                    check_shown(ground, topics, stem, FILE_COUNT, lambda file: each - 1)
                rates.setdefault(side, []).append(passed.rate)
                cpu.setdefault(side, []).append(used)
                written[side] = _written(ground, topics, stem)
                ground.say(f"W3 {side}, round {number + 1}: {passed.rate:,.0f} events/s")
                _erase(ground, topics, stem)
    yield from _figures(rates, cpu, f"{FILE_COUNT:,} files of {each} events; {_listed(written)}")


def _figures(rates: dict[str, list[float]], cpu: dict[str, list[float]], what: str) -> Iterator[Figure]:
    rate = {side: median(found) for side, found in rates.items()}
    micros = {side: 1e6 * median(found) for side, found in cpu.items()}
    how = f"{what}; one process a side, median of {ROUNDS}; starting up left out"
    ours, plain, coalesced = rate["projector"], rate["by hand"], rate["by hand, coalescing"]
    yield Figure("W3 projection", ours, "events/s", "by hand", plain, 0.7, how=how)
    yield Figure("W3 projection, coalesced", ours, "events/s", "by hand, a write a file and batch", coalesced)
    yield Figure("W3 CPU", micros["projector"], "µs/event", "by hand", micros["by hand"])


def _listed(written: Mapping[str, str]) -> str:
    return "; ".join(f"{side} wrote {what}" for side, what in written.items())


Side = tuple[str, str, Callable[..., None], Sequence[Any]]
"""Its name, whose hashes it fills, and the process that does."""


def _sides(ground: Ground, topics: Topics, number: int) -> Iterator[Side]:
    for coalesce in (False, True):
        name = "by hand, coalescing" if coalesce else "by hand"
        stem = f"hand{number}{coalesce:d}"
        what = baselines.Projecting(
            kafka=ground.kafka,
            redis=ground.redis,
            topic=topics.events,
            group=topics.group(stem),
            stem=f"{topics.prefix}:{state_name(stem)}",
            coalesce=coalesce,
        )
        yield name, stem, baselines.project, [what]
    yield "projector", FILES, run_process, (ground.kafka, ground.redis, topics, "projector")


def _written(ground: Ground, topics: Topics, stem: str) -> str:
    """How much there is in Redis, so that everybody sees that it is about the same."""
    fields, size = 0, 0
    with Redis.from_url(ground.redis) as redis:
        for number in range(topics.partitions):
            name = hash_of(topics, stem, number)
            fields += int(redis.hlen(name))
            size += int(redis.memory_usage(name, samples=1_000) or 0)
    return f"{fields:,} fields, {size / 1e6:,.0f} MB"


def _erase(ground: Ground, topics: Topics, stem: str) -> None:
    """Forget what was written, and how far the projector's groups had come: without their offsets it
    takes the log for new, and commits as it goes."""
    admin = AdminClient({"bootstrap.servers": ground.kafka, "log_level": 2})
    if stem == FILES:
        for deleted in admin.delete_consumer_groups([topics.group(FILES), topics.group(JOBS)]).values():
            deleted.result()
    with Redis.from_url(ground.redis) as redis:
        for number in range(topics.partitions):
            redis.unlink(hash_of(topics, stem, number))
