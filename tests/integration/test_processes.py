"""Processes of a fleet that drain, and that are killed in the middle of a job: it ends all the same, and
the audit finds nothing. They share one fleet with a Redis of its own, which is killed as well.
"""

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from codeconvoy.orchestrator.services import LocalRedis, embedded_redis_binary
from codeconvoy.schemas.events import CodeModified
from codeconvoy.schemas.job_facts import JobStatus, TaskDone
from tests.fleets import CORE, FOLDS, Fleet, unique_prefix, until
from tests.gated_agent import Gates
from tests.gated_agent import __file__ as program
from tests.git_repos import repository, tree_of

ROLES = ("scribe", "clerk")
PATHS = tuple(f"{name}.py" for name in "abcd")
CONTENT = '"""A module."""\n'


@dataclass(frozen=True)
class Running:
    """A fleet, what holds its agents back, and its Redis."""

    fleet: Fleet
    gates: Gates
    redis: LocalRedis

    def have(self, *names: str) -> None:
        """See that these processes run, and no other worker of their roles."""
        for name, member in self.fleet.members.items():
            if member.runs and "/" in name and name not in names:
                member.terminate()
        members = self.fleet.members
        self.fleet.start(*(name for name in names if name not in members or not members[name].runs))

    def submit(self, repo: Path) -> str:
        """A job in which both roles sign the last line of the same four files."""
        repository(repo, {path: CONTENT.encode() for path in PATHS})
        return self.fleet.submit(
            {
                "repository": str(repo),
                "workspace": repo.parent.name,
                "goal": "sign them",
                "files": ["*.py"],
                "together": True,
                "pipeline": {"generate": list(ROLES), "review": [], "test": []},
            }
        )

    def check_end(self, job_id: str, repo: Path) -> None:
        """The job succeeds, both have signed every file, nothing is lost or doubled."""
        job = self.fleet.ended(job_id)
        assert job.status is JobStatus.SUCCEEDED, f"{job.reason}\n{self.fleet.logs()}"
        tree = tree_of(repo, f"convoy/{job_id}")
        for path in PATHS:
            lines = tree[path][1].decode().splitlines()
            assert sorted(lines[1:]) == sorted(f"# seen by {role}" for role in ROLES), (path, lines)
        report = self.fleet.audit()
        assert report.clean, report.as_json()
        assert report.counts.dead_letters == 0


