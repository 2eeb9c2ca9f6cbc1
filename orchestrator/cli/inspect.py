"""Reads the projection and the logs, writes to the terminal: `convoy state | log`."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import typer

from codeconvoy.orchestrator.cli.common import (
    Output,
    OutputOption,
    not_empty,
    plain,
    print_json,
    stdout,
    with_fleet,
)
from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.orchestrator.graph import ASCII, Node, draw
from codeconvoy.orchestrator.log_reader import LogReader
from codeconvoy.orchestrator.past import FilePast, Moment, check_reached, parse_at, past_of
from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.paths import check_workspace, normalise
from codeconvoy.schemas.topics import file_key, partition_of
from codeconvoy.workers.engine.bus import TopicPartition
from codeconvoy.workers.engine.dead_letter import skipped_points
from codeconvoy.workers.projection import Projection

PANEL = "Look at the log"
SHORT = 8
"""Characters of an event id that are shown."""

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="Path from the root of the repository.")]
WorkspaceOption = Annotated[
    str | None,
    typer.Option(
        "--workspace",
        "-w",
        help="The file's workspace. Default: the only one there is.",
        callback=not_empty("--workspace", "Name one, as `convoy jobs -o json` does, or leave it out"),
    ),
]


def state(
    file: FileArgument,
    workspace: WorkspaceOption = None,
    at: Annotated[
        str | None,
        typer.Option(
            help="A moment of the past: an event id of `convoy log`, an offset of the file's partition, or "
            "an ISO time (of the records' stamps, which are information only).",
            callback=not_empty("--at", "Give an event id of `convoy log`, an offset or a time"),
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Only the content, byte for byte.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show a file as agents see it: now, or as it was.

    convoy state src/app.py

    convoy state src/app.py --at 2026-03-01T14:30 --raw > app.py
    """
    moment = parse_at(at) if at else None

    async def work(fleet: Fleet) -> FileHistory:
        where, path = await locate(fleet.projection(), workspace, file)
        if moment is None:
            return (await fleet.projection().histories(where, [path]))[path]
        check_reached(moment, await _end_of(fleet, where, path))
        log = reader_of(fleet)
        return (await past_of(log.file_events(where, path), where, path, moment)).history

    history = with_fleet(work)
    if not history.entries:
        when = f" at {at}" if at else ""
        raise BadInput("FILE", f"workspace {history.workspace} has no {history.path}{when}", _SEE_LOG)
    if output is Output.JSON:
        print_json(state_json(history))
        return
    edit = history.edit(history.visible)
    content = edit.content if edit else None
    if not raw:
        _show_state(history)
    elif content is None:
        raise BadInput("FILE", f"{history.path} is deleted", _SEE_LOG)
    if content is not None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


_SEE_LOG = "`convoy log FILE` shows what happened to it"


def state_json(history: FileHistory) -> dict[str, Any]:
    """A file's state as plain values; content as text where it is UTF-8, else in base64."""
    edit, claim = history.edit(history.visible), history.claim
    content = edit.content if edit else None
    text: Any = None
    encoding = "utf-8"
    if content is not None:
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text, encoding = content, "base64"
    return {
        "workspace": history.workspace,
        "path": history.path,
        "visible": history.visible,
        "heads": history.heads,
        "forked": history.forked,
        "conflict": None
        if claim is None
        else {"id": claim.conflict_id, "strategy": claim.strategy, "deadline": claim.deadline},
        "waiting": [event.event_id for event in history.deferred],
        "deleted": edit is not None and content is None,
        "sha256": edit.sha256 if edit else None,
        "executable": edit.executable if edit else False,
        "encoding": encoding,
        "content": text,
    }


def _show_state(history: FileHistory) -> None:
    console = stdout()
    entry, edit = history.entries[history.visible], history.edit(history.visible)
    size = "deleted" if edit is None or edit.content is None else f"{len(edit.content)} bytes"
    console.print(plain(f"{history.path} in {history.workspace}: {size}"))
    console.print(plain(f"event {entry.event_id}  {entry.event_type}  {entry.role}  {entry.summary}"))
    if history.forked:
        console.print(
            f"forked: {len(history.heads)} heads, see `convoy conflicts show {plain(history.path)}`"
        )
    if history.deferred:
        console.print(f"{len(history.deferred)} edits wait for the conflict to be resolved")
    console.print()


