"""Dead letters as an operator sees them."""

import pytest

from codeconvoy.orchestrator.dead_letters import kind_of, told_by
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.dead_letters import RETRIED_TO
from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.job_facts import JobFact
from codeconvoy.schemas.tasks import Task
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.bus import Outgoing, Record
from codeconvoy.workers.engine.dead_letter import HEADER, dead_letter, skip_mark

CODEC = Codec.create()
TOPICS = Topics()


def as_read(written: Outgoing, offset: int) -> Record:
    return Record(written.topic, 2, offset, written.key, written.value, written.headers)


def letter(offset: int) -> Outgoing:
    origin = Record(TOPICS.events, 5, offset, f"w:{offset}", b"\x00bytes")
    return dead_letter(CODEC, TOPICS.dead_letters, origin, "truncated", "too short", 1, "files", 99)


def test_letters_are_told_from_marks_and_from_what_others_wrote() -> None:
    put_back = Outgoing(TOPICS.dead_letters, "2/1", b"", {RETRIED_TO: b"convoy.events/5"})
    written = [
        letter(40),
        letter(41),
        skip_mark(TOPICS.dead_letters, TOPICS.events, 5, 42),
        Outgoing(TOPICS.dead_letters, "x", b"?", {}),
        Outgoing(TOPICS.dead_letters, "x", b"?", {HEADER: b"garbage"}),
        put_back,
    ]
    found = told_by([as_read(each, offset) for offset, each in enumerate(written)], CODEC)
    assert list(found) == ["2/0", "2/1"]
    assert (found["2/0"].key, found["2/0"].value) == ("w:40", b"\x00bytes")
    assert (found["2/0"].told.partition, found["2/0"].told.offset) == (5, 40)
    assert [each.retried_to for each in found.values()] == ["", "convoy.events/5"]


def test_what_the_records_of_a_topic_are() -> None:
    assert kind_of(TOPICS, "convoy.events") is Event
    assert kind_of(TOPICS, "convoy.jobs") is JobFact
    assert kind_of(TOPICS, "convoy.tasks.isort") is Task
    for other in ("events", "convoy.dead-letters", "convoy2.events"):
        with pytest.raises(BadInput, match="TOPIC"):
            kind_of(TOPICS, other)
