"""Reads and writes OpenAI's Responses API, or the Chat Completions API that others speak too.

The SDK is imported when the first provider is made: it takes most of a second. Its own retries
are off, so that one call is one HTTP request (but once for a model that takes no temperature).
"""

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from codeconvoy.workers.llm.http_errors import rejected_parameter, status_failure
from codeconvoy.workers.llm.provider import (
    Call,
    CallFailed,
    Failure,
    Reply,
    Stop,
    reply_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from openai.types.chat import ChatCompletion
    from openai.types.responses import Response

API = "https://api.openai.com/v1"
CONNECT_SECONDS = 10.0
_SCHEMA_NAME = "answer"


class OpenAIProvider:
    """Calls a server that speaks one of OpenAI's two APIs."""

    name = "openai"

    def __init__(
        self, key: str, *, base_url: str = API, api: Literal["responses", "chat"] = "responses"
    ) -> None:
        """Nothing is sent before the first call.

        Args:
            key: the secret; servers of one's own may take any.
            base_url: with the version, without a slash at the end.
            api: `responses` for OpenAI's own, `chat` for compatible servers.
        """
        import httpx2
        import openai

        self._key, self._api = key, api
        self._sdk = openai
        self._client = openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=base_url,
            max_retries=0,
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
        )
        self._not_taken: set[str] = set()
        """Sampling parameters that the model refused once: not sent again."""

    async def call(self, request: Call) -> Reply:
        """See `Provider`."""
        sampling = {"temperature": request.temperature}
        if self._api == "chat":
            sampling["seed"] = request.seed
        while True:
            sent = {k: v for k, v in sampling.items() if v is not None and k not in self._not_taken}
            try:
                return await self._once(request, sent)
            except self._sdk.BadRequestError as error:
                refused = rejected_parameter(error.body)
                if refused not in sent:
                    raise self._failure(error) from error
                self._not_taken.add(refused)

    async def _once(self, request: Call, sampling: dict[str, float]) -> Reply:
        """One HTTP request; only a 400 comes out as the SDK's own error."""
        ask = self._respond if self._api == "responses" else self._complete
        try:
            async with asyncio.timeout(request.deadline_seconds):
                return await ask(request, sampling)
        except self._sdk.BadRequestError:
            raise
        except TimeoutError as error:
            reason = f"openai: no reply within {request.deadline_seconds:.0f} s"
            raise CallFailed(Failure.TIMEOUT, reason) from error
        except (self._sdk.OpenAIError, ValueError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> CallFailed:
        """What an error of the SDK means."""
        if isinstance(error, self._sdk.APIStatusError):
            return status_failure(self.name, error.status_code, error.response.headers, error.body, self._key)
        if isinstance(error, self._sdk.APITimeoutError):
            return CallFailed(Failure.TIMEOUT, "openai: the connection timed out")
        if isinstance(error, self._sdk.APIConnectionError):
            cause = type(error.__cause__).__name__
            return CallFailed(Failure.CONNECTION, f"openai: the connection failed or was cut ({cause})")
        return CallFailed(Failure.GARBLED, f"openai: not a reply of its API ({type(error).__name__})")

    async def _respond(self, request: Call, sampling: dict[str, float]) -> Reply:
        extra: dict[str, Any] = dict(sampling)
        if request.json_schema is not None:
            form = {
                "type": "json_schema",
                "name": _SCHEMA_NAME,
                "schema": request.json_schema,
                "strict": True,
            }
            extra["text"] = {"format": form}
        messages: list[Any] = [{"role": m.role, "content": m.content} for m in request.messages]
        response = await self._client.responses.create(
            model=request.model,
            instructions=request.system,
            input=messages,
            max_output_tokens=request.max_output_tokens,
            store=False,
            **extra,
        )
        return _read(_from_response, request, response)

    async def _complete(self, request: Call, sampling: dict[str, float]) -> Reply:
        extra: dict[str, Any] = dict(sampling)
        if request.json_schema is not None:
            schema = {"name": _SCHEMA_NAME, "schema": request.json_schema, "strict": True}
            extra["response_format"] = {"type": "json_schema", "json_schema": schema}
        messages: list[Any] = [{"role": "system", "content": request.system}]
        messages += ({"role": m.role, "content": m.content} for m in request.messages)
        completion = await self._client.chat.completions.create(
            model=request.model,
            messages=messages,
            max_completion_tokens=request.max_output_tokens,
            **extra,
        )
        return _read(_from_completion, request, completion)

    async def close(self) -> None:
        """See `Provider`."""
        await self._client.close()


def _read(reader: "Callable[[Call, Any], Reply]", request: Call, answer: object) -> Reply:
    """The reply that an answer holds. The SDK does not check shapes, so a wrong one shows here."""
    try:
        return reader(request, answer)
    except (AttributeError, TypeError, IndexError) as error:
        raise CallFailed(Failure.GARBLED, f"openai: the reply has not the API's shape: {error}") from error


def _from_response(request: Call, response: "Response") -> Reply:
    if response.status == "failed":
        code = response.error.code if response.error else "no reason given"
        raise CallFailed(Failure.SERVER, f"openai: the response failed ({code})")
    parts = [part for item in response.output if item.type == "message" for part in item.content]
    why = response.incomplete_details.reason if response.incomplete_details else None
    refused = why == "content_filter" or any(part.type == "refusal" for part in parts)
    usage = response.usage
    details = usage.input_tokens_details if usage else None
    counted = (
        (usage.input_tokens, details.cached_tokens if details else 0, usage.output_tokens) if usage else None
    )
    stop = _stop(truncated=response.status == "incomplete", refused=refused)
    return reply_of("openai", request, response.output_text, stop, counted, response._request_id)


def _from_completion(request: Call, completion: "ChatCompletion") -> Reply:
    choice = completion.choices[0]
    refused = bool(choice.message.refusal) or choice.finish_reason == "content_filter"
    usage = completion.usage
    details = usage.prompt_tokens_details if usage else None
    cached = (details.cached_tokens or 0) if details else 0
    counted = (usage.prompt_tokens, cached, usage.completion_tokens) if usage else None
    stop = _stop(truncated=choice.finish_reason == "length", refused=refused)
    return reply_of("openai", request, choice.message.content or "", stop, counted, completion._request_id)


def _stop(*, truncated: bool, refused: bool) -> Stop:
    if refused:
        return Stop.REFUSED
    return Stop.TRUNCATED if truncated else Stop.FINISHED
