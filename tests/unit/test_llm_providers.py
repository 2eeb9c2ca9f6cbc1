"""Both SDKs against a server that misbehaves: what each fault becomes."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import pytest

from codeconvoy.workers.llm.anthropic_provider import AnthropicProvider
from codeconvoy.workers.llm.http_errors import retry_after
from codeconvoy.workers.llm.openai_provider import OpenAIProvider
from codeconvoy.workers.llm.provider import (
    Call,
    CallFailed,
    Failure,
    Message,
    Origin,
    Provider,
    Reply,
    Stop,
    fingerprint,
)
from tests.llm_server import (
    CUT,
    DROP,
    HANG,
    MALFORMED,
    SHAPE,
    SHORT,
    STALL,
    Fault,
    ModelServer,
    midway,
    status,
)
from tests.llm_shapes import APIS, Said

T = TypeVar("T")
KEY = "secret"
SCHEMA = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
REQUEST = Call("m-1", "be good", (Message("user", "hi"),), temperature=0.0, seed=3, deadline_seconds=20)


@dataclass(frozen=True)
class Make:
    """Makes a provider for a server."""

    api: str
    stream: bool = True

    def __call__(self, url: str, key: str = KEY, idle_seconds: float = 20.0) -> Provider:
        if self.api == "messages":
            return AnthropicProvider(key, base_url=url, stream=self.stream, idle_seconds=idle_seconds)
        api: Literal["responses", "chat"] = "chat" if self.api == "chat" else "responses"
        return OpenAIProvider(
            key, base_url=f"{url}/v1", api=api, stream=self.stream, idle_seconds=idle_seconds
        )

    def __str__(self) -> str:
        return self.api if self.stream else f"{self.api}, whole"


streamed = pytest.mark.parametrize("make", list(map(Make, APIS)), ids=str)
every = pytest.mark.parametrize(
    "make", [Make(api, stream) for api in APIS for stream in (True, False)], ids=str
)


def using(provider: Provider, do: Callable[[Provider], Coroutine[None, None, T]]) -> T:
    async def run() -> T:
        try:
            return await do(provider)
        finally:
            await provider.close()

    return asyncio.run(run())


def ask(provider: Provider, request: Call = REQUEST) -> Reply:
    return using(provider, lambda p: p.call(request))


@every
def test_a_reply_its_usage_in_one_convention_and_what_was_sent(make: Make) -> None:
    with ModelServer([Said("hello")]) as server:
        reply = ask(make(server.url))
    assert (reply.text, reply.stop, reply.request_id) == ("hello", Stop.FINISHED, "req-7")
    usage = reply.usage
    assert (usage.tokens_in, usage.tokens_cached, usage.tokens_out) == (100, 40, 7)
    assert not reply.usage_estimated and usage.model == "m-1"
    asked = server.asked[0]
    assert (asked.system, asked.messages) == ("be good", (("user", "hi"),))
    assert asked.body.get("temperature") == (None if make.api == "messages" else 0.0)
    assert asked.body.get("seed") == (3 if make.api == "chat" else None)
    assert asked.body.get("stream", False) == make.stream


@every
def test_a_schema_is_sent(make: Make) -> None:
    with ModelServer([Said("{}")]) as server:
        ask(make(server.url), Call("m", "s", (Message("user", "hi"),), json_schema=SCHEMA))
    body = server.asked[0].body
    if make.api == "chat":
        assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    else:
        assert body["text" if make.api == "responses" else "output_config"]["format"]["schema"] == SCHEMA


@every
@pytest.mark.parametrize(
    ("said", "stop"),
    [
        (Said("half", "truncated"), Stop.TRUNCATED),
        (Said("no", "refused"), Stop.REFUSED),
        (Said(" \n"), Stop.EMPTY),
    ],
)
def test_why_a_reply_ended(make: Make, said: Said, stop: Stop) -> None:
    with ModelServer([said]) as server:
        assert ask(make(server.url)).stop is stop


@every
def test_usage_that_is_missing_is_guessed_and_says_so(make: Make) -> None:
    with ModelServer([Said("hello", usage=None)]) as server:
        reply = ask(make(server.url))
    assert reply.usage_estimated
    assert reply.usage.tokens_in > 0 and reply.usage.tokens_out > 0


@every
@pytest.mark.parametrize(
    ("fault", "failure", "retryable"),
    [
        (status(429, {"Retry-After": "7"}), Failure.RATE_LIMITED, True),
        (status(429, code="insufficient_quota"), Failure.QUOTA, False),
        (status(500), Failure.SERVER, True),
        (status(503), Failure.OVERLOADED, True),
        (status(529), Failure.OVERLOADED, True),
        (status(400), Failure.REJECTED, False),
        (status(403), Failure.KEY, False),
        (status(404), Failure.REJECTED, False),
        (DROP, Failure.CONNECTION, True),
        (CUT, Failure.CONNECTION, True),
        (MALFORMED, Failure.GARBLED, True),
        (SHAPE, Failure.GARBLED, True),
    ],
    ids=lambda value: f"{value.kind}-{value.status}" if isinstance(value, Fault) else str(value),
)
def test_faults_become_failures_after_one_request(
    make: Make, fault: Fault, failure: Failure, retryable: bool
) -> None:
    with ModelServer([fault]) as server, pytest.raises(CallFailed) as caught:
        ask(make(server.url))
    assert (caught.value.failure, caught.value.retryable) == (failure, retryable)
    assert caught.value.retry_after == (7.0 if "Retry-After" in fault.headers else None)
    assert len(server.asked) == 1


@streamed
@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        (SHORT, Failure.CONNECTION),
        (Fault("early"), Failure.CONNECTION),
        (midway("error", "overloaded_error"), Failure.OVERLOADED),
        (midway("error", "api_error"), Failure.SERVER),
        (midway("error", "rate_limit_error"), Failure.RATE_LIMITED),
        (midway("error", "invalid_request_error"), Failure.REJECTED),
        (midway("error", "authentication_error"), Failure.KEY),
        (midway("error", "insufficient_quota"), Failure.QUOTA),
        (midway("error", "503"), Failure.SERVER),
        (midway("error", "400"), Failure.REJECTED),
    ],
    ids=lambda value: f"{value.kind}-{value.error['type']}" if isinstance(value, Fault) else str(value),
)
def test_a_stream_that_does_not_come_to_its_end_is_no_reply(
    make: Make, fault: Fault, failure: Failure
) -> None:
    with ModelServer([fault]) as server, pytest.raises(CallFailed) as caught:
        ask(make(server.url))
    assert caught.value.failure is failure
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("code", "failure"),
    [("server_error", Failure.SERVER), ("rate_limit_exceeded", Failure.RATE_LIMITED)],
)
def test_a_response_that_failed_says_why(code: str, failure: Failure) -> None:
    with ModelServer([midway("failed", code)]) as server, pytest.raises(CallFailed, match=code) as caught:
        ask(Make("responses")(server.url))
    assert caught.value.failure is failure


@streamed
def test_a_server_that_does_not_stream_is_told_from_a_cut_stream(make: Make) -> None:
    with ModelServer([Fault("whole")]) as server, pytest.raises(CallFailed, match="stream = false") as caught:
        ask(make(server.url))
    assert caught.value.failure is Failure.GARBLED


@streamed
@pytest.mark.parametrize("fault", [STALL, HANG], ids=lambda fault: fault.kind)
def test_silence_ends_a_call_long_before_its_deadline(make: Make, fault: Fault) -> None:
    request = Call("m", "s", (Message("user", "hi"),), deadline_seconds=3_600)
    with ModelServer([fault]) as server:
        with pytest.raises(CallFailed) as caught:
            ask(make(server.url, idle_seconds=0.3), request)
        assert caught.value.failure is Failure.TIMEOUT and caught.value.retryable
        assert server.closed_by_client.wait(10)


@every
def test_a_connection_is_used_again(make: Make) -> None:
    async def thrice(provider: Provider) -> None:
        for _ in range(3):
            await provider.call(REQUEST)

    with ModelServer([Said("one"), Said("two"), Said("three")]) as server:
        using(make(server.url), thrice)
    assert server.connections == 1


@every
def test_a_wrong_key_is_told_from_an_outage_and_not_repeated(make: Make) -> None:
    with ModelServer() as server, pytest.raises(CallFailed) as caught:
        ask(make(server.url, "sk-wrong"))
    assert (caught.value.failure, caught.value.retryable) == (Failure.KEY, False)
    assert "sk-wrong" not in str(caught.value) and "key" in str(caught.value)


@every
def test_a_key_that_a_server_repeats_is_struck_out(make: Make) -> None:
    midways = [midway("error", f"bad {KEY}")] if make.stream else []
    for fault in (status(500, message=f"bad {KEY}"), *midways):
        with ModelServer([fault]) as server, pytest.raises(CallFailed) as caught:
            ask(make(server.url))
        assert KEY not in str(caught.value) and "bad [key]" in str(caught.value)


@every
def test_no_server_is_an_outage(make: Make) -> None:
    with ModelServer() as server:
        url = server.url
    with pytest.raises(CallFailed) as caught:
        ask(make(url))
    assert (caught.value.failure, caught.value.retryable) == (Failure.CONNECTION, True)


@every
def test_a_server_that_hangs_ends_at_the_deadline(make: Make) -> None:
    request = Call("m", "s", (Message("user", "hi"),), deadline_seconds=0.3)
    with ModelServer([HANG]) as server:
        with pytest.raises(CallFailed) as caught:
            ask(make(server.url), request)
        assert caught.value.failure is Failure.TIMEOUT and caught.value.retryable
        assert server.closed_by_client.wait(10)


@every
@pytest.mark.parametrize("fault", [HANG, STALL], ids=lambda fault: fault.kind)
def test_cancelling_a_call_closes_its_stream(make: Make, fault: Fault) -> None:
    async def cancel(provider: Provider) -> None:
        call = asyncio.create_task(provider.call(REQUEST))
        assert await asyncio.to_thread(server.hangs.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(server.closed_by_client.wait, 10)

    with ModelServer([fault]) as server:
        using(make(server.url), cancel)


@pytest.mark.parametrize("make", [Make("responses"), Make("chat")], ids=str)
def test_a_parameter_that_a_model_refuses_is_left_out_from_then_on(make: Make) -> None:
    async def twice(provider: Provider) -> list[Reply]:
        return [await provider.call(REQUEST), await provider.call(REQUEST)]

    refusal = status(400, param="temperature", message="Unsupported parameter")
    with ModelServer([refusal, Said("one"), Said("two")]) as server:
        replies = using(make(server.url), twice)
    assert [reply.text for reply in replies] == ["one", "two"]
    assert ["temperature" in asked.body for asked in server.asked] == [True, False, False]


def test_fingerprints_follow_the_prompt_and_neither_the_deadline_nor_whose_it_is() -> None:
    other = replace(REQUEST, deadline_seconds=1, origin=Origin("w", "j", "t", 2))
    assert fingerprint("openai", REQUEST) == fingerprint("openai", other)
    changed = Call("m-1", "be good", (Message("user", "ho"),), temperature=0.0, seed=3)
    assert (
        len(
            {
                fingerprint("openai", REQUEST),
                fingerprint("anthropic", REQUEST),
                fingerprint("openai", changed),
            }
        )
        == 3
    )


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "9"}, 9.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, 0.0),
        ({}, None),
    ],
)
def test_each_way_to_say_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=60.0) == seconds
