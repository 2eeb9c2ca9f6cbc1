"""The loop of the simulation: virtual time, an order that the seed decides, and no waiting for ever."""

import asyncio
from random import Random

import pytest

from tests.simulation.loop import SimulationLoop, Stuck


def loop_of(seed: int, max_steps: int = 10_000) -> SimulationLoop:
    # No IO: most of a loop is left out.
    return SimulationLoop(Random(seed), max_steps, lambda task: None, lambda error: False)  # type: ignore[abstract]


def order_of(seed: int) -> list[int]:
    seen: list[int] = []

    async def one(number: int) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
            seen.append(number)

    async def all_at_once() -> None:
        await asyncio.gather(*(one(number) for number in range(6)))

    loop_of(seed).run_until_complete(all_at_once())
    return seen


def test_the_seed_decides_the_order() -> None:
    assert order_of(1) == order_of(1)
    assert len({tuple(order_of(seed)) for seed in range(20)}) > 10


def test_time_jumps_to_the_next_timer() -> None:
    async def wait() -> list[float]:
        loop = asyncio.get_running_loop()
        times = [loop.time()]
        await asyncio.sleep(86_400)
        times.append(loop.time())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await loop.create_future()
        times.append(loop.time())
        return times

    assert loop_of(0).run_until_complete(wait()) == [0, 86_400, 86_405]


def test_a_thread_is_done_at_once() -> None:
    async def work() -> int:
        return await asyncio.to_thread(sum, [1, 2])

    assert loop_of(0).run_until_complete(work()) == 3


def test_nothing_left_to_happen_is_an_error() -> None:
    async def wait_for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck, match="nothing will ever happen"):
        loop_of(0).run_until_complete(wait_for_ever())


def test_no_end_is_an_error() -> None:
    async def spin() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(Stuck, match="no end after"):
        loop_of(0).run_until_complete(spin())


def test_an_error_that_nobody_waits_for_is_kept() -> None:
    async def fail() -> None:
        raise ValueError("lost")

    async def main() -> None:
        task = asyncio.ensure_future(fail())
        await asyncio.sleep(1)
        del task

    loop = loop_of(0)
    loop.run_until_complete(main())
    assert any("lost" in error for error in loop.errors)
