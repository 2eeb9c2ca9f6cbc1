"""Reads job files and the projection, writes `jobs`: `convoy run | submit | watch | jobs | cancel`."""

import asyncio
import getpass
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from codeconvoy.orchestrator.cli import job_view
from codeconvoy.orchestrator.cli.common import (
    Output,
    OutputOption,
    not_empty,
    plain,
    print_json,
    stderr,
    stdout,
    with_fleet,
)
from codeconvoy.orchestrator.connection import credentials_of, roles_of
from codeconvoy.orchestrator.fleet import Fleet, now_ms
from codeconvoy.orchestrator.job_file import roles_asked
from codeconvoy.orchestrator.settings import load_settings
from codeconvoy.orchestrator.submit import Preview, cancel, preview, submit
from codeconvoy.schemas.errors import BadInput, Unavailable
from codeconvoy.schemas.job_facts import JobStatus
from codeconvoy.schemas.job_state import JobState
from codeconvoy.workers.projection import Projection
from codeconvoy.workers.roles.agents import check_declared

PANEL = "Jobs"
POLL_SECONDS = 0.5
SETTLE_SECONDS = 5.0
"""How long a job may take to be found by its whole id."""
UNHEARD_SECONDS = 30.0
"""How long a job that was just submitted may take to reach the projection."""
QUIET_SECONDS = 60.0
"""Nothing has happened for so long: the user is told where to look."""
LAST_EVENTS = 8
PATHS_SHOWN = 20
ID_LENGTH = 36
"""Of a whole job id."""

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.", show_default=False)]
given_job = not_empty("job", "Give its id, or how it begins: `convoy jobs` lists them")
JobId = Annotated[
    str | None,
    typer.Argument(help="The job's id, or how it begins. Default: the latest job.", callback=given_job),
]


def run(job: JobFile, output: OutputOption = Output.TEXT) -> None:
    """Submit a job and watch it to its end. Exit code 0 if it succeeded, else 1.

    convoy run job.yaml
    """
    looked = _preview(job)

    async def work(fleet: Fleet) -> JobState:
        job_id = await _submit(fleet, looked)
        if output is Output.TEXT:
            _show_submitted(stderr(), looked, job_id)
        with _it_goes_on(job_id):
            return await _watch(fleet.projection(), job_id, output)

    _exit_with(with_fleet(work, prepares=True))


