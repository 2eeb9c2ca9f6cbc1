"""Reads the command line, writes to the terminal: `convoy`, the one program of codeconvoy.

Each group of commands is a module with a function `register(app)`; `GROUPS` lists them in the
order in which `convoy --help` shows them. They are imported when the program runs, so that
`convoy merge`, which git starts for every file that it merges, need not wait for Kafka's client.
"""

import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from codeconvoy.orchestrator.logs import kafka_client
from codeconvoy.schemas.errors import BadInput, ConvoyError, Unavailable

GROUPS = (
    "jobs",
    "inspect",
    "why",
    "tasks",
    "conflicts",
    "audit",
    "merge",
    "up",
    "processes",
    "health",
    "dlq",
    "rebuild",
    "forget",
)
ALONE = frozenset({"merge"})
"""Groups of one command of the same name, which needs no other to be loaded."""
EXIT_CODES: tuple[tuple[type[ConvoyError], int], ...] = ((BadInput, 2), (Unavailable, 3), (ConvoyError, 1))
"""The first that fits."""
INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

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


def make_app(groups: Sequence[str] = GROUPS) -> typer.Typer:
    """The command line with these groups of commands."""
    app = typer.Typer(
        name="convoy", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich"
    )
    app.callback()(convoy)
    for group in groups:
        import_module(f"{__name__}.{group}").register(app)
    return app


def report(error: ConvoyError) -> int:
    """Say on stderr what went wrong, without secrets; answers the exit code."""
    from codeconvoy.orchestrator.cli.common import plain, stderr
    from codeconvoy.orchestrator.connection import find_redactor

    redact = find_redactor(os.environ)

    lines = [f"Error: {error}"]
    match error:
        case BadInput(field=name, reason=reason, remedy=remedy):
            lines = [f"Error: {name}: {reason}", f"Remedy: {remedy}"]
        case Unavailable(service=name, reason=reason, remedy=remedy):
            lines = [f"Error: {name}: {reason}", f"Remedy: {remedy}"]
    for line in lines:
        stderr().print(plain(redact(line)))
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def report_bug(error: Exception) -> int:
    """Show on stderr where an unforeseen error comes from, without secrets; answers the exit code."""
    from codeconvoy.orchestrator.connection import find_redactor

    sys.stderr.write(find_redactor(os.environ)("".join(traceback.format_exception(error))))
    return 1


def set_up_output() -> None:
    """What every program of ours does before it says a word."""
    # What the client would say about a broker that is away is in the error that it raises; the
    # processes of a fleet, which have a log, turn it on again.
    kafka_client().setLevel(logging.CRITICAL)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A path or a model's words may hold what the terminal's encoding has not.
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run a command. Errors that are expected become a message and an exit code, never a traceback; what
    a traceback of any other shows holds no secrets."""
    set_up_output()
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        make_app((wanted,) if wanted in ALONE else GROUPS)()
    except ConvoyError as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        raise SystemExit(report_bug(error)) from error
