"""Reads nothing, writes nothing: what the model calls of a job cost it, as its log says.

For each call of a job with a budget there are two facts: that it begins, with the most that it can
cost, written before anything is sent; and that it has ended, with what it did cost. A call of which
only the first is there counts in full.
"""

import math
from collections.abc import Iterable, Mapping

import msgspec

from codeconvoy.schemas.job_spec import Budget

NANO = 1_000_000_000
MAX_OPEN_CALLS = 1_000
"""Calls of a job that are remembered one by one as begun and not ended: above it the oldest one counts
as spent. Their processes have died, for that many are never in flight."""
GRACE_SECONDS = 30
"""So long after its deadline nobody waits for a call any more to tell what it has cost."""


class Amounts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Money, tokens and time. Whole numbers, so that sums are exact."""

    nano_usd: int = 0
    """Billionths of a dollar."""
    tokens: int = 0
    """In and out together, cached ones among them."""
    ms: int = 0
    """Of model calls."""

    def __add__(self, other: "Amounts") -> "Amounts":
        return Amounts(
            nano_usd=self.nano_usd + other.nano_usd,
            tokens=self.tokens + other.tokens,
            ms=self.ms + other.ms,
        )

    @property
    def usd(self) -> float:
        """Dollars, for people."""
        return self.nano_usd / NANO


class OpenCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A call that has begun and has not ended."""

    worst: Amounts
    until: int
    """Milliseconds since the epoch: if it has not ended by then, nobody will tell what it cost."""


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """What a job has spent. Mappings are never changed in place."""

    spent: Amounts = Amounts()
    """By the calls that have ended."""
    open: Mapping[str, OpenCall] = {}
    """In the order in which they began."""
    calls: int = 0
    """That have begun."""

    @property
    def total(self) -> Amounts:
        """What is spent if every open call costs the most that it can."""
        return total(self.spent, (call.worst for call in self.open.values()))


def total(first: Amounts, rest: Iterable[Amounts]) -> Amounts:
    """The sum of all of them."""
    for each in rest:
        first = first + each
    return first


def began(ledger: Ledger, call_id: str, worst: Amounts, timestamp: int) -> Ledger:
    """The ledger after a call has begun."""
    if call_id in ledger.open:
        return ledger
    until = timestamp + worst.ms + 1000 * GRACE_SECONDS
    open_calls = {**ledger.open, call_id: OpenCall(worst=worst, until=until)}
    spent = ledger.spent
    if len(open_calls) > MAX_OPEN_CALLS:
        spent += open_calls.pop(next(iter(open_calls))).worst
    return Ledger(spent=spent, open=open_calls, calls=ledger.calls + 1)


def ended(ledger: Ledger, call_id: str, spent: Amounts) -> Ledger:
    """The ledger after a call has ended. One that is not open counts already."""
    if call_id not in ledger.open:
        return ledger
    rest = {name: call for name, call in ledger.open.items() if name != call_id}
    return Ledger(spent=ledger.spent + spent, open=rest, calls=ledger.calls)


def has_cap(budget: Budget) -> bool:
    """True where a budget limits anything. A number that is none limits nothing: its job is refused."""
    return budget.usd > 0 or budget.tokens > 0 or budget.seconds > 0


def exceeds(amounts: Amounts, budget: Budget) -> bool:
    """True where one of the amounts is over its cap."""
    cap = cap_of(budget)
    return 0 < cap.nano_usd < amounts.nano_usd or 0 < cap.tokens < amounts.tokens or 0 < cap.ms < amounts.ms


def cap_of(budget: Budget) -> Amounts:
    """The caps of a budget as amounts; 0 is none. A cap below a billionth of a dollar is that."""
    nano = max(1, math.floor(budget.usd * NANO)) if 0 < budget.usd < math.inf else 0
    return Amounts(nano_usd=nano, tokens=max(0, budget.tokens), ms=1000 * max(0, budget.seconds))


def of_budget(amounts: Amounts, budget: Budget) -> str:
    """For people: what is spent of each cap, such as `$1.20 of $5.00, 300 of 1,000 tokens`."""
    parts = []
    if budget.usd:
        parts.append(f"{dollars(amounts.usd)} of {dollars(budget.usd)}")
    if budget.tokens:
        parts.append(f"{amounts.tokens:,} of {budget.tokens:,} tokens")
    if budget.seconds:
        parts.append(f"{amounts.ms / 1000:,.1f} of {budget.seconds:,} model seconds")
    return ", ".join(parts)


def dollars(usd: float) -> str:
    """Such as $1.20, and $0.00042: what is small is not rounded to nothing."""
    return f"${usd:,.2f}" if usd >= 1 or round(usd, 2) == usd else f"${usd:.3g}"