@pytest.fixture(scope="module")
def shared(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("processes")
    binary = shutil.which("redis-server") or embedded_redis_binary()
    assert binary, "install redis-server"
    redis = LocalRedis(binary, directory / "redis")
    redis.start()
    gates = Gates(directory / "gates")
    lines = []
    for role in ROLES:
        argv = json.dumps([sys.executable, program, str(gates.directory), role, "sign"])
        lines += [f"[roles.{role}]", 'kind = "edit"', 'provider = "command"', f"options = {{argv = {argv}}}"]
    try:
        with Fleet(kafka, redis.url, unique_prefix(), directory, roles="\n".join(lines)) as fleet:
            yield Running(fleet, gates, redis)
    finally:
        redis.stop()


@pytest.fixture
def running(shared: Running) -> Iterator[Running]:
    """With nobody held back, and nothing that was begun by an earlier test."""
    for file in shared.gates.directory.iterdir():
        file.unlink()
    shared.have(*CORE, *ROLES)
    yield shared
    for file in shared.gates.directory.glob("held-*"):
        file.unlink()


def test_every_process_serves_its_health_and_metrics(running: Running) -> None:
    for member in running.fleet.members.values():
        assert member.health() == (200, {"healthy": True, "problems": []})
        assert member.metric("convoy_healthy") == 1
        assert member.metric("convoy_stopped_partitions") == 0
        assert member.metric("convoy_progress_age_seconds") >= 0
        assert member.metric("process_resident_memory_bytes") > 0
    until(lambda: running.fleet["projector"].metric("convoy_rebalances_total"), "it has its partitions")


def test_a_worker_that_is_told_to_stop_drains(running: Running, tmp_path: Path) -> None:
    fleet, gates, repo = running.fleet, running.gates, tmp_path / "repo"
    gates.hold("scribe")
    job_id = running.submit(repo)
    until(lambda: len(gates.begun("scribe")) == len(PATHS), "all files are in the scribe's hands")
    assert fleet["scribe"].terminate(during=lambda: gates.release("scribe")) == 0
    assert "has drained" in fleet["scribe"].log()
    fleet.start("scribe")
    running.check_end(job_id, repo)


def hears(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return any(
        int(line.split()[1], 16) >> (number - 1) & 1
        for line in status.splitlines()
        if line.startswith("SigCgt:")
    )


def test_workers_that_are_told_to_stop_while_they_start_end_at_once(running: Running) -> None:
    members = []
    for name in (f"{ROLES[0]}/{number}" for number in range(2, 8)):
        running.fleet.launch(name)
        member = running.fleet[name]
        until(lambda member=member: hears(member.pid, signal.SIGTERM), f"{name} can be told")  # type: ignore[misc]
        member.signal(signal.SIGTERM)
        members.append(member)
    for member in members:
        assert member.terminate() == 0, member.log()


@pytest.mark.parametrize("name", FOLDS)
def test_the_other_processes_end_at_once_when_they_are_told_to(running: Running, name: str) -> None:
    assert running.fleet[name].terminate() == 0
    assert "has drained" in running.fleet[name].log()


def test_a_worker_killed_in_the_middle_of_its_tasks_has_them_done_elsewhere(
    running: Running, tmp_path: Path
) -> None:
    fleet, gates, repo = running.fleet, running.gates, tmp_path / "repo"
    running.have(*CORE, *ROLES, "scribe/1")
    gates.hold("scribe")
    job_id = running.submit(repo)
    until(lambda: len(gates.begun("scribe")) >= len(PATHS), "all files are in some scribe's hands")
    agents = [found for found in psutil.process_iter(["cmdline"]) if is_agent(found, gates, "scribe")]
    victim = next(member for member in fleet.members.values() if member.pid == agents[0].ppid())
    in_hand = len([agent for agent in agents if agent.ppid() == victim.pid])
    before = len(gates.begun("scribe"))
    victim.kill()
    gates.release("scribe")
    running.check_end(job_id, repo)
    assert not victim.runs
    assert len(gates.begun("scribe")) >= before + in_hand


def is_agent(process: psutil.Process, gates: Gates, role: str) -> bool:
    return [str(gates.directory), role] == (process.info["cmdline"] or [])[2:4]


def test_orchestrator_detector_and_projector_killed_during_a_job(running: Running, tmp_path: Path) -> None:
    fleet, gates, repo = running.fleet, running.gates, tmp_path / "repo"
    for role in ROLES:
        gates.hold(role)
    job_id = running.submit(repo)
    fleet["orchestrator"].kill()
    fleet.start("orchestrator")
    until(lambda: all(len(gates.begun(role)) == len(PATHS) for role in ROLES), "all have begun")
    fleet["detector"].kill()
    fleet["orchestrator"].kill()
    for role in ROLES:
        gates.release(role)
    until(lambda: edits_of(fleet, job_id) == len(ROLES) * len(PATHS), "all edits are on the log")
    fleet["projector"].kill()
    fleet.start(*FOLDS)
    running.check_end(job_id, repo)


def edits_of(fleet: Fleet, job_id: str) -> int:
    """Edits that agents have said they made."""
    words = [fact.payload for fact in fleet.facts(job_id)]
    return sum(isinstance(word, TaskDone) and word.agent_id.startswith(ROLES) for word in words)


def test_a_redis_that_lost_everything_is_filled_from_the_log(running: Running, tmp_path: Path) -> None:
    fleet, gates, repo = running.fleet, running.gates, tmp_path / "repo"
    earlier = {job.job_id for job in fleet.ask(lambda parts: parts.projection().jobs())}
    gates.hold("scribe")
    job_id = running.submit(repo)
    until(lambda: len(gates.begun("scribe")) == len(PATHS), "the scribe has begun")
    until(lambda: clerk_has_written(fleet, repo), "the clerk's edits are on the log")
    running.redis.kill()
    gates.release("scribe")
    running.redis.start()
    running.check_end(job_id, repo)
    # What was there before it died is there again.
    assert {job.job_id for job in fleet.ask(lambda parts: parts.projection().jobs())} == {*earlier, job_id}


def clerk_has_written(fleet: Fleet, repo: Path) -> bool:
    found = [event for path in PATHS for event in fleet.events(repo.parent.name, path)]
    return sum(isinstance(event.payload, CodeModified) for event in found) == len(PATHS)


def test_a_paused_process_goes_on_where_it_stood(running: Running, tmp_path: Path) -> None:
    fleet, gates, repo = running.fleet, running.gates, tmp_path / "repo"
    gates.hold("clerk")
    job_id = running.submit(repo)
    until(lambda: len(gates.begun("clerk")) == len(PATHS), "the clerk has begun")
    fleet["detector"].signal(signal.SIGSTOP)
    gates.release("clerk")
    until(lambda: edits_of(fleet, job_id) == len(ROLES) * len(PATHS), "all edits are on the log")
    fleet["detector"].signal(signal.SIGCONT)
    running.check_end(job_id, repo)
