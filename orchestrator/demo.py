"""Reads a package from the index, writes .convoy/demo: `make demo`, a whole fleet on a real job, checked.

The fleet is that of `convoy up`, the job goes through the log like any other, and what is printed at
the end comes from `convoy audit`, which believes nobody. It fails unless the agents really collided.
"""

import asyncio
import os
import shutil
import signal
import sys
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from codeconvoy.orchestrator.audit import audit
from codeconvoy.orchestrator.audit_report import Report
from codeconvoy.orchestrator.cli import INTERRUPTED, job_view, report, report_bug, set_up_output
from codeconvoy.orchestrator.cli.audit import show, sources_of
from codeconvoy.orchestrator.cli.common import plain, stdout
from codeconvoy.orchestrator.cli.jobs import follow
from codeconvoy.orchestrator.cli.up import FORCES, BrokerChoice
from codeconvoy.orchestrator.connection import Connection, connect, roles_of
from codeconvoy.orchestrator.demo_repository import download, make_repository, uncompilable
from codeconvoy.orchestrator.fleet import Fleet, now_ms
from codeconvoy.orchestrator.local_fleet import (
    bring_up,
    child_environment,
    fleet_services,
    only_here,
    settings_at,
    terminating,
)
from codeconvoy.orchestrator.settings import Settings, load_settings
from codeconvoy.orchestrator.submit import Preview, preview, submit
from codeconvoy.orchestrator.supervisor import Child, Service, State, Supervisor
from codeconvoy.schemas.errors import ConvoyError, Unavailable
from codeconvoy.schemas.job_facts import JobStatus
from codeconvoy.schemas.job_state import JobState, TaskStatus

HERE = Path(__file__).resolve().parent.parent / "demo"
"""In a checkout of the project."""
PREFIX = "convoy-demo"
"""Topics of its own: on a Kafka that others use, too, the demo touches nobody's work."""
UP_SECONDS = 90.0
"""What the processes may take to be up."""
LINE_SECONDS = 5.0
"""Between two lines of progress where there is no terminal."""
LEAST_FILES, LEAST_FORKS, LEAST_OVERLAPPING = 5, 20, 10
"""That each role changed; forks; conflicts with overlapping lines: or it has shown nothing."""


def demo(
    broker: Annotated[BrokerChoice, typer.Option(help="As for `convoy up`.")] = BrokerChoice.AUTO,
) -> None:
    """Modernise docutils 0.16 with a fleet of rule-based agents that edit the same files at once."""
    console = stdout()
    home = load_settings().data / "demo"
    settings = load_settings(data=home / "fleet", prefix=PREFIX)
    with terminating(), ExitStack() as stack:
        stack.enter_context(only_here(home))
        console.print("Getting docutils 0.16 (pinned, hash-checked) and making it a git repository …")
        job = _prepare(home)
        connection = bring_up(settings, FORCES[broker], partial(console.print, soft_wrap=True), stack)
        looked = preview(job, roles_of(settings), settings.cache)
        roles = {role for stage in _stages(looked) for role in stage}
        services = fleet_services(settings.data.resolve(), roles_of(settings), sorted(roles), 1)
        done = asyncio.run(_run(settings, connection, services, looked, console))
    raise typer.Exit(done)


def _prepare(home: Path) -> Path:
    """A fresh repository and no log of an earlier demo; answers the job file beside the repository."""
    wheel = download(HERE / "requirements.txt", home / "downloads")
    for old in ("fleet", "docutils"):
        shutil.rmtree(home / old, ignore_errors=True)
    make_repository(wheel, home / "docutils")
    return Path(shutil.copy(HERE / "job.yaml", home / "job.yaml"))


def _stages(looked: Preview) -> tuple[tuple[str, ...], ...]:
    pipeline = looked.spec.pipeline
    return pipeline.generate, pipeline.review, pipeline.test


