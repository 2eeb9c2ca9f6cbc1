"""Reads nothing, writes nothing: how every identifier is derived.

Identifiers are UUIDv5 of what they identify, so that a process that dies and does its work
again names the same facts by the same ids, and a log that holds both copies holds one fact.
"""

import hashlib
import uuid

from codeconvoy.schemas.events import EventType

NAMESPACE = uuid.UUID("6ba3f1c6-2c2b-5e0e-9b5c-0d6c3a0c6f10")
"""Fixed for ever: changing it would turn every redelivery into a second fact."""

_NAMESPACE = NAMESPACE.bytes
_SEPARATOR = "\x1f"


def derived(*parts: str | int) -> str:
    """UUIDv5 of the parts, joined by a separator that no part may hold (as a path can't)."""
    # The same as uuid.uuid5, without an object for each: every record holds an id or two.
    name = _SEPARATOR.join(map(str, parts)).encode()
    digest = bytearray(hashlib.sha1(_NAMESPACE + name, usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def event_id(task_id: str, round_: int, path: str, event_type: EventType, ordinal: int = 0) -> str:
    """The id of the event that a task's round makes for a path. Deliveries do not count."""
    return derived("event", task_id, round_, path, event_type, ordinal)


def task_id(job_id: str, kind: str, role: str, path: str, ordinal: int = 0) -> str:
    """The id of a logical task: constant over its rounds and deliveries."""
    return derived("task", job_id, kind, role, path, ordinal)


def conflict_id(workspace: str, path: str, heads: tuple[str, ...]) -> str:
    """The id of the conflict between these heads of a file, whatever their order."""
    return derived("conflict", workspace, path, *sorted(heads))


def sha256(content: bytes) -> str:
    """Hex SHA-256 of the bytes."""
    return hashlib.sha256(content).hexdigest()
