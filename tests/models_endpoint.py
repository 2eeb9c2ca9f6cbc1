"""Reads HTTP requests, writes replies: a server that knows a key and some models, as the vendors' do."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "the-right-key"


@dataclass
class Endpoint:
    """What it answers, and what it was asked."""

    url: str = ""
    """Without the version."""
    missing: Mapping[str, object] = field(
        default_factory=lambda: {"error": {"type": "not_found_error", "message": "model: {}"}}
    )
    """What it says of a model that it does not know."""
    status: int = 0
    """Instead of a look; 0: look."""
    asked: list[str] = field(default_factory=list)


@contextmanager
def endpoint(*models: str) -> Iterator[Endpoint]:
    """A server that has these models."""
    made = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Tests print nothing."""

        def do_GET(self) -> None:
            model = self.path.removeprefix("/v1/models/")
            made.asked.append(model)
            given = self.headers.get("x-api-key") or self.headers.get("authorization") or ""
            if made.status:
                self._say(made.status, {"error": {"type": "test", "message": "by script"}})
            elif given.removeprefix("Bearer ") != KEY:
                self._say(401, {"error": {"type": "authentication_error", "message": f"not {given}"}})
            elif model in models:
                self._say(200, {"id": model, "type": "model", "object": "model"})
            else:
                self._say(404, json.loads(json.dumps(made.missing).replace("{}", model)))

        def _say(self, code: int, body: object) -> None:
            content = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
