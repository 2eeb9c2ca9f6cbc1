"""Where readers wait, and since when."""

from codeconvoy.workers.engine.bus import TopicPartition
from codeconvoy.workers.engine.kafka_hanging import Wait, waits_now

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


def test_readers_wait_where_they_can_not_read_to_the_end() -> None:
    assert waits_now({}, {A: 5, B: 7}, {A: 6, B: 7}, 10.0) == {A: Wait(5, 10.0)}


def test_the_wait_at_one_transaction_is_one() -> None:
    before = {A: Wait(5, 10.0), B: Wait(7, 10.0)}
    assert waits_now(before, {A: 5, B: 8}, {A: 9, B: 9}, 20.0) == {A: Wait(5, 10.0), B: Wait(8, 20.0)}


def test_a_wait_that_is_over_is_forgotten() -> None:
    assert waits_now({A: Wait(5, 10.0)}, {A: 6}, {A: 6}, 20.0) == {}
    assert waits_now({A: Wait(5, 10.0)}, {}, {A: 6}, 20.0) == {}


def test_an_end_that_was_not_told_is_no_wait() -> None:
    assert waits_now({}, {A: 5}, {}, 10.0) == {}
