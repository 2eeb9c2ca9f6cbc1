"""The next provider of a role is asked where the one before it can't do a task; on a virtual clock."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from codeconvoy.schemas.errors import AgentError, OverBudget, Unavailable
from codeconvoy.workers.llm.agent import ModelAgent
from codeconvoy.workers.llm.breaker import (
    FAILURES,
    OPEN_SECONDS,
    BreakerLimits,
    BreakerState,
    BreakingProvider,
)
from codeconvoy.workers.llm.cells import LocalCells
from codeconvoy.workers.llm.chain import Chain
from codeconvoy.workers.llm.failover import Choice, FailoverAgent, Switch
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.provider import Call, CallFailed, Failure, ModelUnavailable, Reply, Stop, reply_of
from codeconvoy.workers.llm.rate_limit import LimitedProvider, LineState, Rates
from codeconvoy.workers.llm.retry import ATTEMPTS, RetryingProvider
from codeconvoy.workers.roles.role import Answer, Context, Edits, Role, RoleKind
from tests import contexts
from tests.unit.test_model_agent import BAD, FILLED, GOOD, MERGED, OUTSIDE, WANTED
from tests.unit.test_model_chain import clock, virtually

DOWN = CallFailed(Failure.SERVER, "500")
Step = str | tuple[str, Stop] | CallFailed
Does = Callable[[float], Step]


@dataclass
class Model:
    """A model that does as a test says, and keeps when it was asked."""

    name: str
    does: Does
    seconds: float = 1.0
    asked: list[float] = field(default_factory=list)
    closed: bool = False

    async def call(self, request: Call) -> Reply:
        self.asked.append(clock())
        said = self.does(clock())
        async with asyncio.timeout(request.deadline_seconds):
            await asyncio.sleep(self.seconds)
        if isinstance(said, CallFailed):
            raise CallFailed(said.failure, said.reason)
        text, stop = (said, Stop.FINISHED) if isinstance(said, str) else said
        return reply_of(self.name, request, text, stop, (10, 4, 1), "")

    async def close(self) -> None:
        self.closed = True


def always(step: Step) -> Does:
    return lambda now: step


def saying(*steps: Step) -> Does:
    queue = deque(steps)
    return lambda now: queue.popleft()


@dataclass
class Fleet:
    """The agents of a role whose models stand behind breakers and rates that all of them share."""

    models: tuple[Model, ...]
    rates: Rates
    switches: list[Switch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.breakers: LocalCells[BreakerState] = LocalCells(clock)
        self.lines: LocalCells[LineState] = LocalCells(clock)

    def agent(self) -> FailoverAgent:
        choices = []
        for model in self.models:
            limited = LimitedProvider(model, model.name, self.lines, self.rates, lambda wait: None)
            breaking = BreakingProvider(limited, model.name, self.breakers, BreakerLimits())
            role = Role("r", RoleKind.EDIT, "", model.name, model="m")
            choices.append(Choice(model.name, model.name, "m", ModelAgent(role, RetryingProvider(breaking))))
        return FailoverAgent(choices, self.switches.append)

    @property
    def why(self) -> list[tuple[str, str, str]]:
        return [(switch.name, switch.following, switch.why) for switch in self.switches]


def fleet(*does: Does, seconds: float = 1.0, rates: Rates | None = None) -> Fleet:
    """Of the models a, b, …"""
    return Fleet(
        tuple(Model(name, one, seconds) for name, one in zip("abcdef", does, strict=False)), rates or Rates()
    )


@pytest.mark.parametrize(
    ("does", "why", "calls", "tokens"),
    [
        (always(DOWN), "server", ATTEMPTS, 10),
        (always(CallFailed(Failure.KEY, "no")), "key", 1, 10),
        (always(CallFailed(Failure.QUOTA, "no")), "quota", 1, 10),
        (always(CallFailed(Failure.REJECTED, "no")), "rejected", 1, 10),
        (always(CallFailed(Failure.RATE_LIMITED, "429")), "unavailable", ATTEMPTS, 10),
        (always(("I won't.", Stop.REFUSED)), "refused", 1, 20),
        (always(BAD), "repeated", 2, 30),
        (saying(BAD, OUTSIDE, "Done!"), "flawed", 3, 40),
        (always(""), "empty", 2, 30),
        (saying(*((f"x{i}", Stop.TRUNCATED) for i in range(3))), "truncated", 3, 40),
        (saying(BAD, CallFailed(Failure.KEY, "no")), "key", 2, 20),
    ],
)
def test_the_next_one_is_asked_after(does: Does, why: str, calls: int, tokens: int) -> None:
    async def go() -> None:
        made = fleet(does, always(GOOD), always(GOOD))
        agent = made.agent()
        answer = await agent.work(contexts.edit())
        assert isinstance(answer, Edits) and answer.files == WANTED
        assert [len(model.asked) for model in made.models] == [calls, 1, 0]
        assert made.why == [("a", "b", why)]
        usage = answer.usage
        assert usage is not None and usage.provider == "b", "who gave the answer"
        assert (usage.tokens_in, usage.tokens_out) == (tokens, tokens // 10), "all that was spent"
        await agent.close()
        assert all(model.closed for model in made.models)

    virtually(go)


@pytest.mark.parametrize(
    ("does", "asked"),
    [
        (always(DOWN), [ATTEMPTS, 1]),
        (saying("what?", "oh."), [2, 0]),
        (always("what?"), [2, 0]),
        (always("CONFLICT 1: no"), [1, 0]),
    ],
    ids=["it fails", "wrong twice", "the same wrong answer twice", "a conflict"],
)
def test_a_merge_has_its_tries_in_all(does: Does, asked: list[int]) -> None:
    async def go() -> None:
        made = fleet(does, always(FILLED))
        if asked[1]:
            answer = await made.agent().work(contexts.merging())
            assert isinstance(answer, Edits) and answer.files[0].content == MERGED
        else:
            with pytest.raises(AgentError) as caught:
                await made.agent().work(contexts.merging())
            assert not caught.value.retryable and caught.value.usage is not None
        assert [len(model.asked) for model in made.models] == asked

    virtually(go)


def test_while_the_first_breaker_is_open_the_next_one_does_the_work_and_then_the_first_again() -> None:
    async def go() -> None:
        made = fleet(lambda now: DOWN if now < 300 else GOOD, always(GOOD))
        agent = made.agent()
        providers = []
        while clock() < 400:
            answer = await agent.work(contexts.edit())
            providers.append((clock(), answer.usage.provider if answer.usage else ""))
        in_outage = [at for at in made.models[0].asked if at < 300]
        assert len(in_outage) <= FAILURES + 300 / OPEN_SECONDS
        assert {name for at, name in providers if at < 300} == {"b"}
        assert {name for at, name in providers if at > 300 + OPEN_SECONDS + 5} == {"a"}
        assert {why for _, _, why in made.why} == {"server", "unavailable"}

    virtually(go)


def test_a_line_that_is_too_long_sends_a_task_to_the_next_one() -> None:
    async def go() -> None:
        made = fleet(always(GOOD), always(GOOD), rates=Rates(requests_per_minute=1.0))
        agent = made.agent()
        for _ in range(2):
            await agent.work(contexts.edit())
        assert [len(model.asked) for model in made.models] == [1, 1] and clock() < 5
        with pytest.raises(ModelUnavailable, match="rate"):
            await agent.work(contexts.edit())

    virtually(go)


def test_while_all_are_open_the_task_waits_without_an_attempt() -> None:
    async def go() -> None:
        made = fleet(lambda now: DOWN if now < 100 else GOOD, always(DOWN))
        agent = made.agent()
        with pytest.raises(AgentError) as caught:
            await agent.work(contexts.edit())
        assert caught.value.retryable and "a: 500; b: 500" in caught.value.reason
        asked = [len(model.asked) for model in made.models]
        for _ in range(5):
            with pytest.raises(ModelUnavailable, match="open for"):
                await agent.work(contexts.edit())
        assert [len(model.asked) for model in made.models] == asked
        await asyncio.sleep(100)
        answer = await agent.work(contexts.edit())
        assert answer.usage is not None and answer.usage.provider == "a"

    virtually(go)


@pytest.mark.parametrize(
    ("second", "waits"),
    [
        (CallFailed(Failure.KEY, "no"), True),
        (CallFailed(Failure.SERVER, "500"), True),
        (("I won't.", Stop.REFUSED), False),
        (BAD, False),
    ],
)
def test_a_task_waits_for_an_open_breaker_unless_another_one_answered(second: Step, waits: bool) -> None:
    async def go() -> None:
        made = fleet(always(DOWN), always(second))
        with pytest.raises(AgentError):
            await made.agent().work(contexts.edit())
        with pytest.raises((AgentError, Unavailable)) as caught:
            await made.agent().work(contexts.edit())
        assert isinstance(caught.value, ModelUnavailable) == waits
        if isinstance(caught.value, AgentError):
            assert caught.value.retryable and caught.value.usage is not None

    virtually(go)


@pytest.mark.parametrize(
    ("does", "retryable", "said"),
    [
        (
            (always(CallFailed(Failure.KEY, "bad key")), always(("No.", Stop.REFUSED))),
            False,
            "a: bad key; b: the model refused: No.",
        ),
        ((always(BAD), always(DOWN)), True, "(?s)a: the model gave the same wrong answer twice.*b: 500"),
        ((always(""), always(BAD)), False, "a: the model said nothing.*b: the model gave the same"),
    ],
)
def test_when_nobody_can_the_task_fails_and_says_what_each_did(
    does: tuple[Does, Does], retryable: bool, said: str
) -> None:
    async def go() -> None:
        with pytest.raises(AgentError, match=said) as caught:
            await fleet(*does).agent().work(contexts.edit())
        assert caught.value.retryable == retryable and not isinstance(caught.value, Unavailable)

    virtually(go)


def test_a_decision_is_an_answer() -> None:
    async def go() -> None:
        made = fleet(always(BAD), always("CONFLICT: two names"), always(GOOD))
        with pytest.raises(AgentError, match="can't be reconciled: two names") as caught:
            await made.agent().work(contexts.resolve())
        assert [len(model.asked) for model in made.models] == [2, 1, 0]
        assert caught.value.usage is not None and caught.value.usage.tokens_in == 30

    virtually(go)


def test_a_budget_that_is_used_up_is_so_for_all() -> None:
    class OverIt(Model):
        async def call(self, request: Call) -> Reply:
            raise OverBudget("0.02 USD are left")

    async def go() -> None:
        made = Fleet((OverIt("a", always(GOOD)), Model("b", always(GOOD))), Rates())
        with pytest.raises(OverBudget):
            await made.agent().work(contexts.edit())
        assert made.models[1].asked == []

    virtually(go)


def test_one_deadline_is_over_all_and_one_that_hangs_leaves_time_to_the_next() -> None:
    async def go() -> None:
        made = fleet(always(GOOD), always(GOOD), always(GOOD))
        made.models[0].seconds = made.models[1].seconds = 10_000.0
        answer = await made.agent().work(contexts.edit(deadline_seconds=60))
        assert answer.usage is not None and answer.usage.provider == "c"
        assert 39 <= clock() <= 42
        made.models[2].seconds, began = 10_000.0, clock()
        with pytest.raises(AgentError, match=r"none of the role's providers|within the task"):
            await made.agent().work(contexts.edit(deadline_seconds=60))
        assert clock() - began <= 60

    virtually(go)


def test_a_program_may_stand_in_for_a_model() -> None:
    class Program:
        async def work(self, context: Context) -> Answer:
            return Edits(WANTED)

        async def close(self) -> None:
            """Nothing is held."""

    async def go() -> None:
        made = fleet(always(BAD))
        [first] = made.agent()._choices
        agent = FailoverAgent([first, Choice("command", "command", "", Program())])
        answer = await agent.work(contexts.edit())
        assert isinstance(answer, Edits) and answer.files == WANTED and answer.usage is not None
        assert (answer.usage.provider, answer.usage.model, answer.usage.tokens_in) == ("command", "", 20)

    virtually(go)


def test_failovers_are_counted_and_a_key_that_is_wrong_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    chain = Chain(Redis(), "p", ModelMetrics(registry), lambda: 0.0)
    with caplog.at_level(logging.WARNING):
        for why in ("key", "key", "server", "quota", "key"):
            chain.switched(Switch("openai:m", "anthropic:n", why, f"no {why}"))
    assert [record.getMessage() for record in caplog.records] == [
        "openai:m does not take our calls, so anthropic:n is asked: no key",
        "openai:m does not take our calls, so anthropic:n is asked: no quota",
    ]
    labels = {"provider": "openai:m", "following": "anthropic:n", "why": "key"}
    assert registry.get_sample_value("convoy_provider_failovers_total", labels) == 3
