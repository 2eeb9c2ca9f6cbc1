"""Reads and writes fields of a partition's hash: how a file's history is laid out in Redis.

    f:KEY           the header: what there is, and what readers see
    e:KEY SLOT      each remembered event; the slots are numbered from 0, and those that are left are
                    taken by later events
    c:KEY EVENT     what an edit made of the file, while that is remembered
    r:KEY NUMBER    each reader, d:KEY NUMBER each deferred event, v:KEY NUMBER each voided round: they
                    come and go in the order of their numbers
    !conflict:KEY   in the projection alone, for each file that has more than one head, to list them by

So what one more event writes does not grow with what the file already holds, and an edit can be read
by its id, without the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import msgspec

from codeconvoy.schemas.errors import TornState
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.file_history import Claim, Edit, Entry, FileHistory, Reader
from codeconvoy.schemas.job_facts import VerdictKind
from codeconvoy.schemas.persistent import PersistentMap, PersistentQueue
from codeconvoy.schemas.topics import split_file_key
from codeconvoy.workers.engine.reads import ReadFields, batches

_HEADER, _ENTRY, _CONTENT, _READER, _DEFERRED, _VOIDED = "f:", "e:", "c:", "r:", "d:", "v:"
OPEN_CONFLICT = "!conflict:"
FILES_AT_ONCE = 100
"""Whose histories are read together."""
ENTRY_BYTES = 500
"""About what an event takes in memory beside the content of its edit (measured)."""

_pack = msgspec.msgpack.encode


class _Header(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A history without what is numbered, but for how much there is of it."""

    entries: int
    next_seq: int
    heads: tuple[str, ...]
    visible: str
    claim: Claim | None
    deferred: tuple[int, int]
    """Numbers from the first to below the second; likewise:"""
    readers: tuple[int, int]
    voided: tuple[int, int]
    slots: int
    """Below which those of the entries are."""


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """What an edit made of the file, with what a reader wants to know of its event."""

    event_id: str
    seq: int
    role: str
    summary: str
    edit: Edit


@dataclass(frozen=True, slots=True)
class Seen:
    """Of a header, what readers of single edits need."""

    visible: str = ""
    """The event that readers see; empty where there is none."""
    heads: tuple[str, ...] = ()


def header_field(key: str) -> str:
    """The name of a file's header field."""
    return _HEADER + key


def key_of_header(field: str) -> str | None:
    """The file key of a header field; None for any other field."""
    return field.removeprefix(_HEADER) if field.startswith(_HEADER) else None


def entry_field(key: str, slot: int) -> str:
    """The name of the field of the entry in this slot of a file."""
    return f"{_ENTRY}{key}\x1f{slot}"


def content_field(key: str, event_id: str) -> str:
    """The name of the field of what an edit made of a file."""
    return f"{_CONTENT}{key}\x1f{event_id}"


# Writing ------------------------------------------------------------------------------------------


def dump(key: str, before: FileHistory | None, after: FileHistory) -> dict[str, bytes | None]:
    """The fields that differ. With the same `after` they are the same bytes, whoever writes them."""
    changes: dict[str, bytes | None] = {}
    for event_id, (old, now) in after.entries.changed_since(before.entries if before else None).items():
        _entry(changes, key, event_id, old, now)
    was = before or FileHistory(workspace=after.workspace, path=after.path)
    changes |= _moved(_DEFERRED + key, was.deferred, was.deferred_from, after.deferred, after.deferred_from)
    changes |= _moved(_READER + key, was.readers, was.readers_from, after.readers, after.readers_from)
    changes |= _moved(_VOIDED + key, was.voided, was.voided_from, after.voided, after.voided_from)
    header = _Header(
        entries=len(after.entries),
        next_seq=after.next_seq,
        heads=after.heads,
        visible=after.visible,
        claim=after.claim,
        deferred=(after.deferred_from, after.deferred_from + len(after.deferred)),
        readers=(after.readers_from, after.readers_from + len(after.readers)),
        voided=(after.voided_from, after.voided_from + len(after.voided)),
        slots=len(after.entries) + len(after.free),
    )
    changes[header_field(key)] = _pack(header)
    return changes


