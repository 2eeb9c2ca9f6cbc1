"""What of the detector's outputs goes into one record."""

import logging

import pytest

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import Strategy
from codeconvoy.schemas.job_facts import EventJudged, FileSettled, JobFact, Judgement, VerdictKind
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.bus import Outgoing
from codeconvoy.workers.report import AT_ONCE, Pen
from codeconvoy.workers.tracing import carried

CODEC, TOPICS = Codec.create(), Topics()
PEN = Pen(CODEC, TOPICS)
TRACE = {"traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
OTHER_TRACE = {"traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203332-01"}


def verdict(job: str, event: str, path: str = "a.txt") -> Outgoing:
    judgement = Judgement(event_id=event, task_id="t", round=1, path=path, verdict=VerdictKind.ACCEPTED)
    return PEN.verdict(job, judgement, now=7)


def settled(job: str) -> Outgoing:
    payload = FileSettled(path="a.txt", conflict_id="c", strategy=Strategy.THREE_WAY, head="h")
    (word,) = PEN.fact(job, payload, 7, "c")
    return word


def said(*outputs: Outgoing) -> list[tuple[str, ...]]:
    """Per record the job, and the events that are judged."""
    found = []
    for output in PEN.together(outputs):
        assert output.topic == TOPICS.jobs
        fact = CODEC.decode(output.value, JobFact)
        assert fact.job_id == output.key
        judged = fact.payload.judgements if isinstance(fact.payload, EventJudged) else ()
        found.append((output.key, *(one.event_id for one in judged)))
    return found


def test_verdicts_for_one_job_are_one_fact_in_their_order() -> None:
    outputs = [verdict("j1", "a"), verdict("j2", "b"), verdict("j1", "c"), verdict("j1", "d")]
    assert said(*outputs) == [("j1", "a", "c", "d"), ("j2", "b")]


def test_one_fact_is_named_after_its_first_verdict() -> None:
    (alone,) = PEN.together([verdict("j1", "a")])
    (both,) = PEN.together([verdict("j1", "a"), verdict("j1", "b")])
    assert CODEC.decode(alone.value, JobFact).fact_id == CODEC.decode(both.value, JobFact).fact_id


def test_no_verdict_overtakes_another_word_to_its_job() -> None:
    outputs = [verdict("j1", "a"), settled("j1"), verdict("j1", "b"), settled("j2"), verdict("j1", "c")]
    assert said(*outputs) == [("j1", "a"), ("j1",), ("j1", "b", "c"), ("j2",)]


def test_a_verdict_stays_in_its_trace() -> None:
    traced = carried([verdict("j1", "b"), verdict("j1", "c")], TRACE)
    outputs = [verdict("j1", "a"), *traced, *carried([verdict("j1", "d")], OTHER_TRACE)]
    assert said(*outputs) == [("j1", "a"), ("j1", "b", "c"), ("j1", "d")]
    assert [output.headers for output in PEN.together(outputs)] == [{}, TRACE, OTHER_TRACE]


def test_a_fact_holds_so_many_verdicts_and_no_more() -> None:
    sizes = [len(events) - 1 for events in said(*(verdict("j1", str(n)) for n in range(2 * AT_ONCE + 1)))]
    assert sizes == [AT_ONCE, AT_ONCE, 1]


def test_one_that_can_not_be_written_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert said(verdict("j1", "a"), verdict("j1", "b", path="../b"), verdict("j1", "c")) == [
            ("j1", "a"),
            ("j1", "c"),
        ]
    assert "EventJudged about j1 is left out" in caplog.text
