"""Reads and writes nothing but its own queue: an event loop whose time is virtual, whose order is drawn.

Whatever is ready runs in an order drawn from the seed, not in the order in which it became ready;
when nothing is ready, time jumps to the next timer. So one seed is one schedule, and a day passes
in the time that its work takes.
"""

import asyncio
import heapq
from asyncio import events
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from random import Random
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Tracker = Callable[["asyncio.Task[Any]"], None]
Ignores = Callable[[BaseException], bool]


class Stuck(AssertionError):
    """Nothing will ever happen again, or too much happened without an end."""


class SimulationLoop(asyncio.AbstractEventLoop):
    """An event loop of one thread, without IO.

    Args:
        random: draws what runs next.
        max_steps: callbacks after which the run is taken for endless.
        track: is told of every task that is made, in the context that makes it.
        ignores: which errors of tasks that nobody waited for are none (crashes made on purpose).
    """

    def __init__(self, random: Random, max_steps: int, track: Tracker, ignores: Ignores) -> None:
        self._random, self._max_steps, self._track, self._ignores = random, max_steps, track, ignores
        self._ready: list[asyncio.Handle] = []
        self._timers: list[tuple[float, float, int, asyncio.TimerHandle]] = []
        self._time = 0.0
        self._count = 0
        self._closed = False
        self.steps = 0
        self.errors: list[str] = []
        """What would have been logged by any other loop."""

    # What the code under test calls -------------------------------------------------------------

    def time(self) -> float:
        return self._time

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._time + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(max(when, self._time), callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (timer.when(), self._random.random(), self._count, timer))
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **_: Any,
    ) -> asyncio.Task[T]:
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name, context=context)
        if context is None:
            self._track(task)
        else:
            context.run(self._track, task)
        return task

    def run_in_executor(
        self, executor: Any, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """At once: there are no threads here."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - the future's to raise
            future.set_exception(error)
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None or not self._ignores(error):
            self.errors.append(f"{context['message']}: {error!r}")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer is passed over when its time comes."""

    # How it runs --------------------------------------------------------------------------------

    def run_until_complete(self, future: Generator[Any, None, T] | Any) -> T:
        """Run a coroutine to its end.

        Raises:
            Stuck: nothing is left that could end it, or it never ends.
        """
        main: asyncio.Task[T] = self.create_task(future)
        events._set_running_loop(self)
        try:
            while not main.done():
                self._step()
        finally:
            events._set_running_loop(None)
        return main.result()

    def _step(self) -> None:
        self.steps += 1
        if self.steps > self._max_steps:
            raise Stuck(f"no end after {self.steps} steps, at {self._time:.1f} s")
        while not self._ready:
            if not self._timers:
                raise Stuck(f"nothing will ever happen again, at {self._time:.1f} s")
            self._fire()
        index = int(self._random.random() * len(self._ready))
        handle = self._ready[index]
        self._ready[index] = self._ready[-1]
        self._ready.pop()
        if not handle.cancelled():
            handle._run()

    def _fire(self) -> None:
        """Let time jump to the next timer; all of that moment become ready."""
        self._time = max(self._time, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self._time:
            timer = heapq.heappop(self._timers)[3]
            if not timer.cancelled():
                self._ready.append(timer)

    def close(self) -> None:
        """Forget everything that was still to happen."""
        self._ready.clear()
        self._timers.clear()
        self._closed = True
