"""Reads the logs, erases states in Redis and topics: `convoy forget`."""

import asyncio
from typing import Annotated, Any

import typer

from codeconvoy.orchestrator.broker_admin import BrokerAdmin
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
from codeconvoy.orchestrator.connection import find_connection, kafka_settings
from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.orchestrator.forget import (
    Known,
    check_alone,
    check_still,
    erase_log,
    erase_redis,
    erase_states,
    look,
)
from codeconvoy.orchestrator.settings import load_settings


def forget(
    workspace: Annotated[
        str,
        typer.Argument(
            help="As `convoy jobs -o json` names it.",
            callback=not_empty("WORKSPACE", "Name one, as `convoy jobs -o json` does"),
        ),
    ],
    topics: Annotated[
        bool,
        typer.Option(
            "--topics",
            help="Erase the log too: all topics, if no other workspace is on them. Stop the fleet first.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Erase a workspace: what the fleet keeps of its files and jobs, and with --topics its log.

    Without --topics the log stays, and a rebuild brings all of it back: records can't be deleted from
    the middle of a log. Git branches, mirrors of repositories and copies elsewhere are never touched.

    convoy forget docutils-head-1a2b3c4d

    convoy forget docutils-head-1a2b3c4d --topics --yes
    """
    known = with_fleet(lambda fleet: look(fleet, workspace))
    check_still(known)
    if topics:
        check_alone(known)
    what = f"{plain(workspace)}: {len(known.jobs)} jobs, {known.events} events"
    if not yes:
        also = "and ALL topics of this fleet" if topics else "(not its log)"
        typer.confirm(f"Erase the state of {what} {also} for good?", abort=True, err=True)
    erased = with_fleet(lambda fleet: _erase_all(fleet) if topics else _erase(fleet, known))
    if output is Output.JSON:
        print_json({"workspace": workspace, "erased": erased, "left": _left(known, topics)})
        return
    for name, value in erased.items():
        stdout().print(f"erased  {value} {name}")
    for line in _left(known, topics):
        stderr().print(f"left    {line}")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel="Operations")(forget)


async def _erase(fleet: Fleet, known: Known) -> dict[str, Any]:
    return {
        "fields of states in Redis": await erase_states(fleet, known),
        "kept prompts and replies": await fleet.prompts().forget(known.workspace),
    }


async def _erase_all(fleet: Fleet) -> dict[str, Any]:
    settings = load_settings()
    admin = BrokerAdmin(kafka_settings(settings, find_connection(settings).kafka))
    topics, groups = await asyncio.to_thread(erase_log, fleet, admin)
    keys = await erase_redis(fleet)
    return {"topics": len(topics), "consumer groups": len(groups), "keys in Redis": keys}


def _left(known: Known, topics: bool) -> list[str]:
    """What was not erased, a line each."""
    left = ["branches in git, mirrors of repositories in CONVOY_CACHE, backups and logs of processes"]
    if topics:
        return left
    left.append(
        f"the log: {known.events} events of files, the facts about {len(known.jobs)} jobs, their tasks (for "
        "a week) and dead letters. A rebuild brings the state back: use another workspace name from now on"
    )
    left.append(
        "replies and maps in Redis that are kept so that no prompt is paid for twice, for up to an hour"
    )
    if known.others:
        names = ", ".join(map(plain, known.others))
        left.append(f"the log can't be erased, since other workspaces are on it: {names}")
    else:
        left.append("no other workspace is on the log: `convoy forget --topics` erases it")
    return left
