"""Reads and writes the events log and Redis: W4, what an event costs as the log grows, and W5, a rebuild.

Three logs of the same files with 10, 100 and 1,000 events each. The projection of each is made by a rebuild
(W5: that of the longest), and the detector is given a copy of the states, which are the same. Each log's
detector is then given an event of each file (first touch: the histories are read from Redis), and many more
at once (throughput: they are in memory); the three take turns, as the machine may be another one a minute
later. Its projector is given one event after the other, each when the one before is projected (latency).
"""

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from statistics import median, quantiles

import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from redis import Redis

from codeconvoy.orchestrator.fleet import state_name
from codeconvoy.orchestrator.rebuild import rebuild
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.topics import PARTITIONER, Topics, partition_of
from codeconvoy.workers.detector import NAME as DETECTOR
from codeconvoy.workers.engine.state import OFFSET
from codeconvoy.workers.projector import FILES
from tests.bench import baselines, load
from tests.bench.events import Log
from tests.bench.figures import Figure, Wrong
from tests.bench.fleet_parts import fleet_on, run_process
from tests.bench.ground import Ground, check_alive, children, in_child
from tests.bench.projected import check_shown, ends_of, hash_of, wait_projected

FILE_COUNT = 1_000
LENGTHS = (10, 100, 1_000)
APPENDS = 300
BURST, BURSTS = 20, 5
"""Events of each file that the detector is given at once, and how often: the median counts."""
FLAT = 0.1
"""So much may a figure at the longest history differ from that at the shortest."""
STALE_SECONDS = 30.0
TELL_SECONDS = 10.0


@dataclass(slots=True)
class Files:
    """A log and how many events each of its files has by now."""

    log: Log
    next: list[int] = field(default_factory=list)

    def event(self, file: int) -> load.Keyed:
        """The next event of a file."""
        number = self.next[file]
        self.next[file] += 1
        return self.log.event(file, number)

    def last(self, file: int) -> int:
        """The number of the last event of a file."""
        return self.next[file] - 1

    def round(self) -> list[load.Keyed]:
        """The next event of every file, shuffled."""
        order = list(range(len(self.next)))
        random.Random(load.SEED).shuffle(order)
        return [self.event(file) for file in order]


@dataclass(slots=True)
class At:
    """A length of history, and what was measured at it."""

    length: int
    topics: Topics
    files: Files
    rebuilt: float
    """Events a second."""
    cold: float = 0.0
    """Events a second of the detector, each the first of its file since the process began."""
    detected: list[float] = field(default_factory=list)
    """Events a second of the detector, by burst."""
    latencies: Sequence[float] = ()
    """Seconds from append to projected."""
    memory: dict[str, float] = field(default_factory=dict)
    """MB resident, by process."""


def measure(ground: Ground) -> Iterator[Figure]:
    """The figures of W4 and W5.

    Raises:
        Wrong: a rebuild or a projection does not show each file's last event.
    """
    files = ground.count(FILE_COUNT, 50)
    by_hand, floor = _limits(ground, files)
    found = _found(ground, files)
    shortest, longest = found[0], found[-1]
    for at in found:
        name, p50 = f"{at.length:,} events a file", 1e3 * median(at.latencies)
        yield Figure(f"W4 latency p50, {name}", p50, "ms", "Kafka alone", floor)
        yield Figure(f"W4 latency p99, {name}", 1e3 * quantiles(at.latencies, n=100)[98], "ms")
        yield Figure(f"W4 detector, {name}", median(at.detected), "events/s", "projection by hand", by_hand)
        yield Figure(f"W4 detector, first touch, {name}", at.cold, "events/s")
        for process, megabytes in at.memory.items():
            yield Figure(f"W4 memory {process}, {name}", megabytes, "MB")
    how = (
        f"{files:,} files; {APPENDS} appends one by one; {BURST} events of each file at once for the "
        f"detector, the lengths in turn, the median of {BURSTS}"
    )
    yield Figure(
        "W4 latency p50, longest",
        1e3 * median(longest.latencies),
        "ms",
        "shortest",
        1e3 * median(shortest.latencies),
        1 + FLAT,
        at_most=True,
        how=how,
    )
    yield Figure(
        "W4 detector, longest",
        median(longest.detected),
        "events/s",
        "shortest",
        median(shortest.detected),
        1 - FLAT,
    )
    yield _rebuilt(longest, by_hand)


