"""Reads the projection, writes nothing: whether a file moved under a running call, and what follows.

What an agent is shown is its read set. Where readers see another content of one of these files than
it was shown, by another hand than its own task's, its base has moved, and the job's policy says whether
the call goes on.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import get_args

from codeconvoy.schemas import ids
from codeconvoy.schemas.events import TYPE_OF, EditPayload
from codeconvoy.schemas.job_spec import OnMove
from codeconvoy.schemas.tasks import EditWork, ReviewWork, Task
from codeconvoy.workers.projection import FileView

MAX_RESTARTS = 2
"""Of one task's call, whatever moves: then it goes on, so that it ends."""
_EDITS = tuple(TYPE_OF[kind] for kind in get_args(EditPayload))


class Reaction(StrEnum):
    """What becomes of a call under which a file moved."""

    REPAIR = "repair"
    """It goes on; what it writes is merged, or done again."""
    RESTART = "restart"
    """It is cancelled, and begins anew on what there is now."""


def reaction(task: Task, restarts: int) -> Reaction:
    """What becomes of a task's call when a file moves, after so many restarts."""
    # A review is of one version. Begun anew it would be of the same one, and the job asks for the next.
    if task.on_move is OnMove.RESTART and restarts < MAX_RESTARTS and not isinstance(task.work, ReviewWork):
        return Reaction.RESTART
    return Reaction.REPAIR


def moved(task: Task, shown: Mapping[str, FileView], now: Mapping[str, FileView]) -> frozenset[str]:
    """The files of which readers see a later content now, by another hand than this task's."""
    return frozenset(
        path
        for path in shown.keys() - _pinned(task)
        if _is_later(shown[path], now[path]) and not _is_own(task, path, now[path].visible)
    )


def _is_later(shown: FileView, now: FileView) -> bool:
    """True for another content that is newer: an older one, or none, is a projection that was lost."""
    before, after = shown.contents.get(shown.visible), now.contents.get(now.visible)
    if after is None or now.visible == shown.visible:
        return False
    if before is None:
        return after.edit.content is not None
    same = (before.edit.sha256, before.edit.executable) == (after.edit.sha256, after.edit.executable)
    return after.seq > before.seq and not same


def _pinned(task: Task) -> frozenset[str]:
    """The file that is to be edited as it was at one event: what others make of it is merged later."""
    is_pinned = isinstance(task.work, EditWork) and task.work.base != ""
    return frozenset({task.path}) if is_pinned else frozenset()


def _is_own(task: Task, path: str, event_id: str) -> bool:
    """True for an edit of any round of this task: what an earlier delivery wrote is no news to it."""
    return any(
        event_id == ids.event_id(task.task_id, round_, path, kind)
        for round_ in range(1, task.round + 1)
        for kind in _EDITS
    )
