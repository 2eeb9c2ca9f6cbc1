"""Reads log records, writes lines to stderr: how a process of the fleet logs."""

import logging
import re
import sys
import time
from collections.abc import Callable

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
QUIET_SECONDS = 30.0
MAX_REMEMBERED = 1_000
_NUMBERS = re.compile(r"\d+")


class Unrepeated(logging.Filter):
    """Lets a message through once in a while only: a client that can't reach its broker says so
    hundreds of times a second. Messages that differ in numbers alone are the same."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """True where the message was not let through within `QUIET_SECONDS`."""
        now = self._clock()
        said = (record.name, _NUMBERS.sub("#", record.getMessage()))
        if now - self._last.get(said, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        if len(self._last) >= MAX_REMEMBERED:
            self._last.clear()
        self._last[said] = now
        return True


def log_to_stderr(level: str) -> None:
    """Log lines from this level on to stderr; those of the Kafka client without repetitions."""
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format=FORMAT)
    kafka_client().setLevel(logging.NOTSET)
    kafka_client().addFilter(Unrepeated())


def kafka_client() -> logging.Logger:
    """The logger of librdkafka's own messages."""
    return logging.getLogger("codeconvoy.workers.engine.kafka_client")
