"""Reads breakers and lines in Redis and the model endpoints of providers, writes nothing: how models are.

A finding for each set of roles that ask the same models: what their servers say of key and model, what
their circuit breakers let through, and how much their rates do.
"""

from collections.abc import AsyncIterator, Mapping, Sequence

from redis.asyncio import Redis
from redis.exceptions import RedisError

from codeconvoy.orchestrator.connection import Connection
from codeconvoy.orchestrator.findings import Finding, Grade, ModelState, bad, good
from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.schemas.errors import BadInput, Unavailable
from codeconvoy.workers.llm.breaker import BreakerState, Circuit, circuit
from codeconvoy.workers.llm.chain import breaker_limits, rates_of, shared_cells
from codeconvoy.workers.llm.provider import Credentials, server_of
from codeconvoy.workers.llm.rate_limit import LineState, take_place
from codeconvoy.workers.roles.agents import MODEL_PROVIDERS
from codeconvoy.workers.roles.role import Role
from codeconvoy.workers.roles.start_check import check_models


async def look_at_models(
    roles: Sequence[Role], credentials: Credentials, connection: Connection | None
) -> AsyncIterator[Finding]:
    """What is to be said of the models of these roles, which can all run here.

    Args:
        roles: those that ask no model are passed over.
        credentials: keys by name.
        connection: where Redis is; None: nobody knows.
    """
    asking = [role for role in roles if _models(role)]
    if not asking:
        return
    async for finding in _known(asking, credentials):
        yield finding
    if connection is None:
        return
    try:
        redis = open_redis(connection.redis)
    except BadInput:
        return  # said already, of Redis itself
    try:
        seconds, micros = await redis.time()
        now = seconds + micros / 1e6
        states = [(role, await _states(role, redis, connection.prefix, now)) for role in asking]
    except (RedisError, OSError, Unavailable):
        says = "Redis is away: each process goes by breakers and rates of its own"
        yield Finding("limits", Grade.NOTE, says, "Check CONVOY_REDIS and that it runs")
        return
    finally:
        await redis.aclose()
    yield good("limits", "breakers and rates are the fleet's, in Redis")
    for finding in _findings(states):
        yield finding


async def _known(roles: Sequence[Role], credentials: Credentials) -> AsyncIterator[Finding]:
    """What the servers say of keys and models, the same only once."""
    said: dict[str, Finding] = {}
    servers: list[str] = []
    for checks in (await check_models(roles, credentials)).values():
        for check in checks:
            if check.bad is not None:
                said.setdefault(check.server, bad("model", check.bad))
            elif check.note:
                note = f"{check.server} can't be asked for its model: {check.note}"
                said.setdefault(check.server, Finding("model", Grade.NOTE, note, _LATER))
            else:
                servers.append(check.server)
    for finding in said.values():
        yield finding
    if known := sorted(set(servers) - said.keys()):
        yield good("model", f"key and model are known: {', '.join(known)}")


_LATER = "If it is an outage, wait; if the server has no model endpoint, set check_at_start = false"


def _models(role: Role) -> list[Role]:
    """The role by each of its providers that is a model."""
    return [one for _, one in role.by_provider() if one.provider in MODEL_PROVIDERS]


async def _states(role: Role, redis: Redis, prefix: str, now: float) -> tuple[ModelState, ...]:
    """How the models of a role are; `now` is the time of Redis.

    Raises:
        Unavailable: Redis does not answer.
    """
    breakers = shared_cells(redis, prefix, "breaker", BreakerState)
    lines = shared_cells(redis, prefix, "line", LineState)
    found = []
    for one in _models(role):
        name = server_of(one)
        found.append(_state(one, await breakers.look(name), await lines.look(name), now))
    return tuple(found)


def _state(role: Role, breaker: BreakerState | None, line: LineState | None, now: float) -> ModelState:
    limits, rates, share = breaker_limits(role), rates_of(role), line.share if line else 1.0
    opened = breaker.opened_at if breaker else None
    return ModelState(
        provider=server_of(role),
        breaker=circuit(breaker, now, limits),
        open_seconds=max(0.0, opened + limits.open_seconds - now) if opened is not None else 0.0,
        failures=breaker.failures if breaker else 0,
        requests_per_minute=rates.requests_per_minute * share,
        tokens_per_minute=rates.tokens_per_minute * share,
        share=share,
        line_seconds=take_place(line, now, rates, 0)[1],
    )


def _findings(states: Sequence[tuple[Role, tuple[ModelState, ...]]]) -> list[Finding]:
    """A finding for each set of models, with the roles that ask them."""
    alike: dict[tuple[ModelState, ...], list[str]] = {}
    for role, models in states:
        alike.setdefault(models, []).append(role.name)
    return [_finding(names, models) for models, names in alike.items()]


def _finding(roles: Sequence[str], models: tuple[ModelState, ...]) -> Finding:
    says = f"{', '.join(roles)}: {'; then '.join(map(_told, models))}"
    closed = [model.breaker == Circuit.CLOSED for model in models]
    if all(closed):
        return Finding("breaker", Grade.GOOD, says, models=models)
    if any(closed):
        remedy = "Another provider of the role is asked meanwhile. See the status of this one"
        return Finding("breaker", Grade.NOTE, says, remedy, models)
    place = f"[[roles.{roles[0]}.next]]"
    remedy = f"Tasks wait, without using up attempts. See its provider's status; {place} names another one"
    grade = Grade.BAD if all(model.breaker == Circuit.OPEN for model in models) else Grade.NOTE
    return Finding("breaker", grade, says, remedy, models)


_BREAKERS: Mapping[str, str] = {
    Circuit.CLOSED: "CLOSED",
    Circuit.OPEN: "OPEN for {open_seconds:.0f} s more, after {failures} failures in a row",
    Circuit.HALF_OPEN: "HALF_OPEN, the next call is a probe",
}


def _told(model: ModelState) -> str:
    breaker = _BREAKERS[model.breaker].format(open_seconds=model.open_seconds, failures=model.failures)
    return f"{model.provider} {breaker}, {_rate(model)}"


def _rate(model: ModelState) -> str:
    set_rates = ((model.requests_per_minute, "requests"), (model.tokens_per_minute, "tokens"))
    rates = [f"{number:,.0f} {what} a minute" for number, what in set_rates if number]
    said = " and ".join(rates) or "no rate set"
    if rates and model.share < 1:
        said += f" ({model.share:.0%} of what is set, after rate limits)"
    return f"{said}, a line of {model.line_seconds:.0f} s" if model.line_seconds >= 1 else said
