"""Reads and writes notes of starts: chooses the tasks that begin now, and has each noted before it does.

All that are chosen while one request to the notes is on its way go into the next one.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.engine.attempts import At, Attempt, Attempts
from codeconvoy.workers.engine.lanes import Job, Lane, Lanes

logger = logging.getLogger(__name__)


class Starter:
    """Begins the tasks of one engine."""

    def __init__(
        self,
        lanes: Lanes,
        attempts: Attempts,
        deaths: int,
        *,
        begin: Callable[[Lane], None],
        give_up: Callable[[Job, Attempt], None],
        later: Callable[[Lane, Exception], None],
    ) -> None:
        """What comes of a chosen lane.

        Args:
            lanes: where tasks wait.
            attempts: where starts are noted.
            deaths: after so many, died alone, a task is given up.
            begin: told of a lane whose task begins now.
            give_up: told of a task that is given up.
            later: told of a lane whose task can't be noted now.
        """
        self._lanes, self._attempts, self._deaths = lanes, attempts, deaths
        self._begin, self._give_up, self._later = begin, give_up, later
        self._chosen: list[Lane] = []
        self._noting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Every free lane takes its next task, while there are slots."""
        while (lane := self._lanes.next()) is not None:
            self._chosen.append(lane)
        if self._chosen and (self._noting is None or self._noting.done()):
            self._noting = asyncio.create_task(self._note_all())

    async def settle(self, seconds: float) -> None:
        """Wait at most so long until what was chosen has begun, or its note is taken back."""
        if self._noting is not None and not self._noting.done():
            await asyncio.wait([self._noting], timeout=seconds)

    def check(self) -> None:
        """Raise what ended the noting, if anything unforeseen did: nothing would begin any more."""
        if self._noting is not None and self._noting.done():
            self._noting.result()

    async def stop(self) -> None:
        """Begin nothing more."""
        if self._noting is not None:
            self._noting.cancel()
            await asyncio.wait([self._noting])
            if not self._noting.cancelled():
                self._noting.result()

    async def take_back(self, jobs: Sequence[Job]) -> None:
        """These don't begin here: nothing died of those that were noted."""
        noted = [job for job in jobs if job.is_noted]
        try:
            for job in noted:
                if job.attempt.is_suspect:
                    await self._attempts.note(job.at, job.attempt)
            await self._attempts.strike_out([job.at for job in noted if not job.attempt.is_suspect])
        except Unavailable as away:
            logger.warning("%s tasks stay noted as begun: %s", len(noted), away)

    async def _note_all(self) -> None:
        while self._chosen:
            chosen, self._chosen = self._chosen, []
            jobs = [lane.running for lane in chosen if lane.running is not None]
            try:
                found = await self._note(jobs)
            except Unavailable as away:
                for lane in chosen:
                    self._later(lane, away)
                continue
            for lane, job in zip(chosen, jobs, strict=True):
                self._go(lane, job, found.get(job.at))
            await self.take_back([job for job in jobs if job.assignment.is_ending])

    async def _note(self, jobs: Sequence[Job]) -> Mapping[At, Attempt]:
        """Note these starts; the answer is what earlier processes left of them, and is held against them."""
        fresh = [job for job in jobs if not job.is_noted]
        for job in fresh:
            job.is_noted = True
        left = await self._attempts.begin([job.at for job in fresh]) if fresh else {}
        held = {at: attempt.after_crash() for at, attempt in left.items()}
        again = {at: attempt for at, attempt in held.items() if not attempt.is_suspect}
        again |= {job.at: job.attempt.in_flight(alone=True) for job in jobs if job.attempt.is_suspect}
        for at, attempt in again.items():
            await self._attempts.note(at, attempt)
        return held

    def _go(self, lane: Lane, job: Job, held: Attempt | None) -> None:
        if job.assignment.is_ending:  # its new owner does it
            self._lanes.give_back(lane)
        elif held is None:
            self._begin(lane)
        elif held.deaths >= self._deaths:
            self._lanes.give_back(lane)
            self._give_up(job, held)
        elif held.is_suspect:
            logger.warning("partition %s, offset %s ran when processes died: it runs alone now", *job.at)
            self._lanes.suspect(lane, held)
            self.start()
        else:
            job.attempt = held
            self._begin(lane)
