"""Reads a role, writes nothing itself: what stands around every model call, outside in.

    a copy of the call is kept
      recorded replies and single flight
        the job's budget: the worst case is held, and settled afterwards
          retries within one deadline, and in each attempt:
            circuit breaker → place in line → the request, metered, counted, its reply without our secrets

Breaker, line and budgets are the fleet's, in Redis. While that is away each process has a breaker and a
line of its own, and calls that a budget pays for wait.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import msgspec
from redis.asyncio import Redis

from codeconvoy.workers.llm.breaker import (
    FAILURES,
    OPEN_SECONDS,
    BreakerLimits,
    BreakerState,
    BreakingProvider,
    Circuit,
    circuit,
)
from codeconvoy.workers.llm.budget import NO_LOG, BudgetedProvider, BudgetLog, Budgets, MeteredProvider
from codeconvoy.workers.llm.budget_state import BudgetState
from codeconvoy.workers.llm.cells import Cells, FallbackCells, LocalCells, RedisCells, RunCells
from codeconvoy.workers.llm.discreet import DiscreetProvider
from codeconvoy.workers.llm.edit_format import Problem
from codeconvoy.workers.llm.failover import Switch
from codeconvoy.workers.llm.keeping import KeepingProvider
from codeconvoy.workers.llm.kept import PromptStore
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.prices import price_of
from codeconvoy.workers.llm.provider import FINAL, Call, CallFailed, Provider, Reply, server_of
from codeconvoy.workers.llm.rate_limit import LimitedProvider, LineState, Rates
from codeconvoy.workers.llm.recorded import TTL_SECONDS, RecordedProvider, RedisReplies, ReplyStore
from codeconvoy.workers.llm.retry import RetryingProvider
from codeconvoy.workers.llm.traced import TracedProvider, WatchedProvider
from codeconvoy.workers.redact import BY_SHAPE, Redactor
from codeconvoy.workers.roles.role import Role
from codeconvoy.workers.tracing import OFF, Tracing

KEEP_SECONDS = 3_600
"""How long a breaker or a line that nobody uses is remembered."""

KEEP_BUDGET_SECONDS = 86_400
"""Likewise a budget, which is then read from the log again."""

WATCH_SECONDS = 5.0
"""Between two looks at the breakers."""

_FINAL = frozenset(failure.value for failure in FINAL)

S = TypeVar("S", bound=msgspec.Struct)
logger = logging.getLogger(__name__)


class CountedProvider:
    """A provider whose requests are counted."""

    def __init__(self, provider: Provider, model: str, metrics: ModelMetrics) -> None:
        self.name = provider.name
        self._provider, self._model, self._metrics = provider, model, metrics

    async def call(self, request: Call) -> Reply:
        """See `Provider`."""
        clock = asyncio.get_running_loop().time
        began, outcome = clock(), "cancelled"
        try:
            reply = await self._provider.call(request)
            outcome = str(reply.stop)
        except CallFailed as failed:
            outcome = str(failed.failure)
            raise
        except asyncio.CancelledError:
            self._metrics.moved.cancelled(request)
            raise
        finally:
            self._metrics.seconds.labels(self._model).observe(clock() - began)
            self._metrics.calls.labels(self._model, outcome).inc()
        usage = reply.usage
        self._metrics.moved.finished(request, usage)
        counts = {"in": usage.tokens_in, "cached": usage.tokens_cached, "out": usage.tokens_out}
        for kind, count in counts.items():
            self._metrics.tokens.labels(self._model, kind).inc(count)
        return reply

    async def close(self) -> None:
        """See `Provider`."""
        await self._provider.close()


@dataclass(slots=True)
class Chain:
    """Builds the chains of one process."""

    redis: Redis
    prefix: str
    metrics: ModelMetrics
    clock: Callable[[], float]
    tracing: Tracing = OFF
    budget_log: BudgetLog = NO_LOG
    redact: Redactor = BY_SHAPE
    prompts: PromptStore | None = None
    """None: no copies are kept."""
    now: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    """Milliseconds since the epoch."""
    _is_shared: bool = field(default=True, init=False)
    _said: set[tuple[str, str]] = field(default_factory=set, init=False)
    """Failures that only somebody who sets things up can end, by provider: said once."""
    _breakers: dict[str, tuple[Cells[BreakerState], BreakerLimits]] = field(default_factory=dict, init=False)

    def around(self, role: Role, provider: Provider) -> Provider:
        """The provider of a role, with all that belongs around it."""
        server = server_of(role)
        limits, rates = breaker_limits(role), rates_of(role)
        price = price_of(role)
        discreet = DiscreetProvider(provider, self.redact)
        traced = TracedProvider(discreet, role.options.get("base_url", ""), self.tracing)
        counted = CountedProvider(traced, role.model, self.metrics)
        metered = MeteredProvider(counted, role.model, price, self.metrics, self.clock)
        limited = LimitedProvider(
            metered, server, self._cells("line", LineState), rates, self._waited(role.model)
        )
        breakers = self._cells("breaker", BreakerState)
        self._breakers[server] = breakers, limits
        breaking = BreakingProvider(limited, server, breakers, limits)
        watched = WatchedProvider(breaking, self.tracing)
        paid = BudgetedProvider(RetryingProvider(watched), price, self._budgets())
        recorded = RecordedProvider(paid, server, self._replies(role), self.metrics, self.tracing)
        if self.prompts is None:
            return recorded
        return KeepingProvider(recorded, server, self.prompts, self.metrics, self.redact, self.now)

    def count(self, problem: Problem) -> None:
        """Count a flaw of an answer."""
        self.metrics.flaws.labels(str(problem)).inc()

    def switched(self, switch: Switch) -> None:
        """Count that the next provider was asked; say once where that will stay so."""
        self.metrics.failovers.labels(switch.name, switch.following, switch.why).inc()
        told = {"convoy.failover.from": switch.name, "convoy.failover.to": switch.following}
        self.tracing.event("convoy.failover", {**told, "error.type": switch.why})
        if switch.why in _FINAL and (switch.name, switch.why) not in self._said:
            self._said.add((switch.name, switch.why))
            logger.warning(
                "%s does not take our calls, so %s is asked: %s", switch.name, switch.following, switch.reason
            )

    def _waited(self, model: str) -> Callable[[float], None]:
        """What is told of the seconds that a call waits for its place in line."""
        seconds = self.metrics.line_seconds.labels(model)

        def waited(wait: float) -> None:
            seconds.observe(wait)
            if wait > 0:
                self.tracing.event(
                    "convoy.line", {"gen_ai.request.model": model, "convoy.line.seconds": wait}
                )

        return waited

    async def watch(self, stop: asyncio.Event) -> None:
        """Show the state of the breakers until told to stop, also while this process makes no call."""
        while not stop.is_set():
            for server, (cells, limits) in tuple(self._breakers.items()):
                now = await cells.change(server, partial(_seen, limits))
                for one in Circuit:
                    self.metrics.breakers.labels(server, str(one)).set(one is now)
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS):
                    await stop.wait()

    def _replies(self, role: Role) -> ReplyStore:
        """Where the replies to a role are kept."""
        ttl = int(role.options.get("reply_ttl_seconds", TTL_SECONDS))
        return RedisReplies(self.redis, self.prefix, ttl)

    def _budgets(self) -> Budgets:
        """Never the process's own: what one does not know another one may have spent."""
        cells = RunCells(self.redis, f"{self.prefix}:budget", BudgetState, KEEP_BUDGET_SECONDS)
        return Budgets(cells, self.budget_log, self.metrics)

    def _cells(self, what: str, kind: type[S]) -> Cells[S]:
        shared = shared_cells(self.redis, self.prefix, what, kind)
        return FallbackCells(shared, LocalCells(self.clock), self._told)

    def _told(self, shared: bool) -> None:
        """Say once when Redis goes, and once when it comes."""
        self.metrics.shared.set(shared)
        if shared != self._is_shared:
            self._is_shared = shared
            if shared:
                logger.warning("breakers and rates are the fleet's again")
            else:
                logger.warning("Redis is away: this process goes by its own breakers and rates")


def breaker_limits(role: Role) -> BreakerLimits:
    """When the breaker of a role's model opens."""
    return BreakerLimits(
        int(role.options.get("breaker_failures", FAILURES)),
        float(role.options.get("breaker_seconds", OPEN_SECONDS)),
    )


def rates_of(role: Role) -> Rates:
    """What the role says that its model takes."""
    options = role.options
    return Rates(float(options.get("requests_per_minute", 0)), float(options.get("tokens_per_minute", 0)))


def shared_cells(redis: Redis, prefix: str, what: str, kind: type[S]) -> RedisCells[S]:
    """The fleet's own `breaker`s or `line`s."""
    return RedisCells(redis, f"{prefix}:{what}", kind, KEEP_SECONDS)


def _seen(limits: BreakerLimits, state: BreakerState | None, now: float) -> tuple[BreakerState, Circuit]:
    return state or BreakerState(), circuit(state, now, limits)
