"""Reads records, writes nothing: the one place where a record of a log becomes a typed value.

A log's records are folded under their keys. One that speaks of another file or job than its key
says would be folded into a stranger's history: it is as unreadable as garbage.
"""

from typing import TypeVar

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import Flaw, Undecodable
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.job_facts import JobFact
from codeconvoy.schemas.topics import file_key
from codeconvoy.workers.engine.bus import Record

R = TypeVar("R", Event, JobFact)


def decoded(codec: Codec, record: Record, kind: type[R]) -> R:
    """What a record of the events or jobs log holds.

    Raises:
        Undecodable: its bytes are not one record of this kind, or it stands under another's key.
    """
    value = codec.decode(record.value, kind)
    own = file_key(value.workspace, value.file_path) if isinstance(value, Event) else value.job_id
    if own != record.key:
        raise Undecodable(Flaw.WRONG_TYPES, f"its key is {record.key[:200]!r}, and it is about {own[:200]!r}")
    return value
