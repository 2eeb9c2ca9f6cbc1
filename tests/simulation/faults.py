"""Reads the fleet, writes misfortune: what strikes it while its jobs run, drawn from the seed."""

import asyncio
from collections.abc import Callable
from random import Random

from codeconvoy.workers.engine.bus import TopicPartition
from tests.simulation.fleet import SimFleet
from tests.simulation.process import SimProcess

SESSION_SECONDS = 10.0
"""A process that is silent for longer is put out of its groups."""
MAX_POINTS = 120
STEPS = ("producer.commit", "producer.committed", "store.commit", "store.commit.done")
"""Where a crash is worth the most: right before and after what is for good."""


class Chaos:
    """Strikes a fleet."""

    def __init__(self, fleet: SimFleet) -> None:
        self._fleet = fleet
        self._random = Random(f"chaos {fleet.plan.seed}")
        self._kinds: dict[Callable[[], None], int] = {
            self._kill_soon: 3,
            self._kill_at_step: 3,
            self._kill: 1,
            self._pause: 3,
            self._expel: 5,
            self._store_outage: 2,
            self._store_lost: 2,
            self._broker_outage: 1,
            self._hold: 3,
            self._scale_up: 1,
            self._leave: 2,
        }
        self.struck: list[str] = []

    async def strike(self, faults: int) -> None:
        """Strike so many times, then let everything recover."""
        kinds, weights = list(self._kinds), list(self._kinds.values())
        for _ in range(faults):
            await asyncio.sleep(self._random.expovariate(1 / self._fleet.plan.calm_seconds))
            (kind,) = self._random.choices(kinds, weights)
            kind()
        await asyncio.sleep(self._random.random() * 10)
        self._heal()

    def _heal(self) -> None:
        fleet = self._fleet
        fleet.weather.store_fails = fleet.weather.broker_fails = 0.0
        for at in fleet.broker.logs:
            fleet.bus.release(at)
        for slot in fleet.slots:
            if slot.process is not None:
                slot.process.resume()

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._fleet.loop.call_later(seconds, what)

    def _note(self, what: str) -> None:
        self.struck.append(f"{self._fleet.loop.time():7.2f} {what}")

    def _process(self) -> SimProcess | None:
        """One that is in the middle of something, rather than an idle one."""
        alive = [s.process for s in self._fleet.slots if s.process is not None and not s.process.dead]
        busy = [run.process for run in self._fleet.runs if run.end < 0 and not run.process.dead]
        some = busy if busy and self._random.random() < 0.5 else alive
        return self._random.choice(some) if some else None

    # What may happen ------------------------------------------------------------------------------

    def _kill_soon(self) -> None:
        if process := self._process():
            points = self._random.randrange(1, MAX_POINTS)
            process.kill_at(points, "", self._random.random() * SESSION_SECONDS)
            self._note(f"kill {process.instance} in {points} points")

    def _kill_at_step(self) -> None:
        if process := self._process():
            step, times = self._random.choice(STEPS), self._random.randrange(1, 4)
            process.kill_at(times, step, self._random.random() * SESSION_SECONDS)
            self._note(f"kill {process.instance} at {step}, time {times}")

    def _kill(self) -> None:
        if process := self._process():
            process.kill(self._random.random() * SESSION_SECONDS)
            self._note(f"kill {process.instance}")

    def _pause(self) -> None:
        if process := self._process():
            seconds = self._random.random() * 2.5 * SESSION_SECONDS
            process.pause()
            self._later(seconds, process.resume)
            if seconds > SESSION_SECONDS:
                self._later(SESSION_SECONDS, process.expel)
                self._later(SESSION_SECONDS, lambda: self._time_out(process))
            self._note(f"pause {process.instance} for {seconds:.1f} s")

    def _time_out(self, process: SimProcess) -> None:
        """The broker aborts what the process had begun."""
        fleet = self._fleet
        for group in list(fleet.broker.groups):
            fleet.broker.abort_open(f"{group}.{process.instance}", fleet.loop.time())

    def _expel(self) -> None:
        if process := self._process():
            process.expel()
            self._note(f"expel {process.instance}")

    def _store_outage(self) -> None:
        weather = self._fleet.weather
        weather.store_fails = self._random.choice((0.2, 1.0))
        self._later(self._random.random() * 6, lambda: setattr(weather, "store_fails", 0.0))
        self._note(f"store fails {weather.store_fails}")

    def _broker_outage(self) -> None:
        weather = self._fleet.weather
        weather.broker_fails = self._random.choice((0.2, 1.0))
        self._later(self._random.random() * 6, lambda: setattr(weather, "broker_fails", 0.0))
        self._note("broker away")

    def _store_lost(self) -> None:
        for store in self._fleet.stores.values():
            store.lose()
        self._note("all stores lost")

    def _hold(self) -> None:
        at: TopicPartition = self._random.choice(list(self._fleet.broker.logs))
        self._fleet.broker.hold(at)
        self._later(self._random.random() * 10, lambda: self._fleet.bus.release(at))
        self._note(f"hold {at.topic}/{at.partition}")

    def _scale_up(self) -> None:
        kind = self._random.choice([slot.kind for slot in self._fleet.slots])
        self._fleet.add(kind)
        self._note(f"one more {kind}")

    def _leave(self) -> None:
        if process := self._process():
            process.stop.set()
            self._note(f"stop {process.instance}")