def log(
    file: FileArgument,
    workspace: WorkspaceOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Only the newest so many events.")] = 500,
    output: OutputOption = Output.TEXT,
) -> None:
    """Draw what happened to a file: who edited what, where it forked, how it was joined.

    convoy log src/app.py

    convoy log src/app.py -o json | jq -r '.[] | select(.verdict == "invalid") | .reason'
    """

    async def work(fleet: Fleet) -> FilePast:
        where, path = await locate(fleet.projection(), workspace, file)
        return await past_of(reader_of(fleet).file_events(where, path), where, path)

    past = with_fleet(work)
    if not past.moments:
        where, path = past.history.workspace, past.history.path
        raise BadInput("FILE", f"workspace {where} has no {path}", "`convoy jobs` shows what was worked on")
    moments = past.moments[-limit:]
    if output is Output.JSON:
        print_json([moment_json(past, moment) for moment in moments])
        return
    console = stdout()
    boxes = (console.encoding or "").lower().replace("-", "") == "utf8"
    for row in graph_of(past, moments):
        console.print(row if boxes else row.translate(ASCII))


def graph_of(past: FilePast, moments: Sequence[Moment]) -> list[str]:
    """The causal graph, newest first, a line an event (and one where lines of descent meet)."""
    by_id = {moment.event.event_id: moment for moment in moments}
    nodes = [_node(past, moment) for moment in reversed(moments)]
    rows = []
    for row in draw(nodes):
        about = describe(past, by_id[row.node.name]) if row.node else ""
        rows.append(plain(f"{row.drawing}  {about}".rstrip()))
    return rows


def _node(past: FilePast, moment: Moment) -> Node:
    event = moment.event
    if past.is_live(event.event_id):
        return Node(event.event_id, event.parent_event_ids)
    return Node(event.event_id, linked=False, symbol="x" if event.edit is not None else "·")


def describe(past: FilePast, moment: Moment) -> str:
    """One line on an event."""
    event, history = moment.event, past.history
    verdict = past.verdicts[event.event_id]
    marks = [
        name
        for name, holds in (
            ("head", event.event_id in history.heads),
            ("visible", event.event_id == history.visible),
        )
        if holds
    ]
    parts = [
        event.event_id[:SHORT],
        str(event.event_type),
        f"{event.role}/{event.task_id[:SHORT]}" + (f" round {event.round}" if event.round > 1 else ""),
        str(verdict.kind) + (f" ({verdict.reason})" if verdict.reason and event.edit is not None else ""),
        moment.summary.partition("\n")[0],
        f"[{', '.join(marks)}]" if marks else "",
    ]
    return "  ".join(part for part in parts if part)


def moment_json(past: FilePast, moment: Moment) -> dict[str, Any]:
    """An event as plain values."""
    event, verdict = moment.event, past.verdicts[moment.event.event_id]
    return {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "offset": moment.offset,
        "timestamp": moment.timestamp,
        "parents": event.parent_event_ids,
        "verdict": verdict.kind,
        "reason": verdict.reason,
        "live": past.is_live(event.event_id),
        "head": event.event_id in past.history.heads,
        "visible": event.event_id == past.history.visible,
        "job_id": event.job_id,
        "task_id": event.task_id,
        "round": event.round,
        "role": event.role,
        "agent_id": event.agent_id,
        "summary": moment.summary,
    }


# Which file is meant --------------------------------------------------------------------------------


async def locate(projection: Projection, workspace: str | None, file: str) -> tuple[str, str]:
    """Workspace and path of what a user named; the only workspace where none is given.

    Raises:
        BadInput: the path can't be one, or there are several workspaces.
    """
    path = normalise(file, "FILE")
    if workspace is not None:
        return check_workspace(workspace), path
    jobs = await projection.jobs()
    known = sorted({job.spec.workspace for job in jobs if job.spec is not None and job.spec.workspace})
    if len(known) != 1:
        names = f"there are several: {', '.join(known)}" if known else "no job has been submitted yet"
        raise BadInput("--workspace", names, "Name one with --workspace" if known else "See `convoy submit`")
    return known[0], path


async def _end_of(fleet: Fleet, workspace: str, path: str) -> int:
    """The offset after the last one of a file's partition."""
    number = partition_of(file_key(workspace, path), fleet.topics.partitions)
    reader = fleet.bus.reader()
    try:
        return (await reader.watermarks(TopicPartition(fleet.topics.events, number)))[1]
    finally:
        await reader.close()


def reader_of(fleet: Fleet) -> LogReader:
    """Both logs of a fleet; the bus closes its reader."""
    skipped = partial(skipped_points, fleet.bus, fleet.topics.dead_letters)
    return LogReader(fleet.bus.reader(), fleet.codec, fleet.topics, skipped=skipped)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, command in (("state", state), ("log", log)):
        app.command(name, rich_help_panel=PANEL)(command)
