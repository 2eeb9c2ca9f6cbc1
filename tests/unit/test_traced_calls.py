"""A model call as a span: what it says by the GenAI conventions, and that it never says what was said."""

import asyncio
from dataclasses import replace

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, http_attributes
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry

from codeconvoy.workers.llm.breaker import BreakerLimits, BreakerState, BreakingProvider, CircuitOpen
from codeconvoy.workers.llm.cells import LocalCells
from codeconvoy.workers.llm.chain import Chain
from codeconvoy.workers.llm.failover import Switch
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.provider import CallFailed, Failure
from codeconvoy.workers.llm.recorded import RecordedProvider
from codeconvoy.workers.llm.traced import TracedProvider, WatchedProvider
from tests.llm_server import ModelServer, status
from tests.llm_shapes import Said
from tests.spans import Spans, attributes, events, parent, text_of
from tests.unit.test_llm_providers import REQUEST, SCHEMA, Make
from tests.unit.test_model_chain import MemoryReplies, Server, request, virtually

GIVEN = {"traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
SECRET_REPLY = "the reply, which is nobody's business"
SAID = "hi"

each = pytest.mark.parametrize(
    ("make", "provider", "path"),
    [
        (Make("responses"), "openai", "/v1"),
        (Make("chat"), "openai", "/v1"),
        (Make("messages"), "anthropic", ""),
    ],
)


def asked(spans: Spans, make: Make, server: ModelServer, path: str, **parts: object) -> None:
    """One call to the server, as within a task."""
    provider = TracedProvider(make(server.url), server.url + path, spans.tracing)

    async def go() -> None:
        with spans.tracing.within(GIVEN):
            try:
                await provider.call(replace(REQUEST, **parts))  # type: ignore[arg-type]
            finally:
                await provider.close()

    asyncio.run(go())


@each
def test_a_call_by_the_conventions(make: Make, provider: str, path: str) -> None:
    spans = Spans()
    with ModelServer([Said(SECRET_REPLY, "truncated")]) as server:
        asked(spans, make, server, path, json_schema=SCHEMA, max_output_tokens=512)
        port = int(server.url.rpartition(":")[2])
    told = spans.one("chat")
    assert (told.name, told.kind, parent(told)) == ("chat m-1", SpanKind.CLIENT, 0xB7AD6B7169203331)
    assert attributes(told) == {
        gen_ai_attributes.GEN_AI_OPERATION_NAME: "chat",
        gen_ai_attributes.GEN_AI_PROVIDER_NAME: provider,
        gen_ai_attributes.GEN_AI_REQUEST_MODEL: "m-1",
        gen_ai_attributes.GEN_AI_REQUEST_MAX_TOKENS: 512,
        gen_ai_attributes.GEN_AI_REQUEST_TEMPERATURE: 0.0,
        gen_ai_attributes.GEN_AI_REQUEST_SEED: 3,
        gen_ai_attributes.GEN_AI_OUTPUT_TYPE: "json",
        gen_ai_attributes.GEN_AI_RESPONSE_FINISH_REASONS: ("length",),
        gen_ai_attributes.GEN_AI_USAGE_INPUT_TOKENS: 100,
        gen_ai_attributes.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: 40,
        gen_ai_attributes.GEN_AI_USAGE_OUTPUT_TOKENS: 7,
        "server.address": "127.0.0.1",
        "server.port": port,
    }
    said = text_of(spans.all())
    assert not any(text in said for text in (SECRET_REPLY, f'"{SAID}"', "be good"))


@each
def test_a_call_that_fails(make: Make, provider: str, path: str) -> None:
    spans = Spans()
    with ModelServer([status(529, message=SECRET_REPLY)]) as server, pytest.raises(CallFailed):
        asked(spans, make, server, path)
    told = spans.one("chat")
    assert told.status.status_code is StatusCode.ERROR
    assert told.status.description is None
    assert attributes(told)["error.type"] == str(Failure.OVERLOADED)
    assert attributes(told)[http_attributes.HTTP_RESPONSE_STATUS_CODE] == 529
    assert SECRET_REPLY not in text_of(spans.all())


def test_kept_replies_and_models_that_are_left_alone_are_events_of_the_task() -> None:
    spans = Spans()

    async def go() -> None:
        server = Server(lambda now: CallFailed(Failure.SERVER, "500") if now > 5 else None)
        traced = TracedProvider(server, "", spans.tracing)
        cells: LocalCells[BreakerState] = LocalCells(asyncio.get_running_loop().time)
        breaking = BreakingProvider(traced, "b", cells, BreakerLimits(threshold=1))
        watched = WatchedProvider(breaking, spans.tracing)
        metrics = ModelMetrics(CollectorRegistry())
        provider = RecordedProvider(watched, "p:m", MemoryReplies(), metrics, spans.tracing)
        with spans.tracing.begin("task", {}, SpanKind.CONSUMER, {}):
            await provider.call(request())
            await provider.call(request())
            await asyncio.sleep(10)
            for expected in (CallFailed, CircuitOpen):
                with pytest.raises(expected):
                    await provider.call(request("something else"))
                await asyncio.sleep(1)  # what the call has left behind ends

    virtually(go)
    assert len(spans.named("chat")) == 2
    how = "convoy.recorded_reply.how"
    assert events(spans.one("task")) == [
        ("convoy.recorded_reply", {how: "miss"}),
        ("convoy.recorded_reply", {how: "hit"}),
        ("convoy.recorded_reply", {how: "miss"}),
        ("convoy.recorded_reply", {how: "miss"}),
        ("convoy.call.held", {"gen_ai.request.model": "m", "error.type": "CircuitOpen"}),
    ]


def test_a_switch_to_the_next_provider_is_an_event_without_its_reason() -> None:
    spans = Spans()
    metrics = ModelMetrics(CollectorRegistry())
    chain = Chain(None, "p", metrics, lambda: 0.0, tracing=spans.tracing)  # type: ignore[arg-type]
    with spans.tracing.begin("task", {}, SpanKind.CONSUMER, {}):
        chain.switched(Switch("openai:one", "anthropic:two", "unavailable", SECRET_REPLY))
    said = {"convoy.failover.from": "openai:one", "convoy.failover.to": "anthropic:two"}
    assert events(spans.one("task")) == [("convoy.failover", {**said, "error.type": "unavailable"})]
