"""Reads the projection, writes nothing: what a merger is shown of a conflict.

The whole history of the file, and not only its versions: of a criss-cross the base is git's to find,
and what each side is about stands in the edits that led to it.
"""

import asyncio

from codeconvoy.schemas.errors import AgentError
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.tasks import ResolveWork, Task
from codeconvoy.workers.desk import Desk, version_of
from codeconvoy.workers.resolution.object_store import GaveUp
from codeconvoy.workers.resolution.regions import partial_merge
from codeconvoy.workers.roles.role import Context, Intent, Merge

MAX_INTENTS = 20
"""Of a side: the latest of its edits."""


async def merge_context(desk: Desk, task: Task, work: ResolveWork) -> Context:
    """The regions that git could not merge, and what the sides are about.

    Raises:
        AgentError: the conflict is over, or it can't be merged by regions.
        Unavailable: the projection is too far behind, or the file changes too fast.
    """
    history = (await desk.snapshot(task, [task.path]))[task.path]
    if any(head not in history.heads for head in work.heads):
        raise AgentError("the conflict is over: its heads have been joined")
    if len(work.heads) != 2:
        raise AgentError(f"a merger joins two heads, not {len(work.heads)}")
    partial = partial_merge(history, work.heads)
    if isinstance(partial, GaveUp):
        raise AgentError(partial.reason)
    one, other = sorted(work.heads)
    mine, theirs = await asyncio.gather(
        _intents(desk, history, one, other), _intents(desk, history, other, one)
    )
    base = history.edit(work.base) if work.base else None
    return Context(
        task,
        version_of(history, one),
        base=version_of(history, work.base) if work.base and base is not None else None,
        heads=(version_of(history, other),),
        merge=Merge(partial, (mine, theirs)),
    )


async def _intents(desk: Desk, history: FileHistory, head: str, other: str) -> tuple[Intent, ...]:
    """What the edits are about that only one side holds, in log order."""
    apart = history.ancestors((head,)) - history.ancestors((other,))
    entries = sorted((history.entries[event_id] for event_id in apart), key=lambda entry: entry.seq)
    latest = entries[-MAX_INTENTS:]
    goals = await asyncio.gather(
        *(desk.projection.goal(entry.job_id, entry.role, history.path) for entry in latest)
    )
    return tuple(Intent(entry.role, goal, entry.summary) for entry, goal in zip(latest, goals, strict=True))
