"""Reads the projection, writes `events`: `convoy conflicts list | show | resolve`."""

import getpass
import os
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from codeconvoy.orchestrator.by_hand import (
    OpenConflict,
    check_content,
    conflict_of,
    resolution,
    side_of,
    submit_resolution,
)
from codeconvoy.orchestrator.cli.common import (
    Output,
    OutputOption,
    not_empty,
    plain,
    print_json,
    stdout,
    with_fleet,
)
from codeconvoy.orchestrator.cli.inspect import SHORT, FileArgument, WorkspaceOption, locate
from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.file_history import Entry, FileHistory
from codeconvoy.schemas.hunks import diff, lines
from codeconvoy.schemas.job_facts import VerdictKind
from codeconvoy.workers.resolution.overlap import overlapping
from codeconvoy.workers.resolution.standalone import merge_files

PANEL = "Look at the log"


def list_conflicts(output: OutputOption = Output.TEXT) -> None:
    """List the files that have more than one head, and what is being done about each.

    convoy conflicts list
    """

    async def work(fleet: Fleet) -> list[FileHistory]:
        return list(await fleet.projection().conflicts())

    found = with_fleet(work)
    if output is Output.JSON:
        print_json([summary_json(history) for history in found])
        return
    if not found:
        stdout().print("no open conflicts")
        return
    table = Table("workspace", "file", "heads", "strategy", "deadline", "tried", box=None)
    for history in found:
        claim = history.claim
        table.add_row(
            plain(history.workspace),
            plain(history.path),
            " ".join(head[:SHORT] for head in history.heads),
            str(claim.strategy) if claim else "-",
            _time(claim.deadline) if claim else "-",
            ", ".join(str(tried.strategy) for tried in claim.tried) if claim else "-",
        )
    stdout().print(table)


def summary_json(history: FileHistory) -> dict[str, Any]:
    """An open conflict as plain values."""
    claim = history.claim
    return {
        "workspace": history.workspace,
        "path": history.path,
        "heads": history.heads,
        "conflict_id": claim.conflict_id if claim else None,
        "strategy": claim.strategy if claim else None,
        "attempt": claim.attempt if claim else None,
        "deadline": claim.deadline if claim else None,
        "base": claim.base if claim else None,
        "tried": [{"strategy": tried.strategy, "reason": tried.reason} for tried in claim.tried]
        if claim
        else [],
        "waiting": len(history.deferred),
    }


def show(file: FileArgument, workspace: WorkspaceOption = None, output: OutputOption = Output.TEXT) -> None:
    """Show a conflict: what each head does to the base, and which lines several of them changed.

    convoy conflicts show src/app.py
    """
    conflict = conflict_of(with_fleet(lambda fleet: _history(fleet, workspace, file)))
    contents = [side.edit.content for side in conflict.sides if side.edit.content is not None]
    shared = overlapping(conflict.base, contents) if conflict.base is not None else ()
    if output is Output.JSON:
        print_json(
            summary_json(conflict.history)
            | {
                "overlaps": [{"start": part.start, "end": part.end} for part in shared],
                "sides": [
                    {
                        "event_id": side.event_id,
                        "role": side.entry.role,
                        "summary": side.entry.summary,
                        "deleted": side.edit.content is None,
                        "diff": "\n".join(unified(conflict.base, side.edit.content)),
                    }
                    for side in conflict.sides
                ],
            }
        )
        return
    console, claim = stdout(), conflict.claim
    console.print(plain(f"{conflict.history.path} in {conflict.history.workspace}"))
    console.print(f"strategy {claim.strategy}, attempt {claim.attempt}, until {_time(claim.deadline)}")
    for tried in claim.tried:
        console.print(plain(f"tried {tried.strategy}: {tried.reason}"))
    if shared:
        spots = ", ".join(f"{part.start + 1}-{max(part.end, part.start + 1)}" for part in shared)
        console.print(f"lines of the base that several heads changed: {spots}")
    for side in conflict.sides:
        console.print()
        console.print(plain(f"head {side.event_id}  {side.entry.role}  {side.entry.summary}"))
        for line in unified(conflict.base, side.edit.content):
            console.print(plain(line), style=_STYLES.get(line[:1], ""))


_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def unified(base: bytes | None, content: bytes | None) -> list[str]:
    """The difference, without context, as lines of a unified diff."""
    if content is None:
        return ["(deleted)"]
    before, after = lines(base or b""), []
    shift = 0
    for hunk in diff(base or b"", content):
        added = lines(hunk.lines)
        start = hunk.start + shift
        after.append(f"@@ -{hunk.start + 1},{hunk.removed} +{start + 1},{len(added)} @@")
        after += [f"-{_shown(line)}" for line in before[hunk.start : hunk.start + hunk.removed]]
        after += [f"+{_shown(line)}" for line in added]
        shift += len(added) - hunk.removed
    return after


