"""Reads a role's options and the prices that genai-prices ships; writes nothing: what a call costs.

Nothing is fetched: the prices are those of the installed package, or the role's own (`price_in`,
`price_cached`, `price_out`, dollars for a million tokens), which go before them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from codeconvoy.schemas.budget import NANO
from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.llm.provider import server_of
from codeconvoy.workers.roles.role import Role

MODEL_PROVIDERS = frozenset(("openai", "anthropic"))
"""Providers whose calls cost money. What a rule set does costs none; what a program or a package's
provider spends is not known here, and is not counted."""
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one call."""

    into: int
    """All of the input: those below are among them."""
    cached: int
    out: int
    written: int = 0
    """Input that the server put into its cache, which may cost more than other input."""


class Price(Protocol):
    """What a model's tokens cost."""

    def nano_usd(self, tokens: Tokens) -> int:
        """Billionths of a dollar, rounded up."""
        ...


@dataclass(frozen=True, slots=True)
class OwnPrice:
    """What a role says that its model costs, in dollars for a million tokens."""

    into: Decimal
    cached: Decimal
    out: Decimal

    def nano_usd(self, tokens: Tokens) -> int:
        """See `Price`."""
        usd = self.into * (tokens.into - tokens.cached) + self.cached * tokens.cached + self.out * tokens.out
        return math.ceil(usd * NANO / _MILLION)


@dataclass(frozen=True, slots=True)
class ListPrice:
    """What genai-prices says that a model costs."""

    total: Callable[[Tokens], Decimal]

    def nano_usd(self, tokens: Tokens) -> int:
        """See `Price`."""
        return math.ceil(self.total(tokens) * NANO)


def check_prices(role: Role) -> None:
    """Refuse a role that gives some prices of its model, and not others that belong to them.

    Raises:
        BadInput: names the option.
    """
    given = sorted(name for name in role.options if name.startswith("price_"))
    if given and not {"price_in", "price_out"} <= role.options.keys():
        field = f"roles.{role.name}.options.{given[0]}"
        raise BadInput(field, "it says only part of what the model costs", "Give price_in and price_out")


def price_of(role: Role) -> Price | None:
    """What the calls of a model's role cost; None where nobody knows."""
    options = role.options
    if "price_in" in options and "price_out" in options:
        into = Decimal(options["price_in"])
        return OwnPrice(into, Decimal(options.get("price_cached", into)), Decimal(options["price_out"]))
    return _listed(role)


def _listed(role: Role) -> Price | None:
    """The price by name, of the provider itself or of the server at the role's `base_url`."""
    from genai_prices import Usage, calc_price

    server = role.options.get("base_url")
    try:
        if server is None:
            price = calc_price(Usage(), role.model, provider_id=role.provider).model_price
        else:
            price = calc_price(Usage(), role.model, provider_api_url=server).model_price
    except LookupError:
        return None

    def total(tokens: Tokens) -> Decimal:
        usage = Usage(
            input_tokens=tokens.into,
            cache_read_tokens=tokens.cached,
            cache_write_tokens=tokens.written,
            output_tokens=tokens.out,
        )
        return Decimal(price.calc_price(usage)["total_price"])

    return ListPrice(total)


def unpriced(role: Role) -> BadInput | None:
    """Why a job that has a budget in money can't use a role; None where it can."""
    for place, one in role.by_provider():
        if one.provider in MODEL_PROVIDERS and price_of(one) is None:
            return BadInput(
                "budget.usd",
                f"the role {role.name!r} uses the model {one.model!r} ({server_of(one)}), whose price is not "
                "known",
                f"Set the options price_in and price_out (and price_cached) of {place} in the roles file, in "
                "dollars for a million tokens (0 where it is free), or use budget.tokens",
            )
    return None
