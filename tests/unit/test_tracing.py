"""One trace from a job's submission to its branch, and what spans say, and never say."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from opentelemetry.semconv._incubating.attributes import (
    error_attributes,
    gen_ai_attributes,
    http_attributes,
    messaging_attributes,
    server_attributes,
)
from opentelemetry.trace import SpanKind, StatusCode
from redis.asyncio import Redis

from codeconvoy.orchestrator.dead_letters import told_by
from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.orchestrator.submit import submit
from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.events import Strategy
from codeconvoy.schemas.job_facts import CancelRequested, FactPayload, JobFact, JobStatus, JobSubmitted
from codeconvoy.schemas.job_spec import JobSpec, Pipeline
from codeconvoy.schemas.job_state import JobState
from codeconvoy.workers import job_states
from codeconvoy.workers.engine.bus import Outgoing, Record, TopicPartition
from codeconvoy.workers.engine.dead_letter import dead_letter
from codeconvoy.workers.roles.role import Answer, Context
from codeconvoy.workers.tracing import (
    MAX_HEADER_BYTES,
    OFF,
    TRACEPARENT,
    TRACESTATE,
    carried,
    context_in,
    trace_of,
)
from tests.git_repos import repository
from tests.job_world import JOB, JobWorld, spec
from tests.memory_fleet import CODEC, MemoryFleet, approving, replacing
from tests.spans import Spans, attributes, context, parent, text_of, traceparent

TRACE = "0af7651916cd43dd8448eb211c80319c"
GIVEN = f"00-{TRACE}-b7ad6b7169203331-01".encode()
OTHER = b"00-1111111916cd43dd8448eb211c80319c-2222222169203331-01"
BELOW = GIVEN[:36] + b"3" * 16 + b"-01"
FILES = {"a.txt": b"one\n\ntwo\n\nthree\n", "b.txt": b"one\n\ntwo\n"}


# Contexts in headers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"nonsense",
        b"\xff\xfe",
        GIVEN[:-1],
        GIVEN.upper(),
        GIVEN + b"-more",
        b"ff" + GIVEN[2:],
        b"00-" + b"0" * 32 + GIVEN[35:],
        GIVEN[:36] + b"0" * 16 + b"-01",
        GIVEN + b" " * MAX_HEADER_BYTES,
    ],
)
def test_a_malformed_context_counts_as_none(header: bytes) -> None:
    assert context_in({TRACEPARENT: header, TRACESTATE: b"a=b"}) == {}
    spans = Spans()
    with spans.tracing.begin("work", {TRACEPARENT: header}, SpanKind.CONSUMER, {}):
        pass
    assert parent(spans.one("work")) == 0


def test_a_context_passes_as_it_came() -> None:
    headers = {TRACEPARENT: GIVEN, TRACESTATE: b"vendor=1,other=2", "raw": b"\xff"}
    assert context_in(headers) == {TRACEPARENT: GIVEN, TRACESTATE: b"vendor=1,other=2"}
    assert trace_of(context_in(headers)) == TRACE.encode()
    assert context_in(headers | {TRACESTATE: b"a=" + b"x" * MAX_HEADER_BYTES}) == {TRACEPARENT: GIVEN}
    assert context_in({"raw": b"1"}) == {} == context_in({TRACESTATE: b"a=b"})


def test_outputs_keep_what_they_carry() -> None:
    bare, own = Outgoing("t", "k", b"", {"raw": b"1"}), Outgoing("t", "k", b"", {TRACEPARENT: OTHER})
    assert carried([bare, own], {}) == [bare, own]
    assert carried([bare, own], {TRACEPARENT: GIVEN}) == [
        replace(bare, headers={"raw": b"1", TRACEPARENT: GIVEN}),
        own,
    ]


def test_without_a_tracer_contexts_pass_through() -> None:
    bare = Outgoing("t", "k", b"")
    assert OFF.stamped([bare]) == [bare]
    with OFF.begin("work", {TRACEPARENT: GIVEN}, SpanKind.CONSUMER, {}), OFF.span("inner", {}):
        assert OFF.stamped([bare], {TRACEPARENT: GIVEN})[0].headers == {TRACEPARENT: GIVEN}


def test_nothing_is_told_outside_of_a_trace() -> None:
    spans = Spans()
    with spans.tracing.within({}), spans.tracing.span("inner", {}):
        pass
    assert not spans.all()
    with spans.tracing.within({TRACEPARENT: GIVEN}), spans.tracing.span("inner", {}):
        pass
    assert format(parent(spans.one("inner")), "016x").encode() in GIVEN


def test_an_error_marks_its_span_without_its_text() -> None:
    spans = Spans()
    with pytest.raises(ValueError), spans.tracing.begin("work", {}, SpanKind.CONSUMER, {}):
        raise ValueError("a secret")
    told = spans.one("work")
    assert (told.status.status_code, attributes(told)) == (StatusCode.ERROR, {"error.type": "ValueError"})
    assert "a secret" not in text_of(spans.all())


# A job ----------------------------------------------------------------------------------------------


def away_once(work: Callable[[Context], Answer]) -> Callable[[Context], Answer]:
    """An agent whose first task comes when something that it needs is away."""
    went: list[Context] = []

    def do(context: Context) -> Answer:
        went.append(context)
        if len(went) == 1:
            raise Unavailable("model", "away", "Wait")
        return work(context)

    return do


def a_job(tmp_path: Path, spans: Spans) -> MemoryFleet:
    """A job with a conflict and a task that comes twice, on a fleet whose spans are told."""
    agents = {
        "ones": away_once(replacing(b"one", b"1")),
        "ichi": replacing(b"one", b"ichi"),
        "reviewer": approving,
    }
    fleet = MemoryFleet(agents, tmp_path / "cache", tracing=spans.tracing)
    job = JobSpec(
        repository=str(repository(tmp_path / "repo", FILES)),
        workspace="w",
        goal="digits",
        files=("*.txt",),
        pipeline=Pipeline(generate=("ones", "ichi"), review=("reviewer",), test=()),
        together=True,
        strategies=(Strategy.THREE_WAY, Strategy.REWORK),
    )

    async def run() -> None:
        async with fleet.running():
            client = Fleet(
                bus=fleet.bus.another(),
                redis=Redis(),
                redis_prefix="",
                codec=CODEC,
                topics=fleet.topics,
                roles=fleet.roles,
                credentials={},
                cache=fleet.cache,
                tracing=spans.tracing,
            )
            state = await fleet.end_of(await submit(client, job, "me"))
            assert state.status is JobStatus.SUCCEEDED, state.reason

    asyncio.run(run())
    return fleet


async def written(fleet: MemoryFleet) -> list[Record]:
    """Every record of the logs and queues."""
    reader = fleet.bus.reader()
    found: list[Record] = []
    for topic in fleet.bus.broker.topics:
        for number in range(fleet.topics.partitions):
            found += await reader.read(TopicPartition(topic, number), 0, 10_000, 0.0)
    return found


def test_a_job_is_one_connected_trace_from_submit_to_publish(tmp_path: Path) -> None:
    spans = Spans()
    fleet = a_job(tmp_path, spans)
    told = spans.all()
    submitted = spans.one("convoy.submit")
    assert {context(span).trace_id for span in told} == {context(submitted).trace_id}
    known = {context(span).span_id for span in told}
    assert [span.name for span in told if not parent(span)] == ["convoy.submit"]
    assert all(parent(span) in known for span in told if span is not submitted)
    names = {span.name for span in told}
    roles = {"convoy.task git", "convoy.task ones", "convoy.task ichi", "convoy.task reviewer"}
    assert roles | {"convoy.context", "convoy.resolve", "convoy.commit", "convoy.publish"} <= names
    records = asyncio.run(written(fleet))
    assert len(records) > 30
    for record in records:
        assert trace_of(context_in(record.headers)) == traceparent(submitted)[3:35], record
        assert int(context_in(record.headers)[TRACEPARENT][36:52], 16) in known


def test_what_the_spans_of_a_job_say(tmp_path: Path) -> None:
    spans = Spans()
    a_job(tmp_path, spans)
    submitted = attributes(spans.one("convoy.submit"))
    assert spans.one("convoy.submit").kind is SpanKind.PRODUCER
    ones = spans.named("convoy.task ones")
    [twice] = [one for one in ones if attributes(one)["convoy.task.deliveries"] == 2]
    said = attributes(twice)
    assert twice.kind is SpanKind.CONSUMER
    assert said["convoy.job.id"] == submitted["convoy.job.id"]
    assert (said["convoy.task.role"], said["convoy.task.round"]) == ("ones", 1)
    assert said["convoy.task.path"] in FILES
    assert (said["messaging.system"], said["messaging.operation.type"]) == ("kafka", "process")
    assert said["messaging.destination.name"] == "convoy.tasks.ones"
    [first] = [
        one
        for one in ones
        if attributes(one)["convoy.task.id"] == said["convoy.task.id"] and one is not twice
    ]
    assert (first.status.status_code, attributes(first)["error.type"]) == (StatusCode.ERROR, "Unavailable")
    assert parent(first) == parent(twice), "a task that comes again hangs where it hung"
    merges = [attributes(one) for one in spans.named("convoy.resolve")]
    assert {merge["convoy.path"] for merge in merges} == set(FILES)
    assert {merge["convoy.conflict.strategy"] for merge in merges} == {"rework"}
    above = {parent(task) for task in spans.named("convoy.task")}
    assert above & {context(merge).span_id for merge in spans.named("convoy.resolve")}, "the reworks"
    [publish] = spans.named("convoy.publish")
    assert attributes(publish)["convoy.publish.files"] == 2
    commits = spans.named("convoy.commit")
    assert {commit.kind for commit in commits} == {SpanKind.PRODUCER}
    done = {context(one).span_id for one in spans.named("convoy.task")} - {context(first).span_id}
    linked = [link.context.span_id for commit in commits for link in commit.links]
    assert sorted(linked) == sorted(done), "each task that came to something is in one commit"
    assert all(parent(commit) == commit.links[0].context.span_id for commit in commits)
    assert not any(text in text_of(spans.all()) for text in ("ichi\\n", "digits", "three"))


def test_nothing_is_in_the_headers_of_a_fleet_that_does_not_trace(tmp_path: Path) -> None:
    fleet = MemoryFleet({"ones": replacing(b"one", b"1")}, tmp_path / "cache")
    job = JobSpec(
        repository=str(repository(tmp_path / "repo", FILES)),
        workspace="w",
        goal="digits",
        files=("*.txt",),
        pipeline=Pipeline(generate=("ones",), review=(), test=()),
    )

    async def run() -> list[Record]:
        async with fleet.running():
            await fleet.do("job", job)
        return await written(fleet)

    assert {name for record in asyncio.run(run()) for name in record.headers} == set()


def test_the_sdk_is_not_loaded_where_nothing_is_traced() -> None:
    # Redis' client looks for the SDK's metrics by itself, and takes it well when there are none.
    script = (
        "import sys\n"
        "if sys.argv[1:]: sys.modules['opentelemetry.sdk'] = sys.modules['opentelemetry.exporter'] = None\n"
        "from codeconvoy.orchestrator.cli import make_app\n"
        "make_app()\n"
        "sys.exit(any(name.startswith(('opentelemetry.sdk.trace', 'opentelemetry.exporter.'))"
        " for name in sys.modules))"
    )
    for missing in ([], ["missing"]):
        assert subprocess.run([sys.executable, "-c", script, *missing], check=False).returncode == 0


# The orchestrator -----------------------------------------------------------------------------------


class Traced(JobWorld):
    """A job whose facts carry a trace context."""

    def fed(self, payload: FactPayload, headers: Mapping[str, bytes]) -> Sequence[Outgoing]:
        """What is written because of a fact."""
        fact_id = f"x{self.state.facts}"
        fact = JobFact(fact_id=fact_id, job_id=JOB, timestamp=self.now, source="test", payload=payload)
        record = Record(self.topics.jobs, 0, 0, JOB, CODEC.encode(fact), headers)
        self.state, outputs = self.orchestrator.step(self.state, record, self.now)
        return outputs

    def kept(self) -> JobState:
        """The state as it comes back from where it is kept."""
        fields = job_states.dump(None, self.state)

        async def read(names: Sequence[str]) -> Sequence[bytes | None]:
            return [fields.get(name) for name in names]

        return asyncio.run(job_states.load(JOB, read))


def contexts(outputs: Sequence[Outgoing]) -> list[bytes]:
    """The context of each of some outputs, of which there are any."""
    assert outputs
    return [output.headers.get(TRACEPARENT, b"") for output in outputs]


def test_a_submission_from_elsewhere_is_continued_and_a_malformed_one_is_not() -> None:
    given = {TRACEPARENT: GIVEN, TRACESTATE: b"a=b"}
    outputs = Traced().fed(JobSubmitted(spec=spec()), given)
    assert outputs and all(output.headers == given for output in outputs)
    outputs = Traced().fed(JobSubmitted(spec=spec()), {TRACEPARENT: b"00-1"})
    assert outputs and all(output.headers == {} for output in outputs)


def test_what_a_deadline_or_another_trace_brings_about_stays_in_the_job_s_trace() -> None:
    world = Traced()
    for output in world.fed(JobSubmitted(spec=spec()), {TRACEPARENT: GIVEN}):
        if output.topic == world.topics.jobs:
            world.fed(CODEC.decode(output.value, JobFact).payload, {TRACEPARENT: GIVEN})
    world.state = world.kept()
    late = world.orchestrator.due(JOB, world.state, 10**12)
    assert set(contexts(late)) == {GIVEN}
    before = world.state
    for told, carried_on in ((OTHER, GIVEN), (b"", GIVEN), (BELOW, BELOW)):
        world.state = before
        outputs = world.fed(CancelRequested(requested_by="me"), {TRACEPARENT: told} if told else {})
        assert set(contexts(outputs)) == {carried_on}


def test_a_dead_letter_keeps_its_trace_until_it_is_put_back() -> None:
    record = Record("convoy.tasks.ones", 1, 7, "w:a", b"?", {TRACEPARENT: GIVEN})
    letter = dead_letter(CODEC, "convoy.dead-letters", record, "poison", "bug", 1, "ones", 5)
    [kept] = carried([letter], context_in(record.headers))
    found = told_by([Record(kept.topic, 0, 0, kept.key, kept.value, kept.headers)], CODEC)
    assert found["0/0"].context == {TRACEPARENT: GIVEN}


# Names ----------------------------------------------------------------------------------------------


def test_names_are_those_of_the_conventions(tmp_path: Path) -> None:
    spans = Spans()
    a_job(tmp_path, spans)
    modules = (
        error_attributes,
        gen_ai_attributes,
        http_attributes,
        messaging_attributes,
        server_attributes,
    )
    known = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    used = {name for span in spans.all() for name in attributes(span)}
    assert {name for name in used if not name.startswith("convoy.")} <= known
