"""A process that is told to stop ends, whatever it is at, and says what held it up."""

import signal
import subprocess
import sys

import pytest

SECONDS = 60.0
PROCESS = """
import asyncio, contextlib, logging, signal, sys, threading, time
from codeconvoy.orchestrator.drain import begin_drain

async def deaf():
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(600)

async def stubborn():
    await deaf()

async def held_up(stop):
    await stop.wait()
    match sys.argv[1]:
        case "waits":
            await stubborn()
        case "computes":
            time.sleep(600)
        case "leaves a thread":
            threading.Thread(target=time.sleep, args=(600,)).start()

async def main():
    stop = asyncio.Event()
    slow, longest = map(float, sys.argv[2:])
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, begin_drain, stop, slow, longest)
    print("runs", flush=True)
    await held_up(stop)

logging.basicConfig(format="%(message)s")
asyncio.run(main())
print("has drained", flush=True)
"""


def drained(how: str, slow: float, longest: float) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a process that was told to stop."""
    argv = [sys.executable, "-c", PROCESS, how, str(slow), str(longest)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.send_signal(signal.SIGTERM)
        if how == "waits":
            process.send_signal(signal.SIGTERM)  # impatience changes nothing
        try:
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    return process.returncode, out, err


def test_a_process_that_drains_in_time_ends_well() -> None:
    assert drained("at once", 500.0, 500.0) == (0, "has drained\n", "")


def test_one_that_waits_for_what_never_comes_says_for_what_and_ends() -> None:
    status, out, err = drained("waits", 0.1, 1.0)
    assert (status, out) == (1, "")
    waits = next(line for line in err.splitlines() if line.startswith("not drained after"))
    names = [one.partition(":")[0] for one in waits.partition("s: ")[2].split(" > ")]
    assert names == ["main", "held_up", "stubborn", "deaf", "sleep"]
    assert "Timeout" in err and "run_until_complete" in err


@pytest.mark.parametrize(("how", "what"), [("computes", "held_up"), ("leaves a thread", "_shutdown")])
def test_one_that_never_gets_to_its_event_loop_ends_too(how: str, what: str) -> None:
    status, _, err = drained(how, 0.1, 0.5)
    assert status == 1
    assert "Timeout" in err and what in err
