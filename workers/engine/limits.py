"""Reads what is about to be sent, writes nothing: the caps that both buses check before they send."""

from collections.abc import Mapping, Sequence

from codeconvoy.schemas.errors import TooLarge
from codeconvoy.schemas.topics import MAX_LETTER_BYTES, MAX_MESSAGE_BYTES, MAX_RECORD_BYTES
from codeconvoy.workers.engine.bus import Committed, Outgoing, TopicPartition
from codeconvoy.workers.engine.dead_letter import HEADER

MAX_METADATA = 4_095
"""Characters of the metadata of a committed offset: brokers refuse more than 4,096 bytes."""
_BATCH_OVERHEAD = 512
"""More than what a record batch and a record's own lengths add to key, headers and value."""


def key_bytes(key: str) -> bytes:
    """A key as it is on the log. A key that was not UTF-8 when it was read comes back byte for byte."""
    return key.encode("utf-8", "surrogateescape")


def key_text(key: bytes | None) -> str:
    """A key as a record carries it: none is the empty key; bytes that are not UTF-8 become lone
    surrogates, so that a foreign record can neither crash a reader nor lose its key."""
    return "" if key is None else key.decode("utf-8", "surrogateescape")


def check_limits(outputs: Sequence[Outgoing], offsets: Mapping[TopicPartition, Committed] | None) -> None:
    """See that a transaction is one that the broker can take.

    Raises:
        TooLarge: a value, a record with its key and headers, or an offset's metadata is over its cap.
        ValueError: metadata is not plain ASCII (a client would refuse or cut it).
    """
    for output in outputs:
        # A dead letter holds a foreign record as it was, and the oversized is what it must be able to hold.
        is_letter = HEADER in output.headers
        if len(output.value) > MAX_RECORD_BYTES and not is_letter:
            raise TooLarge(
                f"{output.topic} {output.key!r}: {len(output.value)} bytes, over {MAX_RECORD_BYTES}"
            )
        whole = len(output.value) + len(key_bytes(output.key)) + _BATCH_OVERHEAD
        for name, value in output.headers.items():
            whole += len(name.encode()) + len(value)
        if whole > (MAX_LETTER_BYTES if is_letter else MAX_MESSAGE_BYTES):
            raise TooLarge(f"{output.topic} {output.key[:80]!r}: key and headers make it {whole} bytes")
    for partition, committed in (offsets or {}).items():
        if len(committed.metadata) > MAX_METADATA:
            raise TooLarge(f"{partition}: offset metadata of {len(committed.metadata)} characters")
        if not committed.metadata.isascii() or "\0" in committed.metadata:
            raise ValueError(f"{partition}: offset metadata must be ASCII without NUL")
