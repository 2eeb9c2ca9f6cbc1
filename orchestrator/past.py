"""Reads a file's events from the log, writes nothing: the file as it was at any moment.

Time travel is the fold, stopped early. Nothing is looked up in Redis.
"""

import re
from collections.abc import AsyncIterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.file_fold import Verdict, fold
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.hunks import diff, lines
from codeconvoy.schemas.job_facts import VerdictKind
from codeconvoy.workers.engine.bus import Record

_LIVE = (VerdictKind.ACCEPTED, VerdictKind.FORKED)
_OFFSET = re.compile(r"[0-9]{1,18}\Z")
_EVENT = re.compile(r"(?:[0-9a-f]{4,8}|[0-9a-f]{8}-[0-9a-f-]{0,27})\Z")
"""A UUID or its beginning. A date is none: its first part is too short."""


class Moment(NamedTuple):
    """One event of a file, as it came."""

    offset: int
    timestamp: int
    """Milliseconds since the epoch, as the record was stamped. Information only."""
    event: Event
    summary: str


class Text(NamedTuple):
    """The lines of one version, and the edit that wrote each of them."""

    content: bytes
    owners: tuple[str, ...]
    """An event id a line; empty where none of ours wrote it."""


@dataclass(slots=True)
class FilePast:
    """A file's events up to a moment, and what they fold to."""

    history: FileHistory
    moments: list[Moment] = field(default_factory=list)
    """Every event once, in log order."""
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """The last verdict on each event."""

    def add(self, record: Record, event: Event) -> tuple[str, ...]:
        """Fold one more event; answers the edits that took effect with it."""
        self.history, judged = fold(self.history, event)
        if judged[0][1].kind is VerdictKind.DUPLICATE:
            return ()
        summary = self.history.entries[event.event_id].summary
        self.moments.append(Moment(record.offset, record.timestamp, event, summary))
        self.verdicts.update(judged)
        return tuple(event_id for event_id, verdict in judged if verdict.kind in _LIVE)

    def is_live(self, event_id: str) -> bool:
        """True where the event is an edit that counts."""
        verdict = self.verdicts.get(event_id)
        return verdict is not None and verdict.kind in _LIVE

    def by_id(self) -> dict[str, Moment]:
        """The moments by event id."""
        return {moment.event.event_id: moment for moment in self.moments}


@dataclass(frozen=True, slots=True)
class At:
    """A moment of a file's log: one of the three is given."""

    event: str = ""
    """An event id, or how it begins: up to and with it."""
    offset: int | None = None
    """Of the file's partition: up to and with it."""
    until: int | None = None
    """Milliseconds since the epoch: up to the first record with a later stamp."""


def parse_at(text: str) -> At:
    """What a user means by a moment: an event id (or its first characters), an offset, an ISO time.

    Raises:
        BadInput: it is none of these.
    """
    if _OFFSET.match(text):
        return At(offset=int(text))
    if _EVENT.match(text):
        return At(event=text)
    try:
        # Without a zone it is local time.
        return At(until=int(datetime.fromisoformat(text).timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        raise BadInput(
            "--at",
            f"{text!a} is neither an event, nor a time, nor an offset",
            "Give an event id of `convoy log`, an offset, or a time such as 2026-03-01T14:30",
        ) from None


def check_reached(at: At, end: int) -> None:
    """See that a moment that is given as an offset is on the log: one beyond it would be shown as the
    present, and be another one tomorrow.

    Args:
        at: the moment.
        end: the offset after the last one of the file's partition; 0: nothing is there.

    Raises:
        BadInput: the log does not reach so far.
    """
    if at.offset is not None and 0 < end <= at.offset:
        reason = f"offset {at.offset} is not there yet: the last one of the file's partition is {end - 1}"
        raise BadInput("--at", reason, "Give an offset up to that one, or leave --at out for the present")


async def past_of(
    events: AsyncIterable[tuple[Record, Event]], workspace: str, path: str, at: At | None = None
) -> FilePast:
    """The file as its log says, up to a moment (None: up to now).

    Raises:
        BadInput: the moment's event is not on the log of this file.
    """
    past = FilePast(FileHistory(workspace=workspace, path=path))
    async for record, event in events:
        if at is not None and _is_past(at, record):
            break
        past.add(record, event)
        if at is not None and at.event and event.event_id.startswith(at.event):
            return past
    if at is not None and at.event:
        raise BadInput("--at", f"{path} has no event {at.event}", "See `convoy log`")
    return past


def _is_past(at: At, record: Record) -> bool:
    if at.offset is not None:
        return record.offset > at.offset
    return at.until is not None and record.timestamp > at.until


# Who wrote which line --------------------------------------------------------------------------------


class Blame:
    """The texts of a file's versions, each line with the edit that wrote it.

    A line belongs to the edit that brought it in. A merge owns only what none of its parents has:
    what it took from a side stays that side's. Fed beside a `FilePast`; it forgets the versions
    that the fold forgets, but for those that it is told to keep.
    """

    def __init__(self, keep: str = "") -> None:
        """`keep` is an event (or how it begins) whose text is wanted in the end."""
        self.texts: dict[str, Text] = {}
        self._keep = keep

    def landed(self, past: FilePast, event_id: str) -> None:
        """An edit took effect."""
        edit = past.history.edit(event_id)
        if edit is None:
            return
        parents = [self.texts[parent] for parent in edit.parents if parent in self.texts]
        self.texts[event_id] = _owned(event_id, edit.content or b"", parents)
        for known in list(self.texts):
            if past.history.edit(known) is None and not (self._keep and known.startswith(self._keep)):
                del self.texts[known]


def _owned(event_id: str, content: bytes, parents: list[Text]) -> Text:
    owners: list[str | None] = [None] * len(lines(content))
    for parent in parents:
        kept = inherited(parent, content)
        owners = [owner if owner is not None else other for owner, other in zip(owners, kept, strict=True)]
    return Text(content, tuple(owner if owner is not None else event_id for owner in owners))


def inherited(base: Text, content: bytes) -> list[str | None]:
    """For each line of the content its owner in the base; None where the base has no such line."""
    owners: list[str | None] = []
    done = 0
    for hunk in diff(base.content, content):
        owners += base.owners[done : hunk.start]
        owners += [None] * len(lines(hunk.lines))
        done = hunk.start + hunk.removed
    return [*owners, *base.owners[done:]]


async def past_and_blame(
    events: AsyncIterable[tuple[Record, Event]], workspace: str, path: str, keep: str = ""
) -> tuple[FilePast, Blame]:
    """The file up to now, with the owners of its lines."""
    past, blame = FilePast(FileHistory(workspace=workspace, path=path)), Blame(keep)
    async for record, event in events:
        for event_id in past.add(record, event):
            blame.landed(past, event_id)
    return past, blame