def _entry(
    changes: dict[str, bytes | None], key: str, event_id: str, old: Entry | None, now: Entry | None
) -> None:
    """Add the fields of an event that differ."""
    had, edit = old is not None and old.edit is not None, now.edit if now is not None else None
    # One that was forgotten may have come once more meanwhile.
    is_same = old is not None and now is not None and old.seq == now.seq
    if old is not None and (now is None or now.slot != old.slot):
        changes.setdefault(entry_field(key, old.slot), None)  # another may have it by now
    # One whose content is too old is as it was.
    if now is not None and not (is_same and had and edit is None):
        changes[entry_field(key, now.slot)] = _pack(msgspec.structs.replace(now, edit=None))
    if now is not None and edit is not None:
        content = Content(event_id=event_id, seq=now.seq, role=now.role, summary=now.summary, edit=edit)
        changes[content_field(key, event_id)] = _pack(content)
    elif had:
        changes[content_field(key, event_id)] = None


def _moved(
    stem: str, was: Sequence[object], was_from: int, now: Sequence[object], now_from: int
) -> dict[str, bytes | None]:
    """Of a queue, the fields of what came and of what went."""
    was_end, end = was_from + len(was), now_from + len(now)
    if (was_from, was_end) == (now_from, end):
        return {}
    changes: dict[str, bytes | None] = {
        f"{stem}\x1f{number}": _pack(now[number - now_from]) for number in range(max(was_end, now_from), end)
    }
    changes |= {f"{stem}\x1f{number}": None for number in range(was_from, min(was_end, now_from))}
    return changes


def dump_view(key: str, before: FileHistory | None, after: FileHistory) -> dict[str, bytes | None]:
    """As `dump`, with what the projection's readers find conflicts by."""
    changes = dump(key, before, after)
    if after.forked:
        changes[OPEN_CONFLICT + key] = b"1"
    elif before is not None and before.forked:
        changes[OPEN_CONFLICT + key] = None
    return changes


def fields_of(history: FileHistory, key: str) -> Mapping[str, bytes]:
    """All fields of a history in the projection, as a fresh write would leave them."""
    return {name: value for name, value in dump_view(key, None, history).items() if value is not None}


def weight_of(history: FileHistory) -> int:
    """About how many bytes a history takes in memory: its versions are taken to be of the size that
    readers see now, or saw before the file was deleted."""
    now = history.edit(history.visible)
    if now is not None and now.content is None and now.parents:
        now = history.edit(now.parents[0])
    content = len(now.content) if now is not None and now.content is not None else 0
    return ENTRY_BYTES * (1 + len(history.entries)) + content * history.edits


# Reading ------------------------------------------------------------------------------------------


def seen_in(raw: bytes | None) -> Seen:
    """What a header field says of what readers see."""
    if raw is None:
        return Seen()
    header = _HEADERS.decode(raw)
    return Seen(header.visible, header.heads)


def content_in(raw: bytes | None) -> Content | None:
    """What an edit made of a file, or None where that is not remembered."""
    return _CONTENTS.decode(raw) if raw is not None else None


async def load_own(keys: Sequence[str], read: ReadFields) -> Mapping[str, FileHistory | None]:
    """As `load`, for the one that writes them.

    Raises:
        TornState: another one does too.
    """
    found = await load(keys, read)
    if torn := [key for key in keys if key not in found]:
        raise TornState(f"what is stored of {torn[0]!r} does not fit together")
    return found


async def load(keys: Sequence[str], read: ReadFields) -> Mapping[str, FileHistory | None]:
    """The histories of files of one partition, or None where there is none; those that were written between
    the reads are left out. The reads are three for each `FILES_AT_ONCE`."""
    found: dict[str, FileHistory | None] = {}
    for some in batches(keys, FILES_AT_ONCE):
        found |= await _load(some, read)
    return found