def _shown(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\n")


def resolve(
    file: FileArgument,
    workspace: WorkspaceOption = None,
    take: Annotated[
        str | None,
        typer.Option(
            help="Take this head as it is: its event id, or how it begins.",
            callback=not_empty("--take", "Give an event id: `convoy conflicts show FILE` lists the heads"),
        ),
    ] = None,
    content: Annotated[Path | None, typer.Option("--file", help="Take the content of this file.")] = None,
    merge_tool: Annotated[
        str,
        typer.Option(
            help="Run this command, with the files BASE, LOCAL, REMOTE and MERGED in its environment; "
            "take MERGED if it exits with 0."
        ),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Take it even if it does not parse.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Resolve a conflict by hand, and say what became of it. Exit code 0 if it was accepted, else 1.

    convoy conflicts resolve src/app.py --take 3f2a

    convoy conflicts resolve src/app.py --merge-tool 'vim -d "$LOCAL" "$MERGED" "$REMOTE"'
    """
    if sum((take is not None, content is not None, bool(merge_tool))) != 1:
        raise BadInput("resolve", "one answer is needed", "Give --take, --file or --merge-tool")

    async def work(fleet: Fleet) -> Entry:
        conflict = conflict_of(await _history(fleet, workspace, file))
        taken = side_of(conflict, take) if take is not None else None
        if taken is not None:
            answer = taken.edit.content
        else:
            answer = _read(content) if content is not None else run_merge_tool(conflict, merge_tool)
            if not force:
                check_content(conflict, answer)
        event = resolution(
            conflict,
            answer,
            executable=(taken or conflict.sides[0]).edit.executable,
            losers=[side.event_id for side in conflict.sides if taken not in (None, side)],
            author=getpass.getuser(),
            now=fleet.now(),
        )
        return await submit_resolution(event, fleet.bus, fleet.codec, fleet.topics, fleet.projection())

    entry = with_fleet(work)
    accepted = entry.verdict in (VerdictKind.ACCEPTED, VerdictKind.FORKED)
    if output is Output.JSON:
        print_json({"event_id": entry.event_id, "verdict": entry.verdict, "reason": entry.reason})
    else:
        more = "other heads are left, to be joined next" if accepted else entry.reason
        outcome = "accepted" if accepted else str(entry.verdict)
        left = entry.verdict is not VerdictKind.ACCEPTED
        stdout().print(plain(f"{entry.event_id}  {outcome}" + (f": {more}" if left else "")))
    raise typer.Exit(0 if accepted else 1)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadInput("--file", f"{file} can't be read: {error.strerror}", "Check the path") from error


def run_merge_tool(conflict: OpenConflict, command: str) -> bytes:
    """What a user's merge tool makes of the two heads. MERGED begins as git's merge, with markers.

    Raises:
        BadInput: there are more than two heads or one deletes the file, or the tool failed.
    """
    sides = [side.edit.content for side in conflict.sides]
    local, remote = sides[0], sides[-1]
    if len(sides) != 2 or local is None or remote is None:
        raise BadInput("--merge-tool", "it joins two texts", "Use --take or --file")
    path = conflict.history.path
    contents = {
        "BASE": conflict.base or b"",
        "LOCAL": local,
        "REMOTE": remote,
        "MERGED": merge_files(conflict.base, local, remote, path).content,
    }
    with tempfile.TemporaryDirectory(prefix="convoy-resolve-") as directory:
        files = {name: Path(directory) / f"{name}-{Path(path).name}" for name in contents}
        for name, data in contents.items():
            files[name].write_bytes(data)
        environment = os.environ | {name: str(file) for name, file in files.items()}
        # The user's own command, in the user's own shell, as git runs it. It has the terminal.
        done = subprocess.run(command, shell=True, env=environment, check=False)
        if done.returncode != 0:
            raise BadInput("--merge-tool", f"it ended with {done.returncode}", "Nothing was resolved")
        return files["MERGED"].read_bytes()


async def _history(fleet: Fleet, workspace: str | None, file: str) -> FileHistory:
    projection = fleet.projection()
    where, path = await locate(projection, workspace, file)
    return (await projection.histories(where, [path]))[path]


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
    group.command("list")(list_conflicts)
    group.command("show")(show)
    group.command("resolve")(resolve)
    app.add_typer(group, name="conflicts", help="Conflicts that are open.", rich_help_panel=PANEL)
