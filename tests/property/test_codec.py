"""The codec: what goes in comes out, and nothing but `Undecodable` comes of bytes that are not whole."""

import os
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeconvoy.schemas.codec import FILES, Codec, Record
from codeconvoy.schemas.dead_letters import DeadLetter
from codeconvoy.schemas.errors import Flaw, Undecodable
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.job_facts import JobFact
from codeconvoy.schemas.tasks import Task
from tests.golden import examples
from tests.strategies import records

CODEC = Codec.create()
with patch("codeconvoy.schemas.codec.compile_record", return_value=None):
    PLAIN = Codec.create()
    """Does everything by way of fastavro."""
EXAMPLES = [(type(record), CODEC.encode(record)) for _, record in examples()]


@given(records(Event))
@settings(max_examples=300)
def test_events_come_back(record: Event) -> None:
    assert CODEC.decode(CODEC.encode(record), Event) == record


@given(records(JobFact))
@settings(max_examples=300)
def test_facts_come_back(record: JobFact) -> None:
    assert CODEC.decode(CODEC.encode(record), JobFact) == record


@given(records(Task))
@settings(max_examples=200)
def test_tasks_come_back(record: Task) -> None:
    assert CODEC.decode(CODEC.encode(record), Task) == record


@given(records(DeadLetter))
def test_letters_come_back(record: DeadLetter) -> None:
    assert CODEC.decode(CODEC.encode(record), DeadLetter) == record


@given(st.one_of(records(Event), records(JobFact), records(Task), records(DeadLetter)))
@settings(max_examples=500)
def test_what_is_written_is_what_fastavro_writes(record: Record) -> None:
    assert CODEC.encode(record) == PLAIN.encode(record)


def _outcome(codec: Codec, value: bytes, kind: type[Record]) -> Record | Flaw:
    """Nothing but a record of the kind or `Undecodable` may come of any bytes."""
    try:
        record = codec.decode(value, kind)
    except Undecodable as error:
        assert error.detail
        return error.flaw
    assert isinstance(record, kind)
    return record


def _decode(value: bytes, kind: type[Record]) -> None:
    """See `_outcome`; and it is what fastavro makes of the same bytes."""
    found = _outcome(CODEC, value, kind)
    assert repr(found) == repr(_outcome(PLAIN, value, kind))  # NaN is not equal to itself
    if isinstance(found, kind):
        assert CODEC.decode(CODEC.encode(found), kind) is not None


@given(st.sampled_from(EXAMPLES), st.data())
@settings(max_examples=1000)
def test_flipped_bits_are_a_record_or_undecodable(
    made: tuple[type[Record], bytes], data: st.DataObject
) -> None:
    kind, value = made
    flipped = bytearray(value)
    for _ in range(data.draw(st.integers(1, 3))):
        bit = data.draw(st.integers(0, len(value) * 8 - 1))
        flipped[bit // 8] ^= 1 << bit % 8
    _decode(bytes(flipped), kind)


@given(st.sampled_from(EXAMPLES), st.data())
@settings(max_examples=500)
def test_a_garbage_body_is_a_record_or_undecodable(
    made: tuple[type[Record], bytes], data: st.DataObject
) -> None:
    kind, value = made
    start = data.draw(st.integers(0, len(value)))
    _decode(value[:start] + data.draw(st.binary(max_size=100)), kind)


@pytest.mark.parametrize("kind", list(FILES))
def test_a_megabyte_of_zeros_or_noise_behind_a_marker_is_harmless(kind: type[Record]) -> None:
    marker = next(value for made, value in EXAMPLES if made is kind)[:10]
    for body in (bytes(1_000_000), b"\xff" * 1_000_000, b"\x02" * 1_000_000, os.urandom(1_000_000)):
        _decode(marker + body, kind)
