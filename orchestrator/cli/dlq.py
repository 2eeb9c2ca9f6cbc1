"""Reads and writes the dead-letters topic: `convoy dlq list | show | retry | skip`."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.table import Table

from codeconvoy.orchestrator.cli.common import (
    Output,
    OutputOption,
    plain,
    print_json,
    stderr,
    stdout,
    with_fleet,
)
from codeconvoy.orchestrator.dead_letters import Letter, letters, retry, skip
from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.schemas.errors import BadInput

SHOWN_BYTES = 2_000

LetterId = Annotated[str, typer.Argument(metavar="ID", help="PARTITION/OFFSET, as in `convoy dlq list`.")]


def list_letters(
    everything: Annotated[bool, typer.Option("--all", help="Also those that were put back.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """List what could not be handled, and is still to be looked at.

    convoy dlq list -o json
    """
    found = [each for each in with_fleet(letters).values() if everything or not each.retried_to]
    if output is Output.JSON:
        print_json([as_json(each) for each in found])
        return
    table = Table(box=None, header_style="bold")
    for column in ("id", "from", "reason", "attempts", "when", "key", ""):
        table.add_column(column, no_wrap=True)
    for each in found:
        told = each.told
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told.timestamp / 1000))
        origin = f"{told.topic}/{told.partition}/{told.offset}"
        back = "put back" if each.retried_to else ""
        table.add_row(each.id, origin, told.reason, str(told.attempts), when, plain(each.key), back)
    stdout().print(table if found else "No dead letters.")


def show_letter(
    letter: LetterId,
    raw: Annotated[bool, typer.Option("--raw", help="Write the record's bytes, and nothing else.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show one dead letter whole: why, from where, and its bytes.

    convoy dlq show 3/17

    convoy dlq show 3/17 --raw > record.bin
    """
    found = pick(with_fleet(letters), [letter])[0]
    if raw:
        sys.stdout.buffer.write(found.value)
        return
    if output is Output.JSON:
        print_json(as_json(found) | {"value": found.value})
        return
    told, console = found.told, stdout()
    for name, value in (
        ("from", f"{told.topic}/{told.partition}, offset {told.offset}"),
        ("key", found.key),
        ("reason", told.reason),
        ("detail", told.detail),
        ("attempts", str(told.attempts)),
        ("given up by", told.service),
        ("put back to", found.retried_to),
        ("bytes", f"{len(found.value)}, as Python shows them:"),
        ("", repr(found.value[:SHOWN_BYTES])),
    ):
        if value:
            console.print(f"{name:<13}{plain(value)}", soft_wrap=True)


def retry_letters(
    chosen: Annotated[
        list[str] | None, typer.Argument(metavar="ID…", help="PARTITION/OFFSET of the letters.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that were not put back yet.")] = False,
) -> None:
    """Put dead letters back where they came from, under their key; what reads them tries again.

    convoy dlq retry 3/17 3/18
    """
    if bool(chosen) == everything:
        raise BadInput("ID", "give ids or --all, one of them", "`convoy dlq list` shows the ids")

    async def work(fleet: Fleet) -> Sequence[Letter]:
        found = await letters(fleet)
        wanted = pick(found, chosen) if chosen else [x for x in found.values() if not x.retried_to]
        await retry(fleet, wanted)
        return wanted

    done = with_fleet(work)
    if not done:
        stderr().print("There is nothing to put back: all dead letters were, or there are none.")
    for each in done:
        stdout().print(f"{each.id} is back on {each.told.topic}/{each.told.partition}")


def skip_record(
    topic: Annotated[str, typer.Argument(help="Its full name.")],
    partition: Annotated[int, typer.Argument(min=0)],
    offset: Annotated[int, typer.Argument(min=0)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Let every process pass over a record whose schema this version does not know.

    A partition that met such a record is stopped. Upgrading loses nothing; skipping loses the record
    for good, the same for all who read it, since the decision is itself on a log.

    convoy dlq skip convoy.events 3 1042
    """
    if not yes:
        typer.confirm(f"Skip {topic}/{partition}/{offset} for good?", abort=True, err=True)
    with_fleet(lambda fleet: skip(fleet, topic, partition, offset))
    stdout().print(f"{topic}/{partition}/{offset} is skipped; stopped partitions go on in a moment.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(no_args_is_help=True, help="Dead letters: records that could not be handled.")
    for name, command in (
        ("list", list_letters),
        ("show", show_letter),
        ("retry", retry_letters),
        ("skip", skip_record),
    ):
        group.command(name)(command)
    app.add_typer(group, name="dlq", rich_help_panel="Operations")


def pick(found: Mapping[str, Letter], wanted: Sequence[str]) -> list[Letter]:
    """The letters with these ids.

    Raises:
        BadInput: there is no such letter.
    """
    for each in wanted:
        if each not in found:
            raise BadInput("ID", f"there is no dead letter {each!r}", "`convoy dlq list --all` shows them")
    return [found[each] for each in wanted]


def as_json(letter: Letter) -> dict[str, object]:
    """A dead letter for programs, without its bytes."""
    return {"id": letter.id, "key": plain(letter.key), "retried_to": letter.retried_to, "letter": letter.told}
