"""What stands around a model call, on a virtual clock: an outage, rates, retries, one call for many."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.events import Usage
from codeconvoy.workers.llm.breaker import (
    BreakerLimits,
    BreakerState,
    BreakingProvider,
    Circuit,
    CircuitOpen,
    admit,
    circuit,
    given_back,
    noted,
)
from codeconvoy.workers.llm.cells import FallbackCells, LocalCells
from codeconvoy.workers.llm.metrics import ModelMetrics
from codeconvoy.workers.llm.provider import Call, CallFailed, Failure, Message, Reply, Stop
from codeconvoy.workers.llm.rate_limit import LimitedProvider, LineState, LineTooLong, Rates
from codeconvoy.workers.llm.recorded import LEASE_SECONDS, RecordedProvider
from codeconvoy.workers.llm.retry import ATTEMPTS, RetryingProvider
from tests.simulation.loop import SimulationLoop

LIMITS = BreakerLimits()
USAGE = Usage(
    provider="p", model="m", tokens_in=90, tokens_cached=0, tokens_out=10, cost_usd=0.0, prompt_sha256=""
)


def request(text: str = "do it", deadline: float = 60.0) -> Call:
    return Call("m", "system", (Message("user", text),), max_output_tokens=100, deadline_seconds=deadline)


def virtually(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test on a clock that jumps to whatever is waited for."""
    loop = SimulationLoop(  # type: ignore[abstract]
        Random(7), 1_000_000, lambda task: None, lambda error: False
    )
    try:
        loop.run_until_complete(test())
    finally:
        loop.close()


@dataclass
class Server:
    """A provider that does as a test says."""

    answer: Callable[[float], CallFailed | None] = lambda now: None
    seconds: float | Callable[[float], float] = 1.0
    """That a call lasts, or for each moment those of a call that begins then."""
    name: str = "server"
    calls: list[float] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)

    async def call(self, request: Call) -> Reply:
        now = asyncio.get_running_loop().time()
        self.calls.append(now)
        self.deadlines.append(request.deadline_seconds)
        failed = self.answer(now)
        await asyncio.sleep(self.seconds(now) if callable(self.seconds) else self.seconds)
        if failed is not None:
            raise failed
        return Reply("done", USAGE, Stop.FINISHED)

    async def close(self) -> None:
        """There is nothing to close."""


def clock() -> float:
    return asyncio.get_running_loop().time()


def test_a_breaker_goes_round() -> None:
    state, wait = admit(None, 0.0, LIMITS, 10.0)
    assert wait == 0.0
    for failures in range(1, 4):
        assert circuit(state, 1.0, LIMITS) is Circuit.CLOSED
        state, _ = noted(state, 1.0, LIMITS, failed=True, began=0.5)
        assert state.failures == failures
    assert circuit(state, 30.9, LIMITS) is Circuit.OPEN
    assert admit(state, 11.0, LIMITS, 10.0) == (state, 20.0)
    probing, wait = admit(state, 31.0, LIMITS, 10.0)
    assert wait == 0.0
    assert admit(probing, 32.0, LIMITS, 10.0) == (probing, 9.0), "one probe, fleet-wide"
    assert admit(probing, 41.0, LIMITS, 10.0)[1] == 0.0, "its process died"
    again, _ = noted(probing, 33.0, LIMITS, failed=True, began=31.0)
    assert circuit(again, 62.9, LIMITS) is Circuit.OPEN
    assert noted(probing, 33.0, LIMITS, failed=False, began=31.0)[0] == BreakerState()
    once, _ = noted(BreakerState(failures=2), 5.0, LIMITS, failed=False, began=4.0)
    assert once.failures == 0, "in a row"


@pytest.mark.parametrize("failed", [True, False])
@pytest.mark.parametrize("now", [30.0, 50.0])
def test_what_began_before_a_breaker_opened_neither_closes_it_nor_keeps_it_open(
    failed: bool, now: float
) -> None:
    state = BreakerState(failures=3, opened_at=10.0, probe_until=60.0)
    assert noted(state, now, LIMITS, failed=failed, began=9.0)[0] == state
    assert given_back(state, 9.0) == state, "the probe is another's"
    assert given_back(state, 41.0).probe_until == 0.0


