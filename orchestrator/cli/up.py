"""Reads the settings, writes DIR: `convoy up`, a whole fleet on one machine with a live view."""

import asyncio
import fcntl
import hashlib
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from codeconvoy.orchestrator.choosers import Force, Places, choose_broker, choose_redis
from codeconvoy.orchestrator.cli.common import plain, stdout
from codeconvoy.orchestrator.connection import (
    FLEET_FILE,
    Connection,
    connect,
    credentials_of,
    forget_connection,
    kafka_settings,
    roles_of,
    write_connection,
)
from codeconvoy.orchestrator.fleet import SERVICE_ROLES
from codeconvoy.orchestrator.services import KAFKA_POM
from codeconvoy.orchestrator.settings import Settings, load_settings
from codeconvoy.orchestrator.supervisor import Child, Service, State, Supervisor
from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.llm.provider import Credentials
from codeconvoy.workers.roles.agents import make_agent
from codeconvoy.workers.roles.role import Role

PANEL = "Processes of a fleet"
EMBEDDED_PARTITIONS = 4
"""What librdkafka's mock cluster gives every topic."""
MAX_WORKERS = 64
COMPOSE = KAFKA_POM.parent.parent / "compose.yaml"
"""In a checkout; an installed wheel has none."""
FOLDS = (("orchestrator", 2), ("projector", 3), ("detector", 1))
"""The processes that are no workers, and when they drain: whoever writes does so before its reader."""
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
        str, typer.Option(help="Roles to start, separated by commas. Default: all that can run now.")
    ] = "",
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
    started, left = choose_roles(known, credentials_of(settings, known, os.environ), roles)
    console = stdout()
    with _terminating(), ExitStack() as stack:
        stack.enter_context(_only_here(settings.data))
        connection = _bring_up(settings, broker, console, stack)
        environment = child_environment(settings, connection)
        _tell(console, settings, connection, left)
        services = fleet_services(settings.data.resolve(), known, started, workers)
        asyncio.run(_supervise(settings, connection, services, environment, console, live=not no_view))
        console.print("Drained.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel=PANEL)(up)


def choose_roles(
    known: Mapping[str, Role], credentials: Credentials, wanted: str
) -> tuple[tuple[str, ...], Mapping[str, BadInput]]:
    """The roles to start, and why each other one is left out.

    Raises:
        BadInput: a role that was asked for does not exist or can't run.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise BadInput("roles", f"there is no role {name!r}", f"Roles are: {', '.join(sorted(known))}")
    started: list[str] = []
    left: dict[str, BadInput] = {}
    for name in dict.fromkeys(names or sorted(known)):
        try:
            make_agent(known[name], credentials)
        except BadInput as bad:
            if names:
                raise
            left[name] = bad
        else:
            started.append(name)
    return tuple(started), left


def fleet_services(
    data: Path, known: Mapping[str, Role], roles: Sequence[str], workers: int
) -> list[Service]:
    """Every process of the fleet.

    An instance has the same name whenever a fleet starts in this directory: its transactions that
    were left open are then aborted at once.
    """
    place = f"{socket.gethostname()}-{hashlib.sha256(str(data).encode()).hexdigest()[:6]}"

    def service(name: str, arguments: Sequence[str], stage: int, number: int) -> Service:
        log = data / "logs" / f"{name}-{number}.log"
        instance = f"{place}-{number}"
        return Service(f"{name}-{number}", partial(_command, tuple(arguments), instance), log, stage)

    found = [service(kind, (kind,), stage, 0) for kind, stage in FOLDS]
    found += [service(role, ("worker", role), 0, 0) for role in SERVICE_ROLES]
    found += [service(role, ("worker", role), 0, number) for role in roles for number in range(workers)]
    return found


def _command(arguments: tuple[str, ...], instance: str, port: int) -> Sequence[str]:
    options = ("--instance", instance, "--metrics-port", str(port), "--supervised")
    return (sys.executable, "-m", "codeconvoy.orchestrator.cli", *arguments, *options)


def child_environment(settings: Settings, connection: Connection) -> Mapping[str, str]:
    """The environment of the fleet's processes: the user's own, and where broker and Redis are."""
    return {
        **os.environ,
        "CONVOY_DATA": str(settings.data.resolve()),
        "CONVOY_KAFKA": connection.kafka,
        "CONVOY_REDIS": connection.redis,
        "CONVOY_PREFIX": connection.prefix,
        "CONVOY_PARTITIONS": str(connection.partitions),
        "CONVOY_METRICS_HOST": "127.0.0.1",
    }


def _bring_up(settings: Settings, broker: BrokerChoice, console: Console, stack: ExitStack) -> Connection:
    """Broker and Redis; both are stopped, Redis first, when the stack unwinds."""
    places = Places(settings.data.resolve(), settings.cache, COMPOSE if COMPOSE.is_file() else None)
    force = FORCES[broker]
    client = kafka_settings(settings, settings.kafka)
    chosen = choose_broker(settings.kafka, places, force, client)
    stack.callback(chosen.stop)
    console.print(chosen.sentence, soft_wrap=True)
    # What a Redis holds belongs to one broker's log, and the embedded one's is new each time.
    redis = choose_redis(settings.redis, places, "embedded" if chosen.embedded else force)
    stack.callback(redis.stop)
    console.print(redis.sentence, soft_wrap=True)
    connection = Connection(
        kafka=chosen.bootstrap,
        redis=redis.url,
        prefix=settings.prefix,
        partitions=EMBEDDED_PARTITIONS if chosen.embedded else settings.partitions,
        embedded=chosen.embedded,
    )
    write_connection(settings.data, connection)
    stack.callback(forget_connection, settings.data)
    return connection


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
    there = settings.model_copy(
        update={
            "kafka": connection.kafka,
            "redis": connection.redis,
            "prefix": connection.prefix,
            "partitions": connection.partitions,
        }
    )
    async with connect(there, os.environ) as fleet:
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


@contextmanager
def _only_here(data: Path) -> Iterator[None]:
    """See that no other fleet is up in this directory.

    Raises:
        BadInput: there is one, or the directory can't be written.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
        lock = (data / "up.lock").open("w")
    except OSError as error:
        raise BadInput("data", f"{data} can't be written: {error.strerror}", "Give another --data") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "Use that one, stop it, or give another --data"
            raise BadInput("data", f"a fleet is up in {data} already", remedy) from None
        yield


@contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM unwinds the stack, also while a broker is being started, which has no loop yet."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
