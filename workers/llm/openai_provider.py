"""Reads and writes OpenAI's Responses API, or the Chat Completions API that others speak too.

The SDK is imported when the first provider is made: it takes most of a second. Its own retries
are off, so that one call is one HTTP request (but once for a model that takes no temperature).
Replies are streamed, so that a server that falls silent is noticed long before the deadline; a
stream without the API's last event is a cut one, never a reply.
"""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import httpx2

from codeconvoy.workers.llm.http_errors import (
    cut_short,
    drain,
    failure_of,
    rejected_parameter,
    said_failure,
    shape_of,
    timeout_of,
)
from codeconvoy.workers.llm.provider import IDLE_SECONDS, Call, CallFailed, Failure, Reply, Stop, reply_of

if TYPE_CHECKING:
    from openai.types import CompletionUsage
    from openai.types.chat import ChatCompletion, ChatCompletionChunk
    from openai.types.responses import Response

API = "https://api.openai.com/v1"
_SCHEMA_NAME = "answer"
_REQUEST_ID = "x-request-id"
_LAST = ("response.completed", "response.incomplete", "response.failed")


class OpenAIProvider:
    """Calls a server that speaks one of OpenAI's two APIs."""

    name = "openai"

    def __init__(
        self,
        key: str,
        *,
        base_url: str = API,
        api: Literal["responses", "chat"] = "responses",
        stream: bool = True,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """Nothing is sent before the first call.

        Args:
            key: the secret; servers of one's own may take any.
            base_url: with the version, without a slash at the end.
            api: `responses` for OpenAI's own, `chat` for compatible servers.
            stream: False for a server that can't.
            idle_seconds: a stream that is silent for longer is given up.
        """
        import openai

        self._key, self._api, self._stream = key, api, stream
        self._sdk = openai
        self._client = openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=base_url,
            max_retries=0,
            timeout=timeout_of(stream=stream, idle_seconds=idle_seconds),
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
                    raise failure_of(self.name, self._sdk, error, self._key) from error
                self._not_taken.add(refused)

    async def _once(self, request: Call, sampling: dict[str, float]) -> Reply:
        """One HTTP request; only a 400 comes out as the SDK's own error."""
        ask = self._respond if self._api == "responses" else self._complete
        try:
            async with asyncio.timeout(request.deadline_seconds):
                with shape_of(self.name):
                    return await ask(request, sampling)
        except self._sdk.BadRequestError:
            raise
        except TimeoutError as error:
            reason = f"openai: no reply within {request.deadline_seconds:.0f} s"
            raise CallFailed(Failure.TIMEOUT, reason) from error
        except (self._sdk.OpenAIError, httpx2.HTTPError, ValueError) as error:
            raise failure_of(self.name, self._sdk, error, self._key) from error

    async def look_up(self, model: str, seconds: float) -> None:
        """See `Knowing`."""
        try:
            async with asyncio.timeout(seconds):
                await self._client.models.retrieve(model)
        except TimeoutError as error:
            raise CallFailed(Failure.TIMEOUT, f"openai: no answer within {seconds:.0f} s") from error
        except (self._sdk.OpenAIError, httpx2.HTTPError, ValueError) as error:
            raise failure_of(self.name, self._sdk, error, self._key) from error

    async def _respond(self, request: Call, sampling: dict[str, float]) -> Reply:
        sent: dict[str, Any] = {
            "model": request.model,
            "instructions": request.system,
            "input": [{"role": m.role, "content": m.content} for m in request.messages],
            "max_output_tokens": request.max_output_tokens,
            "store": False,
            **sampling,
        }
        if request.json_schema is not None:
            form = {"name": _SCHEMA_NAME, "schema": request.json_schema, "strict": True}
            sent["text"] = {"format": {"type": "json_schema", **form}}
        if not self._stream:
            response = await self._client.responses.create(**sent)
            return self._of_response(request, response, "", response._request_id)
        said, began = list[str](), False
        async with await self._client.responses.create(**sent, stream=True) as stream:
            async for event in stream:
                began = True
                if event.type == "response.output_text.delta":
                    said.append(event.delta)
                elif event.type in _LAST:
                    await drain(stream.response)
                    request_id = stream.response.headers.get(_REQUEST_ID)
                    return self._of_response(request, event.response, "".join(said), request_id)
                elif event.type == "error":
                    raise said_failure(self.name, event.to_dict(), self._key)
        raise cut_short(self.name, began=began)

    def _of_response(self, request: Call, response: "Response", said: str, request_id: str | None) -> Reply:
        """The reply that a response is; `said`: its text as it came, for servers that do not repeat it."""
        if response.status == "failed":
            raise said_failure(self.name, response.error and response.error.to_dict(), self._key)
        parts = [part for item in response.output if item.type == "message" for part in item.content]
        why = response.incomplete_details.reason if response.incomplete_details else None
        refused = why == "content_filter" or any(part.type == "refusal" for part in parts)
        stop = _stop(truncated=response.status == "incomplete", refused=refused)
        counted: tuple[object, object, object] | None = None
        if usage := response.usage:
            details = usage.input_tokens_details
            counted = usage.input_tokens, details.cached_tokens if details else 0, usage.output_tokens
        return reply_of(self.name, request, response.output_text or said, stop, counted, request_id)

    async def _complete(self, request: Call, sampling: dict[str, float]) -> Reply:
        turns = [{"role": m.role, "content": m.content} for m in request.messages]
        sent: dict[str, Any] = {
            "model": request.model,
            "messages": [{"role": "system", "content": request.system}, *turns],
            "max_completion_tokens": request.max_output_tokens,
            **sampling,
        }
        if request.json_schema is not None:
            schema = {"name": _SCHEMA_NAME, "schema": request.json_schema, "strict": True}
            sent["response_format"] = {"type": "json_schema", "json_schema": schema}
        completion = _Completion()
        if not self._stream:
            whole = await self._client.chat.completions.create(**sent)
            completion.read(whole)
            return completion.reply(request, whole._request_id)
        sent["stream_options"] = {"include_usage": True}
        async with await self._client.chat.completions.create(**sent, stream=True) as stream:
            async for chunk in stream:
                completion.add(chunk)
            if not completion.finish_reason:
                raise cut_short(self.name, began=completion.began)
            return completion.reply(request, stream.response.headers.get(_REQUEST_ID))

    async def close(self) -> None:
        """See `Provider`."""
        await self._client.close()


@dataclass(slots=True)
class _Completion:
    """What has come of a completion: at once, or in chunks."""

    began: bool = False
    said: list[str] = field(default_factory=list)
    refused: bool = False
    finish_reason: str | None = None
    usage: "CompletionUsage | None" = None

    def read(self, completion: "ChatCompletion") -> None:
        """Take a whole one."""
        choice = completion.choices[0]
        self.said = [choice.message.content or ""]
        self.refused = bool(choice.message.refusal)
        self.finish_reason, self.usage = choice.finish_reason, completion.usage

    def add(self, chunk: "ChatCompletionChunk") -> None:
        """Take a chunk. The last one holds no choice, but the usage."""
        self.began = True
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices[:1]:
            self.said.append(choice.delta.content or "")
            self.refused |= bool(choice.delta.refusal)
            self.finish_reason = choice.finish_reason or self.finish_reason

    def reply(self, request: Call, request_id: str | None) -> Reply:
        """What it comes to."""
        refused = self.refused or self.finish_reason == "content_filter"
        stop = _stop(truncated=self.finish_reason == "length", refused=refused)
        counted: tuple[object, object, object] | None = None
        if usage := self.usage:
            details = usage.prompt_tokens_details
            cached = (details.cached_tokens or 0) if details else 0
            counted = usage.prompt_tokens, cached, usage.completion_tokens
        return reply_of("openai", request, "".join(self.said), stop, counted, request_id)


def _stop(*, truncated: bool, refused: bool) -> Stop:
    if refused:
        return Stop.REFUSED
    return Stop.TRUNCATED if truncated else Stop.FINISHED
