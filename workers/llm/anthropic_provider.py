"""Reads and writes Anthropic's Messages API.

The SDK is imported when the first provider is made: it takes two seconds. Its own retries are
off, so that one call is one HTTP request. The API takes neither a temperature nor a seed. Replies
are streamed, so that a server that falls silent is noticed long before the deadline; a stream
without the API's last event is a cut one, never a reply.
"""

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import httpx2

from codeconvoy.workers.llm.http_errors import (
    cut_short,
    drain,
    failure_of,
    shape_of,
    timeout_of,
)
from codeconvoy.workers.llm.provider import IDLE_SECONDS, Call, CallFailed, Failure, Reply, Stop, reply_of

if TYPE_CHECKING:
    from anthropic.types import Message as Answer
    from anthropic.types import RawMessageStreamEvent

API = "https://api.anthropic.com"
_REQUEST_ID = "request-id"
_STOPS = {
    "max_tokens": Stop.TRUNCATED,
    "model_context_window_exceeded": Stop.TRUNCATED,
    "refusal": Stop.REFUSED,
}


class AnthropicProvider:
    """Calls a server that speaks the Messages API."""

    name = "anthropic"

    def __init__(
        self, key: str, *, base_url: str = API, stream: bool = True, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        """Nothing is sent before the first call.

        Args:
            key: the secret. It is passed on explicitly, so the SDK looks for no other.
            base_url: without the version and without a slash at the end.
            stream: False for a server that can't.
            idle_seconds: a stream that is silent for longer is given up.
        """
        import anthropic

        self._key, self._stream = key, stream
        self._sdk = anthropic
        self._client = anthropic.AsyncAnthropic(
            api_key=key or "none",
            base_url=base_url,
            max_retries=0,
            timeout=timeout_of(stream=stream, idle_seconds=idle_seconds),
        )

    async def call(self, request: Call) -> Reply:
        """See `Provider`."""
        try:
            async with asyncio.timeout(request.deadline_seconds):
                with shape_of(self.name):
                    return await self._ask(request)
        except TimeoutError as error:
            reason = f"anthropic: no reply within {request.deadline_seconds:.0f} s"
            raise CallFailed(Failure.TIMEOUT, reason) from error
        except (self._sdk.AnthropicError, httpx2.HTTPError, ValueError) as error:
            raise failure_of(self.name, self._sdk, error, self._key) from error

    async def _ask(self, request: Call) -> Reply:
        sent: dict[str, Any] = {
            "model": request.model,
            "max_tokens": request.max_output_tokens,
            "system": [{"type": "text", "text": request.system, "cache_control": {"type": "ephemeral"}}],
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        }
        if request.json_schema is not None:
            sent["output_config"] = {"format": {"type": "json_schema", "schema": request.json_schema}}
        message = _Message()
        if not self._stream:
            answer: Answer = await self._client.messages.create(**sent)
            message.read(answer)
            return message.reply(request, answer._request_id)
        async with await self._client.messages.create(**sent, stream=True) as stream:
            async for event in stream:
                message.add(event)
                if event.type == "message_stop":
                    await drain(stream.response)
                    return message.reply(request, stream.response.headers.get(_REQUEST_ID))
        raise cut_short(self.name, began=message.began)

    async def look_up(self, model: str, seconds: float) -> None:
        """See `Knowing`."""
        try:
            async with asyncio.timeout(seconds):
                await self._client.models.retrieve(model)
        except TimeoutError as error:
            raise CallFailed(Failure.TIMEOUT, f"anthropic: no answer within {seconds:.0f} s") from error
        except (self._sdk.AnthropicError, httpx2.HTTPError, ValueError) as error:
            raise failure_of(self.name, self._sdk, error, self._key) from error

    async def close(self) -> None:
        """See `Provider`."""
        await self._client.close()


@dataclass(slots=True)
class _Message:
    """What has come of a message: at once, or in events."""

    began: bool = False
    said: list[str] = field(default_factory=list)
    stop_reason: str | None = None
    usage: dict[str, object] = field(default_factory=dict)

    def read(self, answer: "Answer") -> None:
        """Take a whole one."""
        self.said = [block.text for block in answer.content if block.type == "text"]
        self.stop_reason = answer.stop_reason
        self.usage = answer.usage.to_dict() if answer.usage else {}

    def add(self, event: "RawMessageStreamEvent") -> None:
        """Take an event. What it counts, it counts from the beginning."""
        self.began = True
        match event.type:
            case "message_start":
                self.read(event.message)
                # Of the output it has seen the beginning only: without a later count there is none.
                self.usage.pop("output_tokens", None)
            case "content_block_start":
                if event.content_block.type == "text":
                    self.said.append(event.content_block.text)
            case "content_block_delta":
                if event.delta.type == "text_delta":
                    self.said.append(event.delta.text)
            case "message_delta":
                self.stop_reason = event.delta.stop_reason or self.stop_reason
                counted = event.usage.to_dict() if event.usage else {}
                self.usage |= {name: count for name, count in counted.items() if count is not None}

    def reply(self, request: Call, request_id: str | None) -> Reply:
        """What it comes to."""
        into, out = self.usage.get("input_tokens"), self.usage.get("output_tokens")
        cached = self.usage.get("cache_read_input_tokens") or 0
        made = self.usage.get("cache_creation_input_tokens") or 0
        counted: tuple[object, object, object] | None = None
        if isinstance(into, int) and isinstance(cached, int) and isinstance(made, int):
            counted = into + cached + made, cached, out
        stop = _STOPS.get(self.stop_reason or "", Stop.FINISHED)
        reply = reply_of("anthropic", request, "".join(self.said), stop, counted, request_id)
        return replace(reply, tokens_written=made if isinstance(made, int) else 0)
