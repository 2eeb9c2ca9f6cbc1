"""Starts processes, reads their logs and endpoints: a fleet of real OS processes for tests.

    with Fleet(kafka, redis_url, prefix, tmp_path) as fleet:
        fleet.start(*CORE, "isort")
        ended = fleet.run_job({"repository": ..., "goal": ..., "files": ["**/*.py"]})
        assert fleet.audit().good

Each process is `python -m codeconvoy.orchestrator.cli …` with a log of its own in `tmp_path`; it ends
with its fleet, and, should the tests be killed, by itself. Commands run the same way.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient

from codeconvoy.orchestrator import fleet as parts
from codeconvoy.orchestrator.audit import Sources, audit
from codeconvoy.orchestrator.audit_report import Report
from codeconvoy.orchestrator.connection import connect
from codeconvoy.orchestrator.log_reader import LogReader
from codeconvoy.orchestrator.orchestrator import NAME as ORCHESTRATOR
from codeconvoy.orchestrator.settings import load_settings
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.job_facts import JobFact
from codeconvoy.schemas.job_state import JobState
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.detector import NAME as DETECTOR
from codeconvoy.workers.engine.kafka_client import admin_settings
from codeconvoy.workers.projector import FILES, JOBS

PARTITIONS = 4
CORE = ("orchestrator", "projector", "detector", "git", "runner")
"""What every fleet needs; the other processes are workers of its roles."""
FOLDS = ("orchestrator", "projector", "detector")
SESSION_MS = 6_000
"""The least that a broker's defaults allow: after so long a killed process is missed."""
READY_SECONDS = 60.0
COMMAND_SECONDS = 120.0
JOB_SECONDS = 120.0
AT_ONCE = 4
"""Commands that run side by side."""
LOG_TAIL = 3_000
CLI = (sys.executable, "-m", "codeconvoy.orchestrator.cli")
_ADDRESS = re.compile(rb"metrics and health at (http://\S+)")
_FOREIGN = re.compile(r"CONVOY_|OPENAI_|ANTHROPIC_")

_GROUPS = {"orchestrator": ORCHESTRATOR, "projector": FILES, "detector": DETECTOR}

T = TypeVar("T")


def unique_prefix() -> str:
    """For a fleet that several tests share; one test's own has the fixture `prefix`."""
    return f"t{uuid.uuid4().hex[:10]}"


