"""What a model call costs, and how a job's budget pays for it: on a virtual clock, with a log in memory."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from codeconvoy.schemas import budget
from codeconvoy.schemas.budget import Amounts, Ledger
from codeconvoy.schemas.errors import AgentError, BadInput, BusError, OverBudget, Unavailable
from codeconvoy.schemas.job_facts import CallBegun, CallEnded
from codeconvoy.schemas.job_spec import Budget
from codeconvoy.workers.llm.budget import BudgetedProvider, Budgets, MeteredProvider, worst_of
from codeconvoy.workers.llm.budget_state import LOST, BudgetState
from codeconvoy.workers.llm.cells import LocalCells
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.prices import OwnPrice, Price, Tokens, check_prices, price_of, unpriced
from codeconvoy.workers.llm.provider import Call, CallFailed, Failure, Origin, Reply, Stop
from codeconvoy.workers.llm.recorded import RecordedProvider
from codeconvoy.workers.llm.retry import ATTEMPTS, RetryingProvider
from codeconvoy.workers.roles.role import NextProvider, Role, RoleKind
from tests.unit.test_model_chain import USAGE, MemoryReplies, clock, request, virtually

PRICE = OwnPrice(Decimal(1), Decimal("0.1"), Decimal(10))
SPENT = 90 * 1_000 + 10 * 10_000
"""What the reply of `Server` costs at this price, in billionths of a dollar."""
RICH = Budget(usd=1_000.0)


@dataclass
class Log:
    """A job's log in memory."""

    ledgers: dict[str, Ledger] = field(default_factory=dict)
    away: Callable[[], Exception | None] = lambda: None
    facts: list[CallBegun | CallEnded] = field(default_factory=list)

    async def say(self, job_id: str, fact: CallBegun | CallEnded) -> None:
        await asyncio.sleep(0.001)
        if (error := self.away()) is not None:
            raise error
        self.facts.append(fact)
        ledger = self.ledgers.get(job_id, Ledger())
        if isinstance(fact, CallBegun):
            ledger = budget.began(ledger, fact.call_id, fact.worst, int(1000 * clock()))
        else:
            ledger = budget.ended(ledger, fact.call_id, fact.spent)
        self.ledgers[job_id] = ledger

    async def ledger(self, job_id: str) -> Ledger:
        await asyncio.sleep(0.05)
        if (error := self.away()) is not None:
            raise error
        return self.ledgers.get(job_id, Ledger())


@dataclass
class Model:
    """A model that does what its script says, once for each request, and then answers."""

    script: list[CallFailed | Reply] = field(default_factory=list)
    seconds: float = 1.0
    name: str = "model"
    asked: list[Call] = field(default_factory=list)

    async def call(self, request: Call) -> Reply:
        self.asked.append(request)
        await asyncio.sleep(self.seconds)
        said = self.script.pop(0) if self.script else Reply("done", USAGE, Stop.FINISHED)
        if isinstance(said, CallFailed):
            raise said
        return said

    async def close(self) -> None:
        """There is nothing to close."""


class Paid:
    """The links around a model that have to do with money."""

    def __init__(self, model: Model, price: Price | None = PRICE, log: Log | None = None) -> None:
        self.model, self.log = model, log or Log()
        self.registry = CollectorRegistry()
        self.metrics = ModelMetrics(self.registry)
        self.cells: LocalCells[BudgetState] = LocalCells(clock)
        self.budgets = Budgets(self.cells, self.log, self.metrics)
        metered = MeteredProvider(model, "m", price, self.metrics, clock)
        self.provider = BudgetedProvider(RetryingProvider(metered), price, self.budgets)

    async def call(self, caps: Budget = RICH, deadline: float = 60.0, **more: Any) -> Reply:
        origin = Origin("w", "job", "task", 1, caps)
        return await self.provider.call(replace(request(deadline=deadline, **more), origin=origin))

    async def state(self) -> BudgetState:
        return await self.cells.look("job") or LOST

    def counted(self, what: str) -> float:
        return self.registry.get_sample_value("convoy_budget_total", {"what": what}) or 0.0


WORST = worst_of(request(), PRICE)


# What a call costs --------------------------------------------------------------------------------


