"""Reads nothing, writes nothing: what is remembered of one file, the state of the file fold.

Bounded: the last `MAX_EDITS` edits with their contents and the last `MAX_ENTRIES` events, and a quarter
more of either before all that is too old is forgotten at once. These are constants of the fold, so that
every replica forgets the same things at the same event. What one more event costs does not depend on
what is remembered: nothing else here is copied or looked through as a whole.
"""

from collections.abc import Iterable
from itertools import islice

import msgspec

from codeconvoy.schemas.events import Event, EventType, Policy, Strategy, Tried
from codeconvoy.schemas.job_facts import VerdictKind
from codeconvoy.schemas.persistent import PersistentMap, PersistentQueue

MAX_EDITS = 256
MAX_ENTRIES = 1024
SLACK = 4
"""One in so many is remembered beyond these two before the oldest go."""
MAX_DEFERRED = 256
MAX_READERS = 1024
MAX_HEADS = 64
MAX_VOIDED = 256


class _State(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of the parts of a history: immutable, by keyword only."""


class Edit(_State, frozen=True, kw_only=True):
    """What an edit made of the file."""

    parents: tuple[str, ...]
    live: bool
    content: bytes | None
    """The whole content after the edit; None is a tombstone (and for dead edits)."""
    sha256: str | None
    executable: bool = False
    policy: Policy | None = None
    shown: bool = False
    """True where this content became visible when the edit landed, or was later."""


class Entry(_State, frozen=True, kw_only=True):
    """One event of the file as it was judged."""

    seq: int
    """Counts the file's events, from 0, in log order."""
    slot: int = 0
    """Where it is stored. An entry that is forgotten leaves its slot to a later one."""
    event_id: str
    event_type: EventType
    job_id: str
    task_id: str
    round: int
    role: str
    agent_id: str
    timestamp: int
    verdict: VerdictKind
    reason: str = ""
    edit: Edit | None = None
    summary: str = ""


class Claim(_State, frozen=True, kw_only=True):
    """A hold on the file while a conflict is resolved. Only a resolution of `heads` passes."""

    conflict_id: str
    heads: tuple[str, ...]
    base: str | None
    attempt: int
    strategy: Strategy
    remaining: tuple[Strategy, ...]
    default: Strategy
    tried: tuple[Tried, ...]
    deadline: int
    event_id: str
    """The CONFLICT_DETECTED that made the claim."""


class Reader(_State, frozen=True, kw_only=True):
    """Somebody whose work is built on what readers see of this file."""

    noted_by: str
    """The READ_NOTED, REVIEW_SUBMITTED or TEST_EXECUTED event: what becomes OUTDATED."""
    reader_event: str
    reader_path: str
    job_id: str
    task_id: str
    round: int


class FileHistory(_State, frozen=True, kw_only=True):
    """One file as its log says. Mappings are never changed in place."""

    workspace: str
    path: str
    entries: PersistentMap[Entry] = msgspec.field(default_factory=PersistentMap)
    """By event id, in log order."""
    edits: int = 0
    """How many of them hold an edit."""
    free: PersistentQueue[int] = PersistentQueue()
    """The slots that forgotten entries have left, the lowest first. All below the number of these and of
    the entries are free or taken."""
    next_seq: int = 0
    heads: tuple[str, ...] = ()
    """Live edits without a live descendant, in log order."""
    visible: str = ""
    """The edit whose content readers see; empty where the file was never there."""
    claim: Claim | None = None
    deferred: tuple[Event, ...] = ()
    deferred_from: int = 0
    """The number of the first of them: how many were deferred and judged before. Here and below, such
    numbers name what comes and goes in order, so that each is stored once."""
    readers: tuple[Reader, ...] = ()
    readers_from: int = 0
    voided: tuple[tuple[str, int], ...] = ()
    """(task, round) pairs whose later edits are dead."""
    voided_from: int = 0

    def edit(self, event_id: str) -> Edit | None:
        """The edit of this id, if it is one and is remembered."""
        entry = self.entries.get(event_id)
        return entry.edit if entry else None

    @property
    def next_slot(self) -> int:
        """The slot of the next entry."""
        return len(self.entries) if self.free.first is None else self.free.first

    @property
    def forked(self) -> bool:
        """True while there is more than one head."""
        return len(self.heads) > 1

    def ancestors(self, event_ids: Iterable[str]) -> set[str]:
        """These live edits and all their remembered live ancestors."""
        found: set[str] = set()
        stack = list(event_ids)
        while stack:
            event_id = stack.pop()
            edit = self.edit(event_id)
            if event_id in found or edit is None or not edit.live:
                continue
            found.add(event_id)
            stack.extend(edit.parents)
        return found


def with_entry(history: FileHistory, entry: Entry) -> FileHistory:
    """The history with one more entry, in the next slot, or with an event that was deferred as it was
    judged. What is too old then is forgotten."""
    is_new = entry.event_id not in history.entries
    edits = history.edits + (entry.edit is not None)
    history = msgspec.structs.replace(
        history,
        entries=history.entries.updated({entry.event_id: entry}),
        edits=edits,
        free=history.free.without_first() if is_new and history.free else history.free,
        next_seq=history.next_seq + is_new,
    )
    if edits > MAX_EDITS + MAX_EDITS // SLACK:
        history = _with_fewer_edits(history)
    if is_new and len(history.entries) > MAX_ENTRIES + MAX_ENTRIES // SLACK:
        history = _with_fewer_entries(history)
    return history


def _with_fewer_edits(history: FileHistory) -> FileHistory:
    """The oldest edits are too old for others to be built on them."""
    pinned = _pinned(history)
    latest = (entry for _, entry in history.entries.latest() if entry.edit is not None)
    held = list(islice(latest, history.edits))  # the last ones, mostly: not all entries are looked at
    old = [entry for entry in reversed(held) if entry.event_id not in pinned][: history.edits - MAX_EDITS]
    changes = {entry.event_id: msgspec.structs.replace(entry, edit=None) for entry in old}
    return msgspec.structs.replace(
        history, entries=history.entries.updated(changes), edits=history.edits - len(old)
    )


def _with_fewer_entries(history: FileHistory) -> FileHistory:
    """The oldest events are forgotten, but for edits that others can be built on."""
    pinned = _pinned(history)
    left = (
        entry for event_id, entry in history.entries.items() if entry.edit is None and event_id not in pinned
    )
    old = list(islice(left, len(history.entries) - MAX_ENTRIES))
    return msgspec.structs.replace(
        history,
        entries=history.entries.updated({entry.event_id: None for entry in old}),
        free=PersistentQueue(sorted((*history.free, *(entry.slot for entry in old)))),
    )


def _pinned(history: FileHistory) -> frozenset[str]:
    """What is never forgotten: heads, what readers see, and what is deferred."""
    return frozenset((history.visible, *history.heads, *(event.event_id for event in history.deferred)))