async def _run(
    settings: Settings,
    connection: Connection,
    services: Sequence[Service],
    looked: Preview,
    console: Console,
) -> int:
    """The fleet and, once it is up, the job; the fleet is drained whatever happens. Answers an exit code."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def end() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end)
    supervisor = Supervisor(
        services, child_environment(settings, connection), changed=partial(_tell, console)
    )
    async with connect(settings_at(settings, connection), os.environ) as fleet:
        await fleet.prepare()
        keeping = asyncio.create_task(supervisor.run(stop, hurry))
        working = asyncio.create_task(_work(fleet, supervisor.children, looked, console))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({keeping, working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            console.print("Stopping the fleet …")
            stop.set()
            await keeping
        stopping.cancel()
        return INTERRUPTED if working.cancelled() or not working.done() else working.result()


def _tell(console: Console, child: Child) -> None:
    """Say so when a process ended by itself."""
    if child.state in (State.WAITING, State.CRASH_LOOP):
        console.print(f"{child.service.name}: {child.state}, {plain(child.said)}", soft_wrap=True)


async def _work(fleet: Fleet, children: Sequence[Child], looked: Preview, console: Console) -> int:
    """Submit the job, follow it, audit it, judge it."""
    began = time.monotonic()
    console.print(
        f"Starting {len(children)} processes: {', '.join(child.service.name for child in children)}"
    )
    await _wait_until_up(children)
    console.print(f"They are up after {time.monotonic() - began:.0f} s.")
    # Workspaces outlive jobs: on a Kafka that is kept, a second demo must not go on from the first.
    spec = msgspec.structs.replace(looked.spec, workspace=f"demo-{uuid.uuid4().hex[:12]}")
    job_id = await submit(fleet, spec, "make demo")
    console.print(f"Job {job_id}: {len(looked.files)} files, {len(looked.tasks)} tasks to begin with")
    job = await _follow(fleet, job_id, console)
    for name, value in job_view.summary(job, now_ms()):
        console.print(f"{name:<10}{value}", soft_wrap=True)
    changed = ", ".join(f"{role} {count} files" for role, count in sorted(files_changed(job).items()))
    console.print(f"{'changed':<10}{changed}", soft_wrap=True)
    console.print("\nAudit: the whole log is folded anew and compared with projection, job log and branch")
    audited = await audit(sources_of(fleet), job_id)
    show(audited)
    missing = list(_missing(job, audited))
    console.print()
    for line in missing:
        console.print(f"NOT AS IT SHOULD BE: {plain(line)}", soft_wrap=True)
    if not missing:
        console.print("All is as it should be: the agents collided, and nobody's work was lost.")
    return 1 if missing else 0


async def _wait_until_up(children: Sequence[Child]) -> None:
    clock = asyncio.get_running_loop().time
    deadline = clock() + UP_SECONDS
    while late := [child for child in children if child.state is not State.RUNNING]:
        if clock() > deadline:
            names = ", ".join(f"{child.service.name} ({child.state})" for child in late)
            raise Unavailable(
                "fleet", f"not up after {UP_SECONDS:.0f} s: {names}", f"See {late[0].service.log}"
            )
        await asyncio.sleep(0.1)


async def _follow(fleet: Fleet, job_id: str, console: Console) -> JobState:
    """Show the job until it has ended: a live view on a terminal, else a line now and then."""
    live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    said = 0.0

    def look(before: JobState | None, job: JobState) -> None:
        nonlocal said
        if live is not None:
            live.update(job_view.progress(job, now_ms(), ()), refresh=True)
        elif time.monotonic() - said >= LINE_SECONDS:
            said = time.monotonic()
            stages = ", ".join(f"{stage} {count}" for stage, count in job_view.unit_counts(job).items())
            console.print(f"  {job_view.status_line(job, now_ms())} ({stages})", soft_wrap=True)

    with live or nullcontext():
        return await follow(fleet.projection(), job_id, look, every_look=True)


def _missing(job: JobState, audited: Report) -> Iterator[str]:
    """What the demo should have shown and did not."""
    if job.spec is None or job.published is None or job.status is not JobStatus.SUCCEEDED:
        yield f"the job ended as {job.status}: {job.reason}"
    if not audited.clean:
        yield f"the audit found {audited.findings.by_check.total()} differences"
    if audited.counts.forks < LEAST_FORKS:
        yield f"{audited.counts.forks} forks, not {LEAST_FORKS}"
    if audited.counts.overlapping < LEAST_OVERLAPPING:
        yield f"{audited.counts.overlapping} conflicts with overlapping lines, not {LEAST_OVERLAPPING}"
    if job.spec is None or job.published is None:
        return
    changed = files_changed(job)
    for role in job.spec.pipeline.generate:
        if changed[role] < LEAST_FILES:
            yield f"{role} changed {changed[role]} files, not {LEAST_FILES}"
    with warnings.catch_warnings():
        # Old code is full of them, and they are no errors.
        warnings.simplefilter("ignore", SyntaxWarning)
        yield from uncompilable(Path(job.spec.repository), job.published.commit)


def files_changed(job: JobState) -> Counter[str]:
    """How many files each role changed, by edits that count."""
    pairs = {
        (state.task.role, emitted.path)
        for state in job.tasks.values()
        if state.status is TaskStatus.DONE
        for emitted in state.events
        if emitted.is_edit
    }
    return Counter(role for role, _ in pairs)


def main() -> None:
    """Run the demo. Errors that are expected become a message and an exit code."""
    set_up_output()
    try:
        typer.run(demo)
    except ConvoyError as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        raise SystemExit(report_bug(error)) from error


if __name__ == "__main__":
    main()