def measure_rebuild(ground: Ground) -> Iterator[Figure]:
    """The figure of W5 alone.

    Raises:
        Wrong: the rebuilt projection does not show each file's last event.
    """
    files = ground.count(FILE_COUNT, 50)
    by_hand, _ = _limits(ground, files)
    with ground.topics() as topics:
        yield _rebuilt(_grown(ground, topics, files, LENGTHS[-1]), by_hand)


def _rebuilt(at: At, by_hand: float) -> Figure:
    files = len(at.files.next)
    how = f"{files * at.length:,} events of {files:,} files; by hand: W3's pipeline, on the shorter log"
    return Figure("W5 rebuild", at.rebuilt, "events/s", "projection by hand", by_hand, how=how)


def _found(ground: Ground, files: int) -> Sequence[At]:
    """All measurements at each length of history."""
    with ExitStack() as stack:
        found = [_grown(ground, stack.enter_context(ground.topics()), files, length) for length in LENGTHS]
        _detect(ground, found)
        for at in found:
            _project(ground, at)
            ground.say(
                f"W4 at {at.length:,}: p50 {1e3 * median(at.latencies):.1f} ms, detector "
                f"{median(at.detected):,.0f} events/s, first touch {at.cold:,.0f} events/s"
            )
    return found


def _grown(ground: Ground, topics: Topics, files: int, length: int) -> At:
    """A log of this length, its projection, and the detector's states."""
    there = _filled(ground, topics, files, length)
    at = At(length, topics, there, _rebuild(ground, topics, there))
    _copy_states(ground, topics)
    return at


def _detect(ground: Ground, found: Sequence[At]) -> None:
    """Measure a detector at each length, by turns."""
    with ExitStack() as stack:
        arguments = [(ground.kafka, ground.redis, at.topics, "detector") for at in found]
        started = [stack.enter_context(children((run_process, given))) for given in arguments]
        by_length = list(zip(found, started, strict=True))
        for at, processes in by_length:
            _give(ground, at, processes, [at.files.event(0)])  # it runs once this is done
        for at, processes in by_length:
            at.cold = _give(ground, at, processes, at.files.round())
        for _ in range(BURSTS):
            for at, processes in by_length:
                burst = [event for _ in range(BURST) for event in at.files.round()]
                at.detected.append(_give(ground, at, processes, burst))
        for at, [process] in by_length:
            at.memory["detector"] = _megabytes(process.pid)
    for at in found:
        check_shown(ground, at.topics, DETECTOR, len(at.files.next), at.files.last)


def _project(ground: Ground, at: At) -> None:
    """Measure a projector at this length."""
    with children((run_process, (ground.kafka, ground.redis, at.topics, "projector"))) as processes:
        alive = partial(check_alive, processes)
        wait_projected(ground, at.topics, FILES, ends_of(ground, at.topics), alive)
        at.latencies = _latencies(ground, at.topics, at.files)
        at.memory["projector"] = _megabytes(processes[0].pid)
    check_shown(ground, at.topics, FILES, len(at.files.next), at.files.last)


def _give(ground: Ground, at: At, processes: Sequence[BaseProcess], events: Sequence[load.Keyed]) -> float:
    """Give the detector events all at once; how many it did a second."""
    ends = Counter(partition_of(event.key, at.topics.partitions) for event in events)
    ends.update(ends_of(ground, at.topics))
    began = load.send(ground.kafka, at.topics.events, events)
    wait_projected(ground, at.topics, DETECTOR, ends, partial(check_alive, processes))
    return len(events) / (time.monotonic() - began)


def _filled(ground: Ground, topics: Topics, files: int, length: int) -> Files:
    log = Log(Codec.create())
    load.send(ground.kafka, topics.events, log.events(files, 0, length))
    ground.say(f"W4: a log of {files * length:,} events is there")
    return Files(log, [length] * files)


# Rebuild ----------------------------------------------------------------------------------------


def run_rebuild(kafka: str, redis_url: str, topics: Topics) -> float:
    """In a child: rebuild the projection; the seconds that it took."""

    async def run() -> float:
        async with fleet_on(kafka, redis_url, topics) as fleet:
            began = time.monotonic()
            told, passed = began, 0

            def progress(more: int) -> None:
                nonlocal told, passed
                passed += more
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    print(f"          W5: {passed:,} events in {told - began:.0f} s", file=sys.stderr)

            await rebuild(fleet, progress)
            return time.monotonic() - began

    return asyncio.run(run())


