"""Reads and writes fields of a partition's hash: how a file's history is laid out in Redis.

A header field a file, and a field for each remembered event, so that what one more event costs
does not grow with what the file already holds.
"""

from collections.abc import Mapping

import msgspec

from codeconvoy.schemas.events import Event
from codeconvoy.schemas.file_history import Claim, Entry, FileHistory, Reader
from codeconvoy.workers.engine.reads import ReadFields

_HEADER, _ENTRY = "f:", "e:"
OPEN_CONFLICT = "!conflict:"
"""A field for each file that has more than one head, to list them by."""


class TornRead(LookupError):
    """The projector wrote between the two halves of a read."""


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """A history without its entries; those are numbered by `runs`."""

    workspace: str
    path: str
    runs: tuple[tuple[int, int], ...]
    """The sequence numbers of the entries, as half-open ranges."""
    next_seq: int
    heads: tuple[str, ...]
    visible: str
    visible_seq: int
    """The sequence number of what readers see: its entry can be read without the others."""
    claim: Claim | None
    deferred: tuple[Event, ...]
    readers: tuple[Reader, ...]
    voided: tuple[tuple[str, int], ...]


def header_field(key: str) -> str:
    """The name of a file's header field."""
    return _HEADER + key


def key_of_header(field: str) -> str | None:
    """The file key of a header field; None for any other field."""
    return field.removeprefix(_HEADER) if field.startswith(_HEADER) else None


def dump(key: str, before: FileHistory | None, after: FileHistory) -> dict[str, bytes | None]:
    """The fields that differ. With the same `after` they are the same bytes, whoever writes them."""
    old = before.entries if before is not None else {}
    changes: dict[str, bytes | None] = {
        entry_field(key, entry.seq): msgspec.msgpack.encode(entry)
        for event_id, entry in after.entries.items()
        if old.get(event_id) is not entry
    }
    for event_id, entry in old.items():
        if event_id not in after.entries:
            changes[entry_field(key, entry.seq)] = None
    header = _Header(
        workspace=after.workspace,
        path=after.path,
        runs=_runs(sorted(entry.seq for entry in after.entries.values())),
        next_seq=after.next_seq,
        heads=after.heads,
        visible=after.visible,
        visible_seq=after.entries[after.visible].seq if after.visible else -1,
        claim=after.claim,
        deferred=after.deferred,
        readers=after.readers,
        voided=after.voided,
    )
    changes[header_field(key)] = msgspec.msgpack.encode(header)
    if after.forked:
        changes[OPEN_CONFLICT + key] = b"1"
    elif before is not None and before.forked:
        changes[OPEN_CONFLICT + key] = None
    return changes


def visible_in(raw: bytes | None) -> tuple[str, int]:
    """From a header field: the event that readers see, and its number; empty where there is none."""
    if raw is None:
        return "", -1
    header = msgspec.msgpack.decode(raw, type=_Header)
    return header.visible, header.visible_seq


def entry_in(raw: bytes | None, event_id: str) -> Entry:
    """From an entry field: the entry of this event.

    Raises:
        TornRead: it is another one by now.
    """
    entry = msgspec.msgpack.decode(raw, type=Entry) if raw is not None else None
    if entry is None or entry.event_id != event_id:
        raise TornRead(event_id)
    return entry


async def load(key: str, read: ReadFields) -> FileHistory | None:
    """A file's history, or None where there is none.

    Raises:
        TornRead: an entry that the header names was not there.
    """
    (raw,) = await read([header_field(key)])
    if raw is None:
        return None
    header = msgspec.msgpack.decode(raw, type=_Header)
    seqs = [seq for start, end in header.runs for seq in range(start, end)]
    values = await read([entry_field(key, seq) for seq in seqs]) if seqs else []
    if any(value is None for value in values):
        raise TornRead(key)
    entries = [msgspec.msgpack.decode(value, type=Entry) for value in values if value is not None]
    return FileHistory(
        workspace=header.workspace,
        path=header.path,
        entries={entry.event_id: entry for entry in entries},
        next_seq=header.next_seq,
        heads=header.heads,
        visible=header.visible,
        claim=header.claim,
        deferred=header.deferred,
        readers=header.readers,
        voided=header.voided,
    )


def fields_of(history: FileHistory, key: str) -> Mapping[str, bytes]:
    """All fields of a history, as a fresh write would leave them."""
    return {name: value for name, value in dump(key, None, history).items() if value is not None}


def entry_field(key: str, seq: int) -> str:
    """The name of the field of a file's entry with this number."""
    return f"{_ENTRY}{key}\x1f{seq}"


def _runs(seqs: list[int]) -> tuple[tuple[int, int], ...]:
    runs: list[tuple[int, int]] = []
    for seq in seqs:
        if runs and runs[-1][1] == seq:
            runs[-1] = (runs[-1][0], seq + 1)
        else:
            runs.append((seq, seq + 1))
    return tuple(runs)
