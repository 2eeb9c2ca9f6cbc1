"""Reads finished spans: a tracing whose spans a test looks at, and what must hold of all of them."""

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id

from codeconvoy.workers.tracing import Tracing


class Spans:
    """What a tracing of its own has told."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider.get_tracer("test"))

    def all(self) -> Sequence[ReadableSpan]:
        """Every span that has ended, in the order of their ends."""
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        """Those whose name begins so."""
        return [span for span in self.all() if span.name.startswith(name)]

    def one(self, name: str) -> ReadableSpan:
        """The only one of this name."""
        [span] = self.named(name)
        return span


def context(span: ReadableSpan) -> SpanContext:
    """A span's own ids."""
    own: SpanContext | None = span.get_span_context()
    assert own is not None
    return own


def parent(span: ReadableSpan) -> int:
    """The id of the span that a span hangs below; 0 for the first of a trace."""
    return span.parent.span_id if span.parent else 0


def traceparent(span: ReadableSpan) -> bytes:
    """A span's context as a header."""
    own = context(span)
    return f"00-{format_trace_id(own.trace_id)}-{format_span_id(own.span_id)}-01".encode()


def attributes(span: ReadableSpan) -> dict[str, object]:
    """What a span says of its work."""
    return dict(span.attributes or {})


def events(span: ReadableSpan) -> list[tuple[str, dict[str, object]]]:
    """What happened in a span."""
    return [(event.name, dict(event.attributes or {})) for event in span.events]


def text_of(spans: Sequence[ReadableSpan]) -> str:
    """All that spans say, to be searched for what they must not say."""
    return "\n".join(str(span.to_json()) for span in spans)