def test_a_roles_own_prices_go_before_those_by_name() -> None:
    role = Role("r", RoleKind.EDIT, "", "anthropic", model="claude-sonnet-4-5")
    listed, own = price_of(role), replace(role, options={"price_in": "2", "price_out": "8"})
    tokens = Tokens(into=1_000_000, cached=500_000, out=100_000)
    assert listed is not None
    # Dollars for a million tokens, in billionths for each: 3 in, 0.3 cached, 15 out, above 200k doubled.
    assert listed.nano_usd(Tokens(1_000, 500, 100)) == 500 * 3_000 + 500 * 300 + 100 * 15_000
    assert listed.nano_usd(Tokens(1_000, 0, 0, written=1_000)) == 1_000 * 3_750
    assert listed.nano_usd(tokens) > tokens.into * 3_000 // 2 + tokens.out * 15_000
    assert price_of(own) == OwnPrice(Decimal(2), Decimal(2), Decimal(8))
    cached = replace(own, options={**own.options, "price_cached": "0.5"})
    assert price_of(cached).nano_usd(tokens) == 500_000 * 2_500 + 100_000 * 8_000  # type: ignore[union-attr]
    assert OwnPrice(Decimal("0.0001"), Decimal(0), Decimal(0)).nano_usd(Tokens(1, 0, 0)) == 1, "rounded up"


@pytest.mark.parametrize(
    ("provider", "options", "known"),
    [
        ("openai", {}, False),
        ("openai", {"price_in": "0", "price_out": "0"}, True),
        ("openai", {"base_url": "http://127.0.0.1:1/v1"}, False),
        ("codemod", {}, True),
        ("command", {}, True),
    ],
)
def test_a_model_without_a_price_is_named_with_the_remedy(
    provider: str, options: dict[str, str], known: bool
) -> None:
    bad = unpriced(Role("editor", RoleKind.EDIT, "", provider, model="our-model", options=options))
    assert (bad is None) is known
    if bad is not None:
        assert "'editor'" in bad.reason and "'our-model'" in bad.reason
        assert "price_in" in bad.remedy and "roles.editor" in bad.remedy


def test_the_prices_of_all_providers_of_a_role_are_needed() -> None:
    further = (NextProvider("anthropic", "claude-sonnet-4-5"), NextProvider("openai", "our-model"))
    role = Role("editor", RoleKind.EDIT, "", "codemod", next=further)
    bad = unpriced(role)
    assert bad is not None and "roles.editor.next[1]" in bad.remedy
    assert unpriced(replace(role, next=further[:1])) is None


def test_the_price_of_a_known_model_is_not_that_of_another_server() -> None:
    role = Role("r", RoleKind.EDIT, "", "openai", model="gpt-4o")
    assert price_of(role) is not None
    assert price_of(replace(role, options={"base_url": "http://127.0.0.1:1/v1"})) is None


def test_part_of_a_price_is_refused() -> None:
    role = Role("r", RoleKind.EDIT, "", "openai", model="m", options={"price_out": "1"})
    with pytest.raises(BadInput, match=r"roles\.r\.options\.price_out"):
        check_prices(role)


def test_a_token_is_at_least_a_byte_of_the_prompt() -> None:
    short, long = request("a"), request("a" + 500 * "ü")
    assert worst_of(long, None).tokens == worst_of(short, None).tokens + 1_000
    assert worst_of(replace(short, max_output_tokens=200), None).tokens == worst_of(short, None).tokens + 100
    written = worst_of(short, price_of(Role("r", RoleKind.EDIT, "", "anthropic", model="claude-sonnet-4-5")))
    into = written.tokens - short.max_output_tokens
    assert written.nano_usd == into * 3_750 + short.max_output_tokens * 15_000


def test_a_reply_says_what_it_cost_with_a_budget_or_without() -> None:
    async def go() -> None:
        paid = Paid(Model())
        for caps in (Budget(), RICH):
            assert (await paid.call(caps)).usage.cost_usd == SPENT / 1e9
        assert paid.registry.get_sample_value(
            "convoy_model_spent_usd_total", {"model": "m", "how": "told"}
        ) == pytest.approx(2 * SPENT / 1e9)
        assert len(paid.log.facts) == 2, "without a budget nothing is written"

    virtually(go)