def _rebuild(ground: Ground, topics: Topics, there: Files) -> float:
    """Events a second of a rebuild from nothing."""
    seconds: float = in_child(run_rebuild, ground.kafka, ground.redis, topics)
    check_shown(ground, topics, FILES, len(there.next), there.last)
    events = sum(there.next)
    ground.say(f"W5: rebuilt {events:,} events in {seconds:.1f} s")
    return events / seconds


def _copy_states(ground: Ground, topics: Topics) -> None:
    """The detector's states of these files are the projector's; its process takes them as its own."""
    with Redis.from_url(ground.redis) as redis:
        for number in range(topics.partitions):
            redis.copy(hash_of(topics, FILES, number), hash_of(topics, DETECTOR, number))


# Latency ----------------------------------------------------------------------------------------


def _appender(kafka: str) -> Producer:
    settings = {"bootstrap.servers": kafka, "partitioner": PARTITIONER, "linger.ms": 0, "log_level": 2}
    return Producer(settings)


def _append(producer: Producer, topic: str, record: load.Keyed) -> int:
    """Append one record, and answer its offset once it is acknowledged."""
    offsets: list[int] = []

    def delivered(error: object, message: object) -> None:
        if error is not None:
            raise RuntimeError(str(error))
        offsets.append(message.offset())  # type: ignore[attr-defined]

    producer.produce(topic, record.value, record.key.encode(), on_delivery=delivered)
    while not offsets:
        producer.poll(0.01)
    return offsets[0]


def _latencies(ground: Ground, topics: Topics, there: Files) -> list[float]:
    """Append events one after the other, each when the one before is projected."""
    producer, found = _appender(ground.kafka), []
    draw = random.Random(load.SEED)
    with Redis.from_url(ground.redis) as redis:
        for _ in range(ground.count(APPENDS, 50)):
            # So that the engine is not met at the same point of its turn each time.
            time.sleep(draw.uniform(0.0, 0.02))
            record = there.event(draw.randrange(len(there.next)))
            name = hash_of(topics, FILES, partition_of(record.key, topics.partitions))
            began = time.monotonic()
            offset = _append(producer, topics.events, record)
            while int(redis.hget(name, OFFSET) or 0) <= offset:
                time.sleep(0.0005)
                if time.monotonic() - began > STALE_SECONDS:
                    raise Wrong(f"offset {offset} of {name} is not projected after {STALE_SECONDS} s")
            found.append(time.monotonic() - began)
    return found


def _limits(ground: Ground, files: int) -> tuple[float, float]:
    """What there is to be reached: events a second of a projection by hand, and the milliseconds from
    append to a consumer that does nothing else."""
    with ground.topics() as topics:
        there = _filled(ground, topics, files, LENGTHS[1])
        what = baselines.Projecting(
            kafka=ground.kafka,
            redis=ground.redis,
            topic=topics.events,
            group=topics.group("hand"),
            stem=f"{topics.prefix}:{state_name('hand')}",
            coalesce=False,
        )
        with children((baselines.project, [what])) as processes:
            passed = wait_projected(
                ground, topics, "hand", ends_of(ground, topics), partial(check_alive, processes)
            )
        floor = 1e3 * median(_kafka_alone(ground, topics, there))
    ground.say(f"W4 limits: projection by hand {passed.rate:,.0f} events/s, Kafka alone {floor:.1f} ms")
    return passed.rate, floor


def _kafka_alone(ground: Ground, topics: Topics, there: Files) -> list[float]:
    producer, found = _appender(ground.kafka), []
    ends = ends_of(ground, topics)
    consumer = Consumer(
        {
            "bootstrap.servers": ground.kafka,
            "group.id": "bench-floor",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "log_level": 2,
        }
    )
    try:
        consumer.assign([TopicPartition(topics.events, number, end) for number, end in ends.items()])
        consumer.consume(1, 1.0)
        for file in range(50):
            record = there.event(file)
            began = time.monotonic()
            _append(producer, topics.events, record)
            while not consumer.consume(1, 1.0):
                if time.monotonic() - began > STALE_SECONDS:
                    raise RuntimeError(f"partition {partition_of(record.key, topics.partitions)} is silent")
            found.append(time.monotonic() - began)
    finally:
        consumer.close()
    return found


def _megabytes(pid: int | None) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 1e6
