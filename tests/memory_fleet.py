"""Runs a whole fleet on the bus in memory: every engine as it is, with agents made of functions."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from codeconvoy.orchestrator.audit import Sources
from codeconvoy.orchestrator.fleet import now_ms
from codeconvoy.orchestrator.job_file import check
from codeconvoy.orchestrator.orchestrator import Orchestrator
from codeconvoy.schemas import ids
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.job_facts import FactPayload, JobFact, JobSubmitted
from codeconvoy.schemas.job_spec import JobSpec
from codeconvoy.schemas.job_state import JobState
from codeconvoy.schemas.topics import Topics, file_key
from codeconvoy.workers.agent_worker import AgentWorker
from codeconvoy.workers.desk import Desk
from codeconvoy.workers.detector import Detector
from codeconvoy.workers.engine.attempts import MemoryAttempts
from codeconvoy.workers.engine.bus import Outgoing, TopicPartition
from codeconvoy.workers.engine.fold_consumer import FoldLimits
from codeconvoy.workers.engine.fold_engine import FoldEngine
from codeconvoy.workers.engine.health import Health
from codeconvoy.workers.engine.memory_bus import MemoryBus
from codeconvoy.workers.engine.metrics import EngineMetrics, Families
from codeconvoy.workers.engine.pool_engine import PoolEngine, PoolLimits
from codeconvoy.workers.engine.state import MemoryStore
from codeconvoy.workers.git_worker import GitWorker
from codeconvoy.workers.llm.spent import MovedCalls
from codeconvoy.workers.moves import Hints, moves_of
from codeconvoy.workers.projection import StoredProjection
from codeconvoy.workers.projector import FILES, FileProjector, JobProjector
from codeconvoy.workers.roles.role import Answer, Context, Edits, FileEdit, Role, RoleKind, Vote
from codeconvoy.workers.tracing import OFF, Tracing

CODEC = Codec.create()
TURN_SECONDS = 0.005
DEADLINE_SECONDS = 30.0

Work = Callable[[Context], Answer]


def replacing(old: bytes, new: bytes) -> Work:
    """An agent that replaces some bytes, also when it reconciles its edit with another head."""

    def work(context: Context) -> Answer:
        shown = context.heads[-1] if context.heads else context.file
        content = (shown.content or b"").replace(old, new)
        return Edits((FileEdit(context.task.path, content),), summary=f"{new.decode()!r}")

    return work


def approving(context: Context) -> Answer:
    """A reviewer who likes everything."""
    return Vote(approved=True, comments=("fine",))


@dataclass(frozen=True, slots=True)
class _Agent:
    do: Work

    async def work(self, context: Context) -> Answer:
        return self.do(context)

    async def close(self) -> None:
        pass


@dataclass(slots=True)
class MemoryFleet:
    """A broker, the states, and the processes of a fleet."""

    agents: Mapping[str, Work]
    cache: Path
    topics: Topics = field(default_factory=partial(Topics, partitions=2))
    bus: MemoryBus = field(default_factory=MemoryBus)
    stores: dict[str, MemoryStore] = field(default_factory=dict)
    tracing: Tracing = OFF
    hints: Hints = field(default_factory=Hints)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    """Of what is counted about calls whose files moved."""
    moved: MovedCalls = field(init=False)

    def __post_init__(self) -> None:
        self.moved = MovedCalls(self.registry)

    @property
    def roles(self) -> Mapping[str, Role]:
        def kind(name: str) -> RoleKind:
            if name == "merger":
                return RoleKind.MERGE
            return RoleKind.REVIEW if self.agents[name] is approving else RoleKind.EDIT

        return {name: Role(name, kind(name), name, "test") for name in self.agents}

    def store(self, name: str) -> MemoryStore:
        return self.stores.setdefault(name, MemoryStore())

    def projection(self) -> StoredProjection:
        return StoredProjection(self.store("files"), self.store("jobs"), self.topics.partitions)

    def sources(self) -> Sources:
        """What an audit of this fleet reads; it does not wait long for who has been stopped."""
        stores = (self.store("files"), self.store("jobs"), self.store("detector"))
        return Sources(self.bus.another(), CODEC, self.topics, *stores, self.cache, wait_seconds=0.05)

    @asynccontextmanager
    async def running(self, without: str = "") -> AsyncIterator["MemoryFleet"]:
        """The fleet at work; at the end every engine has read what there is, and has stopped."""
        settings = {one.name: one.config for one in self.topics.settings((*self.agents, "git", "runner"))}
        await self.bus.create_topics(settings, self.topics.partitions)
        stop = asyncio.Event()
        folds: list[Any] = [
            Orchestrator(CODEC, self.topics, partial(check, roles=self.roles)),
            FileProjector(CODEC, self.topics),
            JobProjector(CODEC, self.topics),
            Detector(CODEC, self.topics, self.tracing),
        ]
        tasks = [
            asyncio.create_task(self._fold(consumer).run(stop))
            for consumer in folds
            if consumer.name != without
        ]
        tasks += [asyncio.create_task(self._pool(role).run(stop)) for role in (*self.agents, "git")]
        try:
            yield self
            await self.settle(without)
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    def _fold(self, consumer: Any) -> FoldEngine[Any]:
        return FoldEngine(
            consumer,
            self.bus.another(),
            self.store(consumer.name),
            group=self.topics.group(consumer.name),
            instance="1",
            codec=CODEC,
            dead_letters=self.topics.dead_letters,
            now=now_ms,
            metrics=EngineMetrics(Families(CollectorRegistry()), consumer.name),
            health=Health(time.monotonic),
            limits=FoldLimits(poll_seconds=TURN_SECONDS, tick_seconds=TURN_SECONDS),
            tracing=self.tracing,
            stored=self._tell if consumer.name == FILES else None,
        )

    async def _tell(self, changes: Mapping[str, tuple[FileHistory | None, FileHistory]]) -> None:
        self.hints.tell(moves_of(changes))

    def _pool(self, role: str) -> PoolEngine:
        bus = self.bus.another()
        reader, agent_id = bus.reader(), f"{role}/1"
        desk = Desk(
            CODEC,
            self.topics,
            self.projection(),
            reader,
            now_ms,
            agent_id,
            tracing=self.tracing,
            hints=self.hints,
        )
        handler: Any = GitWorker(desk, CODEC, self.cache)
        if role != "git":
            agent = _Agent(self.agents[role])
            handler = AgentWorker(self.roles[role], agent, desk, CODEC, self.moved)
        return PoolEngine(
            handler,
            bus,
            topic=self.topics.tasks(role),
            group=self.topics.group(f"worker.{role}"),
            instance="1",
            codec=CODEC,
            dead_letters=self.topics.dead_letters,
            now=now_ms,
            metrics=EngineMetrics(Families(CollectorRegistry()), role),
            health=Health(time.monotonic),
            attempts=MemoryAttempts(),
            limits=PoolLimits(
                poll_seconds=TURN_SECONDS, beat_seconds=TURN_SECONDS, retry_seconds=TURN_SECONDS
            ),
            tracing=self.tracing,
        )

    async def settle(self, without: str = "") -> None:
        """Until every fold has read the end of its topic, and none has written more meanwhile."""
        folds = {"files": self.topics.events, "detector": self.topics.events, "jobs": self.topics.jobs}
        folds["orchestrator"] = self.topics.jobs
        reader = self.bus.reader()

        async def ends() -> dict[tuple[str, int], int]:
            partitions = range(self.topics.partitions)
            return {
                (name, number): (await reader.watermarks(TopicPartition(topic, number)))[1]
                for name, topic in folds.items()
                for number in (partitions if name != without else ())
            }

        async def settled() -> bool:
            before = await ends()
            for (name, number), end in before.items():
                if (await self.store(name).load(number, ())).offset < end:
                    return False
            return await ends() == before

        await self.until(settled)

    async def until(self, happened: Callable[[], Any]) -> Any:
        """Wait until this coroutine function answers something true, and give that."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (found := await happened()):
            assert time.monotonic() < deadline, "it did not happen"
            await asyncio.sleep(TURN_SECONDS)
        return found

    async def do(self, job_id: str, spec: JobSpec) -> JobState:
        """Submit a job, and wait for its end."""
        await self.tell(job_id, JobSubmitted(spec=spec))
        return await self.end_of(job_id)

    async def end_of(self, job_id: str) -> JobState:
        """Wait for a job's end."""

        async def ended() -> JobState | None:
            job = await self.projection().job(job_id)
            return job if job is not None and job.ended else None

        state: JobState = await self.until(ended)
        return state

    async def tell(self, job_id: str, payload: FactPayload, *identity: str) -> None:
        """Put a fact on a job's log."""
        fact_id = ids.derived("told", job_id, type(payload).__name__, *identity)
        fact = JobFact(fact_id=fact_id, job_id=job_id, timestamp=now_ms(), source="test", payload=payload)
        await self.write(Outgoing(self.topics.jobs, job_id, CODEC.encode(fact)))

    async def append(self, *events: Event) -> None:
        """Put events on the log."""
        keyed = [(file_key(event.workspace, event.file_path), CODEC.encode(event)) for event in events]
        await self.write(*(Outgoing(self.topics.events, key, value) for key, value in keyed))

    async def write(self, *records: Outgoing) -> None:
        """Put records on the log."""
        producer = await self.bus.another().producer(f"test-{time.monotonic_ns()}")
        await producer.transaction(records)
