"""Reads the projection and kept conversations, writes to the terminal: `convoy task show`."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
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
from codeconvoy.orchestrator.cli.job_view import duration
from codeconvoy.orchestrator.conversations import Turn, find_task, turns_of
from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.schemas.job_state import JobState, TaskState

PANEL = "Look at the log"
SHORT = 12
"""Characters of a hash that are shown."""


def show(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="Its id, or the beginning of it.",
            callback=not_empty("TASK", "`convoy log FILE` and `convoy why FILE:LINE` show the ids of tasks"),
        ),
    ],
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Show what was asked and answered, as long as it is kept.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show a task and the model calls of all its rounds, the failed ones too.

    convoy task show 5f0c81

    convoy task show 5f0c81 --prompts | less
    """

    async def work(fleet: Fleet) -> tuple[JobState, TaskState, Sequence[Turn]]:
        job, state = await find_task(fleet.projection(), task)
        return job, state, await turns_of(fleet.prompts(), state.task.workspace, state.task.task_id)

    job, state, turns = with_fleet(work)
    if output is Output.JSON:
        print_json(task_json(job, state) | {"calls": [turn_json(turn, texts=prompts) for turn in turns]})
        return
    for line in (*task_lines(job, state, turns), *(turn_lines(turns, texts=prompts))):
        stdout().print(plain(line))


def task_json(job: JobState, state: TaskState) -> dict[str, Any]:
    """A task as plain values."""
    task = state.task
    return {
        "task_id": task.task_id,
        "job_id": task.job_id,
        "workspace": task.workspace,
        "job_status": job.status,
        "role": task.role,
        "path": task.path,
        "goal": task.goal,
        "round": task.round,
        "status": state.status,
        "reason": state.reason or state.refusal,
        "events": [event.event_id for event in state.events],
    }


def task_lines(job: JobState, state: TaskState, turns: Sequence[Turn]) -> Iterator[str]:
    """A task for people."""
    task = state.task
    reason = state.reason or state.refusal
    goal = task.goal.partition("\n")[0]
    calls = f"{len(turns)} kept" if turns else "none kept: none was made, or they were kept long enough"
    yield f"task    {task.task_id}, round {task.round}: {goal}"
    yield f"for     {task.role} {task.path}"
    yield f"status  {state.status}" + (f": {reason}" if reason else "")
    yield f"job     {task.job_id}  {job.status}"
    yield f"calls   {calls}"


def turn_lines(turns: Sequence[Turn], *, texts: bool) -> Iterator[str]:
    """A line for each call, and what was said in it."""
    for turn in turns:
        yield _call_line(turn)
        if texts:
            yield from _text_lines(turn)


def _call_line(turn: Turn) -> str:
    call, usage = turn.call, turn.call.usage
    parts = [
        f"round {call.round}",
        datetime.fromtimestamp(call.at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        call.server,
        call.outcome + (" (recorded)" if call.recorded else "") + (f": {call.reason}" if call.reason else ""),
        duration(call.seconds),
    ]
    if usage is not None:
        guessed = ", a guess" if call.usage_estimated else ""
        cost = "nothing paid" if call.recorded else f"${usage.cost_usd:.4f}"
        tokens = f"{usage.tokens_in} tokens in ({usage.tokens_cached} cached), {usage.tokens_out} out"
        parts.append(f"{cost}, {tokens}{guessed}")
    parts.append(f"sha256 {call.prompt[:SHORT]}" + ("" if turn.prompt else " (not kept any more)"))
    return "  " + "  ".join(parts)


def _text_lines(turn: Turn) -> Iterator[str]:
    if turn.prompt is not None:
        yield from _said("system", turn.prompt.system)
        for message in turn.prompt.messages:
            yield from _said(message.role, message.content)
    if turn.call.usage is not None:
        yield from _said("reply", "(not kept any more)" if turn.reply is None else turn.reply)
    yield ""


def _said(by: str, text: str) -> Iterator[str]:
    yield f"    --- {by}"
    yield from (f"    {line}" for line in text.splitlines())


def turn_json(turn: Turn, *, texts: bool) -> dict[str, Any]:
    """A call as plain values, with what was said in it."""
    call = turn.call
    found: dict[str, Any] = {name: getattr(call, name) for name in call.__struct_fields__}
    found["kept"] = turn.prompt is not None
    return found | ({"asked": turn.prompt, "answered": turn.reply} if texts else {})


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
    group.callback()(_group)
    group.command("show")(show)
    app.add_typer(group, name="task", help="A task and its model calls.", rich_help_panel=PANEL)


def _group() -> None:
    """A task and its model calls."""
