"""Reads OTLP over HTTP, keeps the spans: a collector for tests."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True, slots=True)
class Told:
    """One span as it was sent, and who sent it."""

    span: Span
    attributes: Mapping[str, object]
    sender: Mapping[str, object]


class Collector:
    """Serves on a port of its own while its context is open."""

    def __init__(self) -> None:
        self._told: list[Told] = []
        self._raw: list[bytes] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """As it is configured: without the path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Collector":
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, body: bytes) -> None:
        """Keep the spans of one request."""
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            self._raw.append(body)
            self._told += [
                Told(span, _values(span.attributes), _values(resource.resource.attributes))
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]

    @property
    def told(self) -> list[Told]:
        """Every span so far."""
        with self._lock:
            return list(self._told)

    @property
    def raw(self) -> bytes:
        """All that was sent, to be searched for what must not be in it."""
        with self._lock:
            return b"\n".join(self._raw)


def _values(attributes: "list[KeyValue]") -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in attributes}


class _Handler(BaseHTTPRequestHandler):
    owner: Collector
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Tests print nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        found = self.path == "/v1/traces"
        if found:
            self.owner.take(body)
        self.send_response(200 if found else 404)
        self.send_header("content-length", "0")
        self.end_headers()