def until(look: Callable[[], T | None], what: str | Callable[[], str], seconds: float = READY_SECONDS) -> T:
    """Look until there is something (not None, not False), and answer it."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """The last JSON value on stdout, of a command that may also have ended with status 1."""
        assert self.status in (0, 1), self
        return json.loads(self.out.strip().splitlines()[-1])

    def good(self) -> Self:
        """Itself, once it is seen that it succeeded."""
        assert self.status == 0, f"exit status {self.status}\n{self.out[-LOG_TAIL:]}\n{self.err[-LOG_TAIL:]}"
        return self


class Member:
    """One process of a fleet. It can be started again after it ended, under the same name."""

    def __init__(self, name: str, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self._argv, self._environment, self._log = name, tuple(argv), dict(environment), log
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0

    def start(self) -> None:
        """Start it; `wait_ready` waits for it."""
        assert not self.runs, f"{self.name} runs already"
        self._began = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            # Its standard input stays open as long as this process lives: see --supervised.
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Wait until it says that it is healthy."""

        def healthy() -> bool:
            assert self.runs, f"{self.name} has ended:\n{self.log()[-LOG_TAIL:]}"
            return self.health()[0] == 200

        until(healthy, f"{self.name} is healthy")

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What it has written since it was started last."""
        return self._log.read_bytes()[self._began :].decode(errors="replace")

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /healthz; status 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"{self._address()}/healthz", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, {}

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = self.read("metrics")
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        assert found, f"{self.name} has no metric {name}:\n{text}"
        return sum(map(float, found))

    def read(self, path: str) -> str:
        """What it serves there."""
        with urllib.request.urlopen(f"{self._address()}/{path}", timeout=5) as answer:
            text: str = answer.read().decode()
        return text

    def _address(self) -> str:
        found = _ADDRESS.search(self._log.read_bytes()[self._began :])
        if found is None:
            raise ConnectionError(f"{self.name} does not serve yet")
        return found[1].decode()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process: SIGSTOP pauses it, SIGCONT lets it go on."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self._process is not None
        if self.runs:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def terminate(self, during: Callable[[], None] = lambda: None, seconds: float = 30.0) -> int:
        """SIGTERM, then do something, then wait for the end. Answers the exit status."""
        assert self._process is not None
        self._process.terminate()
        during()
        return self._process.wait(seconds)


class Fleet:
    """A fleet under a prefix of its own."""

    def __init__(
        self,
        kafka: str,
        redis_url: str,
        prefix: str,
        directory: Path,
        *,
        roles: str = "",
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = CLI,
    ) -> None:
        """Nothing is started yet. `roles` is the text of a roles file; `program` runs the processes."""
        self._kafka, self._redis, self.prefix, self.directory = kafka, redis_url, prefix, directory
        self._program = tuple(program)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "roles.toml").write_text(roles)
        own = {
            "CONVOY_KAFKA": kafka,
            "CONVOY_KAFKA_OPTIONS": json.dumps({"session.timeout.ms": SESSION_MS}),
            "CONVOY_REDIS": redis_url,
            "CONVOY_PREFIX": prefix,
            "CONVOY_PARTITIONS": str(PARTITIONS),
            "CONVOY_ROLES": str(directory / "roles.toml"),
            "CONVOY_DATA": str(directory / "data"),
            "CONVOY_CACHE": str(directory / "cache"),
        }
        inherited = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
        self.environment = {**inherited, **own, **(environment or {})}
        self.members: dict[str, Member] = {}
        self._admin = self._new_admin()
        self._commands: list[subprocess.Popen[bytes]] = []

    def _new_admin(self) -> AdminClient:
        """One that is connected: see `BrokerAdmin`."""
        admin = AdminClient(admin_settings({"bootstrap.servers": self._kafka}))
        admin.list_topics(timeout=10)
        return admin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members.values():
            if member.runs:
                member.kill()
        for command in self._commands:
            if command.poll() is None:
                command.kill()
                command.communicate()
        topics = [
            name for name in self._admin.list_topics(timeout=10).topics if name.startswith(f"{self.prefix}.")
        ]
        if topics:
            for deleted in self._admin.delete_topics(topics).values():
                deleted.result(timeout=10)

    # Processes ------------------------------------------------------------------------------------

    def launch(self, *names: str, **environment: str) -> None:
        """Start processes by name (one of `CORE`, a role, or a role with `/N` for one more of it). Those
        that ran before are started again, as they were."""
        for name in names:
            if name not in self.members:
                self.members[name] = self._member(name, environment)
            self.members[name].start()

    def start(self, *names: str, **environment: str) -> None:
        """The same, and wait until each of them is healthy."""
        self.launch(*names, **environment)
        for name in names:
            self.members[name].wait_ready()

    def _member(self, name: str, environment: Mapping[str, str]) -> Member:
        role, _, number = name.partition("/")
        what = (role,) if role in FOLDS else ("worker", role)
        options = ("--instance", f"test-{number or 0}", "--metrics-port", "0", "--supervised")
        log = self.directory / f"{name.replace('/', '-')}.log"
        return Member(name, (*self._program, *what, *options), {**self.environment, **environment}, log)

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def shares(self, kind: str) -> dict[str, frozenset[int]]:
        """Which partitions each of the processes of a kind (a role, or one of `FOLDS`) has, by name;
        empty while their group is not at rest."""
        group = Topics(self.prefix, PARTITIONS).group(_GROUPS.get(kind, f"worker.{kind}"))
        try:
            found = self._admin.describe_consumer_groups([group], request_timeout=10)[group].result()
        except KafkaException:
            # There is no group yet, or its coordinator is moving. This client is not asked again.
            self._admin = self._new_admin()
            return {}
        names = {f"test-{number}": f"{kind}/{number}" if number else kind for number in range(10)}
        shares = {
            names[member.client_id]: frozenset(at.partition for at in member.assignment.topic_partitions)
            for member in found.members
        }
        at_rest = found.state is ConsumerGroupState.STABLE and len(shares) == len(found.members)
        return shares if at_rest else {}

    # Commands -------------------------------------------------------------------------------------

    def begin(self, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
        """A `convoy` command that runs by the side, for as long as the fleet does."""
        command = subprocess.Popen(
            (*CLI, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.directory,
            env={**self.environment, **environment},
        )
        self._commands.append(command)
        return command

    def end(self, command: "subprocess.Popen[bytes]") -> Done:
        """Wait for a command that was begun."""
        try:
            out, err = command.communicate(timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            command.kill()
            out, err = command.communicate()
            raise AssertionError(f"{command.args!r} hangs:\n{out.decode()}\n{err.decode()}") from None
        return Done(command.returncode, out.decode(), err.decode())

    def convoy(self, *arguments: str, **environment: str) -> Done:
        """Run a `convoy` command to its end."""
        return self.end(self.begin(*arguments, **environment))

    def together(self, *commands: Sequence[str]) -> list[Done]:
        """Run commands, a few at a time; what they said, in the same order."""
        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            return list(pool.map(lambda arguments: self.convoy(*arguments), commands))

    def job_file(self, job: Mapping[str, object] | str, name: str = "job.yaml") -> str:
        """Write a job file; answers its path."""
        path = self.directory / name
        path.write_text(job if isinstance(job, str) else yaml.safe_dump(dict(job)))
        return str(path)

    def run_job(self, job: Mapping[str, object] | str) -> Any:
        """Run a job through the command line to its end, however it ends; the job as JSON."""
        return self.convoy("run", self.job_file(job), "-o", "json").json()

    def submit(self, job: Mapping[str, object] | str) -> str:
        """Submit a job through the command line; answers its id."""
        return self.convoy("submit", self.job_file(job)).good().out.strip()

    # What a client library sees -------------------------------------------------------------------

    def ask(self, work: Callable[[parts.Fleet], Awaitable[T]]) -> T:
        """Do something with a connection to the fleet, within this process."""
        names = ("KAFKA", "REDIS", "PREFIX", "PARTITIONS", "ROLES", "DATA", "CACHE")
        settings = load_settings(**{name.lower(): self.environment[f"CONVOY_{name}"] for name in names})

        async def connected() -> T:
            async with connect(settings, self.environment) as fleet:
                return await work(fleet)

        return asyncio.run(connected())

    def job(self, job_id: str) -> JobState | None:
        """A job as the projection knows it."""
        return self.ask(lambda fleet: fleet.projection().job(job_id))

    def wait_job(self, job_id: str, is_so: Callable[[JobState], bool], what: str) -> JobState:
        """Wait until a job is so."""

        async def look(fleet: parts.Fleet) -> JobState:
            deadline = time.monotonic() + JOB_SECONDS
            while True:
                job = await fleet.projection().job(job_id)
                if job is not None and is_so(job):
                    return job
                assert time.monotonic() < deadline, f"{what}: {job}\n{self.logs()}"
                await asyncio.sleep(0.1)

        return self.ask(look)

    def ended(self, job_id: str) -> JobState:
        """Wait for the end of a job."""
        return self.wait_job(job_id, lambda job: job.ended, "the job ends")

    def events(self, workspace: str, path: str) -> list[Event]:
        """Every event of a file on the log, in order."""

        async def read(fleet: parts.Fleet) -> list[Event]:
            reader = fleet.bus.reader()
            log = LogReader(reader, fleet.codec, fleet.topics)
            try:
                return [event async for _, event in log.file_events(workspace, path)]
            finally:
                await reader.close()

        return self.ask(read)

    def facts(self, job_id: str) -> list[JobFact]:
        """Every fact about a job on the log, in order."""

        async def read(fleet: parts.Fleet) -> list[JobFact]:
            reader = fleet.bus.reader()
            log = LogReader(reader, fleet.codec, fleet.topics)
            try:
                return [fact async for _, fact in log.job_facts(job_id)]
            finally:
                await reader.close()

        return self.ask(read)

    def audit(self, job_id: str = "") -> Report:
        """The audit's report on everything, or on one job."""

        async def look(fleet: parts.Fleet) -> Report:
            sources = Sources(
                bus=fleet.bus,
                codec=fleet.codec,
                topics=fleet.topics,
                files=fleet.store(FILES),
                jobs=fleet.store(JOBS),
                detector=fleet.store(DETECTOR),
                cache=fleet.cache,
                wait_seconds=READY_SECONDS,
            )
            return await audit(sources, job_id)

        return self.ask(look)

    def logs(self) -> str:
        """The end of every process's log, for the message of a failure."""
        return "\n".join(f"--- {name}\n{member.log()[-LOG_TAIL:]}" for name, member in self.members.items())
