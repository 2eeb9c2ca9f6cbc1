"""Reads the settings and what they name, writes nothing: `convoy doctor | roles`."""

import asyncio
import os

import typer
from rich.table import Table

from codeconvoy.orchestrator.cli.common import Output, OutputOption, plain, print_json, stdout
from codeconvoy.orchestrator.connection import roles_of
from codeconvoy.orchestrator.doctor import ability, examine
from codeconvoy.orchestrator.findings import Grade
from codeconvoy.orchestrator.settings import load_settings

PANEL = "Operations"
MARKS = {Grade.GOOD: "ok ", Grade.NOTE: "note", Grade.BAD: "BAD"}
STYLES = {Grade.GOOD: "green", Grade.NOTE: "yellow", Grade.BAD: "red"}


def doctor(output: OutputOption = Output.TEXT) -> None:
    """Look at everything that a fleet needs, with a remedy for each finding. Exit code 1 if one is bad.

    convoy doctor

    convoy doctor -o json | jq '.[] | select(.grade == "bad")'
    """
    found = asyncio.run(examine(load_settings(), os.environ))
    if output is Output.JSON:
        print_json(found)
    else:
        console = stdout()
        for finding in found:
            line = f"{MARKS[finding.grade]:<5}{finding.what:<14}{plain(finding.says)}"
            console.print(line, style=STYLES[finding.grade], soft_wrap=True)
            if finding.remedy:
                console.print(f"{'':<19}→ {plain(finding.remedy)}", soft_wrap=True)
    if any(finding.grade is Grade.BAD for finding in found):
        raise typer.Exit(1)


def roles(output: OutputOption = Output.TEXT) -> None:
    """List the roles: what each is, who does it, and whether it can run here now.

    convoy roles

    CONVOY_ROLES=roles.toml convoy roles -o json
    """
    settings = load_settings()
    known = roles_of(settings)
    able = ability(known, settings, os.environ)
    if output is Output.JSON:
        print_json(
            [
                {
                    "name": role.name,
                    "kind": role.kind,
                    "provider": role.provider,
                    "model": role.model,
                    "description": role.description,
                    "concurrency": role.concurrency,
                    "can_run": why is None,
                    "reason": why.reason if why else "",
                    "remedy": why.remedy if why else "",
                }
                for role, why in ((known[name], why) for name, why in able.items())
            ]
        )
        return
    table = Table(box=None, header_style="bold")
    for column in ("role", "kind", "provider", "model", "what it does", "can run"):
        table.add_column(column, no_wrap=column != "what it does")
    for name, why in able.items():
        role = known[name]
        now = "yes" if why is None else f"no: {plain(why.reason)}"
        table.add_row(
            name, str(role.kind), role.provider or "-", role.model or "-", plain(role.description), now
        )
    stdout().print(table)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (doctor, roles):
        app.command(rich_help_panel=PANEL)(command)
