"""Reads the settings, writes nothing itself: `convoy orchestrator | projector | detector | worker`."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from typing import Annotated

import typer
from prometheus_client import CollectorRegistry
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from redis.exceptions import RedisError

from codeconvoy.orchestrator.cli.common import not_empty
from codeconvoy.orchestrator.connection import connect, find_redactor
from codeconvoy.orchestrator.drain import begin_drain
from codeconvoy.orchestrator.fleet import make_process
from codeconvoy.orchestrator.logs import log_to_stderr
from codeconvoy.orchestrator.redis_client import redis_unavailable
from codeconvoy.orchestrator.settings import load_settings
from codeconvoy.orchestrator.status_server import StatusServer
from codeconvoy.orchestrator.telemetry import Traced
from codeconvoy.workers.llm.provider import Credentials
from codeconvoy.workers.roles.role import Role
from codeconvoy.workers.roles.start_check import check_models

PANEL = "Processes of a fleet"
NO_METRICS = -1
logger = logging.getLogger(__name__)

InstanceOption = Annotated[
    str | None,
    typer.Option(
        callback=not_empty("--instance", "Give a name, or leave it out"),
        help="Names this process among those of its kind, the same after a restart. "
        "Two at once with one name: the older one is fenced off. Default: host and process id.",
    ),
]
MetricsOption = Annotated[
    int | None,
    typer.Option(
        min=NO_METRICS,
        max=65_535,
        help="Port of /metrics and /healthz; 0: a free one; -1: none. Default: CONVOY_METRICS_PORT.",
    ),
]
SupervisedOption = Annotated[
    bool, typer.Option(hidden=True, help="Drain also when standard input closes: the parent is gone.")
]


def orchestrator(
    instance: InstanceOption = None, metrics_port: MetricsOption = None, supervised: SupervisedOption = False
) -> None:
    """Drive jobs: read the jobs log, hand out tasks.

    convoy orchestrator --metrics-port 9100
    """
    run_process("orchestrator", "", instance, metrics_port, supervised)


def projector(
    instance: InstanceOption = None, metrics_port: MetricsOption = None, supervised: SupervisedOption = False
) -> None:
    """Keep the projection in Redis up to the logs.

    convoy projector --metrics-port 9101
    """
    run_process("projector", "", instance, metrics_port, supervised)


def detector(
    instance: InstanceOption = None, metrics_port: MetricsOption = None, supervised: SupervisedOption = False
) -> None:
    """Find conflicts and settle them; report every verdict to its job.

    convoy detector --metrics-port 9102
    """
    run_process("detector", "", instance, metrics_port, supervised)


def worker(
    role: Annotated[str, typer.Argument(help="A role of `convoy roles`, or git or runner.")],
    instance: InstanceOption = None,
    metrics_port: MetricsOption = None,
    supervised: SupervisedOption = False,
) -> None:
    """Do the tasks of a role. Start as many as you like, on any machine.

    convoy worker generator

    convoy worker git --instance git-0
    """
    run_process("worker", role, instance, metrics_port, supervised)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (orchestrator, projector, detector, worker):
        app.command(rich_help_panel=PANEL)(command)


def run_process(
    kind: str, role: str, instance: str | None, metrics_port: int | None, supervised: bool
) -> None:
    """Run one process of the fleet until SIGTERM or SIGINT, then drain.

    Raises:
        BadInput: a setting, the role, or the partition count of a topic.
        Unavailable: broker, Redis or the metrics port can't be used.
    """
    settings = load_settings()
    traced = Traced() if settings.otel_endpoint else None
    log_to_stderr(settings.log_level, find_redactor(os.environ), traced)
    port = settings.metrics_port if metrics_port is None else metrics_port
    name = instance or f"{socket.gethostname()}-{os.getpid()}"

    async def run() -> None:
        stop = asyncio.Event()
        _stop_on_signals(stop, supervised)
        async with connect(settings, os.environ, f"{kind} {role}".strip(), name) as fleet:
            await fleet.prepare()
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
            process = make_process(fleet, kind, role, name, registry)
            if role in fleet.roles:
                await _check_models(fleet.roles[role], fleet.credentials)
            server = None
            if port != NO_METRICS:
                server = StatusServer(registry, process.health, settings.metrics_host, port)
                logger.info("metrics and health at http://%s:%d", settings.metrics_host, server.port)
            logger.info("%s %s runs", process.name, name)
            try:
                await process.run(stop)
            finally:
                if server is not None:
                    server.close()
            logger.info("%s %s has drained", process.name, name)

    try:
        asyncio.run(run())
    except RedisError as error:
        raise redis_unavailable(error) from error


async def _check_models(role: Role, credentials: Credentials) -> None:
    """See that the servers of a role know its keys and models; say it where that can't be told.

    Raises:
        BadInput: one does not.
    """
    for check in (await check_models([role], credentials))[role.name]:
        if check.bad is not None:
            raise check.bad
        if check.note:
            logger.warning("it can't be told whether %s knows key and model: %s", check.server, check.note)


def _stop_on_signals(stop: asyncio.Event, supervised: bool) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, begin_drain, stop)
    if supervised:
        threading.Thread(target=_stop_at_end_of_input, args=(loop, stop), daemon=True).start()


def _stop_at_end_of_input(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """On a thread: a supervisor that was killed can't stop its children; its end of the pipe closes."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    loop.call_soon_threadsafe(begin_drain, stop)