OUTAGE = (100.0, 700.0)
FLEET = 200
"""Workers."""


def test_an_outage_of_ten_minutes_costs_few_calls_fleet_wide() -> None:
    async def go() -> None:
        begins, ends = OUTAGE
        random, late = Random(7), begins + 45.0
        server = Server(
            lambda now: CallFailed(Failure.SERVER, "500") if begins <= now < ends else None,
            # Some long replies, begun before the outage, come to their end in it.
            lambda now: late - now if now < begins - 2 and random.random() < 0.02 else 1.0,
        )
        cells: LocalCells[BreakerState] = LocalCells(clock)
        opened, done = list[float](), list[float]()

        async def worker() -> None:
            provider = RetryingProvider(BreakingProvider(server, "m", cells, LIMITS))
            pause = 2.0
            while True:
                try:
                    await provider.call(request(deadline=600.0))
                except (Unavailable, CallFailed):
                    state = await cells.look("m")
                    assert state is not None and state.opened_at is not None
                    opened.append(state.opened_at)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, 30.0)
                else:
                    if clock() >= ends:
                        break
                    pause = 2.0
                    await asyncio.sleep(random.random() * 20)
            done.append(clock())

        await asyncio.gather(*(worker() for _ in range(FLEET)))
        in_outage = [at for at in server.calls if begins <= at < ends]
        in_flight = sum(opened[0] - 1.0 < at < opened[0] for at in in_outage)
        assert in_flight < FLEET / 2, "not all were asking when it opened"
        assert len(in_outage) <= LIMITS.threshold + in_flight + (ends - begins) / LIMITS.open_seconds
        probes = [at for at in in_outage if at > opened[0]]
        assert all(later - one >= LIMITS.open_seconds for one, later in pairwise(probes))
        assert len(done) == FLEET and max(done) < ends + 3 * LIMITS.open_seconds

    virtually(go)


def test_while_it_is_open_no_attempt_is_made_and_none_counts() -> None:
    async def go() -> None:
        server = Server(lambda now: CallFailed(Failure.CONNECTION, "cut"))
        provider = RetryingProvider(BreakingProvider(server, "m", LocalCells(clock), LIMITS))
        with pytest.raises(CallFailed):
            await provider.call(request())
        assert len(server.calls) == ATTEMPTS == LIMITS.threshold
        with pytest.raises(CircuitOpen, match="open for"):
            await provider.call(request())
        assert len(server.calls) == ATTEMPTS

    virtually(go)


@pytest.mark.parametrize("failure", [Failure.KEY, Failure.QUOTA, Failure.REJECTED])
def test_what_will_not_pass_is_not_tried_again_and_breaks_nothing(failure: Failure) -> None:
    async def go() -> None:
        server = Server(lambda now: CallFailed(failure, "no"))
        cells: LocalCells[BreakerState] = LocalCells(clock)
        provider = RetryingProvider(BreakingProvider(server, "m", cells, LIMITS))
        for _ in range(5):
            with pytest.raises(CallFailed):
                await provider.call(request())
        assert len(server.calls) == 5
        assert circuit(await cells.look("m"), clock(), LIMITS) is Circuit.CLOSED

    virtually(go)


def test_a_probe_that_is_cancelled_is_given_back() -> None:
    async def go() -> None:
        server = Server(lambda now: CallFailed(Failure.SERVER, "500") if now < 20 else None, seconds=0.5)
        cells: LocalCells[BreakerState] = LocalCells(clock)
        provider = BreakingProvider(server, "m", cells, LIMITS)
        for _ in range(LIMITS.threshold):
            with pytest.raises(CallFailed):
                await provider.call(request())
        await asyncio.sleep(40)
        probe = asyncio.ensure_future(provider.call(request()))
        await asyncio.sleep(0.1)
        probe.cancel()
        await asyncio.wait([probe])
        assert (await provider.call(request())).text == "done"

    virtually(go)


