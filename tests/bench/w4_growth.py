"""Reads and writes the events log and Redis: W4, what an event costs as the log grows, and W5, a rebuild.

Three logs of the same files with 10, 100 and 1,000 events each. The projection of each is made by a rebuild
(W5: that of the longest), and the detector is given a copy of the states, which are the same. The detector
is then given an event of each file (first touch: the histories are read from Redis), and many more at once
(throughput: they are in memory). The projector is given one event after the other, each when the one before
is projected (latency).
"""

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
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

    def round(self) -> list[load.Keyed]:
        """The next event of every file, shuffled."""
        order = list(range(len(self.next)))
        random.Random(load.SEED).shuffle(order)
        return [self.event(file) for file in order]


@dataclass(frozen=True, slots=True)
class At:
    """What was measured at one length of history."""

    length: int
    rebuilt: float
    """Events a second."""
    cold: float
    """Events a second of the detector, each the first of its file since the process began."""
    latencies: Sequence[float]
    """Seconds from append to projected."""
    detected: float
    """Events a second of the detector."""
    memory: dict[str, float]
    """MB resident, by process."""


def measure(ground: Ground) -> Iterator[Figure]:
    """The figures of W4 and W5.

    Raises:
        Wrong: a rebuild or a projection does not show each file's last event.
    """
    files = ground.count(FILE_COUNT, 50)
    by_hand, floor = _limits(ground, files)
    found = [_at(ground, files, length) for length in LENGTHS]
    shortest, longest = found[0], found[-1]
    for at in found:
        name, p50 = f"{at.length:,} events a file", 1e3 * median(at.latencies)
        yield Figure(f"W4 latency p50, {name}", p50, "ms", "Kafka alone", floor)
        yield Figure(f"W4 latency p99, {name}", 1e3 * quantiles(at.latencies, n=100)[98], "ms")
        yield Figure(f"W4 detector, {name}", at.detected, "events/s", "projection by hand", by_hand)
        yield Figure(f"W4 detector, first touch, {name}", at.cold, "events/s")
        for process, megabytes in at.memory.items():
            yield Figure(f"W4 memory {process}, {name}", megabytes, "MB")
    how = (
        f"{files:,} files; {APPENDS} appends one by one; {BURST} events of each file at once for the "
        f"detector, the median of {BURSTS}"
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
        "W4 detector, longest", longest.detected, "events/s", "shortest", shortest.detected, 1 - FLAT
    )
    yield _rebuilt(longest, by_hand, files)


def measure_rebuild(ground: Ground) -> Iterator[Figure]:
    """The figure of W5 alone.

    Raises:
        Wrong: the rebuilt projection does not show each file's last event.
    """
    files = ground.count(FILE_COUNT, 50)
    by_hand, _ = _limits(ground, files)
    with ground.topics() as topics:
        rate = _rebuild(ground, topics, _filled(ground, topics, files, LENGTHS[-1]))
    yield _rebuilt(At(LENGTHS[-1], rate, 0.0, (), 0.0, {}), by_hand, files)


def _rebuilt(at: At, by_hand: float, files: int) -> Figure:
    how = f"{files * at.length:,} events of {files:,} files; by hand: W3's pipeline, on the shorter log"
    return Figure("W5 rebuild", at.rebuilt, "events/s", "projection by hand", by_hand, how=how)


def _at(ground: Ground, files: int, length: int) -> At:
    """All measurements at one length of history."""
    with ground.topics() as topics:
        there = _filled(ground, topics, files, length)
        rebuilt = _rebuild(ground, topics, there)
        _copy_states(ground, topics)
        arguments = (ground.kafka, ground.redis, topics)
        memory: dict[str, float] = {}
        with children((run_process, (*arguments, "detector"))) as processes:
            give = partial(_give, ground, topics, partial(check_alive, processes))
            give([there.event(0)])  # it runs once this is done
            cold = give(there.round())
            bursts = ([event for _ in range(BURST) for event in there.round()] for _ in range(BURSTS))
            detected = median(map(give, bursts))
            memory["detector"] = _megabytes(processes[0].pid)
        check_shown(ground, topics, DETECTOR, files, lambda file: there.next[file] - 1)
        with children((run_process, (*arguments, "projector"))) as processes:
            alive = partial(check_alive, processes)
            wait_projected(ground, topics, FILES, ends_of(ground, topics), alive)
            latencies = _latencies(ground, topics, there)
            memory["projector"] = _megabytes(processes[0].pid)
        check_shown(ground, topics, FILES, files, lambda file: there.next[file] - 1)
    ground.say(
        f"W4 at {length:,}: p50 {1e3 * median(latencies):.1f} ms, detector {detected:,.0f} events/s, "
        f"first touch {cold:,.0f} events/s"
    )
    return At(length, rebuilt, cold, latencies, detected, memory)


def _give(ground: Ground, topics: Topics, alive: Callable[[], None], events: Sequence[load.Keyed]) -> float:
    """Give the detector events all at once; how many it did a second."""
    ends = Counter(partition_of(event.key, topics.partitions) for event in events)
    ends.update(ends_of(ground, topics))
    began = load.send(ground.kafka, topics.events, events)
    wait_projected(ground, topics, DETECTOR, ends, alive)
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
    check_shown(ground, topics, FILES, len(there.next), lambda file: there.next[file] - 1)
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
