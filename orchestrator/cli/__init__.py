"""Reads the command line, writes to the terminal: `convoy`, the one program of codeconvoy.

Each group of commands is a module with a function `register(app)`; `GROUPS` lists them in the
order in which `convoy --help` shows them.
"""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from codeconvoy.orchestrator.cli import dlq, health, jobs, processes, rebuild, up
from codeconvoy.orchestrator.cli.common import plain, stderr
from codeconvoy.schemas.errors import BadInput, ConvoyError, Unavailable

GROUPS = (
    jobs.register,
    up.register,
    processes.register,
    health.register,
    dlq.register,
    rebuild.register,
)
EXIT_CODES: tuple[tuple[type[ConvoyError], int], ...] = ((BadInput, 2), (Unavailable, 3), (ConvoyError, 1))
"""The first that fits."""
INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"convoy {version('codeconvoy')}\n")
        raise typer.Exit


def convoy(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A fleet of coding agents that edit one repository together and lose no work.

    Start a fleet here and give it a job:

        convoy up

        convoy run job.yaml
    """


def make_app() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="convoy", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich"
    )
    app.callback()(convoy)
    for register in GROUPS:
        register(app)
    return app


def report(error: ConvoyError) -> int:
    """Say on stderr what went wrong; answers the exit code."""
    lines = [f"Error: {error}"]
    match error:
        case BadInput(field=name, reason=reason, remedy=remedy):
            lines = [f"Error: {name}: {reason}", f"Remedy: {remedy}"]
        case Unavailable(service=name, reason=reason, remedy=remedy):
            lines = [f"Error: {name}: {reason}", f"Remedy: {remedy}"]
    for line in lines:
        stderr().print(plain(line))
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def main() -> None:
    """Run a command. Errors that are expected become a message and an exit code, never a traceback."""
    try:
        make_app()()
    except ConvoyError as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
