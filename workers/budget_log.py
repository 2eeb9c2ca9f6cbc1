"""Reads the jobs projection and the ends of the jobs log, writes `jobs`: what model calls cost a job."""

from collections.abc import Callable

from codeconvoy.schemas import ids
from codeconvoy.schemas.budget import Ledger
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.job_facts import CallBegun, CallEnded, JobFact
from codeconvoy.schemas.topics import Topics, partition_of
from codeconvoy.workers.engine.bus import Appender, Bus, Outgoing
from codeconvoy.workers.positions import Ends
from codeconvoy.workers.projection import Projection


class JobBudgetLog:
    """The log of all jobs, as far as budgets are concerned, for one process (see `llm.budget.BudgetLog`)."""

    def __init__(
        self,
        bus: Bus,
        codec: Codec,
        topics: Topics,
        projection: Projection,
        now: Callable[[], int],
        source: str,
    ) -> None:
        """Nothing is opened before it is needed: few jobs have a budget."""
        self._bus, self._codec, self._topics = bus, codec, topics
        self._projection, self._now, self._source = projection, now, source
        self._appender: Appender | None = None
        self._ends: Ends | None = None

    async def say(self, job_id: str, fact: CallBegun | CallEnded) -> None:
        """See `BudgetLog`."""
        if self._appender is None:
            self._appender = self._bus.appender(self._source)
        whole = JobFact(
            fact_id=ids.derived("fact", job_id, type(fact).__name__, fact.call_id),
            job_id=job_id,
            timestamp=self._now(),
            source=self._source,
            payload=fact,
        )
        await self._appender.append(Outgoing(self._topics.jobs, job_id, self._codec.encode(whole)))

    async def ledger(self, job_id: str) -> Ledger:
        """See `BudgetLog`."""
        if self._ends is None:
            self._ends = Ends(self._bus.reader(), self._topics.jobs)
        ends = await self._ends.of([partition_of(job_id, self._topics.partitions)])
        return await self._projection.ledger(job_id, max((end.offset for end in ends), default=-1))
