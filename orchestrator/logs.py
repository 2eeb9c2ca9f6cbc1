"""Reads log records, writes lines to stderr without secrets: how a process of the fleet logs."""

import logging
import re
import sys
import threading
import time
from collections.abc import Callable

from codeconvoy.workers.redact import Redact

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
TRACED_FORMAT = f"{FORMAT}%(trace)s"
QUIET_SECONDS = 30.0
MAX_REMEMBERED = 1_000
logger = logging.getLogger(__name__)
EXPORTERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)
"""The loggers of what sends spans away: it complains of each batch that it could not send."""
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


class Discreet(logging.Formatter):
    """Writes a record, its traceback included, without secrets."""

    def __init__(self, redact: Redact, form: str = FORMAT) -> None:
        super().__init__(form)
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return self._redact(super().format(record))


def log_to_stderr(level: str, redact: Redact, traced: logging.Filter | None = None) -> None:
    """Log lines from this level on to stderr, and what ends a thread; the lines of clients that repeat
    themselves without repetitions. `traced` gives each record its `trace`, which ends its line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Discreet(redact, FORMAT if traced is None else TRACED_FORMAT))
    if traced is not None:
        handler.addFilter(traced)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    threading.excepthook = _thread_ended
    kafka_client().setLevel(logging.NOTSET)
    for logger in (kafka_client(), *map(logging.getLogger, EXPORTERS)):
        logger.addFilter(Unrepeated())


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread is not None else "unknown"
    error = args.exc_value or args.exc_type()
    logger.error("thread %s has ended", name, exc_info=(args.exc_type, error, args.exc_traceback))


def kafka_client() -> logging.Logger:
    """The logger of librdkafka's own messages."""
    return logging.getLogger("codeconvoy.workers.engine.kafka_client")