def test_a_retry_waits_as_the_server_says_within_one_deadline() -> None:
    async def go() -> None:
        server = Server(
            lambda now: CallFailed(Failure.OVERLOADED, "529", retry_after=7.0) if now < 10 else None
        )
        assert (await RetryingProvider(server).call(request(deadline=40.0))).text == "done"
        assert server.calls == [0.0, 8.0, 16.0]
        assert server.deadlines == [40.0, 32.0, 24.0]
        began = clock()
        late = Server(lambda now: CallFailed(Failure.OVERLOADED, "529", retry_after=7.0))
        with pytest.raises(CallFailed):
            await RetryingProvider(late).call(request(deadline=5.0))
        assert clock() - began < 5.0 and len(late.calls) == 1

    virtually(go)


def test_a_rate_limit_never_uses_up_an_attempt() -> None:
    async def go() -> None:
        for pause, calls in ((None, ATTEMPTS), (1.0, ATTEMPTS), (3_600.0, 1)):
            limited = CallFailed(Failure.RATE_LIMITED, "429", retry_after=pause)
            server = Server(partial(lambda failed, now: failed, limited))
            with pytest.raises(Unavailable):
                await RetryingProvider(server).call(request())
            assert len(server.calls) == calls

    virtually(go)


def test_workers_go_one_after_the_other_at_the_rate_that_is_set() -> None:
    async def go() -> None:
        server, waits = Server(), list[float]()
        cells: LocalCells[LineState] = LocalCells(clock)
        providers = [LimitedProvider(server, "m", cells, Rates(60.0), waits.append) for _ in range(20)]
        await asyncio.gather(*(provider.call(request()) for provider in providers))
        gaps = [later - one for one, later in pairwise(server.calls)]
        assert sum(gap < 0.99 for gap in gaps) <= 2, "but for a short burst a second apart"
        assert 15 < max(server.calls) <= 20
        assert len(waits) == 20

    virtually(go)


def test_tokens_are_limited_and_what_was_not_used_comes_back() -> None:
    async def go() -> None:
        server = Server(seconds=0.0)
        provider = LimitedProvider(
            server, "m", LocalCells(clock), Rates(tokens_per_minute=6_000.0), lambda wait: None
        )
        for _ in range(30):  # 100 tokens each, at 100 a second
            await provider.call(request())
        assert 25 < clock() < 35

    virtually(go)


def test_no_crowd_starts_when_a_window_opens_again() -> None:
    async def go() -> None:
        told: list[float] = []

        def answer(now: float) -> CallFailed | None:
            if 5 <= now < 6:
                told.append(now)
                return CallFailed(Failure.RATE_LIMITED, "429", retry_after=20.0)
            return None

        server = Server(answer, seconds=0.1)
        cells: LocalCells[LineState] = LocalCells(clock)

        async def worker(number: int) -> None:
            provider = LimitedProvider(server, "m", cells, Rates(), lambda wait: None)
            await asyncio.sleep(5 + number * 0.2)
            for _ in range(3):
                try:
                    await provider.call(request())
                except CallFailed:
                    continue

        await asyncio.gather(*(worker(number) for number in range(30)))
        assert told == [5.0], "the fleet goes on asking after it was told to wait"
        after = sorted(at for at in server.calls if at > 5)
        assert after[0] >= 25.0
        assert sum(at < after[0] + 0.5 for at in after) < 15

    virtually(go)


def test_a_line_that_is_too_long_is_left_with_the_slot() -> None:
    async def go() -> None:
        server = Server()
        provider = LimitedProvider(server, "m", LocalCells(clock), Rates(1.0), lambda wait: None)
        await provider.call(request())
        for _ in range(10):
            with pytest.raises(LineTooLong):
                await provider.call(request())
        await asyncio.sleep(60)
        await provider.call(request())
        assert len(server.calls) == 2, "who left the line holds no place in it"

    virtually(go)


