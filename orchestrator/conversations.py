"""Reads the projection and what is kept of model calls, writes nothing: what a task asked, and was told."""

from collections.abc import Sequence
from dataclasses import dataclass

from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.job_state import JobState, TaskState
from codeconvoy.workers.llm.kept import KeptCall, KeptPrompt, PromptStore
from codeconvoy.workers.projection import Projection

SHOWN = 5
"""Tasks that a message names."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One call of a task; its texts while they are kept."""

    call: KeptCall
    prompt: KeptPrompt | None
    reply: str | None


async def find_task(projection: Projection, prefix: str) -> tuple[JobState, TaskState]:
    """The task whose id begins so, with its job.

    Raises:
        BadInput: there is none, or there are several.
    """
    found = {
        task_id: (job, state)
        for job in await projection.jobs()
        for task_id, state in job.tasks.items()
        if task_id.startswith(prefix)
    }
    if prefix in found:
        return found[prefix]
    if not prefix or not found:
        remedy = "`convoy log FILE` and `convoy why FILE:LINE` show the ids of tasks"
        raise BadInput("TASK", f"no task's id begins with {prefix!a}", remedy)
    if len(found) > 1:
        names = ", ".join(sorted(found)[:SHOWN])
        raise BadInput("TASK", f"{len(found)} tasks' ids begin with {prefix!a}: {names}", "Give more of it")
    return next(iter(found.values()))


async def turns_of(store: PromptStore, workspace: str, task_id: str) -> Sequence[Turn]:
    """All calls of a task that are kept, in order.

    Raises:
        Unavailable: Redis can't be reached.
    """
    return [
        Turn(
            call,
            await store.prompt(workspace, call.prompt),
            await store.reply(workspace, call.reply) if call.reply else "",
        )
        for call in await store.calls(workspace, task_id)
    ]
