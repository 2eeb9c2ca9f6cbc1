"""Reads and writes a cell: the circuit breaker of one model, for the whole fleet.

CLOSED: calls go through. After `threshold` failures in a row it is OPEN: no call is made for
`open_seconds`. Then it is HALF_OPEN: one call, of the whole fleet, is let through as a probe; its
outcome closes the breaker, or opens it again. A probe whose process died is given up after the
probe's own deadline. (M. Nygard, Release It!, 2007.)
"""

import asyncio
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.llm.cells import Cells
from codeconvoy.workers.llm.provider import Call, CallFailed, Failure, ModelUnavailable, Provider, Reply

FAILURES = 3
OPEN_SECONDS = 30.0


class Circuit(StrEnum):
    """What a breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class BreakerState(msgspec.Struct, frozen=True, array_like=True):
    """A breaker. Times are seconds of the cell's clock."""

    failures: int = 0
    """In a row."""
    opened_at: float | None = None
    probe_until: float = 0.0
    """A probe is on its way, and counts as lost after this."""


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When a breaker opens, and for how long."""

    threshold: int = FAILURES
    open_seconds: float = OPEN_SECONDS


class CircuitOpen(ModelUnavailable):
    """No call was made: the model's breaker is open. The task waits, without using up an attempt."""

    def __init__(self, name: str, seconds: float) -> None:
        reason = f"its circuit breaker is open for {max(0.0, seconds):.0f} s more, after failures in a row"
        super().__init__(name, reason, "Wait, or see what its provider says of its state")


_SERVICE = frozenset(
    (Failure.OVERLOADED, Failure.SERVER, Failure.TIMEOUT, Failure.CONNECTION, Failure.GARBLED)
)
"""Failures that say something about the service. A rate limit is the limiter's, a key nobody's."""


def circuit(state: BreakerState | None, now: float, limits: BreakerLimits) -> Circuit:
    """What the breaker is now."""
    if state is None or state.opened_at is None:
        return Circuit.CLOSED
    if now < state.opened_at + limits.open_seconds:
        return Circuit.OPEN
    return Circuit.HALF_OPEN


def admit(
    state: BreakerState | None, now: float, limits: BreakerLimits, deadline: float
) -> tuple[BreakerState, float]:
    """Ask to make a call that lasts at most `deadline` seconds: the new state, and the seconds to wait
    (0: go)."""
    state = state or BreakerState()
    match circuit(state, now, limits):
        case Circuit.CLOSED:
            return state, 0.0
        case Circuit.OPEN:
            assert state.opened_at is not None, "it is open"
            return state, state.opened_at + limits.open_seconds - now
        case Circuit.HALF_OPEN:
            if now < state.probe_until:
                return state, state.probe_until - now
            return msgspec.structs.replace(state, probe_until=now + deadline), 0.0


def noted(
    state: BreakerState | None, now: float, limits: BreakerLimits, *, failed: bool, began: float
) -> tuple[BreakerState, None]:
    """The state after the outcome of a call that `began` then."""
    state = state or BreakerState()
    if _is_late(state, began):
        return state, None
    if not failed:
        return BreakerState(), None
    failures = state.failures + 1
    opened = now if failures >= limits.threshold or state.opened_at is not None else None
    return BreakerState(failures, opened), None


def given_back(state: BreakerState | None, began: float) -> BreakerState:
    """The state after a call that `began` then was cancelled."""
    state = state or BreakerState()
    return state if _is_late(state, began) else msgspec.structs.replace(state, probe_until=0.0)


def _is_late(state: BreakerState, began: float) -> bool:
    """Whether a call began before the breaker opened. Its outcome says how the service was, not how it is:
    a long reply that comes to its end in an outage is no sign of its end."""
    return state.opened_at is not None and began <= state.opened_at


class BreakingProvider:
    """A provider behind a breaker."""

    def __init__(
        self, provider: Provider, name: str, cells: Cells[BreakerState], limits: BreakerLimits
    ) -> None:
        """`name` is the cell's: one for each provider, server and model."""
        self.name = provider.name
        self._provider, self._cell, self._cells, self._limits = provider, name, cells, limits

    async def call(self, request: Call) -> Reply:
        """See `Provider`.

        Raises:
            CircuitOpen: no call was made.
            CallFailed: the call failed.
        """
        wait, began = await self._cells.change(
            self._cell, lambda state, now: self._admitted(state, now, request.deadline_seconds)
        )
        if wait > 0:
            raise CircuitOpen(self._cell, wait)
        try:
            reply = await self._provider.call(request)
        except CallFailed as failed:
            await self._note(began, failed=failed.failure in _SERVICE)
            raise
        except (asyncio.CancelledError, Unavailable):
            # Nobody learnt anything: another call may be the probe.
            await self._cells.change(self._cell, lambda state, now: (given_back(state, began), None))
            raise
        await self._note(began, failed=False)
        return reply

    def _admitted(
        self, state: BreakerState | None, now: float, deadline: float
    ) -> tuple[BreakerState, tuple[float, float]]:
        after, wait = admit(state, now, self._limits, deadline)
        return after, (wait, now)

    async def _note(self, began: float, *, failed: bool) -> None:
        await self._cells.change(
            self._cell, lambda state, now: noted(state, now, self._limits, failed=failed, began=began)
        )

    async def close(self) -> None:
        """See `Provider`."""
        await self._provider.close()