@dataclass
class MemoryReplies:
    """Replies in memory, with leases."""

    replies: dict[str, Reply] = field(default_factory=dict)
    holds: dict[str, tuple[str, float]] = field(default_factory=dict)
    away: bool = False

    def _see(self) -> None:
        if self.away:
            raise Unavailable("store", "it is away", "Wait")

    async def get(self, prompt: str) -> Reply | None:
        self._see()
        return self.replies.get(prompt)

    async def put(self, prompt: str, reply: Reply) -> None:
        self._see()
        self.replies[prompt] = reply

    async def hold(self, prompt: str, holder: str) -> bool:
        self._see()
        if prompt in self.holds and self.holds[prompt][1] > clock():
            return False
        self.holds[prompt] = holder, clock() + LEASE_SECONDS
        return True

    async def renew(self, prompt: str, holder: str) -> None:
        self._see()
        if self.holds.get(prompt, ("", 0.0))[0] == holder:
            self.holds[prompt] = holder, clock() + LEASE_SECONDS

    async def let_go(self, prompt: str, holder: str) -> None:
        self._see()
        if self.holds.get(prompt, ("", 0.0))[0] == holder:
            del self.holds[prompt]


def recorded(server: Server, store: MemoryReplies) -> tuple[RecordedProvider, CollectorRegistry]:
    registry = CollectorRegistry()
    return RecordedProvider(server, "p:m", store, ModelMetrics(registry)), registry


def counted(registry: CollectorRegistry, how: str) -> float:
    return registry.get_sample_value("convoy_recorded_replies_total", {"how": how}) or 0.0


def test_two_hundred_identical_prompts_make_one_call() -> None:
    async def go() -> None:
        server, store = Server(seconds=50.0), MemoryReplies()
        provider, registry = recorded(server, store)
        replies = await asyncio.gather(*(provider.call(request()) for _ in range(200)))
        assert len(server.calls) == 1 and {reply.text for reply in replies} == {"done"}
        assert await provider.call(request()) == replies[0]
        await provider.call(request("something else"))
        assert len(server.calls) == 2
        assert [counted(registry, how) for how in ("miss", "wait", "hit")] == [2, 199, 1]

    virtually(go)


def test_a_dead_holder_blocks_the_others_for_a_lease_at_most() -> None:
    async def go() -> None:
        server, store = Server(), MemoryReplies()
        provider, _ = recorded(server, store)
        dying = asyncio.ensure_future(provider.call(request()))
        await asyncio.sleep(0.5)
        held = dict(store.holds)
        dying.cancel()
        await asyncio.wait([dying])
        store.holds = held  # it was killed, and let nothing go
        assert (await provider.call(request())).text == "done"
        assert LEASE_SECONDS <= clock() < LEASE_SECONDS + 3

    virtually(go)


def test_one_that_failed_lets_the_next_one_ask() -> None:
    async def go() -> None:
        server = Server(lambda now: CallFailed(Failure.REJECTED, "no") if now < 1 else None)
        provider, _ = recorded(server, MemoryReplies())
        found = await asyncio.gather(*(provider.call(request()) for _ in range(5)), return_exceptions=True)
        assert len(server.calls) == 2
        assert [type(one) for one in found].count(CallFailed) == 1

    virtually(go)


def test_without_a_store_every_call_is_made() -> None:
    async def go() -> None:
        server = Server()
        provider, registry = recorded(server, MemoryReplies(away=True))
        for _ in range(3):
            assert (await provider.call(request())).text == "done"
        assert len(server.calls) == 3 and counted(registry, "away") == 3

    virtually(go)


def test_a_process_alone_goes_by_its_own_breaker() -> None:
    def gone() -> float:
        raise Unavailable("Redis", "it is away", "Wait")

    async def go() -> None:
        told: list[bool] = []
        shared: LocalCells[BreakerState] = LocalCells(gone)
        cells = FallbackCells(shared, LocalCells(clock), told.append)
        server = Server(lambda now: CallFailed(Failure.TIMEOUT, "late"))
        provider = BreakingProvider(server, "m", cells, LIMITS)
        for _ in range(LIMITS.threshold):
            with pytest.raises(CallFailed):
                await provider.call(request())
        with pytest.raises(CircuitOpen):
            await provider.call(request())
        assert told and not any(told)

    virtually(go)
