"""Reads nothing, writes nothing: what is remembered of one file, the state of the file fold.

Bounded: the last `MAX_EDITS` edits with their contents and the last `MAX_ENTRIES` events. Both
are constants of the fold, so that every replica forgets the same things at the same event. What one
more event costs does not depend on what is remembered: nothing here is copied or looked through as a
whole.
"""

from collections.abc import Iterable

import msgspec

from codeconvoy.schemas.events import Event, EventType, Policy, Strategy, Tried
from codeconvoy.schemas.job_facts import VerdictKind
from codeconvoy.schemas.persistent import PersistentMap, PersistentQueue

MAX_EDITS = 256
MAX_ENTRIES = 1024
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
    """Where it is stored: one of the numbers below that of the entries. An entry that is forgotten
    leaves its slot to the next one."""
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
    edits: PersistentQueue[str] = PersistentQueue()
    """The entries that hold an edit, in log order."""
    emptied: PersistentQueue[str] = PersistentQueue()
    """Those that held one that is too old by now, in log order."""
    notes: PersistentQueue[str] = PersistentQueue()
    """All others, in log order."""
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
    """The history with one more entry, or with another one of an event that was deferred. What is too old
    then is forgotten, but never a head or what readers see."""
    entries, key = history.entries, entry.event_id
    edits, emptied, notes = history.edits, history.emptied, history.notes
    is_known, gone = key in entries, None
    changes: dict[str, Entry | None] = {}
    if entry.edit is not None:
        edits = _with(history, edits, entry) if is_known else edits.pushed(key)
        if is_known:
            notes = PersistentQueue(each for each in notes if each != key)
        if len(edits) > MAX_EDITS:
            old, edits = _oldest(history, edits)
            if old is not None:  # it is too old for others to be built on it
                empty = changes[old] = msgspec.structs.replace(entries[old], edit=None)
                emptied = _with(history, emptied, empty)
    elif not is_known:
        notes = notes.pushed(key)
    if not is_known and len(entries) >= MAX_ENTRIES:
        (note, rest), (edit, others) = _oldest(history, notes), _oldest(history, emptied)
        if edit is None or (note is not None and note != key and entries[note].seq < entries[edit].seq):
            gone, notes = note, rest
        else:
            gone, emptied = edit, others
        assert gone is not None and gone != key, "there are more entries than edits and deferred events"
        entry = msgspec.structs.replace(entry, slot=entries[gone].slot)
        changes[gone] = None
    changes[key] = entry
    return msgspec.structs.replace(
        history,
        entries=entries.updated(changes),
        edits=edits,
        emptied=emptied,
        notes=notes,
        next_seq=history.next_seq + (not is_known),
    )


def _oldest(history: FileHistory, queue: PersistentQueue[str]) -> tuple[str | None, PersistentQueue[str]]:
    """The first of the queue that may be forgotten, and the queue without it."""
    if not queue:
        return None, queue
    first = queue.first
    if first is not None and not _is_pinned(history, first):
        return first, queue.without_first()
    found = next((each for each in queue if not _is_pinned(history, each)), None)
    return found, PersistentQueue(each for each in queue if each != found)


def _is_pinned(history: FileHistory, key: str) -> bool:
    """True for what is never forgotten."""
    if key == history.visible or key in history.heads:
        return True
    return bool(history.deferred) and any(event.event_id == key for event in history.deferred)


def _with(history: FileHistory, queue: PersistentQueue[str], entry: Entry) -> PersistentQueue[str]:
    """The queue with one more entry, in log order; nearly always it is the last one."""
    last = queue.last
    if last is None or history.entries[last].seq < entry.seq:
        return queue.pushed(entry.event_id)
    seqs = {each: history.entries[each].seq for each in queue} | {entry.event_id: entry.seq}
    return PersistentQueue(sorted(seqs, key=seqs.__getitem__))
