"""Reads the jobs log as it grows, writes nothing: which task was committed when, and what follows for
the calls that were made.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from confluent_kafka import Consumer, TopicPartition

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.job_facts import JobFact, TaskDone, TaskFailed
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.kafka_client import reader_settings
from codeconvoy.workers.engine.kafka_hanging import FILLER
from tests.gated_agent import Call

Round = tuple[str, int]
"""A task's id, and which round of it."""
_BATCH = 500
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Word:
    """A worker's word on a round of a task, once it is committed."""

    agent_id: str
    done: bool
    seen: int
    """Nanoseconds of the monotonic clock: it was committed by then."""


class Ledger:
    """Follows a fleet's jobs log on a thread of its own while its context is open."""

    def __init__(self, kafka: str, topics: Topics) -> None:
        self._codec = Codec.create()
        self._partitions = [TopicPartition(topics.jobs, number, 0) for number in range(topics.partitions)]
        self._consumer = Consumer(reader_settings({"bootstrap.servers": kafka}, "read_committed"))
        self._words: dict[Round, list[Word]] = defaultdict(list)
        self._failure: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="ledger", daemon=True)

    def __enter__(self) -> Self:
        self._consumer.assign(self._partitions)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._consumer.close()

    def words(self) -> Mapping[Round, list[Word]]:
        """What has been committed so far."""
        if self._failure is not None:
            raise self._failure
        return {key: list(words) for key, words in list(self._words.items())}

    def _follow(self) -> None:
        try:
            while not self._over.is_set():
                for message in self._consumer.consume(_BATCH, _LOOK_SECONDS):
                    if message.error() is None and FILLER not in dict(message.headers() or ()):
                        self._take(message.value() or b"")
        except Exception as error:  # noqa: BLE001 - raised where the words are asked for
            self._failure = error

    def _take(self, value: bytes) -> None:
        said = self._codec.decode(value, JobFact).payload
        if isinstance(said, TaskDone | TaskFailed):
            word = Word(said.agent_id, isinstance(said, TaskDone), time.monotonic_ns())
            self._words[said.task_id, said.round].append(word)


def by_round(calls: Iterable[Call]) -> Mapping[Round, list[Call]]:
    """The calls of each round of a task, in order."""
    found: dict[Round, list[Call]] = defaultdict(list)
    for call in sorted(calls, key=lambda call: call.began):
        found[call.task_id, call.round].append(call)
    return found


def wrong(
    calls: Iterable[Call],
    words: Mapping[Round, list[Word]],
    crashed: Collection[int],
    agent_of: Callable[[int], str],
) -> list[str]:
    """What should not be: a call of a task that was committed already, or is not at all; a call that was
    repeated though its worker was well; a word that is doubled, or not of who called last.

    Args:
        calls: of tasks that have ended.
        words: what is committed.
        crashed: process ids of workers that were killed or stopped.
        agent_of: the agent's id that a worker of this process id has.
    """
    found = []
    for (task, round_), made in by_round(calls).items():
        name = f"{made[0].role} {made[0].path} {task} round {round_}"
        said = words.get((task, round_), [])
        if len(said) != 1:
            found.append(f"{name}: committed {len(said)} times")
            continue
        [word] = said
        if late := [call for call in made if call.began > word.seen]:
            found.append(f"{name}: called {len(late)} times after it was committed")
        if idle := [call.worker for call in made[:-1] if call.worker not in crashed]:
            found.append(f"{name}: called again though its workers {idle} were well")
        if made[-1].worker not in crashed and word.agent_id != agent_of(made[-1].worker):
            found.append(f"{name}: committed by {word.agent_id}, called last by {agent_of(made[-1].worker)}")
    return found
