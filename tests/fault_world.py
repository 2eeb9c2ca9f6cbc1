"""Starts and kills real processes, a Kafka and a Redis of its own: what the tests of faults share.

Whatever happened, the same is asked in the end (`wait_end`, `check`): the job has succeeded, every file
is signed by everyone who should have, the audit finds nothing lost, doubled or out of order, no event
is on the log twice, and a call was repeated only where its worker crashed before the commit.
"""

import json
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP

import psutil
from confluent_kafka import Consumer, TopicPartition

from codeconvoy.orchestrator.services import LocalKafka, LocalRedis, embedded_redis_binary, kafka_jars
from codeconvoy.orchestrator.submit import submit
from codeconvoy.schemas.job_facts import JobStatus
from codeconvoy.schemas.job_spec import JobSpec, Pipeline, TaskSpec
from codeconvoy.schemas.topics import Topics, file_key, partition_of
from codeconvoy.workers.engine.kafka_client import reader_settings
from tests.fault_ledger import Ledger, by_round, wrong
from tests.fault_process import Sprung, Traps
from tests.fault_process import __file__ as launcher
from tests.fleets import CORE, PARTITIONS, Fleet, unique_prefix, until
from tests.gated_agent import Gates
from tests.gated_agent import __file__ as agent
from tests.git_repos import repository, tree_of
from tests.services import jar_cache

ROLES = ("scribe", "clerk", "editor", "writer")
KEEPER = "keeper"
"""One more role: nothing happens to its worker, and a job goes on for as long as it is held back."""
HUBS = tuple(name for name in CORE if name != "runner")
"""The processes besides the workers of roles; no test file is run here."""
SLOTS = 2
CALL_SECONDS = 0.5
QUIET_SECONDS = 1.5
"""Folds look once a second whether there is something to commit."""
INIT = 1
"""The process id of who adopts the agents of a dead worker."""
CONTENT = '"""A module."""\n'
BROKER = {"group.min.session.timeout.ms": "1000"}
QUICK = {
    "session.timeout.ms": 4_500,
    "heartbeat.interval.ms": 500,
    "max.poll.interval.ms": 10_000,
    "transaction.timeout.ms": 5_000,
}
"""So that a crash costs a test five seconds. A worker trusts in four seconds of silence: no less."""

Tasks = Mapping[str, Sequence[str]]
"""The files that each role is to sign."""


def partition(workspace: str, path: str) -> int:
    """Where the tasks and the events of a file are."""
    return partition_of(file_key(workspace, path), PARTITIONS)


def paths_of(workspace: str, stem: str, each: int) -> tuple[str, ...]:
    """Paths of which every partition has so many: whoever has a partition has work."""
    found: dict[int, list[str]] = {number: [] for number in range(PARTITIONS)}
    number = 0
    while min(map(len, found.values())) < each:
        path = f"{stem}{number}.py"
        found[partition(workspace, path)].append(path)
        number += 1
    return tuple(sorted(path for paths in found.values() for path in paths[:each]))


def paths_in(tasks: Tasks) -> frozenset[str]:
    """The files that anybody is to sign."""
    return frozenset(path for paths in tasks.values() for path in paths)