def test_a_recorded_reply_costs_nothing() -> None:
    async def go() -> None:
        paid = Paid(Model())
        provider = RecordedProvider(paid.provider, "p:m", MemoryReplies(), paid.metrics)
        asked = replace(request(), origin=Origin("w", "job", "task", 1, RICH))
        first, again = await provider.call(asked), await provider.call(asked)
        assert first.usage.cost_usd > 0
        assert again.usage == msgspec.structs.replace(first.usage, cost_usd=0.0)
        assert (await paid.state()).spent.nano_usd == SPENT

    virtually(go)


# What is held, and what is settled ----------------------------------------------------------------


def test_the_worst_case_of_all_attempts_is_held_and_what_was_spent_is_settled() -> None:
    async def go() -> None:
        paid = Paid(Model())
        calling = asyncio.create_task(paid.call())
        await asyncio.sleep(0.5)
        [hold] = (await paid.state()).held.values()
        assert hold.worst == Amounts(
            nano_usd=ATTEMPTS * WORST.nano_usd, tokens=ATTEMPTS * WORST.tokens, ms=60_000
        )
        [begun] = paid.log.facts
        assert isinstance(begun, CallBegun) and begun.worst == hold.worst
        await calling
        state = await paid.state()
        assert not state.held and state.spent == Amounts(nano_usd=SPENT, tokens=100, ms=1_000)
        assert paid.log.ledgers["job"] == Ledger(spent=state.spent, calls=1)

    virtually(go)


TIMEOUT = CallFailed(Failure.TIMEOUT, "no reply")


@pytest.mark.parametrize(
    ("script", "attempts_in_full", "told"),
    [
        ([TIMEOUT], 1, 1),
        ([TIMEOUT, CallFailed(Failure.SERVER, "500")], 2, 1),
        ([TIMEOUT, TIMEOUT, TIMEOUT], 3, 0),
        ([CallFailed(Failure.RATE_LIMITED, "429", status=429, retry_after=1.0)], 0, 1),
        ([CallFailed(Failure.OVERLOADED, "529", status=529)], 0, 1),
        ([CallFailed(Failure.OVERLOADED, "in the middle of a stream")], 1, 1),
        ([CallFailed(Failure.CONNECTION, "refused", is_sent=False)], 0, 1),
        ([CallFailed(Failure.CONNECTION, "cut")], 1, 1),
        ([CallFailed(Failure.KEY, "401", status=401)], 0, 0),
        ([CallFailed(Failure.GARBLED, "?"), CallFailed(Failure.REJECTED, "400", status=400)], 1, 0),
        ([Reply("guessed", USAGE, Stop.FINISHED, usage_estimated=True)], 1, 0),
    ],
)
def test_an_attempt_whose_outcome_is_not_known_counts_in_full(
    script: list[CallFailed | Reply], attempts_in_full: int, told: int
) -> None:
    async def go() -> None:
        paid = Paid(Model(list(script)))
        try:
            await paid.call()
        except CallFailed:
            assert told == 0
        spent = (await paid.state()).spent
        assert spent.nano_usd == attempts_in_full * WORST.nano_usd + told * SPENT
        assert spent.tokens == attempts_in_full * WORST.tokens + told * 100
        assert spent.ms == pytest.approx(1_000 * len(paid.model.asked), abs=len(paid.model.asked))
        assert paid.log.ledgers["job"].total == spent

    virtually(go)


