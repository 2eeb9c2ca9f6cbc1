"""Reads nothing, writes nothing: what is said of bytes that could not be handled.

The value of a record on `dead-letters` is the raw bytes as they were; this record travels
beside them, Avro-encoded, in the header `dead-letter`, and in plain headers for other tools.
"""

import msgspec


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bytes came from and why they were given up."""

    topic: str
    partition: int
    offset: int
    reason: str
    """A `Flaw`, or `poison` for a task that kept killing its worker or could not be done."""
    detail: str
    attempts: int
    service: str
    """The process that gave up."""
    timestamp: int
    """Milliseconds since the epoch. Information only."""


RETRIED_TO = "retried-to"
"""Header of a dead letter that an operator has put back, naming where."""
