"""Reads a file's history, writes nothing: what the file is without the edits of one job.

What a job's reviewers refused must not stay in the file, and what other jobs have done there must: they
share the workspace.
"""

from dataclasses import dataclass

from codeconvoy.schemas.events import EventType, Strategy
from codeconvoy.schemas.file_history import Entry, FileHistory
from codeconvoy.schemas.job_state import GIT_ROLE
from codeconvoy.workers.resolution.object_store import GaveUp
from codeconvoy.workers.resolution.standalone import merge_files


@dataclass(frozen=True, slots=True)
class Undone:
    """A file without the edits of a job."""

    content: bytes | None
    """None where it was the job that made the file."""
    executable: bool
    event_id: str
    """The event that holds just this; empty where none does."""


def undone(history: FileHistory, job_id: str) -> Undone | GaveUp | None:
    """What readers see of a file, without this job's edits; None where there are none in it.

    The last version that the job had no part in, if nobody else has edited the file since. Otherwise each
    edit of the job, the latest first, is taken back by a three-way merge (as `git revert` does).
    """
    shown = sorted(history.ancestors((history.visible,)), key=lambda each: history.entries[each].seq)
    own = _own(history, shown, job_id)
    if not own:
        return None
    touched = _touched(history, shown, own)
    before = [each for each in shown if each not in touched]
    others = [each for each in touched if each not in own and not _only_joins(history.entries[each])]
    last = before[-1] if before else ""
    if not others and set(before) <= history.ancestors((last,)):
        parents = {parent for each in own if (edit := history.edit(each)) for parent in edit.parents}
        if not last and not parents <= touched.keys():
            return GaveUp(f"what {history.path} was before is too old to be known")
        edit = history.edit(last)
        return Undone(edit.content, edit.executable, last) if edit else Undone(None, False, "")
    return _taken_back(history, own)


def _own(history: FileHistory, shown: list[str], job_id: str) -> list[str]:
    """The edits of the job's agents. What it imported is the repository's, what it joined everybody's."""
    entries = [history.entries[each] for each in shown]
    return [
        entry.event_id
        for entry in entries
        if entry.job_id == job_id and entry.role != GIT_ROLE and not _only_joins(entry)
    ]


def _only_joins(entry: Entry) -> bool:
    return entry.event_type is EventType.CONFLICT_RESOLVED


def _touched(history: FileHistory, shown: list[str], own: list[str]) -> dict[str, None]:
    """The job's edits and all that is built on them, in order."""
    touched: dict[str, None] = {}
    for each in shown:
        edit = history.edit(each)
        if each in own or (edit is not None and any(parent in touched for parent in edit.parents)):
            touched[each] = None
    return touched


def _taken_back(history: FileHistory, own: list[str]) -> Undone | GaveUp:
    seen = history.edit(history.visible)
    assert seen is not None, "what is visible is remembered"
    content = seen.content
    for event_id in reversed(own):
        edit = history.edit(event_id)
        before = history.edit(edit.parents[0]) if edit is not None and edit.parents else None
        if edit is None or before is None or None in (edit.content, before.content, content):
            return _built_on(history)
        assert edit.content is not None and before.content is not None and content is not None
        merged = merge_files(edit.content, content, before.content, history.path, (Strategy.THREE_WAY,))
        if not merged.clean:
            return _built_on(history)
        content = merged.content
    return Undone(content, seen.executable, "")


def _built_on(history: FileHistory) -> GaveUp:
    return GaveUp(f"others have built on what was refused in {history.path}: it can't be told from theirs")