async def _load(keys: Sequence[str], read: ReadFields) -> dict[str, FileHistory | None]:
    raws = dict(zip(keys, await read([header_field(key) for key in keys]), strict=True))
    there = {key: (raw, _HEADERS.decode(raw)) for key, raw in raws.items() if raw is not None}
    parts = await _read_numbered({key: header for key, (_, header) in there.items()}, read)
    names = [header_field(key) for key in parts]
    for key, part in parts.items():
        names += [content_field(key, event_id) for event_id in part.could_hold]
    values = iter(await read(names) if names else ())
    again = {key: next(values) for key in parts}
    found: dict[str, FileHistory | None] = {key: None for key, raw in raws.items() if raw is None}
    for key, part in parts.items():
        contents = dict(zip(part.could_hold, values, strict=False))
        raw, header = there[key]
        if again[key] == raw:
            edits = {each: _CONTENTS.decode(content).edit for each, content in contents.items() if content}
            found[key] = _history(key, header, part, edits)
    return found


@dataclass(frozen=True, slots=True)
class _Numbered:
    """Of one file, what its header counts."""

    entries: Sequence[Entry]
    """In log order, without their edits."""
    deferred: Sequence[bytes]
    readers: Sequence[bytes]
    voided: Sequence[bytes]

    @property
    def could_hold(self) -> Sequence[str]:
        """The events that may hold an edit."""
        return [entry.event_id for entry in self.entries if _could_hold_edit(entry)]


async def _read_numbered(headers: Mapping[str, _Header], read: ReadFields) -> dict[str, _Numbered]:
    """What the headers count; without the files of which some is gone."""
    names: list[str] = []
    for key, header in headers.items():
        names += [entry_field(key, slot) for slot in range(header.slots)]
        for stem, numbers in _queues(header):
            names += [f"{stem}{key}\x1f{number}" for number in range(*numbers)]
    values = iter(await read(names) if names else ())
    found: dict[str, _Numbered] = {}
    for key, header in headers.items():
        sizes = [header.slots, *(end - first for _, (first, end) in _queues(header))]
        there = [[value for value in islice(values, size) if value is not None] for size in sizes]
        entries, *queues = there
        if list(map(len, there)) == [header.entries, *sizes[1:]]:
            in_order = sorted(map(_ENTRIES.decode, entries), key=lambda entry: entry.seq)
            found[key] = _Numbered(in_order, *queues)
    return found


def _queues(header: _Header) -> tuple[tuple[str, tuple[int, int]], ...]:
    return (_DEFERRED, header.deferred), (_READER, header.readers), (_VOIDED, header.voided)


def _history(key: str, header: _Header, part: _Numbered, edits: Mapping[str, Edit]) -> FileHistory:
    whole = [
        msgspec.structs.replace(entry, edit=edits[entry.event_id]) if entry.event_id in edits else entry
        for entry in part.entries
    ]
    workspace, path = split_file_key(key)
    return FileHistory(
        workspace=workspace,
        path=path,
        entries=PersistentMap({entry.event_id: entry for entry in whole}),
        edits=sum(entry.edit is not None for entry in whole),
        free=PersistentQueue(sorted(set(range(header.slots)) - {entry.slot for entry in whole})),
        next_seq=header.next_seq,
        heads=header.heads,
        visible=header.visible,
        claim=header.claim,
        deferred=tuple(map(_EVENTS.decode, part.deferred)),
        deferred_from=header.deferred[0],
        readers=tuple(map(_READERS.decode, part.readers)),
        readers_from=header.readers[0],
        voided=tuple(map(_ROUNDS.decode, part.voided)),
        voided_from=header.voided[0],
    )


def _could_hold_edit(entry: Entry) -> bool:
    return entry.verdict in (VerdictKind.ACCEPTED, VerdictKind.FORKED)


_HEADERS = msgspec.msgpack.Decoder(_Header)
_ENTRIES = msgspec.msgpack.Decoder(Entry)
_CONTENTS = msgspec.msgpack.Decoder(Content)
_EVENTS = msgspec.msgpack.Decoder(Event)
_READERS = msgspec.msgpack.Decoder(Reader)
_ROUNDS: msgspec.msgpack.Decoder[tuple[str, int]] = msgspec.msgpack.Decoder(tuple[str, int])
