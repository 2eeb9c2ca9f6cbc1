"""Reads and writes the headers `traceparent` and `tracestate` of records, tells spans to a tracer.

The W3C trace context travels with every record: what is written because of a record belongs to the
record's trace. Where work takes time (a task, a model call, a merge, a commit) a span is told, and what
comes of the work hangs below it. Without a tracer nothing is told, and contexts only pass through.

Spans name jobs, tasks and paths. What is in files, prompts and replies stays out of them, and so do the
texts of errors, which may quote it.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from msgspec.structs import replace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from codeconvoy.schemas.tasks import Task
from codeconvoy.workers.engine.bus import Outgoing, Record

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
MAX_HEADER_BYTES = 512
"""Of either header; a longer one counts as absent."""
MAX_LINKS = 128
"""Of one span."""

Headers = Mapping[str, bytes]
Attributes = Mapping[str, str | int | float | bool | Sequence[str]]

_W3C = TraceContextTextMapPropagator()
_NOWHERE: Headers = {}
_NOTHING = nullcontext(INVALID_SPAN)


# Contexts in headers --------------------------------------------------------------------------------


def context_in(headers: Headers) -> Headers:
    """The trace context among the headers of a record; empty where there is none, or a malformed one."""
    return _written(_read(headers)) if TRACEPARENT in headers else _NOWHERE


def carried(outputs: Sequence[Outgoing], context: Headers) -> Sequence[Outgoing]:
    """The outputs with this trace context, but for those that have one."""
    if not context:
        return outputs
    return [
        output if TRACEPARENT in output.headers else replace(output, headers={**output.headers, **context})
        for output in outputs
    ]


def trace_of(context: Headers) -> bytes:
    """The trace id (in hexadecimal) of what `context_in` answered; empty where that is empty."""
    return context.get(TRACEPARENT, b"")[3:35]


def _read(headers: Headers) -> Context:
    """The context that the headers speak of; the empty one where they speak of none."""
    found = {name: headers[name] for name in (TRACEPARENT, TRACESTATE) if name in headers}
    return _W3C.extract(
        {name: value.decode("latin-1") for name, value in found.items() if len(value) <= MAX_HEADER_BYTES},
        Context(),
    )


def _written(context: Context | None) -> Headers:
    """A context as headers; empty where it is of no trace. None: the current one."""
    written: dict[str, str] = {}
    _W3C.inject(written, context)
    return {name: value.encode() for name, value in written.items()}


# Spans ----------------------------------------------------------------------------------------------


def _name_of(error: BaseException) -> str:
    return type(error).__name__


class Tracing:
    """Tells what a process does as spans, in the traces of the records that it reads."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        """Without a tracer nothing is told."""
        self._tracer = tracer

    def within(self, headers: Headers) -> AbstractContextManager[Span]:
        """What is told inside belongs below the span of which these headers speak."""
        if self._tracer is None or TRACEPARENT not in headers:
            return _NOTHING
        return use_span(
            get_current_span(_read(headers)), record_exception=False, set_status_on_exception=False
        )

    def begin(
        self, name: str, headers: Headers, kind: SpanKind, attributes: Attributes
    ) -> AbstractContextManager[Span]:
        """A span below the one of which these headers speak, or the first one of a new trace."""
        if self._tracer is None:
            return _NOTHING
        return _told(self._tracer, name, _read(headers), kind, attributes)

    def span(
        self,
        name: str,
        attributes: Attributes,
        kind: SpanKind = SpanKind.INTERNAL,
        error_of: Callable[[BaseException], str] = _name_of,
    ) -> AbstractContextManager[Span]:
        """A span below the current one, which `error_of` tells the kind of an error that ends it. Nothing
        where there is no current one: a fold that is repeated in silence tells nothing twice."""
        if self._tracer is None or not get_current_span().get_span_context().is_valid:
            return _NOTHING
        return _told(self._tracer, name, None, kind, attributes, error_of=error_of)

    def event(self, name: str, attributes: Attributes) -> None:
        """Something that has happened in the current span."""
        if self._tracer is not None:
            get_current_span().add_event(name, attributes)

    def note(self, attributes: Attributes) -> None:
        """What has been learnt of the current span."""
        if self._tracer is not None:
            get_current_span().set_attributes(attributes)

    def fail(self, error: str) -> None:
        """The work of the current span has come to nothing."""
        if self._tracer is not None:
            _fail(get_current_span(), error)

    def stamped(self, outputs: Sequence[Outgoing], cause: Headers = _NOWHERE) -> Sequence[Outgoing]:
        """The outputs with the context of the current span. Where there is none: with that of `cause`,
        the headers of the record because of which they are written."""
        current = _written(None) if self._tracer is not None else _NOWHERE
        return carried(outputs, current or context_in(cause))

    # What the engines tell

    def task(self, record: Record, group: str, deliveries: int) -> AbstractContextManager[Span]:
        """One go at a task. What the task is `describe` says, once its record has been read."""
        if self._tracer is None:
            return _NOTHING
        attributes: Attributes = {
            "messaging.system": "kafka",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": record.topic,
            "messaging.destination.partition.id": str(record.partition),
            "messaging.kafka.offset": record.offset,
            "messaging.consumer.group.name": group,
            "convoy.task.deliveries": deliveries,
        }
        return self.begin("convoy.task", record.headers, SpanKind.CONSUMER, attributes)

    def describe(self, task: Task) -> None:
        """Say in the current span which task it is about."""
        if self._tracer is None:
            return
        span = get_current_span()
        span.update_name(f"convoy.task {task.role}")
        span.set_attributes(
            {
                "convoy.job.id": task.job_id,
                "convoy.task.id": task.task_id,
                "convoy.task.round": task.round,
                "convoy.task.role": task.role,
                "convoy.task.kind": type(task.work).__name__,
                "convoy.task.path": task.path,
            }
        )

    def commit(self, group: str, results: Sequence[Sequence[Outgoing]]) -> AbstractContextManager[None]:
        """The commit of what several tasks have brought: in each of their traces one span, below the first
        of its tasks, with links to them all."""
        return nullcontext() if self._tracer is None else _committed(self._tracer, group, results)


OFF = Tracing()
"""Tells nothing."""


@contextmanager
def _told(
    tracer: Tracer,
    name: str,
    parent: Context | None,
    kind: SpanKind,
    attributes: Attributes,
    links: Sequence[Link] = (),
    error_of: Callable[[BaseException], str] = _name_of,
) -> Iterator[Span]:
    """A span that is the current one inside. An error marks it by its kind, not by its text."""
    span = tracer.start_span(name, parent, kind, attributes, links)
    with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        except (Exception, asyncio.CancelledError) as error:
            _fail(span, error_of(error))
            raise


def _fail(span: Span, error: str) -> None:
    span.set_status(StatusCode.ERROR)
    span.set_attribute("error.type", error)


@contextmanager
def _committed(tracer: Tracer, group: str, results: Sequence[Sequence[Outgoing]]) -> Iterator[None]:
    traces: dict[int, list[tuple[SpanContext, Sequence[Outgoing]]]] = {}
    for outputs in results:
        span = get_current_span(_read(outputs[0].headers)).get_span_context() if outputs else None
        if span is not None and span.is_valid:
            traces.setdefault(span.trace_id, []).append((span, outputs))
    with ExitStack() as stack:
        for members in traces.values():
            written = [output for _, outputs in members for output in outputs]
            attributes: Attributes = {
                "messaging.system": "kafka",
                "messaging.operation.name": "commit",
                "messaging.operation.type": "send",
                "messaging.batch.message_count": len(written),
                "messaging.consumer.group.name": group,
                "convoy.commit.topics": sorted({output.topic for output in written}),
                "convoy.commit.tasks": len(members),
            }
            first = set_span_in_context(NonRecordingSpan(members[0][0]), Context())
            links = [Link(span) for span, _ in members[:MAX_LINKS]]
            told = _told(tracer, "convoy.commit", first, SpanKind.PRODUCER, attributes, links)
            stack.enter_context(told)
        yield