def submit_job(
    job: JobFile,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be planned.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check a job and hand it to the fleet. Prints the job's id.

    convoy submit job.yaml --dry-run

    JOB=$(convoy submit job.yaml) && convoy watch $JOB
    """
    looked = _preview(job)
    if dry_run:
        _show_preview(looked, output)
        return
    job_id = with_fleet(lambda fleet: _submit(fleet, looked), prepares=True)
    if output is Output.JSON:
        print_json({"job_id": job_id, "workspace": looked.spec.workspace, "tasks": len(looked.tasks)})
    else:
        _show_submitted(stderr(), looked, job_id)
        stdout().print(job_id)


def watch(job: JobId = None, output: OutputOption = Output.TEXT) -> None:
    """Follow a job to its end. Exit code 0 if it succeeded, else 1.

    convoy watch

    convoy watch 5f0c -o json | jq .status
    """

    async def work(fleet: Fleet) -> JobState:
        projection = fleet.projection()
        # One that was submitted a moment ago may not have reached the projection.
        whole = job if job is not None and len(job) == ID_LENGTH else ""
        job_id = whole or (await find_job(projection, job)).job_id
        with _it_goes_on(job_id):
            return await _watch(projection, job_id, output)

    _exit_with(with_fleet(work))


def jobs(output: OutputOption = Output.TEXT) -> None:
    """List all jobs, the latest first.

    convoy jobs -o json
    """

    async def work(fleet: Fleet) -> None:
        found = await fleet.projection().jobs()
        if output is Output.JSON:
            print_json([job_view.as_json(job, now_ms()) for job in found])
            return
        table = Table(box=None, header_style="bold")
        for column in ("job", "status", "elapsed", "edits", "forks", "spent", "goal"):
            table.add_column(column, no_wrap=True)
        for job in found:
            goal = plain(job.spec.goal).partition("\n")[0] if job.spec else ""
            table.add_row(
                job.job_id,
                str(job.status),
                job_view.duration(job_view.elapsed_seconds(job, now_ms())),
                str(job_view.edits(job)),
                str(job.tally.forks),
                job_view.budget_line(job) or "–",
                goal,
            )
        stdout().print(table)

    with_fleet(work)


def cancel_job(
    job: Annotated[str, typer.Argument(help="The job's id, or how it begins.", callback=given_job)],
    reason: Annotated[str, typer.Option(help="Why; it stands in the job's end.")] = "",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for the end.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """End a job now; what was accepted so far is put on its branch.

    convoy cancel 5f0c --reason "wrong branch"
    """

    async def work(fleet: Fleet) -> JobState:
        projection = fleet.projection()
        found = await find_job(projection, job)
        if found.ended:
            return found
        await cancel(fleet, found.job_id, _user(), reason)
        return found if no_wait else await _watch(projection, found.job_id, output)

    ended = with_fleet(work)
    if ended.ended and ended.status is not JobStatus.CANCELLED:
        stderr().print(f"The job had ended already: {ended.status}")
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, command in (
        ("run", run),
        ("submit", submit_job),
        ("watch", watch),
        ("jobs", jobs),
        ("cancel", cancel_job),
    ):
        app.command(name, rich_help_panel=PANEL)(command)


async def find_job(projection: Projection, wanted: str | None) -> JobState:
    """The job with this id, or the only one whose id begins so; None: the latest.

    One that was submitted a moment ago may not have reached the projection: a whole id is waited for.

    Raises:
        BadInput: there is none, or there are several.
    """
    if wanted is None:
        latest = await projection.jobs()
        if not latest:
            raise BadInput("job", "there is no job yet", _SEE_JOBS)
        return latest[0]
    given_job(wanted)
    clock = asyncio.get_running_loop().time
    deadline = clock() + (SETTLE_SECONDS if len(wanted) == ID_LENGTH else 0)
    while True:
        if (exact := await projection.job(wanted)) is not None:
            return exact
        if clock() >= deadline:
            break
        await asyncio.sleep(POLL_SECONDS)
    found = [job for job in await projection.jobs() if job.job_id.startswith(wanted)]
    if not found:
        raise BadInput("job", f"there is no job {wanted!r}", _SEE_JOBS)
    if len(found) > 1:
        raise BadInput("job", f"{wanted!r} begins {len(found)} ids", "Give more of it")
    return found[0]


_SEE_JOBS = "`convoy jobs` lists them, `convoy submit` makes one"


def _preview(job: Path) -> Preview:
    settings = load_settings()
    known = roles_of(settings)
    looked = preview(job, known, settings.cache)
    credentials = credentials_of(settings, known, os.environ)
    for name in roles_asked(looked.spec):
        try:
            check_declared(known[name], credentials)
        except BadInput as bad:
            stderr().print(
                f"Note: role {name} can't run here, its tasks wait for a worker elsewhere: "
                f"{plain(bad.field)}: {plain(bad.reason)}. {plain(bad.remedy)}"
            )
    return looked


async def _submit(fleet: Fleet, looked: Preview) -> str:
    await fleet.prepare()
    return await submit(fleet, looked.spec, _user())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run under an id that has no name.
        return f"uid {os.getuid()}"


def _show_submitted(console: Console, looked: Preview, job_id: str) -> None:
    planned = f"{len(looked.tasks)} tasks" if looked.tasks else f"planned by {looked.spec.planner}"
    console.print(f"Job {job_id}: {len(looked.files)} files, {planned}, workspace {looked.spec.workspace}")
    for skip in looked.skipped:
        console.print(f"  skipped {plain(skip.path)}: {plain(skip.reason)}")


def _show_preview(looked: Preview, output: Output) -> None:
    if output is Output.JSON:
        print_json(
            {
                "repository": looked.spec.repository,
                "commit": looked.commit,
                "workspace": looked.spec.workspace,
                "files": looked.files,
                "absent": looked.absent,
                "skipped": [{"path": skip.path, "reason": skip.reason} for skip in looked.skipped],
                "tasks": looked.tasks,
                "planner": looked.spec.planner,
            }
        )
        return
    console = stdout()
    console.print(f"repository  {looked.spec.repository} at {looked.commit[:12]}")
    console.print(f"workspace   {looked.spec.workspace}")
    roles = sorted({task.role for task in looked.tasks})
    planned = f"{len(looked.tasks)}, by {', '.join(roles)}" if looked.tasks else f"from {looked.spec.planner}"
    console.print(f"files       {len(looked.files)}")
    console.print(f"tasks       {planned}")
    _show_some(console, [f"{plain(task.path)}: {task.role}" for task in looked.tasks])
    _show_some(console, [f"{plain(path)}: is not there, may be created" for path in looked.absent])
    _show_some(console, [f"{plain(skip.path)}: skipped: {plain(skip.reason)}" for skip in looked.skipped])
    console.print("Nothing was submitted.")


def _show_some(console: Console, lines: list[str]) -> None:
    for line in lines[:PATHS_SHOWN]:
        console.print(f"  {line}")
    if len(lines) > PATHS_SHOWN:
        console.print(f"  … and {len(lines) - PATHS_SHOWN} more (all of them with -o json)")


def _exit_with(job: JobState) -> None:
    if job.status is not JobStatus.SUCCEEDED:
        raise typer.Exit(1)


@contextmanager
def _it_goes_on(job_id: str) -> Iterator[None]:
    """Tell who interrupts a watch that this ends the watch alone: the job goes on, and goes on paying."""
    try:
        yield
    except asyncio.CancelledError:
        stderr().print(f"Job {job_id} goes on. Watch it again: convoy watch {job_id}")
        stderr().print(f"End it: convoy cancel {job_id}")
        raise


async def _watch(projection: Projection, job_id: str, output: Output) -> JobState:
    """Show a job until it has ended; answers it as it ended."""
    console = stdout()
    if output is Output.JSON:
        return await follow(projection, job_id, lambda _, job: print_json(job_view.as_json(job, now_ms())))
    if not console.is_terminal:
        ended = await follow(projection, job_id, lambda before, job: _print_changes(console, before, job))
    else:
        lines: deque[str] = deque(maxlen=LAST_EVENTS)
        with Live(console=console, auto_refresh=False, transient=True) as live:

            def show(before: JobState | None, job: JobState) -> None:
                lines.extend(job_view.changes(before, job))
                live.update(job_view.progress(job, now_ms(), tuple(lines)), refresh=True)

            ended = await follow(projection, job_id, show, every_look=True)
    for name, value in job_view.summary(ended, now_ms()):
        console.print(f"{name:<10}{value}", soft_wrap=True)
    return ended


def _print_changes(console: Console, before: JobState | None, job: JobState) -> None:
    for line in job_view.changes(before, job):
        console.print(f"{time.strftime('%H:%M:%S')} {line}", soft_wrap=True)


async def follow(
    projection: Projection,
    job_id: str,
    show: Callable[[JobState | None, JobState], None],
    *,
    every_look: bool = False,
) -> JobState:
    """Look at a job until it has ended, and show it when it has changed (or at every look).

    Raises:
        Unavailable: the projection does not hear of the job.
    """
    before: JobState | None = None
    clock = asyncio.get_running_loop().time
    changed_at, told = clock(), False
    while True:
        job = await projection.job(job_id)
        if job is None and clock() - changed_at > UNHEARD_SECONDS:
            reason = f"it has not heard of job {job_id} for {UNHEARD_SECONDS:.0f} s"
            raise Unavailable(
                "projection", reason, "Is `convoy projector` running? `convoy watch` takes the job up again"
            )
        if job is not None and (every_look or before is None or job.facts != before.facts):
            show(before, job)
        if job is not None and (before is None or job.facts != before.facts):
            before, changed_at, told = job, clock(), False
        if job is not None and job.ended:
            return job
        if not told and clock() - changed_at > QUIET_SECONDS:
            told = True
            stderr().print(
                f"Nothing has happened for {QUIET_SECONDS:.0f} s. Is a worker of each role running? "
                "`convoy doctor` looks"
            )
        await asyncio.sleep(POLL_SECONDS)
