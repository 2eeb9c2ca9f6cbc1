"""Reads the tasks of the event loop, writes log lines and at last the end of the process: a drain with a
limit, for a process that is told to stop must stop, also where nobody is left to kill it.
"""

import asyncio
import faulthandler
import logging
from collections.abc import Iterator
from types import CoroutineType

SLOW_SECONDS = 15.0
"""After so long in a drain the process says what it waits for."""
LONGEST_SECONDS = 60.0
"""After so long it says so of its threads, and ends with status 1. Nothing is lost by that: whoever starts
next goes on from the last commit, as after any crash."""
logger = logging.getLogger(__name__)


def begin_drain(stop: asyncio.Event, slow: float = SLOW_SECONDS, longest: float = LONGEST_SECONDS) -> None:
    """On the event loop: tell everybody to stop, and see that the process has ended in `longest` seconds."""
    if stop.is_set():
        return
    stop.set()
    asyncio.get_running_loop().call_later(slow, _tell_what_is_left, slow)
    # A thread that needs neither a turn of the event loop nor Python's lock.
    faulthandler.dump_traceback_later(longest, exit=True)


def _tell_what_is_left(seconds: float) -> None:
    for task in asyncio.all_tasks():
        logger.warning("not drained after %.0f s: %s", seconds, " > ".join(_awaits(task.get_coro())))


def _awaits(awaited: object) -> Iterator[str]:
    """The functions that wait for each other, the outermost first, each with the line that it is at."""
    while isinstance(awaited, CoroutineType):
        frame = awaited.cr_frame
        yield f"{awaited.__qualname__}:{frame.f_lineno if frame is not None else '?'}"
        awaited = awaited.cr_await