@dataclass
class World:
    """A fleet, what holds its agents back, what ends its processes, and what they rest on."""

    fleet: Fleet
    gates: Gates
    traps: Traps
    kafka: LocalKafka
    redis: LocalRedis
    ledger: Ledger
    crashed: set[int] = field(default_factory=lambda: {INIT})
    """Process ids of workers that were killed or stopped, or whose broker was."""
    names: dict[int, str] = field(default_factory=dict)

    # Processes ------------------------------------------------------------------------------------

    def launch(self, *names: str, **environment: str) -> None:
        """Start processes."""
        self.fleet.launch(*names, **environment)
        self.names |= {self.fleet[name].pid: name for name in names}

    def start(self, *names: str, **environment: str) -> None:
        """Start processes, and wait until they are healthy."""
        self.launch(*names, **environment)
        for name in names:
            self.fleet[name].wait_ready()

    def have(self, *names: str) -> None:
        """See that just these processes run, and that each worker has its share of the queue."""
        for name in self.running() - set(names):
            self.fleet[name].terminate()
        self.start(*(name for name in names if name not in self.running()))
        for role in {name.partition("/")[0] for name in names} - set(HUBS):
            self.wait_shared(role)

    def running(self) -> set[str]:
        """The names of the processes that are there."""
        return {name for name, member in self.fleet.members.items() if member.runs}

    def wait_shared(self, kind: str) -> Mapping[str, frozenset[int]]:
        """Wait until all processes of the kind that run have an equal share of its partitions; answers
        who has which."""
        names = {name for name in self.running() if name.partition("/")[0] == kind}
        share = PARTITIONS // len(names)

        def fair() -> Mapping[str, frozenset[int]] | None:
            shares = self.fleet.shares(kind)
            equal = shares.keys() == names and all(len(one) == share for one in shares.values())
            return shares if equal else None

        return until(fair, f"{sorted(names)} have {share} partitions each")

    def wait_taken_over(self, name: str, zombie: str) -> None:
        """Wait until this process has all partitions of its kind, and has begun anew a task that the zombie
        had begun."""
        pids = {self.fleet[name].pid, self.fleet[zombie].pid}

        def taken_over() -> bool:
            shares = self.fleet.shares(name.partition("/")[0])
            alone = shares.keys() == {name} and len(shares[name]) == PARTITIONS
            rounds = by_round(self.gates.calls()).values()
            return alone and any({call.worker for call in calls} >= pids for calls in rounds)

        until(taken_over, lambda: f"{name} has taken over\n{self._told()}")

    def calm(self) -> None:
        """No trap, nobody who is stopped or held back, and nothing of an earlier test."""
        self.traps.clear()
        self.crashed = {INIT}
        for name in self.running():
            self.resume(name)
        for file in self.gates.directory.iterdir():
            file.unlink()

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self.crashed.add(self.fleet[name].pid)
        self.fleet[name].kill()

    def stop(self, name: str) -> None:
        """SIGSTOP."""
        self.crashed.add(self.fleet[name].pid)
        self.fleet[name].signal(SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self.fleet[name].signal(SIGCONT)

    def sprung(self) -> list[Sprung]:
        """Who has run into a trap, and is dead if it was to die."""
        found = self.traps.sprung()
        self.crashed |= {one.pid for one in found}
        running = {self.fleet[name].pid for name in self.running()}
        return [one for one in found if one.signal is not SIGKILL or one.pid not in running]

    def wait_sprung(self, *names: str, supervised: bool = False) -> None:
        """Wait until these processes have run into their traps. Where they are supervised, those that
        died of it are started again at once: the others may need them."""

        def all_sprung() -> bool:
            found = {one.name for one in self.sprung()}
            if supervised:
                self.start(*(found & set(names) - self.running()))
            return found >= set(names)

        until(all_sprung, lambda: f"{names} are in their traps\n{self._told()}")

    # Services ---------------------------------------------------------------------------------------

    def kill_services(self, *names: str) -> None:
        """SIGKILL of the broker, in a quiet moment, or of Redis. Without the broker a worker may lose its
        place in its group. In any other moment the broker may lose markers, see `kafka_hanging`."""
        if "kafka" in names:
            self.wait_quiet()
            self.crashed |= {self.fleet[name].pid for name in self.running()}
            self.kafka.kill()
        if "redis" in names:
            self.redis.kill()

    def start_services(self, *names: str) -> None:
        """Start them again; what Redis held is lost."""
        if "kafka" in names:
            self.kafka.start()
        if "redis" in names:
            self.redis.start()

    def wait_quiet(self) -> None:
        """Wait until nobody commits anything any more, and all that was committed is marked so on the
        log."""
        seen, since = -1.0, time.monotonic()

        def quiet() -> bool:
            nonlocal seen, since
            now = sum(self.fleet[name].metric("convoy_transactions_total") for name in self.running())
            if now != seen:
                seen, since = now, time.monotonic()
            return time.monotonic() - since > QUIET_SECONDS

        until(quiet, "nobody commits anything")
        until(self._all_stable, "every transaction is marked")

    def _all_stable(self) -> bool:
        """Whether every partition is stable up to its end."""
        given = {"bootstrap.servers": self.kafka.bootstrap}
        readers = [Consumer(reader_settings(given, f"read_{how}")) for how in ("committed", "uncommitted")]
        found = [
            [
                reader.get_watermark_offsets(TopicPartition(name, number), timeout=10)
                for name, topic in sorted(reader.list_topics(timeout=10).topics.items())
                for number in topic.partitions
            ]
            for reader in readers
        ]
        for reader in readers:
            reader.close()
        return found[0] == found[1]

    # Jobs -----------------------------------------------------------------------------------------

    def submit(self, repo: Path, tasks: Tasks) -> str:
        """A job in which roles sign the last line of these files, all from the same version."""
        repository(repo, {path: CONTENT.encode() for path in paths_in(tasks)})
        spec = JobSpec(
            repository=str(repo),
            workspace=repo.parent.name,
            goal="sign them",
            tasks=tuple(TaskSpec(role=role, path=path) for role, paths in tasks.items() for path in paths),
            together=True,
            pipeline=Pipeline(generate=(), review=(), test=()),
        )
        return self.fleet.ask(lambda parts: submit(parts, spec, "tests"))

    def agents(self) -> list[psutil.Process]:
        """The programs that are at work on a task."""
        gates = str(self.gates.directory)
        return [one for one in psutil.process_iter(["cmdline"]) if gates in (one.info["cmdline"] or ())]

    def wait_begun(self, name: str, paths: Collection[str], count: int, seconds: float) -> None:
        """Wait until a process of this name has begun so many of its tasks on these files."""

        def begun() -> bool:
            calls = [call for call in self.gates.calls() if self.names.get(call.worker) == name]
            return len({call.path for call in calls} & set(paths)) >= count

        until(begun, f"{name} has begun {count} of {sorted(paths)}", seconds)

    def wait_called(self, role: str, count: int) -> None:
        """Wait until the role has begun so many tasks."""
        until(lambda: len(self.gates.begun(role)) >= count, f"{role} has begun {count} tasks")

    def wait_done(self, role: str, paths: Collection[str]) -> None:
        """Wait until the role's word on each of these files is committed."""

        def done() -> bool:
            words = self.ledger.words()
            called = [call for call in self.gates.calls() if call.role == role]
            return set(paths) <= {call.path for call in called if (call.task_id, call.round) in words}

        until(done, f"{role} has done {len(paths)} tasks")

    def wait_end(self, job_id: str, repo: Path, tasks: Tasks) -> None:
        """Wait for the end of the job, and see that it succeeded and everybody signed."""
        job = self.fleet.ended(job_id)
        assert job.status is JobStatus.SUCCEEDED, f"{job.reason}\n{self.fleet.logs()}"
        tree = tree_of(repo, f"convoy/{job_id}")
        for path in paths_in(tasks):
            signed = [f"# seen by {role}" for role, paths in tasks.items() if path in paths]
            lines = tree[path][1].decode().splitlines()
            assert sorted(lines[1:]) == sorted(signed), (path, lines)

    def check(self) -> None:
        """See that nothing is lost, doubled or out of order, and no call was made in vain."""
        report = self.fleet.audit()
        assert report.clean, report.as_json()
        assert report.counts.dead_letters == report.counts.redelivered == 0, report.as_json()
        problems = wrong(self.gates.calls(), self.ledger.words(), self.crashed, self._agent)
        assert not problems, "\n".join(problems)

    def check_repeated(self, roles: Collection[str]) -> None:
        """See that each of these roles was called more than once for some round of a task."""
        made = by_round(self.gates.calls())
        once = set(roles) - {calls[0].role for calls in made.values() if len(calls) > 1}
        assert not once, f"no call of {sorted(once)} was repeated\n{self._told()}"

    def _told(self) -> str:
        """What happened, for the message of a failure."""
        words = self.ledger.words()
        calls = [
            f"{self.names[call.worker]}: {call}, {words.get((call.task_id, call.round))}"
            for call in self.gates.calls()
        ]
        return "\n".join((*calls, *map(str, self.traps.sprung()), self.fleet.logs()))

    def _agent(self, worker: int) -> str:
        role, _, number = self.names[worker].partition("/")
        return f"{role}/test-{number or 0}"


def roles_file(gates: Gates) -> str:
    """Roles whose agent is a program of the tests."""
    lines = []
    for role in (*ROLES, KEEPER):
        argv = [sys.executable, "-I", "-S", agent, str(gates.directory), role, "sign", str(CALL_SECONDS)]
        options = f"options = {{argv = {json.dumps(argv)}}}"
        lines += [f"[roles.{role}]", 'kind = "edit"', 'provider = "command"', options]
        lines += [f"concurrency = {SLOTS}"]
    return "\n".join(lines)


@contextmanager
def _services(directory: Path) -> Iterator[tuple[LocalKafka, LocalRedis]]:
    """A Kafka and a Redis that may be killed."""
    binary = shutil.which("redis-server") or embedded_redis_binary()
    assert binary, "install redis-server"
    kafka = LocalKafka(kafka_jars(jar_cache()), directory / "kafka", BROKER)
    redis = LocalRedis(binary, directory / "redis")
    kafka.start()
    try:
        redis.start()
        yield kafka, redis
    finally:
        redis.stop()
        kafka.kill()


@contextmanager
def world(directory: Path, options: Mapping[str, object]) -> Iterator[World]:
    """A fleet whose clients have these librdkafka options; all but the workers of roles run."""
    gates, traps, prefix = Gates(directory / "gates"), Traps(directory / "traps"), unique_prefix()
    with (
        _services(directory) as (kafka, redis),
        Fleet(
            kafka.bootstrap,
            redis.url,
            prefix,
            directory / "fleet",
            roles=roles_file(gates),
            environment={"CONVOY_KAFKA_OPTIONS": json.dumps(options)},
            program=(sys.executable, launcher, str(traps.directory)),
        ) as fleet,
    ):
        fleet.start(*HUBS)
        with Ledger(kafka.bootstrap, Topics(prefix, PARTITIONS)) as ledger:
            yield World(fleet, gates, traps, kafka, redis, ledger)
