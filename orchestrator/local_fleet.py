"""Reads the settings, writes the data directory: a whole fleet on this machine, its broker and Redis too.

`convoy up` and the demo are made of this.
"""

import fcntl
import hashlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from codeconvoy.orchestrator.choosers import Force, Places, choose_broker, choose_redis
from codeconvoy.orchestrator.connection import (
    Connection,
    find_redactor,
    forget_connection,
    kafka_settings,
    write_connection,
)
from codeconvoy.orchestrator.fleet import SERVICE_ROLES
from codeconvoy.orchestrator.services import KAFKA_POM, end_services_left_over
from codeconvoy.orchestrator.settings import Settings
from codeconvoy.orchestrator.supervisor import Service
from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.llm.provider import Credentials
from codeconvoy.workers.roles.agents import make_agent
from codeconvoy.workers.roles.role import Role
from codeconvoy.workers.roles.start_check import check_models

EMBEDDED_PARTITIONS = 4
"""What librdkafka's mock cluster gives every topic."""
COMPOSE = KAFKA_POM.parent.parent / "compose.yaml"
"""In a checkout; an installed wheel has none."""
PLACES = (Path(), Path("fleet"))
"""Where under the directory that it has to itself a fleet is: `convoy up`, the demo."""
FOLDS = (("orchestrator", 2), ("projector", 3), ("detector", 1))
"""The processes that are no workers, and when they drain: whoever writes does so before its reader."""


async def choose_roles(
    known: Mapping[str, Role], credentials: Credentials, wanted: str | None
) -> tuple[tuple[str, ...], Mapping[str, BadInput], tuple[str, ...]]:
    """The roles to start, why each other one is left out, and what could not be told of a model.

    Args:
        wanted: names of roles, separated by commas; None: all that can run.

    Raises:
        BadInput: none is named, or one that is does not exist or can't run.
    """
    names = [name.strip() for name in (wanted or "").split(",") if name.strip()]
    if wanted is not None and not names:
        raise BadInput("roles", "none is named", "Name some, separated by commas, or leave it out for all")
    for name in names:
        if name not in known:
            raise BadInput("roles", f"there is no role {name!r}", f"Roles are: {', '.join(sorted(known))}")
    able: list[str] = []
    left: dict[str, BadInput] = {}
    for name in dict.fromkeys(names or sorted(known)):
        try:
            make_agent(known[name], credentials)
        except BadInput as bad:
            left[name] = bad
        else:
            able.append(name)
    checks = await check_models([known[name] for name in able], credentials)
    left |= {name: c.bad for name, said in checks.items() for c in said if c.bad is not None}
    if names and left:
        raise next(iter(left.values()))
    notes = dict.fromkeys(f"{c.server}: {c.note}" for said in checks.values() for c in said if c.note)
    return tuple(name for name in able if name not in left), left, tuple(notes)


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


def bring_up(settings: Settings, force: Force, say: Callable[[str], None], stack: ExitStack) -> Connection:
    """Broker and Redis; both are stopped, Redis first, when the stack unwinds.

    Args:
        settings: where they are, or where to start them.
        force: which broker; empty: the best that is there.
        say: is told which were chosen, and what that means.
        stack: holds what has to be undone.

    Raises:
        Unavailable: one does not answer, did not start, or there is none.
    """
    places = Places(settings.data.resolve(), settings.cache, COMPOSE if COMPOSE.is_file() else None)
    client = kafka_settings(settings, settings.kafka)
    chosen = choose_broker(settings.kafka, places, force, client)
    stack.callback(chosen.stop)
    redact = find_redactor(os.environ)
    say(redact(chosen.sentence))
    # What a Redis holds belongs to one broker's log, and the embedded one's is new each time.
    redis = choose_redis(settings.redis, places, "embedded" if chosen.embedded else force)
    stack.callback(redis.stop)
    say(redact(redis.sentence))
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


def settings_at(settings: Settings, connection: Connection) -> Settings:
    """The settings, with broker and Redis where they really are."""
    return settings.model_copy(
        update={
            "kafka": connection.kafka,
            "redis": connection.redis,
            "prefix": connection.prefix,
            "partitions": connection.partitions,
        }
    )


@contextmanager
def only_here(data: Path) -> Iterator[None]:
    """See that no other fleet is up in this directory, and that nothing is left of one that was killed.

    Raises:
        BadInput: there is one, or the directory can't be written.
        Unavailable: what was left over can't be ended.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
        _hide_from_git(data)
        lock = (data / "up.lock").open("w")
    except OSError as error:
        raise BadInput("data", f"{data} can't be written: {error.strerror}", "Give another --data") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "Use that one, stop it, or give another --data"
            raise BadInput("data", f"a fleet is up in {data} already", remedy) from None
        for place in PLACES:
            end_services_left_over(data / place)
        yield


def _hide_from_git(data: Path) -> None:
    """Keep a directory of ours out of the user's own repository. One that was there before with something
    in it may be the user's, whose files git must go on seeing; unless it has the name that is ours."""
    if data.name == Settings.model_fields["data"].default.name or not any(data.iterdir()):
        with suppress(FileExistsError), (data / ".gitignore").open("x") as file:
            file.write("*\n")


@contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM unwinds the stack, also while a broker is being started, which has no loop yet."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
