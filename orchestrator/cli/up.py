"""Reads the settings, writes DIR: `convoy up`, a whole fleet on one machine with a live view."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from codeconvoy.orchestrator.choosers import Force
from codeconvoy.orchestrator.cli.common import plain, stdout
from codeconvoy.orchestrator.connection import (
    FLEET_FILE,
    Connection,
    connect,
    credentials_of,
    roles_of,
)
from codeconvoy.orchestrator.local_fleet import (
    bring_up,
    child_environment,
    choose_roles,
    fleet_services,
    only_here,
    settings_at,
    terminating,
)
from codeconvoy.orchestrator.settings import Settings, load_settings
from codeconvoy.orchestrator.supervisor import Child, Service, State, Supervisor
from codeconvoy.schemas.errors import BadInput

PANEL = "Processes of a fleet"
MAX_WORKERS = 64
STYLES = {State.RUNNING: "green", State.STARTING: "cyan", State.DRAINING: "cyan", State.STOPPED: "dim"}
"""All others are red."""


class BrokerChoice(StrEnum):
    """Which broker `convoy up` uses."""

    AUTO = "auto"
    KAFKA = "kafka"
    EMBEDDED = "embedded"


FORCES: Mapping[BrokerChoice, Force] = {
    BrokerChoice.AUTO: "",
    BrokerChoice.KAFKA: "kafka",
    BrokerChoice.EMBEDDED: "embedded",
}


def up(
    broker: Annotated[
        BrokerChoice,
        typer.Option(help="auto: the best that is there; kafka: a real one; embedded: nothing but Python."),
    ] = BrokerChoice.AUTO,
    workers: Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="Processes for each role.")] = 1,
    roles: Annotated[
        str | None, typer.Option(help="Roles to start, separated by commas. Default: all that can run now.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Directory for logs, data and fleet.json. Default: CONVOY_DATA, or .convoy."),
    ] = None,
    no_view: Annotated[bool, typer.Option("--no-view", help="Lines instead of a live view.")] = False,
) -> None:
    """Bring up a broker, Redis and every process of a fleet, and keep them running until Ctrl-C.

    Other commands that are run in this directory find the fleet by .convoy/fleet.json.

    convoy up

    convoy up --broker embedded --roles pyupgrade,isort,lint-reviewer --workers 2
    """
    settings = load_settings(**({"data": data} if data else {}))
    known = roles_of(settings)
    credentials = credentials_of(settings, known, os.environ)
    started, left, untold = asyncio.run(choose_roles(known, credentials, roles))
    console = stdout()
    with terminating(), ExitStack() as stack:
        stack.enter_context(only_here(settings.data))
        connection = bring_up(settings, FORCES[broker], partial(console.print, soft_wrap=True), stack)
        environment = child_environment(settings, connection)
        _tell(console, settings, connection, left)
        for note in untold:
            console.print(f"Whether key and model are known can't be told: {note}", soft_wrap=True)
        services = fleet_services(settings.data.resolve(), known, started, workers)
        asyncio.run(_supervise(settings, connection, services, environment, console, live=not no_view))
        console.print("Drained.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=PANEL)(up)


def _tell(console: Console, settings: Settings, connection: Connection, left: Mapping[str, BadInput]) -> None:
    console.print(f"Logs are in {settings.data / 'logs'}, the addresses in {settings.data / FLEET_FILE}.")
    if settings.data != Path(".convoy"):
        console.print(f"Other commands find this fleet with CONVOY_DATA={settings.data}.")
    for name, now, there in (
        ("CONVOY_KAFKA", settings.kafka, connection.kafka),
        ("CONVOY_REDIS", settings.redis, connection.redis),
    ):
        if now not in ("", there):
            console.print(f"{name} is set and goes before fleet.json: unset it for other commands.")
    reasons: dict[str, list[str]] = {}
    for role, why in left.items():
        reasons.setdefault(why.reason, []).append(role)
    for reason, names in reasons.items():
        remedy = left[names[0]].remedy
        console.print(f"Not started: {', '.join(names)}: {reason}. {remedy}", soft_wrap=True)


async def _supervise(
    settings: Settings,
    connection: Connection,
    services: Sequence[Service],
    environment: Mapping[str, str],
    console: Console,
    *,
    live: bool,
) -> None:
    """Create the topics, then run all services until SIGTERM, SIGINT or SIGHUP; a second one hurries."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def end() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end)
    async with connect(settings_at(settings, connection), os.environ) as fleet:
        await fleet.prepare()
    if not (live and console.is_terminal):
        teller = _Teller(console)
        supervisor = Supervisor(services, environment, changed=teller.changed)
        teller.children = supervisor.children
        await supervisor.run(stop, hurry)
        return
    supervisor = Supervisor(services, environment)
    with Live(console=console, refresh_per_second=2, get_renderable=lambda: fleet_table(supervisor.children)):
        await supervisor.run(stop, hurry)


class _Teller:
    """Says in lines what the live view would show."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_up = False
        self.children: tuple[Child, ...] = ()

    def changed(self, child: Child) -> None:
        """A child's state has changed."""
        if child.state in (State.WAITING, State.CRASH_LOOP):
            self._say(f"{child.service.name}: {child.state}, {plain(child.said)}")
        elif child.state is State.UNHEALTHY:
            problems = "; ".join(child.status.problems) if child.status else "it does not answer"
            self._say(f"{child.service.name}: unhealthy: {plain(problems)}")
        elif child.state in (State.RUNNING, State.DRAINING):
            self._say(f"{child.service.name}: {child.state}")
        if not self._is_up and all(each.state is State.RUNNING for each in self.children):
            self._is_up = True
            self._say(f"The fleet is up: {len(self.children)} processes. Now: convoy run JOB.yaml")

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)


def fleet_table(children: Sequence[Child]) -> Table:
    """The live view: a line for each process."""
    table = Table(box=None, header_style="bold", expand=False)
    for column in ("process", "pid", "state", "in flight", "queued", "records", "restarts", ""):
        right = column in ("pid", "in flight", "queued", "records", "restarts")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for child in children:
        status = child.status
        problems = "; ".join(status.problems) if status else ""
        said = child.said if child.state in (State.WAITING, State.CRASH_LOOP) else problems
        table.add_row(
            child.service.name,
            str(child.pid or ""),
            str(child.state),
            *((str(status.in_flight), str(status.queued), str(status.records)) if status else ("", "", "")),
            str(child.restarts or ""),
            plain(said),
            style=STYLES.get(child.state, "red"),
        )
    return table
