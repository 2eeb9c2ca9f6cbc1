"""Reads a task's earlier edit and the projection, writes nothing: what the task answered before, and to what.

An edit that was refused has left nothing but its event, so its content is made anew from its patch.
"""

from collections.abc import Mapping

from codeconvoy.schemas.errors import PatchRejected
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.hunks import apply
from codeconvoy.workers.projection import FileView, Wanted
from codeconvoy.workers.roles.role import Former, Version


def with_former(wanted: Wanted, event: Event | None) -> Wanted:
    """What is wanted, and the versions that the agent was shown when it made this edit."""
    if event is None:
        return wanted
    named = {event.file_path: (*event.parent_event_ids, event.event_id)}
    named |= {read.path: (read.event_id,) for read in event.reads}
    return {
        path: tuple(dict.fromkeys((*some, *(each for each in named.get(path, ()) if each))))
        for path, some in wanted.items()
    }


def former_of(event: Event, views: Mapping[str, FileView]) -> Former | None:
    """What the agent made of its file with this edit; None where what it was shown is forgotten."""
    path, payload = event.file_path, event.edit
    base = _version(views, path, next(iter(event.parent_event_ids), ""))
    if base is None or payload is None:
        return None
    try:
        content = apply(payload.patch, base.content)
    except PatchRejected:  # so the fold refused it too
        return None
    executable, summary = payload.patch.executable, getattr(payload, "summary", "")
    own = Version(path, event.event_id, content, executable, event.role, summary)
    then = (_version(views, read.path, read.event_id) for read in event.reads)
    shown = {version.path: version for version in (base, *then) if version is not None}
    kept = views[path].contents.get(event.event_id)
    used = event.usage.tokens_in + event.usage.tokens_out if event.usage is not None else 0
    return Former(shown, own, kept is not None and kept.edit.live, used)


def _version(views: Mapping[str, FileView], path: str, event_id: str) -> Version | None:
    """A file as it was at one event; None where that is not remembered, or the file is not shown any more."""
    if path not in views or (event_id and event_id not in views[path].contents):
        return None
    if not event_id:
        return Version(path, "", None)
    kept = views[path].contents[event_id]
    return Version(path, event_id, kept.edit.content, kept.edit.executable, kept.role, kept.summary)
