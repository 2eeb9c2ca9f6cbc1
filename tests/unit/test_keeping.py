"""Every call of a task is kept, without secrets, and keeping it costs the task nothing."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from prometheus_client import CollectorRegistry

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.llm.discreet import DiscreetProvider
from codeconvoy.workers.llm.keeping import AT_ONCE, CLOSE_SECONDS, KeepingProvider
from codeconvoy.workers.llm.kept import KeptCall, KeptPrompt
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.openai_provider import OpenAIProvider
from codeconvoy.workers.llm.provider import (
    Call,
    CallFailed,
    Failure,
    Message,
    Origin,
    Provider,
    Reply,
    fingerprint,
)
from codeconvoy.workers.llm.recorded import RecordedProvider
from codeconvoy.workers.llm.retry import RetryingProvider
from codeconvoy.workers.redact import MARK, Redactor
from tests.llm_server import ModelServer
from tests.llm_shapes import Said
from tests.unit.test_model_chain import MemoryReplies, Server, request, virtually

KEY = "sk-" + "0123456789abcdef" * 2
ORIGIN = Origin("w", "j", "t", 2)
REQUEST = replace(request(f"the key is {KEY}"), origin=ORIGIN)


@dataclass
class MemoryPrompts:
    """Conversations in memory."""

    kept: list[tuple[Origin, KeptCall, KeptPrompt, str]] = field(default_factory=list)
    away: bool = False
    seconds: float = 0.0

    async def keep(self, origin: Origin, call: KeptCall, prompt: KeptPrompt, reply: str) -> bool:
        await asyncio.sleep(self.seconds)
        if self.away:
            raise Unavailable("store", "it is away", "Wait")
        self.kept.append((origin, call, prompt, reply))
        return True

    async def calls(self, workspace: str, task_id: str) -> tuple[KeptCall, ...]:
        return tuple(call for _, call, _, _ in self.kept)

    async def prompt(self, workspace: str, sha: str) -> KeptPrompt | None:
        return next((prompt for _, call, prompt, _ in self.kept if call.prompt == sha), None)

    async def reply(self, workspace: str, sha: str) -> str | None:
        return next((reply for _, call, _, reply in self.kept if call.reply == sha), None)

    async def forget(self, workspace: str) -> int:
        return 0


def keeping(
    provider: Provider, store: MemoryPrompts, known: str = ""
) -> tuple[KeepingProvider, Callable[[str], float]]:
    registry = CollectorRegistry()
    redact = Redactor(frozenset({known} - {""}))

    def counted(how: str) -> float:
        return registry.get_sample_value("convoy_kept_calls_total", {"how": how}) or 0.0

    metrics = ModelMetrics(registry)
    return KeepingProvider(provider, "p:m", store, metrics, redact, lambda: 1_000), counted


def test_a_call_is_kept_under_the_hash_that_its_usage_names() -> None:
    async def go(url: str) -> tuple[Reply, MemoryPrompts]:
        store = MemoryPrompts()
        provider, counted = keeping(OpenAIProvider("secret", base_url=f"{url}/v1", api="chat"), store)
        reply = await provider.call(replace(REQUEST, temperature=0.5, seed=7, json_schema={"a": 1}))
        await provider.close()
        assert counted("kept") == 1
        return reply, store

    with ModelServer([Said(f"fine, {KEY}")]) as server:
        reply, store = asyncio.run(go(server.url))
    [(origin, call, prompt, said)] = store.kept
    assert origin == ORIGIN and (call.round, call.at, call.server) == (2, 1_000, "p:m")
    assert call.prompt == reply.usage.prompt_sha256 and call.usage == reply.usage
    assert (call.outcome, call.request_id, call.recorded) == ("finished", "req-7", False)
    assert reply.text == f"fine, {KEY}", "what the task gets is not changed"
    assert (prompt.system, prompt.temperature, prompt.seed) == ("system", 0.5, 7)
    assert prompt.messages == (Message("user", f"the key is {MARK}"),) and prompt.json_schema == {"a": 1}
    assert said == f"fine, {MARK}"
    assert server.asked[0].prompt == f"the key is {KEY}", "what is sent is not changed"


def test_calls_that_fail_are_kept_with_their_failure() -> None:
    async def go() -> None:
        store = MemoryPrompts()
        said = CallFailed(Failure.REJECTED, f"no {KEY}")
        provider, _ = keeping(Server(lambda now: said), store)
        with pytest.raises(CallFailed) as raised:
            await provider.call(REQUEST)
        assert raised.value is said
        limited, _ = keeping(
            RetryingProvider(Server(lambda now: CallFailed(Failure.RATE_LIMITED, "later"))), store
        )
        with pytest.raises(Unavailable):
            await limited.call(REQUEST)
        cancelled = asyncio.ensure_future(keeping(Server(seconds=9.0), store)[0].call(REQUEST))
        await asyncio.sleep(1)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert cancelled.cancelled()
        await asyncio.sleep(0)
        found = [(call.outcome, call.reason, call.usage, call.reply) for _, call, _, _ in store.kept]
        assert found == [
            ("rejected", f"no {MARK}", None, ""),
            ("rate_limited", "later", None, ""),
            ("cancelled", "", None, ""),
        ]
        assert {call.prompt for _, call, _, _ in store.kept} == {fingerprint("server", REQUEST)}

    virtually(go)


def test_where_no_call_was_made_none_is_kept() -> None:
    class Full(Server):
        async def call(self, request: Call) -> Reply:
            raise Unavailable("m", "its breaker is open", "Wait")

    async def go() -> None:
        store = MemoryPrompts()
        with pytest.raises(Unavailable):
            await keeping(Full(), store)[0].call(REQUEST)
        await asyncio.sleep(1)
        assert store.kept == []

    virtually(go)


def test_a_recorded_reply_is_told_from_one_that_was_paid_for() -> None:
    async def go() -> None:
        store, server = MemoryPrompts(), Server()
        recorded = RecordedProvider(server, "p:m", MemoryReplies(), ModelMetrics(CollectorRegistry()))
        provider, _ = keeping(recorded, store)
        for _ in range(2):
            await provider.call(REQUEST)
        await provider.close()
        assert len(server.calls) == 1
        assert [call.recorded for _, call, _, _ in store.kept] == [False, True]

    virtually(go)


@pytest.mark.parametrize("away", [False, True])
def test_a_store_that_is_slow_or_away_neither_fails_nor_delays_a_call(away: bool) -> None:
    async def go() -> None:
        store = MemoryPrompts(away=away, seconds=30.0)
        provider, counted = keeping(Server(seconds=1.0), store)
        clock = asyncio.get_running_loop().time
        began = clock()
        for _ in range(AT_ONCE // 32 + 3):
            assert (await provider.call(REQUEST)).text == "done"
        assert clock() - began == pytest.approx(AT_ONCE // 32 + 3)
        await asyncio.sleep(40)
        assert (counted("away"), counted("kept")) == ((5, 0) if away else (0, 5))

    virtually(go)


def test_what_is_being_written_is_bounded_and_the_end_does_not_wait_for_it_long() -> None:
    async def go() -> None:
        store = MemoryPrompts(seconds=1_000.0)
        provider, counted = keeping(Server(seconds=1.0), store)
        await asyncio.gather(*(provider.call(REQUEST) for _ in range(AT_ONCE + 10)))
        assert counted("dropped") == 10
        clock = asyncio.get_running_loop().time
        began = clock()
        await provider.close()
        assert clock() - began <= CLOSE_SECONDS + 0.1
        assert counted("dropped") == AT_ONCE + 10

    virtually(go)


def test_a_server_that_repeats_a_key_does_not_get_it_into_an_answer() -> None:
    one, two = "canary-d41d8cd98f", "canary-00b204e980"

    class Repeating(Server):
        async def call(self, request: Call) -> Reply:
            return replace(await super().call(request), text=f"{one} and {two}")

    async def go() -> None:
        provider = DiscreetProvider(Repeating(), Redactor(frozenset({one, two})))
        assert (await provider.call(request("x"))).text == f"{MARK} and {MARK}"
        assert (await provider.call(request(f"has {two}"))).text == f"{MARK} and {two}"

    virtually(go)
