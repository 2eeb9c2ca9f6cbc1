"""Reads the command line, writes a table or JSON lines: what `make bench` calls.

    python -m tests.bench [NAME…] [--scale 0.1] [-o json] [--lines FILE]

Measures all figures, or those that are named (W1a, W2, …), on a Kafka and a Redis of its own, or on
those of CONVOY_TEST_KAFKA and CONVOY_TEST_REDIS. Progress goes to stderr. Speed is never a failure: the
exit status is 1 only where something was wrong, such as a lost output, or a process that ended.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from codeconvoy.orchestrator.local_fleet import terminating
from codeconvoy.schemas.errors import ConvoyError
from tests.bench import (
    model_chain,
    moved_heads,
    w1_fleet,
    w1_pipeline,
    w2_latency,
    w3_projection,
    w4_growth,
    worker_times,
)
from tests.bench.figures import Figure, Setting, Wrong, json_line, show
from tests.bench.ground import Ground
from tests.services import kafka_for_tests, redis_for_tests

Measure = Callable[[Ground], Iterator[Figure]]

ALL: Mapping[str, Measure] = {
    "W1a": w1_pipeline.measure,
    "W1b": w1_fleet.measure,
    "W2": w2_latency.measure,
    "W3": w3_projection.measure,
    "W4": w4_growth.measure,
    "start": worker_times.measure_start,
    "kill": worker_times.measure_kill,
    "chain": model_chain.measure,
    "moved": moved_heads.measure,
}
"""In the order in which they are measured."""
WIDTH = 130
"""Of the table, where there is no terminal to ask."""
PARTS: Mapping[str, Measure] = {"W5": w4_growth.measure_rebuild}
"""What another one measures on its way, and can be measured alone."""


def main(arguments: Sequence[str]) -> int:
    """Measure and print; the exit status."""
    given = _options(arguments)
    setting = Setting(len(os.sched_getaffinity(0)), _commit(), given.scale)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    figures: list[Figure] = []
    wrong: list[str] = []
    with terminating(), ExitStack() as stack:
        try:
            ground = _ground(stack, given.scale, say)
        except ConvoyError as error:
            print(error, file=sys.stderr)
            return 2
        lines = stack.enter_context(given.lines.open("w")) if given.lines else None
        measures = {**ALL, **PARTS}
        for name in given.names or ALL:
            say(f"{name} begins")
            try:
                for figure in measures[name](ground):
                    figures.append(figure)
                    if lines is not None:
                        print(json_line(figure, setting), file=lines, flush=True)
            except (Wrong, RuntimeError, AssertionError) as error:
                # The others are measured all the same; the exit status tells.
                wrong.append(f"{name}: {error}")
                say(f"WRONG: {name}: {error}")
    if given.output == "json":
        for figure in figures:
            print(json_line(figure, setting))
    else:
        show(figures, setting, Console(width=None if sys.stdout.isatty() else WIDTH))
    for text in wrong:
        print(f"WRONG: {text}", file=sys.stderr)
    return 1 if wrong else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    known = (*ALL, *PARTS)
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Figures beside their limits")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(known)}; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes; below 1 only for trying")
    parser.add_argument("-o", dest="output", choices=("table", "json"), default="table")
    parser.add_argument("--lines", type=Path, metavar="FILE", help="write JSON lines there too")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in known]
    if unknown:
        parser.error(f"no figure is called {', '.join(unknown)}: there are {', '.join(known)}")
    return given


def _ground(stack: ExitStack, scale: float, say: Callable[[str], None]) -> Ground:
    directory = Path(stack.enter_context(TemporaryDirectory(prefix="convoy-bench-")))
    kafka = stack.enter_context(kafka_for_tests(directory / "kafka"))
    redis_url = stack.enter_context(redis_for_tests(directory / "redis"))
    return Ground(kafka, redis_url, directory, scale, say)


def _commit() -> str:
    """The commit that is measured; with a + where files differ from it."""

    def git(*command: str) -> str:
        done = subprocess.run(("git", *command), capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    return f"{commit}+" if git("status", "--porcelain", "--untracked-files=no") else commit


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
