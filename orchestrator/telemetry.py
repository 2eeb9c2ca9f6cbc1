"""Reads the settings, writes spans to an OpenTelemetry collector, over HTTP: tracing as it is wired.

Off unless CONVOY_OTEL_ENDPOINT is set: then the SDK, an extra of this package, is not even imported. No
provider is made global; what is told goes to the one that is handed on. The SDK's own variables for what
is sent, and how (OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, OTEL_RESOURCE_ATTRIBUTES and so on), hold.

Spans wait in a bounded queue for a thread that sends them. A collector that is away costs spans, never
work; at the end it is waited for a few seconds.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.trace import get_current_span

from codeconvoy.orchestrator.settings import Settings
from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.tracing import OFF, Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

SERVICE = "codeconvoy"
TRACES_PATH = "/v1/traces"
EXPORT_SECONDS = 5.0
"""For one request to the collector, with its retries."""
END_SECONDS = 3.0
"""For what is still to be sent when a process ends."""


@contextmanager
def tracing(settings: Settings, process: str, instance: str) -> Iterator[Tracing]:
    """The tracing of one process, as the settings say. What is left is sent at the end.

    Raises:
        BadInput: it is on, and the SDK is not installed.
    """
    if not settings.otel_endpoint:
        yield OFF
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as missing:
        raise BadInput(
            "CONVOY_OTEL_ENDPOINT",
            f"OpenTelemetry's SDK is not installed ({missing.name})",
            "Install codeconvoy[otel], or unset it",
        ) from missing
    exporter = OTLPSpanExporter(settings.otel_endpoint.rstrip("/") + TRACES_PATH, timeout=EXPORT_SECONDS)
    with exporting(exporter, process, instance) as told:
        yield told


@contextmanager
def exporting(exporter: "SpanExporter", process: str, instance: str) -> Iterator[Tracing]:
    """The tracing of one process, to this exporter."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    own = {
        "service.name": SERVICE,
        "service.version": version(SERVICE),
        "service.instance.id": instance,
        "convoy.process": process,
    }
    provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield Tracing(provider.get_tracer(SERVICE, version(SERVICE)))
    finally:
        # The SDK's own patience is half a minute.
        ending = threading.Thread(target=provider.shutdown, name="spans-end", daemon=True)
        ending.start()
        ending.join(END_SECONDS)
        if ending.is_alive():
            exporter.shutdown()


class Traced(logging.Filter):
    """Gives each log record, as `trace`, the ids of the span in which it was logged, if there was one."""

    def filter(self, record: logging.LogRecord) -> bool:
        """True: nothing is held back."""
        told = get_current_span().get_span_context()
        record.trace = f" trace_id={told.trace_id:032x} span_id={told.span_id:016x}" if told.is_valid else ""
        return True
