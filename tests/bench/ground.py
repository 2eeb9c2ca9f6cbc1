"""Reads the addresses of a Kafka and a Redis, writes topics and keys of its own: where a figure is measured.

Every measurement has a prefix of its own, and leaves nothing behind. What is measured runs in child
processes, so that this one neither slows it down nor is counted with it.
"""

import asyncio
import contextlib
import multiprocessing
import signal
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from codeconvoy.schemas.topics import MAX_MESSAGE_BYTES, Topics
from tests.bench.load import PARTITIONS
from tests.services import erase_prefix

SPAWN = multiprocessing.get_context("spawn")
"""librdkafka's threads do not survive a fork."""
_STOP_SECONDS = 30.0
_TOPIC_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Ground:
    """What every measurement is given."""

    kafka: str
    redis: str
    directory: Path
    scale: float
    say: Callable[[str], None]

    def count(self, full: int, least: int = 1) -> int:
        """A number of the full size, at this run's scale."""
        return max(least, round(full * self.scale))

    @contextmanager
    def topics(self, *further: str) -> Iterator[Topics]:
        """Fresh topics (`events`, `jobs`, `dead-letters`, and task queues of the roles `further`)."""
        names = Topics(f"b{uuid.uuid4().hex[:10]}", PARTITIONS)
        admin = AdminClient({"bootstrap.servers": self.kafka, "log_level": 2})
        wanted = [names.events, names.jobs, names.dead_letters, *(names.tasks(role) for role in further)]
        config = {"max.message.bytes": str(MAX_MESSAGE_BYTES), "retention.ms": "-1"}
        new = [NewTopic(name, num_partitions=PARTITIONS, config=config) for name in wanted]
        for created in admin.create_topics(new, request_timeout=_TOPIC_SECONDS).values():
            created.result()
        try:
            yield names
        finally:
            self._delete_topics(admin, names.prefix)
            erase_prefix(self.redis, names.prefix)

    def _delete_topics(self, admin: AdminClient, prefix: str) -> None:
        there = [name for name in admin.list_topics(timeout=10).topics if name.startswith(prefix)]
        for deleted in admin.delete_topics(there, request_timeout=_TOPIC_SECONDS).values() if there else ():
            try:
                deleted.result()
            except KafkaException as error:
                # A fleet that ran on them has deleted them at its end.
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise


@contextmanager
def children(*wanted: tuple[Callable[..., None], Sequence[Any]]) -> Iterator[list[BaseProcess]]:
    """Processes that each run a function until SIGTERM, which they get at the end."""
    started = [SPAWN.Process(target=target, args=tuple(args), daemon=True) for target, args in wanted]
    for process in started:
        process.start()
    try:
        yield list(started)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join(_STOP_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()


def in_child(work: Callable[..., Any], *args: object) -> Any:
    """What the function answers, run in a process of its own. It must end by itself.

    Raises:
        RuntimeError: the process ended without an answer (its error is on stderr).
    """
    near, far = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_answer, args=(far, work, args), daemon=True)
    process.start()
    far.close()
    try:
        return near.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__} failed in its process") from None
    except BaseException:
        process.kill()
        raise
    finally:
        process.join(_STOP_SECONDS)
        process.kill()


def _answer(far: Any, work: Callable[..., Any], args: tuple[object, ...]) -> None:
    far.send(work(*args))
    far.close()


def run_until_terminated(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """In a child: run a coroutine function that ends when the event is set, which SIGTERM does."""

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await work(stop)

    asyncio.run(run())


def cpu_seconds(pids: Iterable[int | None]) -> float:
    """The CPU time that the processes have used so far."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


def server_cpu(ground: Ground) -> dict[str, float]:
    """The CPU time of the broker and of Redis so far; empty where they are not on this machine."""
    ports = {
        int(ground.kafka.split(",")[0].rpartition(":")[2]): "broker",
        urlsplit(ground.redis).port or 6379: "Redis",
    }
    found: dict[str, float] = {}
    with contextlib.suppress(psutil.AccessDenied):
        for connection in psutil.net_connections("tcp"):
            name = ports.get(connection.laddr.port) if connection.status == psutil.CONN_LISTEN else None
            if name is not None and connection.pid is not None:
                found[name] = cpu_seconds([connection.pid])
    return dict(sorted(found.items()))


def check_alive(processes: Sequence[BaseProcess]) -> None:
    """Raises RuntimeError where one has ended."""
    for process in processes:
        if not process.is_alive():
            raise RuntimeError(f"a measured process ended with status {process.exitcode}")


def wait_for(look: Callable[[], bool], what: str, seconds: float, pause: float = 0.01) -> None:
    """Look until it is so.

    Raises:
        RuntimeError: it is not, after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)
