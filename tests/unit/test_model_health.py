"""What `convoy doctor` and the metrics say of models: breakers and lines of the fleet, in a real Redis."""

import asyncio
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from codeconvoy.orchestrator.connection import Connection
from codeconvoy.orchestrator.findings import Finding, Grade
from codeconvoy.orchestrator.model_health import look_at_models
from codeconvoy.orchestrator.processes import free_ports
from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.workers.llm.breaker import BreakerState
from codeconvoy.workers.llm.chain import Chain, shared_cells
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.provider import CallFailed, Failure
from codeconvoy.workers.llm.rate_limit import LineState
from codeconvoy.workers.roles.role import NextProvider, Role, RoleKind
from tests.models_endpoint import KEY, endpoint
from tests.unit.test_model_chain import Server, request

KEYS = {"openai": KEY, "anthropic": KEY}
UNASKED = {"check_at_start": "false"}
FIRST = Role("a", RoleKind.EDIT, "", "openai", model="m", options=UNASKED)
BOTH = replace(FIRST, name="b", next=(NextProvider("anthropic", "n", UNASKED),))


def connection(redis_url: str, prefix: str) -> Connection:
    return Connection(kafka="", redis=redis_url, prefix=prefix, partitions=1)


async def look(found: Connection | None, *roles: Role) -> list[Finding]:
    return [finding async for finding in look_at_models(roles, KEYS, found)]


async def open_for(redis: Redis, prefix: str, server: str, ago: float) -> None:
    """Open a breaker so many seconds ago."""
    cells = shared_cells(redis, prefix, "breaker", BreakerState)
    await cells.change(server, lambda state, now: (BreakerState(3, now - ago), None))


def test_breakers_and_rates_of_each_role_s_models(redis_url: str, prefix: str) -> None:
    async def go() -> None:
        redis, found = open_redis(redis_url), connection(redis_url, prefix)
        paced = replace(FIRST, name="c", options={**UNASKED, "requests_per_minute": "60"})
        rules = Role("d", RoleKind.EDIT, "", "codemod")
        shared, *models = await look(found, FIRST, replace(FIRST, name="e"), BOTH, paced, rules)
        assert shared.grade is Grade.GOOD and "in Redis" in shared.says
        assert [finding.says for finding in models] == [
            "a, e: openai:m CLOSED, no rate set",
            "b: openai:m CLOSED, no rate set; then anthropic:n CLOSED, no rate set",
            "c: openai:m CLOSED, 60 requests a minute",
        ]
        await open_for(redis, prefix, "openai:m", 1.0)
        lines = shared_cells(redis, prefix, "line", LineState)
        await lines.change("openai:m", lambda s, now: (LineState(share=0.5, closed_until=now + 500), None))
        _, alone, helped, slow = await look(found, FIRST, BOTH, paced)
        assert alone.grade is Grade.BAD and "s more, after 3 failures in a row" in alone.says
        assert "[[roles.a.next]]" in alone.remedy
        assert helped.grade is Grade.NOTE and "asked meanwhile" in helped.remedy
        assert "30 requests a minute (50% of what is set" in slow.says and "a line of " in slow.says
        [state] = alone.models
        assert (state.provider, state.breaker, state.failures) == ("openai:m", "open", 3)
        assert 0 < state.open_seconds <= 29 and 400 < state.line_seconds <= 500
        await open_for(redis, prefix, "openai:m", 31.0)
        _, probing = await look(found, FIRST)
        assert probing.grade is Grade.NOTE and "HALF_OPEN" in probing.says
        await redis.aclose()

    asyncio.run(go())


def test_a_redis_that_is_away_is_said() -> None:
    [port] = free_ports(1)
    [finding] = asyncio.run(look(connection(f"redis://127.0.0.1:{port}/0", "p"), FIRST))
    assert finding.grade is Grade.NOTE and "of its own" in finding.says and finding.remedy


def test_keys_and_models_are_looked_up_and_nobody_without_a_model_is_spoken_of() -> None:
    async def go() -> None:
        assert await look(None, Role("d", RoleKind.EDIT, "", "codemod")) == []
        with endpoint("m") as server:
            role = replace(FIRST, options={"base_url": f"{server.url}/v1"})
            gone = replace(role, name="x", model="gone")
            unknown, known = await look(None, role, replace(role, name="y"), gone)
            assert unknown.grade is Grade.BAD and unknown.says.startswith("roles.x.model: ")
            assert known.grade is Grade.GOOD and known.says.endswith(":m")
            server.status = 503
            [note] = await look(None, role)
            assert note.grade is Grade.NOTE and "can't be asked" in note.says and note.remedy

    asyncio.run(go())


def test_the_state_of_a_breaker_is_a_metric_in_every_process(redis_url: str, prefix: str) -> None:
    def chain() -> tuple[Chain, CollectorRegistry]:
        registry, clock = CollectorRegistry(), asyncio.get_running_loop().time
        return Chain(redis, prefix, ModelMetrics(registry), clock), registry

    async def shows(registry: CollectorRegistry, wanted: str) -> None:
        while True:
            names = ("closed", "open", "half_open")
            labels = [{"provider": "openai:m", "state": name} for name in names]
            found = [registry.get_sample_value("convoy_breaker_state", label) for label in labels]
            if found == [name == wanted for name in names]:
                return
            await asyncio.sleep(0.01)

    async def go() -> None:
        (one, _), (other, registry) = chain(), chain()
        failing = one.around(FIRST, Server(lambda now: CallFailed(Failure.SERVER, "500"), seconds=0.0))
        other.around(FIRST, Server())
        stop = asyncio.Event()
        watching = asyncio.create_task(other.watch(stop))
        async with asyncio.timeout(30):
            await shows(registry, "closed")
            with pytest.raises(CallFailed):
                await failing.call(request())
            await shows(registry, "open")
        stop.set()
        await watching
        await redis.aclose()

    redis = open_redis(redis_url)
    asyncio.run(go())
