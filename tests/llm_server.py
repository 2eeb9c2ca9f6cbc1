"""Reads HTTP requests, writes replies: a server that speaks three model APIs and misbehaves by script.

OpenAI's Responses and Chat Completions, Anthropic's Messages. Each request takes the next step of
the script; when that is used up, the model (a callable of what was asked) answers.
"""

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_PATHS = {"/v1/responses": "responses", "/v1/chat/completions": "chat", "/v1/messages": "messages"}
_FILE = re.compile(
    r"^(?:The|Another) file[^\n]*: (?P<path>[^\n]+)\n"
    r"<data (?P<mark>\w+)>\n(?P<text>.*?)\n?</data (?P=mark)>",
    re.DOTALL | re.MULTILINE,
)


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


@dataclass(frozen=True)
class Said:
    """A reply of the model."""

    text: str
    stop: str = "finished"
    """finished, truncated or refused."""
    usage: tuple[int, int, int] | None = (100, 40, 7)
    """Input tokens in all, cached among them, output; None: the reply tells none."""


@dataclass(frozen=True)
class Fault:
    """What happens instead of a reply."""

    kind: str
    """status, hang, drop (no reply), cut (half a reply), malformed (no JSON), shape (other JSON)."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=lambda: {"type": "test", "message": "by script"})


HANG, DROP, CUT = Fault("hang"), Fault("drop"), Fault("cut")
MALFORMED, SHAPE = Fault("malformed"), Fault("shape")
Model = Callable[[Asked], str | Said | Fault]


def status(http: int, headers: dict[str, str] | None = None, **error: Any) -> Fault:
    """An error status."""
    return Fault("status", http, headers or {}, {"type": "test", "message": "by script", **error})


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
        self, script: Iterable[str | Said | Fault] = (), *, model: Model = no_changes, key: str = "secret"
    ) -> None:
        self.script: deque[str | Said | Fault] = deque(script)
        self.model, self.key = model, key
        self.asked: list[Asked] = []
        self.reached, self.closed_by_client = threading.Event(), threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Without the version: Anthropic's base URL; OpenAI's has `/v1` more."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "ModelServer":
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def next_step(self, asked: Asked) -> Said | Fault:
        """What this request gets."""
        with self._lock:
            self.asked.append(asked)
            self.reached.set()
            step = self.script.popleft() if self.script else self.model(asked)
        return Said(step) if isinstance(step, str) else step

    def hang(self, connection: Any) -> None:
        """Say nothing until the client goes away or the test is over."""
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


class _Handler(BaseHTTPRequestHandler):
    owner: ModelServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Tests print nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if given != self.owner.key:
            message = f"Incorrect API key provided: {given}"
            self._json(401, {"error": {"type": "authentication_error", "message": message}}, {})
            return
        api = _PATHS[self.path]
        step = self.owner.next_step(_asked(api, body, headers))
        if isinstance(step, Fault):
            self._fail(step)
        else:
            self._json(200, _REPLIES[api](step), {"x-request-id": "req-7", "request-id": "req-7"})

    def _fail(self, fault: Fault) -> None:
        self.close_connection = True
        match fault.kind:
            case "status":
                self._json(fault.status, {"type": "error", "error": fault.error}, fault.headers)
            case "hang":
                self.owner.hang(self.connection)
            case "cut":
                self._raw(b'{"id": "half a', length=10_000)
            case "malformed":
                self._raw(b'{"id": "half a')
            case "shape":
                self._json(200, {"hello": "world", "output": ["x"], "choices": [], "content": ["x"]}, {})
            case "drop":
                pass

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


def _response(said: Said) -> dict[str, Any]:
    refused = said.stop == "refused"
    part = (
        {"type": "refusal", "refusal": said.text}
        if refused
        else {"type": "output_text", "text": said.text, "annotations": []}
    )
    message = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    reply: dict[str, Any] = {
        "id": "r",
        "object": "response",
        "created_at": 0,
        "model": "test",
        "status": "incomplete" if said.stop == "truncated" else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if said.stop == "truncated" else None,
        "output": [message],
    }
    if said.usage:
        into, cached, out = said.usage
        reply["usage"] = {
            "input_tokens": into,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": into + out,
        }
    return reply


def _completion(said: Said) -> dict[str, Any]:
    refused = said.stop == "refused"
    message = {
        "role": "assistant",
        "content": None if refused else said.text,
        "refusal": said.text if refused else None,
    }
    reason = "length" if said.stop == "truncated" else "stop"
    reply: dict[str, Any] = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "test",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
    }
    if said.usage:
        into, cached, out = said.usage
        reply["usage"] = {
            "prompt_tokens": into,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens": out,
            "total_tokens": into + out,
        }
    return reply


def _message(said: Said) -> dict[str, Any]:
    reasons = {"finished": "end_turn", "truncated": "max_tokens", "refused": "refusal"}
    reply: dict[str, Any] = {
        "id": "a",
        "type": "message",
        "role": "assistant",
        "model": "test",
        "content": [{"type": "text", "text": said.text}],
        "stop_reason": reasons[said.stop],
        "stop_sequence": None,
    }
    if said.usage:
        into, cached, out = said.usage
        reply["usage"] = {
            "input_tokens": into - cached - 10,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 10,
            "output_tokens": out,
        }
    return reply


_REPLIES: dict[str, Callable[[Said], dict[str, Any]]] = {
    "responses": _response,
    "chat": _completion,
    "messages": _message,
}
