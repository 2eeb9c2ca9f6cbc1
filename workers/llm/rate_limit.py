"""Reads and writes a cell: how many requests and tokens a minute the fleet sends to one model.

A generic cell rate algorithm (ITU-T I.371): the cell holds the time at which the next request is due.
Each call takes its own place in line, so that workers are served in the order in which they asked, and
no crowd starts when a window opens. The rate adapts (additive increase, multiplicative decrease): a 429
halves it and moves the line behind what the server asked for; every success raises it a little, up to
what was configured.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.llm.cells import Cells
from codeconvoy.workers.llm.provider import (
    Call,
    CallFailed,
    Failure,
    ModelUnavailable,
    Provider,
    Reply,
    input_tokens,
)

DECREASE = 0.5
INCREASE = 0.02
"""Of the configured rate, for each success."""
LEAST_SHARE = 0.02
"""Of the configured rate: what is never gone below."""
BURST_SECONDS = 2.0
"""What may be sent at once after a pause, in seconds of the rate."""
COOL_SECONDS = 1.0
"""How long the line stands after a 429 that does not say for how long."""
LONGEST_WAIT = 30.0
"""Seconds that a call waits in line with its slot; behind that its task waits without one."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a model takes; 0 is without a limit."""

    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0


class LineState(msgspec.Struct, frozen=True, array_like=True):
    """The line before a model. Times are seconds of the cell's clock."""

    requests_due: float = 0.0
    tokens_due: float = 0.0
    share: float = 1.0
    """Of the configured rates, after what 429s have taken."""
    halved_at: float = 0.0
    closed_until: float = 0.0
    """The server asked to be left alone until then."""


def take_place(state: LineState | None, now: float, rates: Rates, tokens: int) -> tuple[LineState, float]:
    """Take the next place in line: the new state, and the seconds until it is due."""
    state = state or LineState()
    start = max(now, state.closed_until)
    requests_due, wait = state.requests_due, start - now
    if rates.requests_per_minute:
        requests_due, due = _next(requests_due, start, 60.0 / (rates.requests_per_minute * state.share))
        wait = max(wait, due - now)
    tokens_due = state.tokens_due
    if rates.tokens_per_minute:
        each = 60.0 / (rates.tokens_per_minute * state.share)
        tokens_due, due = _next(tokens_due, start, each * tokens)
        wait = max(wait, due - now)
    closed = state.closed_until
    if closed > now:
        # Whoever waits for the same moment goes one after the other.
        closed += 1.0 / 20
    return msgspec.structs.replace(
        state, requests_due=requests_due, tokens_due=tokens_due, closed_until=closed
    ), max(0.0, wait)


def _next(due: float, now: float, cost: float) -> tuple[float, float]:
    """When the one after is due, and when this one is: a short burst goes at once."""
    mine = max(due, now - BURST_SECONDS)
    return mine + cost, max(now, mine)


def told(
    state: LineState | None, now: float, *, limited: bool, retry_after: float | None
) -> tuple[LineState, None]:
    """The state after a call's outcome."""
    state = state or LineState()
    if not limited:
        return msgspec.structs.replace(state, share=min(1.0, state.share + INCREASE)), None
    share = state.share
    if now - state.halved_at > COOL_SECONDS:  # calls that were in flight together count once
        share = max(LEAST_SHARE, share * DECREASE)
    rest = COOL_SECONDS if retry_after is None else retry_after
    return msgspec.structs.replace(
        state, share=share, halved_at=now, closed_until=max(state.closed_until, now + rest)
    ), None


def settled(state: LineState | None, rates: Rates, reserved: int, used: int) -> LineState:
    """The state once it is known how many tokens a call took."""
    state = state or LineState()
    back = 60.0 / (rates.tokens_per_minute * state.share) * (reserved - used)
    return msgspec.structs.replace(state, tokens_due=state.tokens_due - back)


def left_line(state: LineState | None, rates: Rates, reserved: int) -> LineState:
    """The state once somebody who took the last place has given it back."""
    state = state or LineState()
    if rates.requests_per_minute:
        back = 60.0 / (rates.requests_per_minute * state.share)
        state = msgspec.structs.replace(state, requests_due=state.requests_due - back)
    return settled(state, rates, reserved, 0) if rates.tokens_per_minute else state


class LineTooLong(ModelUnavailable):
    """No call was made: the model's rate lets it through too late. The task waits, without using up an
    attempt, and without its slot."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name, f"its rate allows the next call in {seconds:.0f} s", "Wait, or raise the rate")


class LimitedProvider:
    """A provider that waits for its place in line."""

    def __init__(
        self,
        provider: Provider,
        name: str,
        cells: Cells[LineState],
        rates: Rates,
        waited: Callable[[float], None],
    ) -> None:
        """`name` is the cell's: one for each provider, server and model. `waited` hears the seconds."""
        self.name = provider.name
        self._provider, self._cell, self._cells = provider, name, cells
        self._rates, self._waited = rates, waited

    async def call(self, request: Call) -> Reply:
        """See `Provider`.

        Raises:
            LineTooLong: no call was made.
            Unavailable: nor was one, and the place in line is given back.
            CallFailed: the call failed.
        """
        reserved = estimate(request)
        wait = await self._cells.change(
            self._cell, lambda state, now: take_place(state, now, self._rates, reserved)
        )
        if wait > min(LONGEST_WAIT, request.deadline_seconds):
            await self._cells.change(
                self._cell, lambda state, now: (left_line(state, self._rates, reserved), None)
            )
            raise LineTooLong(self._cell, wait)
        self._waited(wait)
        await asyncio.sleep(wait)
        rest = replace(request, deadline_seconds=request.deadline_seconds - wait)
        try:
            reply = await self._provider.call(rest)
        except Unavailable:
            await self._cells.change(
                self._cell, lambda state, now: (left_line(state, self._rates, reserved), None)
            )
            raise
        except CallFailed as failed:
            limited, pause = failed.failure is Failure.RATE_LIMITED, failed.retry_after
            await self._cells.change(
                self._cell, lambda state, now: told(state, now, limited=limited, retry_after=pause)
            )
            raise
        await self._cells.change(
            self._cell, lambda state, now: told(state, now, limited=False, retry_after=None)
        )
        await self._settle(reserved, reply.usage.tokens_in + reply.usage.tokens_out)
        return reply

    async def _settle(self, reserved: int, used: int) -> None:
        if self._rates.tokens_per_minute:
            await self._cells.change(
                self._cell, lambda state, now: (settled(state, self._rates, reserved, used), None)
            )

    async def close(self) -> None:
        """See `Provider`."""
        await self._provider.close()


def estimate(request: Call) -> int:
    """The tokens that a call may take at most, about: its input, and all of its output."""
    return input_tokens(request) + request.max_output_tokens