def test_a_call_that_is_cancelled_counts_in_full() -> None:
    async def go() -> None:
        paid = Paid(Model(seconds=30.0))
        calling = asyncio.create_task(paid.call())
        await asyncio.sleep(5.0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        spent = (await paid.state()).spent
        assert (spent.nano_usd, spent.tokens) == (WORST.nano_usd, WORST.tokens)
        assert 4_000 < spent.ms < 5_000
        assert paid.log.ledgers["job"].total == spent

    virtually(go)


def test_where_no_request_is_made_nothing_is_written_and_nothing_spent() -> None:
    @dataclass
    class Open(Model):
        async def call(self, request: Call) -> Reply:
            raise Unavailable("breaker", "it is open", "Wait")

    async def go() -> None:
        paid = Paid(Model())
        provider = BudgetedProvider(Open(), PRICE, paid.budgets)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await provider.call(replace(request(), origin=Origin("w", "job", "task", 1, RICH)))
        state = await paid.state()
        assert (state.held, state.spent, paid.log.facts) == ({}, Amounts(), [])

    virtually(go)


def test_model_seconds_are_held_at_the_deadline_and_bound_it() -> None:
    async def go() -> None:
        paid = Paid(Model(seconds=4.0))
        caps = Budget(seconds=10)
        await paid.call(caps, deadline=60.0)
        assert paid.model.asked[0].deadline_seconds <= 10.0
        assert (await paid.state()).spent.ms == pytest.approx(4_000, abs=1)
        with pytest.raises(OverBudget, match=r"4\.0 of 10 model seconds"):
            await paid.call(caps, deadline=60.0)

    virtually(go)


# Who is admitted ----------------------------------------------------------------------------------


def cap_for(calls: float) -> Budget:
    """As much as so many calls may cost."""
    return Budget(tokens=int(calls * ATTEMPTS * WORST.tokens))


def test_what_others_hold_is_waited_for_and_what_is_spent_is_not() -> None:
    async def go() -> None:
        paid, caps = Paid(Model()), cap_for(1.5)
        first = asyncio.create_task(paid.call(caps))
        await asyncio.sleep(0.5)
        with pytest.raises(Unavailable, match="in flight"):
            await paid.call(caps)
        await first
        await paid.call(caps)
        paid.model.script = [TIMEOUT] * 3
        with pytest.raises(CallFailed):
            await paid.call(caps)
        with pytest.raises(OverBudget, match=r"used up: .* tokens spent, and the next call may cost up to"):
            await paid.call(caps)
        assert (paid.counted("waited"), paid.counted("refused")) == (1, 1)
        assert (await paid.state()).spent.tokens <= caps.tokens

    virtually(go)


def test_a_budget_in_money_needs_a_price_here_too() -> None:
    async def go() -> None:
        paid = Paid(Model(), price=None)
        with pytest.raises(AgentError, match="no known price"):
            await paid.call(Budget(usd=1.0))
        await paid.call(Budget(tokens=10**6))

    virtually(go)


def test_a_lost_budget_is_read_from_the_log_once_for_all_who_ask() -> None:
    async def go() -> None:
        paid, caps = Paid(Model()), cap_for(20)
        await paid.call(caps)
        paid.cells._values.clear()
        await asyncio.gather(*(paid.call(caps) for _ in range(10)))
        assert (paid.counted("opened"), paid.counted("rebuilt")) == (1, 1)
        assert (await paid.state()).spent.tokens == 11 * 100

    virtually(go)


@pytest.mark.parametrize("error", [Unavailable("Kafka", "away", "Wait"), BusError("fatal")])
def test_nothing_is_admitted_while_the_log_is_away(error: Exception) -> None:
    async def go() -> None:
        is_away = True
        log = Log(away=lambda: error if is_away else None)
        paid = Paid(Model(), log=log)
        for _ in range(2):
            with pytest.raises((Unavailable, BusError)):
                await paid.call()
        assert paid.model.asked == []
        is_away = False
        await paid.call()
        is_away = True
        with pytest.raises(Unavailable):
            await paid.call()
        assert len(paid.model.asked) == 1, "what is not on the log is not sent"

    virtually(go)


def test_a_call_whose_budget_was_lost_before_it_was_sent_is_not_sent() -> None:
    async def go() -> None:
        paid = Paid(Model())
        await paid.call()

        def lose() -> None:
            paid.cells._values.clear()

        paid.log.away = lose
        with pytest.raises(Unavailable, match="not known"):
            await paid.call()
        paid.log.away = lambda: None
        assert len(paid.model.asked) == 1
        await paid.call()
        assert paid.log.ledgers["job"].total == (await paid.state()).spent

    virtually(go)


def test_what_can_not_be_written_afterwards_counts_in_full_and_the_reply_is_kept() -> None:
    async def go() -> None:
        paid = Paid(Model())

        def away_later() -> Exception | None:
            return Unavailable("Kafka", "away", "Wait") if paid.log.facts else None

        paid.log.away = away_later
        assert (await paid.call()).text == "done"
        assert paid.counted("unsettled") == 1
        assert (await paid.state()).held and paid.log.ledgers["job"].open
        await asyncio.sleep(60 + budget.GRACE_SECONDS + 1)
        paid.log.away = lambda: None
        await paid.call()
        worst = Amounts(nano_usd=ATTEMPTS * WORST.nano_usd, tokens=ATTEMPTS * WORST.tokens, ms=60_000)
        assert (await paid.state()).spent == worst + Amounts(nano_usd=SPENT, tokens=100, ms=1_000)

    virtually(go)
