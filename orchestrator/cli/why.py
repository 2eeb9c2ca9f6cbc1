"""Reads the logs and kept conversations, writes to the terminal: `convoy why`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
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
from codeconvoy.orchestrator.cli.inspect import PANEL, SHORT, WorkspaceOption, locate, reader_of
from codeconvoy.orchestrator.cli.tasks import turn_json, turn_lines
from codeconvoy.orchestrator.conversations import Turn, turns_of
from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.orchestrator.past import Moment
from codeconvoy.orchestrator.settings import load_settings
from codeconvoy.orchestrator.why import Because, because, read_branch
from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.events import ReviewSubmitted, TestExecuted


def why(
    where: Annotated[str, typer.Argument(metavar="FILE:LINE", help="A line, counted from 1.")],
    workspace: WorkspaceOption = None,
    branch: Annotated[
        str | None,
        typer.Option(
            help="The line as this branch has it. Default: as agents see it now.",
            callback=not_empty("--branch", "Name a branch, or leave it out"),
        ),
    ] = None,
    repository: Annotated[Path, typer.Option(help="The repository of --branch.")] = Path("."),
    prompt: Annotated[
        bool, typer.Option("--prompt", help="Show what the model was asked and answered, while it is kept.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Walk from a line to its causes: the edit, its parents, reviews, tests, agent, job, prompt, cost.

    convoy why src/app.py:42

    convoy why src/app.py:42 --branch convoy/5f0c…

    convoy why src/app.py:42 --prompt | less
    """
    name, _, number = where.rpartition(":")
    if not name or not number.isdecimal():
        raise BadInput("FILE:LINE", f"{where!a} names no line", "Write src/app.py:42")

    async def work(fleet: Fleet) -> tuple[Because, Sequence[Turn]]:
        place, path = await locate(fleet.projection(), workspace, name)
        held = read_branch(repository, branch, path, load_settings().cache) if branch else None
        found = await because(reader_of(fleet), place, path, int(number), held)
        turns = await turns_of(fleet.prompts(), place, found.edit.event.task_id)
        return found, [turn for turn in turns if turn.call.round == found.edit.event.round]

    found, turns = with_fleet(work)
    if output is Output.JSON:
        print_json(why_json(found) | {"calls": [turn_json(turn, texts=prompt) for turn in turns]})
        return
    for line in (*why_lines(found, turns), *(turn_lines(turns, texts=True) if prompt else ())):
        stdout().print(plain(line))


def why_lines(found: Because, turns: Sequence[Turn] = ()) -> list[str]:
    """The answer, for people. `turns` are the calls of the edit's round that are kept."""
    event, usage = found.edit.event, found.edit.event.usage
    text = found.text.decode("utf-8", "replace").rstrip("\r\n")
    rows: list[tuple[str, str]] = [
        ("written by", f"{event.role} ({event.agent_id}), {_time(event.timestamp)}"),
        ("edit", f"{event.event_id}  {event.event_type}  {found.verdict}  {found.edit.summary}"),
        (
            "task",
            f"{event.task_id}, round {event.round}" + (f": {found.task.task.goal}" if found.task else ""),
        ),
        ("job", event.job_id + (f"  {found.job.status}: {_goal(found)}" if found.job else "")),
    ]
    if usage is not None:
        tokens = f"{usage.tokens_in} tokens in ({usage.tokens_cached} cached), {usage.tokens_out} out"
        rows.append(("model", f"{usage.provider} {usage.model}"))
        rows.append(("cost", f"${usage.cost_usd:.4f}, {tokens}"))
        kept = any(turn.prompt and turn.call.prompt == usage.prompt_sha256 for turn in turns)
        where = f"kept, with {len(turns)} calls of this round: --prompt" if kept else "not kept any more"
        rows.append(("prompt", f"sha256 {usage.prompt_sha256} ({where})"))
    rows += [("merged by", _brief(moment)) for moment in found.merges]
    rows += [("review", _review(moment)) for moment in found.reviews]
    rows += [("test", _test(moment)) for moment in found.tests]
    rows += [("after", _brief(moment)) for moment in found.ancestors]
    return [f"{found.path}:{found.line}: {text}", *(f"  {name:<10}  {value}" for name, value in rows)]


def _goal(found: Because) -> str:
    spec = found.job.spec if found.job else None
    return spec.goal.partition("\n")[0] if spec else ""


def _brief(moment: Moment) -> str:
    event = moment.event
    return f"{event.event_id[:SHORT]}  {event.event_type}  {event.role}  {moment.summary}".rstrip()


def _review(moment: Moment) -> str:
    payload = moment.event.payload
    assert isinstance(payload, ReviewSubmitted)
    vote = "approved" if payload.approved else "rejected"
    comments = "; ".join(payload.comments)
    return f"{moment.event.role} {vote} {payload.version[:SHORT]} ({payload.lens}) {comments}".rstrip()


def _test(moment: Moment) -> str:
    payload = moment.event.payload
    assert isinstance(payload, TestExecuted)
    return f"{moment.event.file_path} {payload.outcome} ({payload.duration_ms} ms, {payload.sandbox})"


def why_json(found: Because) -> dict[str, Any]:
    """The answer as plain values."""

    def brief(moment: Moment) -> dict[str, Any]:
        event = moment.event
        return {
            "event_id": event.event_id,
            "event_type": event.event_type,
            "role": event.role,
            "agent_id": event.agent_id,
            "job_id": event.job_id,
            "task_id": event.task_id,
            "round": event.round,
            "timestamp": event.timestamp,
            "parents": event.parent_event_ids,
            "summary": moment.summary,
            "usage": event.usage,
        }

    return {
        "path": found.path,
        "line": found.line,
        "text": found.text.decode("utf-8", "replace"),
        "version": found.version,
        "verdict": found.verdict,
        "edit": brief(found.edit),
        "merges": [brief(moment) for moment in found.merges],
        "ancestors": [brief(moment) for moment in found.ancestors],
        "reviews": [brief(moment) | {"vote": _vote(moment)} for moment in found.reviews],
        "tests": [brief(moment) | {"outcome": _outcome(moment)} for moment in found.tests],
        "goal": found.task.task.goal if found.task else "",
        "job_status": found.job.status if found.job else None,
    }


def _vote(moment: Moment) -> dict[str, Any]:
    payload = moment.event.payload
    assert isinstance(payload, ReviewSubmitted)
    return {"approved": payload.approved, "lens": payload.lens, "comments": payload.comments}


def _outcome(moment: Moment) -> str:
    payload = moment.event.payload
    assert isinstance(payload, TestExecuted)
    return payload.outcome


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(rich_help_panel=PANEL)(why)
