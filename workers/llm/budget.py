"""Reads and writes a cell and the job's log: what a job's model calls cost, and that it is never more than
its budget.

Outside of the retries, once a call: the worst case of all its attempts is held. Inside of them, before the
first request is sent: the call is written to the log, and the hold looked at once more. Afterwards: the
hold is settled with what the attempts cost, and that is written too. An attempt whose outcome is not
known counts in full.

There is no budget of a process's own: without Redis or the log the task waits.
"""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import msgspec

from codeconvoy.schemas.budget import Amounts, Ledger, dollars, has_cap, of_budget
from codeconvoy.schemas.errors import AgentError, BusError, OverBudget, Unavailable
from codeconvoy.schemas.job_facts import CallBegun, CallEnded
from codeconvoy.workers.llm.budget_state import (
    Admission,
    BudgetState,
    begin_reading,
    confirm,
    end_reading,
    reserve,
    settle,
)
from codeconvoy.workers.llm.cells import Cells
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.prices import Price, Tokens
from codeconvoy.workers.llm.provider import Call, CallFailed, Failure, Origin, Provider, Reply
from codeconvoy.workers.llm.retry import ATTEMPTS

READING_SECONDS = 60.0
"""So long one process may take to read a budget from the log before another one begins to."""
LOOKS = 20
LOOK_SECONDS = 0.1
"""So often, and with such pauses, a call looks whether another one has read the budget."""
WAIT_SECONDS = 3.0
"""A call that others leave no room for looks again after this time: they may end at any moment."""
OVERHEAD_TOKENS, MESSAGE_TOKENS = 1_000, 50
"""What a server adds to a prompt, and to each message of it, at most."""
_FREE = frozenset((Failure.KEY, Failure.QUOTA, Failure.REJECTED, Failure.RATE_LIMITED, Failure.OVERLOADED))
"""By its status the server says that it did nothing. The same said in the middle of a reply is no proof."""

logger = logging.getLogger(__name__)


class BudgetLog(Protocol):
    """The job's log, as far as budgets are concerned. Every call may raise Unavailable or BusError."""

    async def say(self, job_id: str, fact: CallBegun | CallEnded) -> None:
        """Write a fact; when this returns it is on the log."""
        ...

    async def ledger(self, job_id: str) -> Ledger:
        """What the log says, up to its end as it is now or later."""
        ...


class _NoLog:
    """The log of a process that has none: nothing is admitted there."""

    async def say(self, job_id: str, fact: CallBegun | CallEnded) -> None:
        """See `BudgetLog`."""
        raise _unknown()

    async def ledger(self, job_id: str) -> Ledger:
        """See `BudgetLog`."""
        raise _unknown()


NO_LOG: BudgetLog = _NoLog()


@dataclass(frozen=True, slots=True)
class Held:
    """What is held for a call."""

    origin: Origin
    call_id: str
    epoch: str
    worst: Amounts


