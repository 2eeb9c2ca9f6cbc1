"""Reads nothing, writes nothing: what is remembered of one file, the state of the file fold.

Bounded: the last `MAX_EDITS` edits with their contents and the last `MAX_ENTRIES` events. Both
are constants of the fold, so that every replica forgets the same things at the same event.
"""

from collections.abc import Iterable, Mapping

import msgspec

from codeconvoy.schemas.events import Event, EventType, Policy, Strategy, Tried
from codeconvoy.schemas.job_facts import VerdictKind

MAX_EDITS = 256
MAX_ENTRIES = 1024
MAX_DEFERRED = 256
MAX_READERS = 1024
MAX_HEADS = 64
MAX_VOIDED = 256


class _State(msgspec.Struct, frozen=True, kw_only=True):
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
    """Somebody whose work is built on `version` of this file."""

    noted_by: str
    """The READ_NOTED, REVIEW_SUBMITTED or TEST_EXECUTED event: what becomes OUTDATED."""
    version: str
    reader_event: str
    reader_path: str
    job_id: str
    task_id: str
    round: int


class FileHistory(_State, frozen=True, kw_only=True):
    """One file as its log says. Mappings are never changed in place."""

    workspace: str
    path: str
    entries: Mapping[str, Entry] = {}
    """By event id, in log order."""
    next_seq: int = 0
    heads: tuple[str, ...] = ()
    """Live edits without a live descendant, in log order."""
    visible: str = ""
    """The edit whose content readers see; empty where the file was never there."""
    claim: Claim | None = None
    deferred: tuple[Event, ...] = ()
    readers: tuple[Reader, ...] = ()
    voided: tuple[tuple[str, int], ...] = ()
    """(task, round) pairs whose later edits are dead."""

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
