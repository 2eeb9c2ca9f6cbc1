"""Reads a world, writes misfortune: what strikes it while there is work, drawn from the seed."""

import asyncio
from collections.abc import Callable
from random import Random

from codeconvoy.workers.engine.bus import TopicPartition
from tests.simulation.process import SimProcess
from tests.simulation.world import World

SESSION_SECONDS = 10.0
"""A process that is silent for longer is put out of its groups."""
MAX_POINTS = 120
LAST_BLOW = 0.2
"""Share of the seeds in which the stores are lost once more when all else is over."""
LAST_BLOW_SECONDS = 40.0
STEPS = (
    "attempts.begin.done",
    "handler.done",
    "producer.commit",
    "producer.committed",
    "store.commit",
    "store.commit.done",
)
"""Where a crash is worth the most: right before and after what is for good."""


def _kill(process: SimProcess) -> None:
    """SIGKILL, noticed at once: another process takes over what this one was doing."""
    process.kill(0.0)


def _kill_unnoticed(process: SimProcess) -> None:
    """SIGKILL, noticed late: the process has been started anew by then."""
    process.kill(SESSION_SECONDS)


def _pause(process: SimProcess) -> None:
    """SIGSTOP, and SIGCONT when the session has long timed out: a zombie."""
    process.pause()
    loop = asyncio.get_running_loop()
    loop.call_later(SESSION_SECONDS, process.expel)
    loop.call_later(2 * SESSION_SECONDS, process.resume)


STRIKES: dict[str, Callable[[SimProcess], None]] = {
    "kill": _kill,
    "kill-unnoticed": _kill_unnoticed,
    "expel": SimProcess.expel,
    "pause": _pause,
    "leave": lambda process: process.stop.set(),
}
"""What strikes a process at one point."""


class Chaos:
    """Strikes a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = Random(f"chaos {world.seed}")
        self._kinds: dict[Callable[[], None], int] = {
            self._kill_soon: 3,
            self._kill_at_step: 3,
            self._kill: 1,
            self._pause: 3,
            self._expel: 5,
            self._store_outage: 2,
            self._stores_lost: 2,
            self._state_lost: 1,
            self._store_rewound: 1,
            self._broker_outage: 1,
            self._hold: 3,
            self._scale_up: 1,
            self._scale_down: 1,
            self._leave: 2,
        }
        self.struck: list[str] = []

    async def strike(self) -> None:
        """Strike as often as the world is to be struck, then let everything recover."""
        kinds = list(self._kinds)
        # Some kinds are rare in one seed and frequent in another, so that they meet their like.
        weights = [weight * self._random.choice((0.2, 1, 1, 5)) for weight in self._kinds.values()]
        storm = self._world.storm
        for _ in range(storm.faults):
            await asyncio.sleep(self._random.expovariate(1 / storm.calm_seconds))
            (kind,) = self._random.choices(kinds, weights)
            kind()
        await asyncio.sleep(self._random.random() * storm.calm_seconds * 4)
        self._world.heal()
        if storm.faults and self._random.random() < LAST_BLOW:
            await asyncio.sleep(self._random.random() * LAST_BLOW_SECONDS)
            self._stores_lost()

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._world.loop.call_later(seconds, what)

    def _note(self, what: str) -> None:
        self.struck.append(f"{self._world.loop.time():7.2f} {what}")

    def _process(self) -> SimProcess | None:
        """One that is in the middle of something, rather than an idle one."""
        alive = [s.process for s in self._world.slots if s.process is not None and not s.process.dead]
        busy = [run.engine.process for run in self._world.deliveries.open if not run.engine.process.dead]
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
        world = self._world
        for group in list(world.broker.groups):
            world.broker.abort_open(f"{group}.{process.instance}", world.loop.time())

    def _expel(self) -> None:
        if process := self._process():
            process.expel()
            self._note(f"expel {process.instance}")

    def _store_outage(self) -> None:
        weather = self._world.weather
        weather.store_fails = self._random.choice((0.2, 1.0))
        self._later(self._random.random() * 6, lambda: setattr(weather, "store_fails", 0.0))
        self._note(f"store fails {weather.store_fails}")

    def _broker_outage(self) -> None:
        weather = self._world.weather
        weather.broker_fails = self._random.choice((0.2, 1.0))
        self._later(self._random.random() * 6, lambda: setattr(weather, "broker_fails", 0.0))
        self._note("broker away")

    def _stores_lost(self) -> None:
        for store in self._world.stores.values():
            store.lose()
        for notes in self._world.notes.values():
            notes.lose()
        self._note("all stores lost")

    def _state_lost(self) -> None:
        name = self._random.choice(list(self._world.stores))
        number = self._random.randrange(self._world.topics.partitions)
        self._world.stores[name].lose_one(number)
        self._note(f"{name}/{number} lost")

    def _store_rewound(self) -> None:
        name = self._random.choice(list(self._world.stores))
        store = self._world.stores[name]
        seconds = self._random.random() * 5
        store.keep()
        self._later(seconds, store.rewind)
        self._note(f"{name} comes back in {seconds:.1f} s as it was")

    def _hold(self) -> None:
        at: TopicPartition = self._random.choice(list(self._world.broker.logs))
        self._world.broker.hold(at)
        self._later(self._random.random() * 10, lambda: self._world.bus.release(at))
        self._note(f"hold {at.topic}/{at.partition}")

    def _scale_up(self) -> None:
        kind = self._random.choice([slot.kind for slot in self._world.slots])
        self._world.add(kind)
        self._note(f"one more {kind}")

    def _scale_down(self) -> None:
        slot = self._random.choice([slot for slot in self._world.slots if not slot.closing])
        if sum(other.kind == slot.kind and not other.closing for other in self._world.slots) > 1:
            self._world.remove(slot)
            self._note(f"one {slot.kind} less")

    def _leave(self) -> None:
        if process := self._process():
            process.stop.set()
            self._note(f"stop {process.instance}")