class Budgets:
    """The budgets of all jobs, for one process."""

    def __init__(self, cells: Cells[BudgetState], log: BudgetLog, metrics: ModelMetrics) -> None:
        self._cells, self._log, self._metrics = cells, log, metrics

    async def hold(self, origin: Origin, worst: Amounts) -> Held:
        """Hold what a call may cost.

        Raises:
            OverBudget: the budget does not leave as much, and never will.
            Unavailable: other calls hold it just now, or the budget is not known.
        """
        call_id = uuid.uuid4().hex
        for _ in range(LOOKS):
            admission, epoch, spent = await self._ask(origin, call_id, worst)
            match admission:
                case Admission.HELD:
                    return Held(origin, call_id, epoch, worst)
                case Admission.WAIT:
                    self._metrics.budget.labels("waited").inc()
                    reason = "calls in flight hold what is left of it"
                    raise Unavailable("budget", reason, "Wait for them", retry_within=WAIT_SECONDS)
                case Admission.REFUSED:
                    self._metrics.budget.labels("refused").inc()
                    raise OverBudget(_used_up(origin, spent, worst))
                case Admission.LOST:
                    await self._read(origin.job_id)
                case Admission.READING:
                    await asyncio.sleep(LOOK_SECONDS)
        raise _unknown()

    async def _ask(self, origin: Origin, call_id: str, worst: Amounts) -> tuple[Admission, str, Amounts]:
        try:
            return await self._cells.change(
                origin.job_id, lambda state, now: reserve(state, now, origin.budget, call_id, worst)
            )
        except asyncio.CancelledError:
            # Redis may have done it all the same.
            await self.end(Held(origin, call_id, "", worst), Amounts(), is_told=False)
            raise

    async def begin(self, held: Held) -> None:
        """Put a call on the log, before it is made.

        Raises:
            Unavailable: it must not be made.
        """
        origin = held.origin
        fact = CallBegun(call_id=held.call_id, task_id=origin.task_id, round=origin.round, worst=held.worst)
        try:
            await self._log.say(origin.job_id, fact)
        except BusError as error:
            raise Unavailable("Kafka", str(error), "`convoy doctor` tells more") from error
        if not await self._cells.change(
            origin.job_id, lambda state, now: confirm(state, now, held.call_id, held.epoch)
        ):
            raise _unknown()

    async def end(self, held: Held, spent: Amounts, *, is_told: bool) -> None:
        """Settle what is held for a call. The log first (where the call `is_told` there): who reads it
        after the cell was lost finds it. What can't be settled counts in full."""
        job_id = held.origin.job_id
        try:
            if is_told:
                await self._log.say(job_id, CallEnded(call_id=held.call_id, spent=spent))
            await self._cells.change(job_id, lambda state, now: settle(state, now, held.call_id, spent))
        except (Unavailable, BusError) as away:
            self._metrics.budget.labels("unsettled").inc()
            logger.warning("a call counts in full, since what it cost can't be written: %s", away)

    async def _read(self, job_id: str) -> None:
        """Read a lost budget from the log, unless somebody else does."""
        epoch, change = uuid.uuid4().hex, self._cells.change
        if not await change(job_id, lambda s, now: begin_reading(s, now, epoch, READING_SECONDS)):
            return
        ledger = None
        try:
            async with asyncio.timeout(READING_SECONDS):
                ledger = await self._log.ledger(job_id)
        except TimeoutError:
            raise _unknown() from None
        finally:
            if await change(job_id, lambda s, now: end_reading(s, now, epoch, ledger)):
                self._metrics.budget.labels("rebuilt" if ledger and ledger.calls else "opened").inc()


def _used_up(origin: Origin, spent: Amounts, worst: Amounts) -> str:
    next_one = f"{dollars(worst.usd)}, {worst.tokens:,} tokens, {worst.ms / 1000:,.0f} s"
    return (
        f"the budget is used up: {of_budget(spent, origin.budget)} spent, "
        f"and the next call may cost up to {next_one}"
    )


def _unknown() -> Unavailable:
    reason = "what the job has spent is not known: it is being read from the log"
    return Unavailable("budget", reason, "Is `convoy projector` running? `convoy doctor` tells")


class Meter:
    """What the attempts of one call have cost so far."""

    def __init__(self, budgets: Budgets, held: Held) -> None:
        self._budgets, self._held = budgets, held
        self.spent = Amounts()
        self.is_told = False
        """Something of this call may be on the log."""
        self._has_begun = False

    async def begin(self) -> None:
        """See `provider.Meter`."""
        if not self._has_begun:
            self.is_told = True
            await self._budgets.begin(self._held)
            self._has_begun = True

    def count(self, spent: Amounts) -> None:
        """See `provider.Meter`. Never above what is held for the call's time: a process that is slow to
        hear of a deadline has not called for longer."""
        both = self.spent + spent
        self.spent = msgspec.structs.replace(both, ms=min(both.ms, self._held.worst.ms))


