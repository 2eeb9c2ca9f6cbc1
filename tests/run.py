"""Starts one Kafka and one Redis, runs every suite with pytest: what `make test` calls.

    python -m tests.run [pytest options]

Suites that mostly wait run beside those that compute; the simulation has all cores for itself. A
suite's output is printed when it ends, then how long each took, what went wrong once more and, last,
one line with the counts of all. A suite without tests is a failure, and so is a skipped test.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from xml.etree import ElementTree

from codeconvoy.schemas.errors import ConvoyError
from tests.services import kafka_for_tests, redis_for_tests

TRACKS = (("unit", "property", "faults"), ("contract", "e2e"), ("integration",))
"""Side by side; the suites of a track one after the other."""
LAST = "simulation"
TAIL_LINES, TAIL_COLUMNS = 15, 160
"""Of what a suite said that is not good: repeated, where one looks first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one suite."""

    name: str
    seconds: float
    exit_code: int
    passed: int
    failed: int
    errors: int
    skipped: int
    said: str = ""
    """The end of its output."""

    @property
    def good(self) -> bool:
        return self.exit_code == 0 and self.passed > 0 and self.skipped == 0

    @property
    def counts(self) -> str:
        found = {"failed": self.failed, "passed": self.passed, "skipped": self.skipped, "errors": self.errors}
        return ", ".join(f"{count} {what}" for what, count in found.items() if count) or "no tests"

    @property
    def end(self) -> str:
        """How pytest itself ended: it leaves no counts where a signal ended it."""
        if self.exit_code >= 0:
            return f"exit status {self.exit_code}"
        return f"ended by {signal.Signals(-self.exit_code).name}"


@contextmanager
def services(data: Path) -> Iterator[dict[str, str]]:
    """The environment of a pytest that shall use one broker and one Redis."""
    with kafka_for_tests(data / "kafka") as kafka, redis_for_tests(data / "redis") as redis_url:
        yield {**os.environ, "CONVOY_TEST_KAFKA": kafka, "CONVOY_TEST_REDIS": redis_url}


def run(
    suite: str, environment: dict[str, str], directory: Path, options: Sequence[str], printing: Lock
) -> Outcome:
    """Run one suite; its output goes to ours once it has ended."""
    with printing:
        print(f"{suite} begins", flush=True)
    begun = time.monotonic()
    report = directory / f"{suite}.xml"
    argv = [sys.executable, "-m", "pytest", f"tests/{suite}", f"--junitxml={report}", *options]
    with (directory / f"{suite}.log").open("w+b") as log:
        exit_code = subprocess.run(
            argv, env=environment, check=False, stdout=log, stderr=subprocess.STDOUT
        ).returncode
        log.seek(0)
        output = log.read()
    with printing:
        print(f"\n===== {suite} =====", flush=True)
        sys.stdout.buffer.write(output)
        sys.stdout.flush()
    seconds = time.monotonic() - begun
    counted = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    if report.exists():
        for found in ElementTree.parse(report).iter("testsuite"):
            counted = {key: counted[key] + int(found.get(key, "0")) for key in counted}
    tail = output.decode("ascii", errors="backslashreplace").splitlines()[-TAIL_LINES:]
    bad = counted["failures"] + counted["errors"] + counted["skipped"]
    return Outcome(
        name=suite,
        seconds=seconds,
        exit_code=exit_code,
        passed=counted["tests"] - bad,
        failed=counted["failures"],
        errors=counted["errors"],
        skipped=counted["skipped"],
        said="\n".join(line[:TAIL_COLUMNS] for line in tail),
    )


def main(options: Sequence[str]) -> int:
    """Run all suites and give the exit status: 0 where every test of every suite passed."""
    begun = time.monotonic()
    outcomes: list[Outcome] = []
    printing = Lock()
    with TemporaryDirectory(prefix="convoy-tests-") as name:
        directory = Path(name)
        try:
            with services(directory) as environment, ThreadPoolExecutor(len(TRACKS)) as threads:

                def track(suites: Sequence[str]) -> list[Outcome]:
                    return [run(suite, environment, directory, options, printing) for suite in suites]

                for found in threads.map(track, TRACKS):
                    outcomes += found
                outcomes += track([LAST])
        except ConvoyError as error:
            print(error, file=sys.stderr)
            return 2
    print()
    for outcome in outcomes:
        mark = "" if outcome.good else f"  <- not good: {outcome.end}"
        print(f"{outcome.name:<12} {outcome.seconds:7.1f} s  {outcome.counts}{mark}")
    for outcome in outcomes:
        if not outcome.good:
            print(f"\n===== the end of {outcome.name} =====\n{outcome.said}\n")
    total = Outcome(
        name="all",
        seconds=time.monotonic() - begun,
        exit_code=max(outcome.exit_code for outcome in outcomes),
        passed=sum(outcome.passed for outcome in outcomes),
        failed=sum(outcome.failed for outcome in outcomes),
        errors=sum(outcome.errors for outcome in outcomes),
        skipped=sum(outcome.skipped for outcome in outcomes),
    )
    print(f"{total.counts} in {total.seconds:.2f}s")
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
