"""Reads the logs, Redis and git, writes to the terminal: `convoy audit`."""

from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from codeconvoy.orchestrator.audit import Sources, audit
from codeconvoy.orchestrator.audit_report import Check, Report
from codeconvoy.orchestrator.cli.common import (
    Output,
    OutputOption,
    plain,
    print_json,
    stderr,
    stdout,
    with_fleet,
)
from codeconvoy.orchestrator.cli.inspect import PANEL
from codeconvoy.orchestrator.cli.jobs import ID_LENGTH, find_job, given_job
from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.workers.detector import NAME as DETECTOR
from codeconvoy.workers.projector import FILES, JOBS

SHOWN = 20
"""Differences that are listed."""


def audit_command(
    job: Annotated[
        str | None,
        typer.Argument(help="A job's id, or how it begins. Default: everything.", callback=given_job),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Fold the whole log anew and compare: projection, branches, verdicts, order, nothing lost or doubled.

    Reads only the log, Redis and git. Exit code 0 if nothing differs, else 1.

    convoy audit

    convoy audit 5f0c -o json | jq .counts
    """

    async def work(fleet: Fleet) -> Report:
        whole = job or ""
        if job is not None and len(job) != ID_LENGTH:
            whole = (await find_job(fleet.projection(), job)).job_id
        with _progress() as bar:
            shown = bar.add_task("reading the log", total=None)

            def progress(passed: int, total: int) -> None:
                bar.update(shown, completed=passed, total=total)

            return await audit(sources_of(fleet), whole, progress)

    report = with_fleet(work)
    if output is Output.JSON:
        print_json(report.as_json())
    else:
        show(report)
    raise typer.Exit(0 if report.clean else 1)


def sources_of(fleet: Fleet) -> Sources:
    """What an audit of this fleet reads."""
    return Sources(
        bus=fleet.bus,
        codec=fleet.codec,
        topics=fleet.topics,
        files=fleet.store(FILES),
        jobs=fleet.store(JOBS),
        detector=fleet.store(DETECTOR),
        cache=fleet.cache,
    )


def _progress() -> Progress:
    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def show(report: Report) -> None:
    """Print the counts, and the first of what differs."""
    counts, found = report.counts, report.findings
    edits = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.edits.items()) if count)
    resolved = ", ".join(f"{count} {strategy}" for strategy, count in counts.resolved.most_common())
    jobs = ", ".join(f"{count} {status}" for status, count in sorted(counts.jobs.items()))
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("log", f"{counts.events} events of {counts.files} files, {counts.facts} facts of jobs"),
        ("redelivered", str(counts.redelivered)),
        ("edits", edits or "none"),
        ("forks", f"{counts.forks}, {counts.overlapping} conflicts with overlapping lines"),
        ("resolved", resolved or "none"),
        ("stale", str(counts.stale)),
        ("reviews", str(counts.reviews)),
        ("tests", f"{counts.tests_written} written, {counts.tests_run} run"),
        ("jobs", f"{jobs or 'none'}; {counts.tasks} tasks"),
        ("projection", f"{counts.fields} fields compared"),
        ("branches", f"{counts.branches} with {counts.commits} commits compared"),
        ("dead letters", str(counts.dead_letters)),
        ("lost", str(found.by_check[Check.LOST])),
        ("doubled", str(found.by_check[Check.DOUBLED])),
        ("out of order", str(found.by_check[Check.ORDER])),
    ):
        table.add_row(name, value)
    console = stdout()
    console.print(table)
    if report.clean:
        console.print("clean: everything is as the log says")
        return
    total = found.by_check.total()
    console.print(f"\n{total} differences:")
    for one in found.kept[:SHOWN]:
        ids = f"  [{', '.join(one.ids)}]" if one.ids else ""
        console.print(plain(f"  {one.check}  {one.where}: {one.what}{ids}"))
    if total > SHOWN:
        console.print(f"  … and {total - SHOWN} more; -o json lists the first {len(found.kept)}")


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("audit", rich_help_panel=PANEL)(audit_command)