class BudgetedProvider:
    """A provider whose calls are paid for by their job's budget."""

    def __init__(self, provider: Provider, price: Price | None, budgets: Budgets) -> None:
        self.name = provider.name
        self._provider, self._price, self._budgets = provider, price, budgets

    async def call(self, request: Call) -> Reply:
        """See `Provider`.

        Raises:
            OverBudget: the job's budget is used up; no call was made.
            AgentError: it is in money, and nobody knows here what the model costs.
            Unavailable: it is held by other calls, or not known; no call was made.
        """
        origin = request.origin
        if origin is None or not has_cap(origin.budget):
            return await self._provider.call(request)
        if origin.budget.usd > 0 and self._price is None:
            raise AgentError(f"the job has a budget in money; {request.model!r} has no known price here")
        seconds = min(request.deadline_seconds, origin.budget.seconds or math.inf)
        request = replace(request, deadline_seconds=seconds)
        one = worst_of(request, self._price)
        worst = Amounts(
            nano_usd=ATTEMPTS * one.nano_usd, tokens=ATTEMPTS * one.tokens, ms=math.ceil(1000 * seconds)
        )
        held = await self._budgets.hold(origin, worst)
        meter = Meter(self._budgets, held)
        try:
            return await self._provider.call(replace(request, meter=meter))
        finally:
            await self._budgets.end(held, meter.spent, is_told=meter.is_told)

    async def close(self) -> None:
        """See `Provider`."""
        await self._provider.close()


class MeteredProvider:
    """A provider whose replies say what they cost, and whose requests are counted by the call's meter."""

    def __init__(
        self,
        provider: Provider,
        model: str,
        price: Price | None,
        metrics: ModelMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = provider.name
        self._provider, self._model, self._price = provider, model, price
        self._metrics, self._clock = metrics, clock

    async def call(self, request: Call) -> Reply:
        """See `Provider`. One HTTP request.

        Raises:
            Unavailable: the request must not be sent.
        """
        meter = request.meter
        if meter is not None:
            await meter.begin()
        spent, how, began = worst_of(request, self._price), "assumed", self._clock()
        try:
            reply = await self._provider.call(replace(request, meter=None))
            if not reply.usage_estimated:
                spent, how = self._told(reply), "told"
        except CallFailed as failed:
            if (failed.failure in _FREE and failed.status) or not failed.is_sent:
                spent = Amounts()
            raise
        finally:
            took = math.ceil(1000 * (self._clock() - began))
            if meter is not None:
                meter.count(msgspec.structs.replace(spent, ms=took))
            self._metrics.spent.labels(self._model, how).inc(spent.usd)
        return replace(reply, usage=msgspec.structs.replace(reply.usage, cost_usd=spent.usd))

    def _told(self, reply: Reply) -> Amounts:
        usage = reply.usage
        tokens = Tokens(usage.tokens_in, usage.tokens_cached, usage.tokens_out, reply.tokens_written)
        money = self._price.nano_usd(tokens) if self._price else 0
        return Amounts(nano_usd=money, tokens=usage.tokens_in + usage.tokens_out)

    async def close(self) -> None:
        """See `Provider`."""
        await self._provider.close()


def worst_of(request: Call, price: Price | None) -> Amounts:
    """The most that one request can cost, without its time: a token is at least one byte of the prompt,
    none of it is in the server's cache, and the reply is as long as it may be."""
    texts = [request.system, *(message.content for message in request.messages)]
    schema = msgspec.json.encode(request.json_schema) if request.json_schema is not None else b""
    said = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) + len(schema)
    into = said + OVERHEAD_TOKENS + MESSAGE_TOKENS * len(texts)
    money = 0
    if price is not None:
        ask = partial(Tokens, into, 0, request.max_output_tokens)
        money = max(price.nano_usd(ask()), price.nano_usd(ask(into)))
    return Amounts(nano_usd=money, tokens=into + request.max_output_tokens)
