"""Reads HTTP requests, writes replies: a server that speaks three model APIs and misbehaves by script.

OpenAI's Responses and Chat Completions, Anthropic's Messages, streamed where the request says so. Each
request takes the next step of the script; when that is used up, the model (a callable of what was
asked) answers.
"""

import json
import re
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.llm_shapes import Said, encoded, error_event, events, failed_event, whole

_PATHS = {"/v1/responses": "responses", "/v1/chat/completions": "chat", "/v1/messages": "messages"}
_FILE = re.compile(
    r"^(?:The|Another) file[^\n]*: (?P<path>[^\n]+)\n"
    r"<data (?P<mark>\w+)>\n(?P<text>.*?)\n?</data (?P=mark)>",
    re.DOTALL | re.MULTILINE,
)
_HALF = "Half of what would be a longer reply"


@dataclass(frozen=True)
class Asked:
    """One request, in the words that all three APIs share."""

    api: str
    system: str
    messages: tuple[tuple[str, str], ...]
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def prompt(self) -> str:
        """The first message, which holds the task."""
        return self.messages[0][1]

    @property
    def files(self) -> dict[str, str]:
        """The files that the prompt shows, in its order."""
        return {found["path"]: found["text"] for found in _FILE.finditer(self.prompt)}

    @property
    def path(self) -> str:
        """The first of them, which the task is about."""
        return next(iter(self.files), "")


