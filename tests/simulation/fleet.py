"""Reads and writes a broker and stores in memory: the whole fleet, from the engines' real code.

Only the ends are stubs: agents, git, the runner, and what can fail.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from codeconvoy.orchestrator.job_file import check
from codeconvoy.orchestrator.orchestrator import NAME as ORCHESTRATOR
from codeconvoy.orchestrator.orchestrator import Orchestrator
from codeconvoy.schemas import ids
from codeconvoy.schemas.job_facts import CancelRequested, FactPayload, JobFact, JobFinished, JobSubmitted
from codeconvoy.schemas.job_state import GIT_ROLE, RUNNER_ROLE
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.agent_worker import AgentWorker
from codeconvoy.workers.desk import Desk
from codeconvoy.workers.detector import NAME as DETECTOR
from codeconvoy.workers.detector import Detector, DetectorState
from codeconvoy.workers.engine.bus import Outgoing, TopicPartition
from codeconvoy.workers.engine.fold_consumer import FoldConsumer, FoldLimits
from codeconvoy.workers.engine.memory_broker import Outcome
from codeconvoy.workers.engine.pool_engine import Handler, PoolLimits
from codeconvoy.workers.llm.spent import MovedCalls
from codeconvoy.workers.projection import StoredProjection
from codeconvoy.workers.projector import FILES, JOBS, FileProjector, JobProjector
from codeconvoy.workers.roles.role import Role, RoleKind
from tests.simulation.hints import SimMoves
from tests.simulation.loop import SimulationLoop
from tests.simulation.plans import Plan
from tests.simulation.process import SimProcess
from tests.simulation.refold import refold
from tests.simulation.stubs import Branches, StubAgent, StubGit, StubRunner
from tests.simulation.world import CODEC, Engine, Engines, World

PROJECTOR = "projector"


class SimFleet(World):
    """The whole fleet, and the jobs that are its work."""

    def __init__(self, plan: Plan, loop: SimulationLoop, engines: Engines) -> None:
        topics = Topics("sim", plan.partitions)
        folds = {
            FILES: topics.events,
            JOBS: topics.jobs,
            DETECTOR: topics.events,
            ORCHESTRATOR: topics.jobs,
        }
        super().__init__("fleet", plan.seed, loop, engines, topics, plan.storm, folds)
        self.plan = plan
        self.branches = Branches()
        kinds = dict.fromkeys(plan.editors, RoleKind.EDIT)
        kinds |= {"reviewer": RoleKind.REVIEW, "tester": RoleKind.TEST}
        kinds |= {"merger": RoleKind.MERGE} if plan.merging else {}
        self.roles = {name: Role(name, kind, "a stub", "stub") for name, kind in kinds.items()}
        self.hints = SimMoves(Random(f"moves {plan.seed}"), loop)
        self.moved = MovedCalls(CollectorRegistry())
        self._watch = JobWatch(self)

    async def start(self) -> None:
        """See `World`."""
        names = (*self.roles, GIT_ROLE, RUNNER_ROLE)
        settings = {item.name: item.config for item in self.topics.settings(names)}
        await self.bus.create_topics(settings, self.topics.partitions)
        for kind in (ORCHESTRATOR, PROJECTOR, DETECTOR, *names):
            for _ in range(2 if self.plan.twins else 1):
                self.add(kind)

    async def work(self) -> None:
        """Hand in the jobs, and cancel those that somebody cancels."""
        facts: list[tuple[float, str, FactPayload]] = []
        for job in self.plan.jobs:
            facts.append((job.at, job.job_id, JobSubmitted(spec=job.spec)))
            if job.cancel_at is not None:
                facts.append((job.at + job.cancel_at, job.job_id, CancelRequested(requested_by="somebody")))
        producer = await self.bus.producer("client")
        for at, job_id, payload in sorted(facts, key=lambda fact: fact[:2]):
            await asyncio.sleep(max(0.0, at - self.loop.time()))
            fact = JobFact(
                fact_id=ids.derived("client", job_id, type(payload).__name__),
                job_id=job_id,
                timestamp=self.now(),
                source="client",
                payload=payload,
            )
            await self.write(producer, [Outgoing(self.topics.jobs, job_id, CODEC.encode(fact))])

    def is_done(self) -> bool:
        """Every job has ended."""
        return len(self._watch.look()) >= len(self.plan.jobs)

    def is_open(self) -> bool:
        """A file is held by a claim."""
        states = refold(Detector(CODEC, self.topics), self.broker).states.values()
        return any(isinstance(state, DetectorState) and state.history.claim is not None for state in states)

    def ends(self) -> Sequence[str]:
        """The jobs' ends."""
        return [str(payload.status) for payload in self._watch.look()]

    # Its processes --------------------------------------------------------------------------------

    def makers(self, process: SimProcess) -> list[Callable[[], Engine]]:
        """See `World`."""
        topics = self.topics
        match process.kind:
            case "orchestrator":
                consumers: list[FoldConsumer[Any]] = [
                    Orchestrator(CODEC, topics, partial(check, roles=self.roles))
                ]
            case "projector":
                consumers = [FileProjector(CODEC, topics), JobProjector(CODEC, topics)]
            case "detector":
                consumers = [Detector(CODEC, topics)]
            case _:
                return [partial(self._pool, process)]
        return [partial(self._fold, process, consumer) for consumer in consumers]

    def _fold(self, process: SimProcess, consumer: FoldConsumer[Any]) -> Engine:
        random = self.random
        limits = FoldLimits(batch=random.choice((1, 5, 500)), states=random.choice((1, 3, 4000)))
        return self.fold(
            process, consumer, limits, self.hints.channel(process) if consumer.name == FILES else None
        )

    def _pool(self, process: SimProcess) -> Engine:
        limits = PoolLimits(
            slots=self.random.choice((1, 4)),
            look_ahead=self.random.choice((2, 400)),
            poll_seconds=0.2,
            drain_seconds=self.random.choice((0.5, 5.0)),
            deaths=1_000,
        )
        return self.pool(process, self._handler(process), limits)

    def _handler(self, process: SimProcess) -> Handler:
        files, jobs = process.store(self.stores[FILES]), process.store(self.stores[JOBS])
        projection = StoredProjection(files, jobs, self.topics.partitions)
        hints = self.hints.of(process)
        desk = Desk(
            CODEC, self.topics, projection, process.bus.reader(), self.now, process.instance, hints=hints
        )
        if process.kind == GIT_ROLE:
            return StubGit(desk, CODEC, self.plan.repository, self.branches)
        if process.kind == RUNNER_ROLE:
            return StubRunner(desk, CODEC, self.random)
        role = self.roles[process.kind]
        agent = StubAgent(role.kind, role.name, self.random, self.plan.moods)
        return AgentWorker(role, agent, desk, CODEC, self.moved)


class JobWatch:
    """Looks for the ends of jobs on the jobs log, and never twice at the same record."""

    def __init__(self, fleet: SimFleet) -> None:
        self._broker, self._topic = fleet.broker, fleet.topics.jobs
        self._seen: dict[TopicPartition, int] = {}
        self.found: list[JobFinished] = []

    def look(self) -> list[JobFinished]:
        """All ends so far."""
        for number in range(self._broker.topics.get(self._topic, 0)):
            at = TopicPartition(self._topic, number)
            log = self._broker.logs[at]
            end = min([len(log.entries), *log.first_of_open])
            for entry in log.entries[self._seen.get(at, 0) : end]:
                if entry.record is None or entry.transaction.outcome is not Outcome.COMMITTED:
                    continue
                payload = CODEC.decode(entry.record.value, JobFact).payload
                self.found += [payload] if isinstance(payload, JobFinished) else []
            self._seen[at] = end
        return self.found
