"""Reads and writes everything that a fleet does: W1b, how many tasks a second the whole fleet does.

Every process is the command that a user runs (`convoy orchestrator`, …), one of each kind; only the model
behind the roles is a stub that answers at once. A job works on 200 files of a real repository: three edits
of each file by the generator, one after the other, a review of what came of them, and the tester, who finds
nothing to write (running tests would measure the sandbox). With the import and the branch that it ends with
that is a job of 1,000 tasks and two of git. The clock starts with the first submission and stops when the
last job has ended; then an audit must find that nothing was lost, doubled or out of order. Fleet and loop
by hand take turns: the machine may be another one a minute later.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from codeconvoy.orchestrator import fleet as parts
from codeconvoy.orchestrator.submit import submit
from codeconvoy.schemas.job_facts import JobStatus
from codeconvoy.schemas.job_spec import JobSpec, Pipeline, TaskSpec
from codeconvoy.schemas.job_state import JobState, TaskStatus
from codeconvoy.workers.projection import Projection
from tests.bench import w1_pipeline
from tests.bench.events import content_at, path_of
from tests.bench.figures import Figure, Wrong
from tests.bench.fleet_parts import commands
from tests.bench.ground import Ground, cpu_seconds, server_cpu
from tests.bench.stub_agents import roles_file
from tests.bench.w1_pipeline import ROUNDS, Measured
from tests.fleets import Fleet, unique_prefix
from tests.git_repos import repository

JOB_COUNT, FILES, EDITS = 20, 200, 3
ROLES = ("generator", "reviewer", "tester")
PROCESSES = ("orchestrator", "projector", "detector", "git", *ROLES)
CONCURRENCY = 1_000
SECONDS = 1_800.0
PAUSE = 0.1
TELL_SECONDS = 5.0


def measure(ground: Ground) -> Iterator[Figure]:
    """The figures of W1b.

    Raises:
        Wrong: a job did not succeed, or the audit found a difference.
    """
    jobs, files = ground.count(JOB_COUNT, 2), max(10, round(FILES * min(1.0, ground.scale * 2)))
    by_hand: list[float] = []
    found: list[Measured] = []
    for number in range(ROUNDS):
        by_hand.append(w1_pipeline.by_hand(ground))
        found.append(_fleet(ground, jobs, files))
        ground.say(
            f"W1b round {number + 1}: {found[-1].rate:,.0f} tasks/s, by hand {by_hand[-1]:,.0f} tasks/s"
        )
    how = (
        f"{jobs} jobs of {files * (EDITS + 2):,} tasks on {files} files, {len(PROCESSES)} processes, "
        f"{CONCURRENCY} slots a role; audits clean; by hand: W1a's loop, three processes; median of {ROUNDS}"
    )
    rate = median(one.rate for one in found)
    yield Figure("W1b whole fleet", rate, "tasks/s", "by hand", median(by_hand), 0.1, how=how)
    for name in found[0].cpu:
        yield Figure(f"W1b CPU {name}", 1e3 * median(one.cpu[name] for one in found), "ms/task")


def _fleet(ground: Ground, jobs: int, files: int) -> Measured:
    """A fleet of its own, once."""
    with commands(ground, unique_prefix(), roles_file(CONCURRENCY)) as started:
        contents = {path_of(file): content_at(0) for file in range(files)}
        work_tree = repository(started.directory / "repository", contents)
        started.start(*PROCESSES)
        _run(ground, started, [_job(work_tree, "warm-up", 2)])
        before = _cpu(ground, started)
        specs = [_job(work_tree, f"job-{number}", files) for number in range(jobs)]
        states, elapsed = _run(ground, started, specs)
        used = {name: seconds - before[name] for name, seconds in _cpu(ground, started).items()}
        done = _count(states)
        ground.say(f"W1b: {done:,} tasks in {elapsed:.1f} s; the audit begins")
        report = started.audit()
        if not report.clean:
            raise Wrong(f"the audit found {report.findings.kept[:3]}")
    return Measured(done / elapsed, {name: seconds / done for name, seconds in used.items()})


def _job(work_tree: Path, workspace: str, files: int) -> JobSpec:
    return JobSpec(
        repository=str(work_tree),
        workspace=workspace,
        branch=f"bench/{workspace}",
        goal="Note who was here",
        tasks=tuple(TaskSpec(role="generator", path=path_of(file)) for file in range(files)) * EDITS,
        pipeline=Pipeline(generate=("generator",), review=("reviewer",), test=("tester",)),
    )


def _run(ground: Ground, started: Fleet, specs: Sequence[JobSpec]) -> tuple[list[JobState], float]:
    """Submit jobs all at once, wait for their ends, and see that they succeeded. How they ended, and after
    how many seconds the last one had."""

    async def run(connected: parts.Fleet) -> tuple[list[JobState | None], float]:
        projection = connected.projection()
        began = time.monotonic()
        job_ids = await asyncio.gather(*(submit(connected, spec, "bench") for spec in specs))
        await _ended(ground, started, projection, job_ids)
        elapsed = time.monotonic() - began
        return [await projection.job(job_id) for job_id in job_ids], elapsed

    states, elapsed = started.ask(run)
    for state in states:
        if state is None or state.status is not JobStatus.SUCCEEDED:
            raise Wrong(f"a job ended as {state and (state.status, state.reason)}\n{started.logs()}")
    return [state for state in states if state is not None], elapsed


async def _ended(ground: Ground, started: Fleet, projection: Projection, job_ids: Sequence[str]) -> None:
    """Wait for the ends of the jobs, one after the other, so that looking costs next to nothing. Their
    status alone is looked at: a whole job is large."""
    left = list(job_ids)
    began = told = time.monotonic()
    while left:
        standing = await projection.standing(left[0], "")
        if standing is not None and standing.job.ended:
            del left[0]
            continue
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            ground.say(f"W1b: tasks done {_progress(started)}")
        if time.monotonic() - began > SECONDS:
            raise RuntimeError(f"{len(left)} jobs did not end within {SECONDS:.0f} s\n{started.logs()}")
        await asyncio.sleep(PAUSE)


def _progress(started: Fleet) -> str:
    return ", ".join(f"{role} {started[role].metric('convoy_records_total'):,.0f}" for role in ROLES)


def _count(states: Sequence[JobState]) -> int:
    """The tasks of roles that were done (git's are left out), each round of each of them."""
    return sum(
        state.task.round
        for job in states
        for state in job.tasks.values()
        if state.task.role in ROLES and state.status is TaskStatus.DONE
    )


def _cpu(ground: Ground, started: Fleet) -> Mapping[str, float]:
    """Seconds of CPU of each process so far, and of the servers."""
    used = {name: cpu_seconds([member.pid]) for name, member in started.members.items()}
    return used | server_cpu(ground)
