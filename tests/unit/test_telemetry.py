"""How tracing is wired: off, without its extra, with a collector that does not answer."""

import logging
import sys
import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, get_tracer_provider

from codeconvoy.orchestrator import telemetry
from codeconvoy.orchestrator.logs import TRACED_FORMAT, Discreet
from codeconvoy.orchestrator.settings import load_settings
from codeconvoy.orchestrator.telemetry import Traced, exporting, tracing
from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.tracing import OFF
from tests.spans import Spans, traceparent

OTLP = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVOY_OTEL_ENDPOINT", raising=False)


class Stuck(SpanExporter):
    """A collector that answers only when it is told that all is over."""

    def __init__(self) -> None:
        self.asked, self.over = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.over.wait()
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.over.set()


class Kept(SpanExporter):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


def test_it_is_off_by_default() -> None:
    with tracing(load_settings(), "client", "me") as told:
        assert told is OFF


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, OTLP, None)
    settings = load_settings(otel_endpoint="http://collector:4318")
    with pytest.raises(BadInput) as caught, tracing(settings, "client", "me"):
        pass
    assert caught.value.field == "CONVOY_OTEL_ENDPOINT"
    assert "codeconvoy[otel]" in caught.value.remedy


@pytest.mark.parametrize("url", ["collector:4318", "ftp://collector", "http:// x"])
def test_an_endpoint_that_is_no_url_is_bad_input(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOY_OTEL_ENDPOINT", url)
    with pytest.raises(BadInput) as caught:
        load_settings()
    assert caught.value.field == "CONVOY_OTEL_ENDPOINT"


def test_an_endpoint_may_hold_a_password() -> None:
    assert "s3cret" not in repr(load_settings(otel_endpoint="https://me:s3cret@collector"))


def test_what_is_left_is_sent_at_the_end_and_says_who_sent_it() -> None:
    kept = Kept()
    with exporting(kept, "worker isort", "isort-0") as told, told.begin("work", {}, SpanKind.CONSUMER, {}):
        pass
    [span] = kept.spans
    said = dict(span.resource.attributes)
    assert (said["service.name"], said["service.instance.id"]) == ("codeconvoy", "isort-0")
    assert (said["convoy.process"], bool(said["service.version"])) == ("worker isort", True)
    assert type(get_tracer_provider()).__module__ == "opentelemetry.trace", "no provider is global"


def test_a_collector_that_hangs_holds_neither_the_work_nor_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "END_SECONDS", 0.05)
    stuck = Stuck()
    with exporting(stuck, "client", "me") as told:
        for _ in range(5_000):  # more than may wait to be sent
            with told.begin("work", {}, SpanKind.CONSUMER, {}):
                pass
        assert stuck.asked.wait(30)
    assert stuck.over.is_set()


def test_a_log_line_names_the_span_in_which_it_was_written() -> None:
    spans, form = Spans(), Discreet(str, TRACED_FORMAT)

    def line() -> str:
        record = logging.LogRecord("convoy", logging.INFO, "", 0, "said", (), None)
        assert Traced().filter(record)
        return form.format(record)

    assert line().endswith("INFO convoy said")
    with spans.tracing.begin("work", {}, SpanKind.CONSUMER, {}):
        within = line()
    trace, span = traceparent(spans.one("work")).decode().split("-")[1:3]
    assert within.endswith(f"said trace_id={trace} span_id={span}")
