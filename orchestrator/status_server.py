"""Reads a process's metrics and health, writes HTTP answers: /metrics and /healthz, on one thread."""

import json
import logging
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.engine.health import Health

REQUEST_SECONDS = 5.0
"""A client that sends nothing for so long is hung up on."""
logger = logging.getLogger(__name__)


class StatusServer:
    """Serves `/metrics` (Prometheus' text format) and `/healthz` (200 or 503, JSON with the reasons)."""

    def __init__(self, registry: CollectorRegistry, health: Health, host: str, port: int) -> None:
        """Listen at `port` of `host`; 0 is a free one.

        Raises:
            Unavailable: the port is taken.
        """
        age = Gauge("convoy_progress_age_seconds", "Seconds since the process last got on", registry=registry)
        age.set_function(lambda: health.progress_age)
        healthy = Gauge("convoy_healthy", "1 while the process makes progress, else 0", registry=registry)
        healthy.set_function(lambda: float(not health.problems()))
        handler = type("_Bound", (_Handler,), {"registry": registry, "health": health})
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            reason = f"port {port} can't be used: {error.strerror}"
            raise Unavailable("metrics", reason, "Give another --metrics-port (0: a free one)") from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    registry: CollectorRegistry
    health: Health
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        """See `StatusServer`."""
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self.registry))
            case "/healthz":
                problems = self.health.problems()
                status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
                body = {"healthy": not problems, "problems": problems}
                self._answer(status, "application/json", json.dumps(body).encode() + b"\n")
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"There are /metrics and /healthz\n")

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are worth a line for debugging only."""
        logger.debug(format, *args)
