"""Reads and writes nothing itself: tells model calls as spans, by OpenTelemetry's GenAI conventions.

Each HTTP request is a span `chat MODEL`. What did not come to a request (a kept reply, a model that is
left alone) is an event in the span of the task. Neither prompts nor replies are told.
"""

from urllib.parse import urlsplit

from opentelemetry.trace import SpanKind

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.llm.provider import Call, CallFailed, Provider, Reply, Stop
from codeconvoy.workers.tracing import Attributes, Tracing

_PORTS = {"http": 80, "https": 443}
_FINISH = {
    Stop.FINISHED: "stop",
    Stop.EMPTY: "stop",
    Stop.TRUNCATED: "length",
    Stop.REFUSED: "content_filter",
}


class TracedProvider:
    """A provider whose requests are told."""

    def __init__(self, provider: Provider, base_url: str, tracing: Tracing) -> None:
        """`base_url` is the server's; empty: the vendor's own."""
        self.name = provider.name
        self._provider, self._tracing = provider, tracing
        self._server = _server(base_url)

    async def call(self, request: Call) -> Reply:
        """See `Provider`."""
        asked = {**_asked(self.name, request), **self._server}
        with self._tracing.span(f"chat {request.model}", asked, SpanKind.CLIENT, _kind_of):
            try:
                reply = await self._provider.call(request)
            except CallFailed as failed:
                if failed.status:
                    self._tracing.note({"http.response.status_code": failed.status})
                raise
            self._tracing.note(_answered(reply))
            return reply

    async def close(self) -> None:
        """See `Provider`."""
        await self._provider.close()


class WatchedProvider:
    """A provider that says in the span around it when a model is left alone for now."""

    def __init__(self, provider: Provider, tracing: Tracing) -> None:
        self.name = provider.name
        self._provider, self._tracing = provider, tracing

    async def call(self, request: Call) -> Reply:
        """See `Provider`."""
        try:
            return await self._provider.call(request)
        except Unavailable as held:
            told = {"gen_ai.request.model": request.model, "error.type": type(held).__name__}
            self._tracing.event("convoy.call.held", told)
            raise

    async def close(self) -> None:
        """See `Provider`."""
        await self._provider.close()


def _server(base_url: str) -> Attributes:
    """Where the requests go."""
    url = urlsplit(base_url)
    if not url.hostname:
        return {}
    port = url.port or _PORTS.get(url.scheme)
    return {"server.address": url.hostname, **({"server.port": port} if port else {})}


def _kind_of(error: BaseException) -> str:
    return str(error.failure) if isinstance(error, CallFailed) else type(error).__name__


def _asked(provider: str, request: Call) -> Attributes:
    """A request, without what it says."""
    asked: dict[str, str | int | float] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": request.model,
        "gen_ai.request.max_tokens": request.max_output_tokens,
        "gen_ai.output.type": "text" if request.json_schema is None else "json",
    }
    if request.temperature is not None:
        asked["gen_ai.request.temperature"] = request.temperature
    if request.seed is not None:
        asked["gen_ai.request.seed"] = request.seed
    return asked


def _answered(reply: Reply) -> Attributes:
    """A reply, without what it says."""
    return {
        "gen_ai.response.finish_reasons": [_FINISH[reply.stop]],
        "gen_ai.usage.input_tokens": reply.usage.tokens_in,
        "gen_ai.usage.cache_read.input_tokens": reply.usage.tokens_cached,
        "gen_ai.usage.output_tokens": reply.usage.tokens_out,
    }
