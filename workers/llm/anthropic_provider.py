"""Reads and writes Anthropic's Messages API.

The SDK is imported when the first provider is made: it takes two seconds. Its own retries are
off, so that one call is one HTTP request. The API takes neither a temperature nor a seed.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from codeconvoy.workers.llm.http_errors import status_failure
from codeconvoy.workers.llm.provider import (
    Call,
    CallFailed,
    Failure,
    Reply,
    Stop,
    reply_of,
)

if TYPE_CHECKING:
    from anthropic.types import Message as Answer
    from anthropic.types import Usage

API = "https://api.anthropic.com"
CONNECT_SECONDS = 10.0
_STOPS = {
    "max_tokens": Stop.TRUNCATED,
    "model_context_window_exceeded": Stop.TRUNCATED,
    "refusal": Stop.REFUSED,
}


class AnthropicProvider:
    """Calls a server that speaks the Messages API."""

    name = "anthropic"

    def __init__(self, key: str, *, base_url: str = API) -> None:
        """Nothing is sent before the first call.

        Args:
            key: the secret. It is passed on explicitly, so the SDK looks for no other.
            base_url: without the version and without a slash at the end.
        """
        import anthropic
        import httpx2

        self._key = key
        self._sdk = anthropic
        self._client = anthropic.AsyncAnthropic(
            api_key=key or "none",
            base_url=base_url,
            max_retries=0,
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
        )

    async def call(self, request: Call) -> Reply:
        """See `Provider`."""
        try:
            async with asyncio.timeout(request.deadline_seconds):
                return _read(request, await self._ask(request))
        except TimeoutError as error:
            reason = f"anthropic: no reply within {request.deadline_seconds:.0f} s"
            raise CallFailed(Failure.TIMEOUT, reason) from error
        except (self._sdk.AnthropicError, ValueError) as error:
            raise self._failure(error) from error

    async def _ask(self, request: Call) -> "Answer":
        extra: dict[str, Any] = {}
        if request.json_schema is not None:
            extra["output_config"] = {"format": {"type": "json_schema", "schema": request.json_schema}}
        messages: list[Any] = [{"role": m.role, "content": m.content} for m in request.messages]
        answer: Answer = await self._client.messages.create(
            model=request.model,
            max_tokens=request.max_output_tokens,
            system=[{"type": "text", "text": request.system, "cache_control": {"type": "ephemeral"}}],
            messages=messages,
            timeout=request.deadline_seconds,
            **extra,
        )
        return answer

    def _failure(self, error: Exception) -> CallFailed:
        """What an error of the SDK means."""
        if isinstance(error, self._sdk.APIStatusError):
            return status_failure(self.name, error.status_code, error.response.headers, error.body, self._key)
        if isinstance(error, self._sdk.APITimeoutError):
            return CallFailed(Failure.TIMEOUT, "anthropic: the connection timed out")
        if isinstance(error, self._sdk.APIConnectionError):
            cause = type(error.__cause__).__name__
            return CallFailed(Failure.CONNECTION, f"anthropic: the connection failed or was cut ({cause})")
        return CallFailed(Failure.GARBLED, f"anthropic: not a reply of its API ({type(error).__name__})")

    async def close(self) -> None:
        """See `Provider`."""
        await self._client.close()


def _read(request: Call, answer: "Answer") -> Reply:
    """The reply that an answer holds. The SDK does not check shapes, so a wrong one shows here."""
    try:
        return _reply(request, answer)
    except (AttributeError, TypeError) as error:
        raise CallFailed(Failure.GARBLED, f"anthropic: the reply has not the API's shape: {error}") from error


def _reply(request: Call, answer: "Answer") -> Reply:
    text = "".join(block.text for block in answer.content if block.type == "text")
    stop = _STOPS.get(answer.stop_reason or "", Stop.FINISHED)
    usage: Usage | None = answer.usage
    cached = (usage.cache_read_input_tokens or 0) if usage else 0
    made = (usage.cache_creation_input_tokens or 0) if usage else 0
    counted = (usage.input_tokens + cached + made, cached, usage.output_tokens) if usage else None
    return reply_of("anthropic", request, text, stop, counted, answer._request_id)