@dataclass(frozen=True)
class Fault:
    """What happens instead of a reply."""

    kind: str
    """status; hang, drop (no reply); cut, stall (half a reply, and then the end of the connection, or
    nothing); malformed (no JSON), shape (other JSON). Where a stream was asked for: short (the end after
    its first half), early (after its first event), error, failed (an event that says so), whole (a reply
    that is no stream)."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=lambda: {"type": "test", "message": "by script"})


HANG, DROP, CUT, STALL, SHORT = (Fault(kind) for kind in ("hang", "drop", "cut", "stall", "short"))
MALFORMED, SHAPE = Fault("malformed"), Fault("shape")
Step = str | Said | Fault
Model = Callable[[Asked], Step]


def status(http: int, headers: dict[str, str] | None = None, **error: Any) -> Fault:
    """An error status."""
    return Fault("status", http, headers or {}, {"type": "test", "message": "by script", **error})


def midway(kind: str, code: str) -> Fault:
    """An `error` event, or a `failed` response, in the middle of a stream."""
    return Fault(kind, error={"type": code, "message": "by script"})


def no_changes(asked: Asked) -> str:
    """A model that finds nothing to do."""
    return "NO CHANGES"


def helpful(line: str) -> Model:
    """A model that appends a line to the file it is shown, approves, and writes a test that passes."""

    def answer(asked: Asked) -> str:
        form = json.dumps(asked.body)
        if '"approved"' in form:
            return json.dumps({"approved": True, "comments": ["read"]})
        if wanted := re.search(r"into the one file (\S+)\.", asked.prompt):
            test = (
                "import unittest\n\n\nclass Test(unittest.TestCase):\n    def test_it(self):\n        pass\n"
            )
            return f"SUMMARY: a test\n{wanted[1]}\n<<<<<<< WHOLE\n{test}>>>>>>> WHOLE\n"
        path, text = next(iter(asked.files.items()))
        return f"SUMMARY: append a line\n{path}\n<<<<<<< WHOLE\n{text}\n{line}\n>>>>>>> WHOLE\n"

    return answer


class ModelServer:
    """Serves on a port of its own while its context is open."""

    def __init__(
        self,
        script: Iterable[Step] = (),
        *,
        model: Model = no_changes,
        key: str = "secret",
    ) -> None:
        self.script: deque[Step] = deque(script)
        self.model, self.key = model, key
        self.asked: list[Asked] = []
        self.connections = 0
        self.at_once = self.most_at_once = 0
        """Requests that are being answered, and how many that were at most."""
        self.hangs, self.closed_by_client = threading.Event(), threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server = self._bound(0)

    @property
    def url(self) -> str:
        """Without the version: Anthropic's base URL; OpenAI's has `/v1` more."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "ModelServer":
        self._serve()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Nobody listens meanwhile, and no connection is left."""
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)
        try:
            yield
        finally:
            self._server = self._bound(self._server.server_address[1])
            self._serve()

    def _bound(self, port: int) -> ThreadingHTTPServer:
        return _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"owner": self}))

    def _serve(self) -> None:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def requests(self, path: str) -> list[Asked]:
        """What was asked about a file."""
        with self._lock:
            return [asked for asked in self.asked if asked.path == path]

    def next_step(self, asked: Asked, key: str) -> Said | Fault:
        """What this request gets."""
        with self._lock:
            self.asked.append(asked)
            if key != self.key:
                return status(401, type="authentication_error", message=f"Incorrect API key provided: {key}")
            step = self.script.popleft() if self.script else self.model(asked)
        return Said(step) if isinstance(step, str) else step

    def connected(self, connection: socket.socket) -> None:
        """A client has opened a connection."""
        with self._lock:
            self.connections += 1
            self._open.add(connection)

    def gone(self, connection: socket.socket) -> None:
        """A connection has ended."""
        with self._lock:
            self._open.discard(connection)

    def counts(self, change: int) -> None:
        """A request begins (1) or ends (-1)."""
        with self._lock:
            self.at_once += change
            self.most_at_once = max(self.most_at_once, self.at_once)

    def hang(self, connection: Any) -> None:
        """Say nothing until the client goes away or the test is over."""
        self.hangs.set()
        connection.settimeout(0.02)
        while not self._over.is_set():
            try:
                if connection.recv(1) == b"":
                    self.closed_by_client.set()
                    return
            except TimeoutError:
                continue
            except OSError:
                self.closed_by_client.set()
                return


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1_000
    """Connections that wait to be accepted: a client whose connection is not even let wait tries again after
    seconds."""


class _Handler(BaseHTTPRequestHandler):
    owner: ModelServer
    protocol_version = "HTTP/1.1"
    api: str
    streams: bool

    def setup(self) -> None:
        super().setup()
        self.owner.connected(self.connection)

    def finish(self) -> None:
        self.owner.gone(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Tests print nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        self.api, self.streams = _PATHS[self.path], bool(body.get("stream"))
        self.owner.counts(1)
        try:
            step = self.owner.next_step(_asked(self.api, body, headers), given)
            if isinstance(step, Fault):
                self.close_connection = True
                self._fail(step)
            else:
                self._reply(step)
        finally:
            self.owner.counts(-1)

    def _reply(self, said: Said) -> None:
        if self.streams:
            self._begin_stream()
            self._send(b"".join(encoded(self.api, event) for event in events(self.api, said)))
            self._end_stream()
        else:
            self._json(200, whole(self.api, said), {"x-request-id": "req-7", "request-id": "req-7"})

    def _fail(self, fault: Fault) -> None:
        match fault.kind:
            case "status":
                self._json(fault.status, {"type": "error", "error": fault.error}, fault.headers)
            case "hang":
                self.owner.hang(self.connection)
            case "drop":
                pass
            case "whole":
                self._json(200, whole(self.api, Said(_HALF)), {})
            case _ if self.streams:
                self._fail_midway(fault)
            case "cut":
                self._raw(b'{"id": "half a', length=10_000)
            case "stall":
                self._raw(b'{"id": "half a', length=10_000)
                self.owner.hang(self.connection)
            case "malformed":
                self._raw(b'{"id": "half a')
            case "shape":
                self._json(200, _SHAPELESS, {})
            case _:
                raise AssertionError(f"{fault.kind} is for streams")

    def _fail_midway(self, fault: Fault) -> None:
        """A stream that begins well."""
        self._begin_stream()
        begun = events(self.api, Said(_HALF))[: 1 if fault.kind == "early" else 5]
        self._send(b"".join(encoded(self.api, event) for event in begun))
        match fault.kind:
            case "cut":
                return
            case "stall":
                self.owner.hang(self.connection)
                return
            case "malformed":
                self._send(b'event: message_delta\ndata: {"id": "half a\n\n')
            case "shape":
                last = {"responses": "response.completed", "messages": "message_delta"}.get(self.api, "")
                self._send(encoded(self.api, {"type": last, **_SHAPELESS}))
            case "error":
                self._send(encoded(self.api, error_event(self.api, fault.error)))
            case "failed":
                self._send(encoded(self.api, failed_event(fault.error)))
        self._end_stream()

    def _begin_stream(self) -> None:
        self.send_response(200)
        for name in ("x-request-id", "request-id"):
            self.send_header(name, "req-7")
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()

    def _send(self, content: bytes) -> None:
        """One chunk."""
        self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))
        self.wfile.flush()

    def _end_stream(self) -> None:
        if self.api == "chat":
            self._send(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _json(self, code: int, body: object, headers: dict[str, str]) -> None:
        self._raw(json.dumps(body).encode(), code, headers)

    def _raw(
        self, content: bytes, code: int = 200, headers: dict[str, str] | None = None, length: int = 0
    ) -> None:
        self.send_response(code)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(length or len(content)))
        if self.close_connection:
            # Said, or a client's next request races with the close.
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(content)


_SHAPELESS = {
    "hello": "world",
    "output": ["x"],
    "choices": ["x"],
    "content": ["x"],
    "response": 7,
    "delta": 7,
}


def _asked(api: str, body: dict[str, Any], headers: dict[str, str]) -> Asked:
    turns = [(turn["role"], turn["content"]) for turn in body.get("messages", body.get("input", []))]
    match api:
        case "responses":
            system = body["instructions"]
        case "chat":
            system = turns.pop(0)[1]
        case _:
            system = body["system"][0]["text"]
    return Asked(api, system, tuple(turns), body, headers)
