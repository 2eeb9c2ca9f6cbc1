"""Reads the logs, writes the projection: `convoy rebuild`."""

import typer
from rich.progress import Progress

from codeconvoy.orchestrator.cli.common import (
    Output,
    OutputOption,
    plain,
    print_json,
    stderr,
    stdout,
    with_fleet,
)
from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.orchestrator.rebuild import Rebuilt, length, rebuild

NAMED = 3
"""Fields that differed which are shown; `-o json` has more."""


def rebuild_projection(output: OutputOption = Output.TEXT) -> None:
    """Rebuild the projection in Redis from the log, compare it with the live one, and switch over.

    The fleet may go on meanwhile; it also works where Redis lost everything and no projector runs.
    Exit code 1 if the live state differed from what the log says (it does not any more).

    convoy rebuild
    """

    async def work(fleet: Fleet) -> list[Rebuilt]:
        with Progress(console=stderr(), transient=True, disable=not stderr().is_terminal) as bar:
            task = bar.add_task("Folding the logs", total=await length(fleet))
            return list(await rebuild(fleet, lambda passed: bar.advance(task, passed)))

    found = with_fleet(work)
    differing = [each for each in found if each.differences]
    if output is Output.JSON:
        print_json({"equal": not differing, "partitions": found})
    else:
        _show(found, differing)
    if differing:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("rebuild", rich_help_panel="Operations")(rebuild_projection)


def _show(found: list[Rebuilt], differing: list[Rebuilt]) -> None:
    console = stdout()
    compared = sum(each.compared for each in found)
    console.print(f"Rebuilt {len(found)} partitions from the log; {compared} had a live state.")
    for each in differing:
        names = ", ".join(plain(name) for name in each.fields[:NAMED])
        console.print(
            f"{each.projection}/{each.partition}: {each.differences} fields differed, such as {names}",
            soft_wrap=True,
        )
    if not differing:
        console.print("All that was live was equal, byte for byte.")
