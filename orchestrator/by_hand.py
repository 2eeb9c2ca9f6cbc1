"""Reads the projection, writes `events`: a conflict that a person resolves.

The resolution is an event like any other: the fold judges it, and refuses it where the conflict
is over meanwhile.
"""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from codeconvoy.schemas import ids
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import BadInput, Unavailable
from codeconvoy.schemas.events import ConflictResolved, Event, EventType, Strategy
from codeconvoy.schemas.file_history import Claim, Edit, Entry, FileHistory
from codeconvoy.schemas.hunks import make_patch
from codeconvoy.schemas.job_facts import VerdictKind
from codeconvoy.schemas.topics import MAX_FILE_BYTES, Topics, file_key
from codeconvoy.workers.conflicts import BY_HAND
from codeconvoy.workers.engine.bus import Bus, Outgoing
from codeconvoy.workers.projection import Projection
from codeconvoy.workers.resolution.validate import objections

VERDICT_SECONDS = 30.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Side:
    """One head of a conflict."""

    event_id: str
    entry: Entry
    edit: Edit


@dataclass(frozen=True, slots=True)
class OpenConflict:
    """A conflict that holds its file."""

    history: FileHistory
    claim: Claim
    sides: tuple[Side, ...]
    """In log order."""
    base: bytes | None
    """What all sides started from, where there is such a thing."""


def conflict_of(history: FileHistory) -> OpenConflict:
    """The conflict that holds a file.

    Raises:
        BadInput: none does.
    """
    claim = history.claim
    if claim is None:
        state = "forked, and not claimed yet" if history.forked else "not in conflict"
        raise BadInput("FILE", f"{history.path} is {state}", "`convoy conflicts list` shows open conflicts")
    sides = [side for head in claim.heads if (side := _side(history, head)) is not None]
    base = history.edit(claim.base) if claim.base else None
    in_order = tuple(sorted(sides, key=lambda side: side.entry.seq))
    return OpenConflict(history, claim, in_order, base.content if base else None)


def _side(history: FileHistory, head: str) -> Side | None:
    edit = history.edit(head)
    return Side(head, history.entries[head], edit) if edit is not None else None


def side_of(conflict: OpenConflict, wanted: str) -> Side:
    """The side whose event id begins so.

    Raises:
        BadInput: there is none, or there are several.
    """
    found = [side for side in conflict.sides if wanted and side.event_id.startswith(wanted)]
    if len(found) != 1:
        known = ", ".join(side.event_id for side in conflict.sides)
        raise BadInput("--take", f"{wanted!a} begins {len(found)} heads of the conflict", f"Heads: {known}")
    return found[0]


def check_content(conflict: OpenConflict, content: bytes | None) -> None:
    """See that a resolution is one that an agent's would be taken for.

    Raises:
        BadInput: something speaks against it.
    """
    contents = [side.edit.content for side in conflict.sides]
    if content in contents:
        return
    against = objections(conflict.history.path, content, [side for side in contents if side is not None])
    if against:
        raise BadInput("content", "; ".join(against), "Mend it, or take it as it is with --force")


def resolution(
    conflict: OpenConflict,
    content: bytes | None,
    *,
    executable: bool,
    losers: Sequence[str],
    author: str,
    now: int,
) -> Event:
    """The event that settles the conflict with this content. The same answer makes the same event.

    Raises:
        BadInput: the content is too large.
    """
    if content is not None and len(content) > MAX_FILE_BYTES:
        reason = f"it has {len(content)} bytes, the limit is {MAX_FILE_BYTES}"
        raise BadInput("content", reason, "Make it smaller")
    history, claim = conflict.history, conflict.claim
    parents = tuple(sorted(claim.heads))
    first = history.edit(parents[0])
    later = conflict.sides[-1]
    digest = ids.sha256(content) if content is not None else ""
    return Event(
        event_id=ids.derived("by-hand", claim.conflict_id, claim.attempt, digest, int(executable)),
        event_type=EventType.CONFLICT_RESOLVED,
        workspace=history.workspace,
        file_path=history.path,
        job_id=later.entry.job_id,
        task_id=claim.conflict_id,
        round=claim.attempt,
        agent_id=author,
        role=BY_HAND,
        timestamp=now,
        parent_event_ids=parents,
        policy=later.edit.policy,
        payload=ConflictResolved(
            patch=make_patch(first.content if first else None, content, executable=executable),
            conflict_id=claim.conflict_id,
            strategy=Strategy.HUMAN,
            tried=claim.tried,
            losers=tuple(sorted(losers)),
            summary=f"resolved by {author}",
        ),
    )


async def submit_resolution(
    event: Event, bus: Bus, codec: Codec, topics: Topics, projection: Projection
) -> Entry:
    """Put the event on the log, and wait for what the fold says of it.

    Raises:
        Unavailable: the projection has not seen it in time.
    """
    key = file_key(event.workspace, event.file_path)
    producer = await bus.producer(f"{topics.prefix}.by-hand.{uuid.uuid4().hex}")
    try:
        await producer.transaction([Outgoing(topics.events, key, codec.encode(event))])
    finally:
        await producer.close()
    deadline = asyncio.get_running_loop().time() + VERDICT_SECONDS
    while True:
        history = (await projection.histories(event.workspace, [event.file_path]))[event.file_path]
        entry = history.entries.get(event.event_id)
        if entry is not None and entry.verdict is not VerdictKind.DEFERRED:
            return entry
        if asyncio.get_running_loop().time() > deadline:
            what = f"it has not judged {event.event_id} after {VERDICT_SECONDS:.0f} s"
            raise Unavailable("projection", what, "The event is on the log: see `convoy log`")
        await asyncio.sleep(POLL_SECONDS)
