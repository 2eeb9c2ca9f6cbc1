"""A client that repeats itself is let through once in a while."""

import logging

from codeconvoy.orchestrator.logs import MAX_REMEMBERED, QUIET_SECONDS, Unrepeated


def record(message: str, name: str = "kafka") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "", 0, message, (), None)


def test_a_message_is_let_through_once_in_a_while() -> None:
    now = [100.0]
    unrepeated = Unrepeated(lambda: now[0])
    assert unrepeated.filter(record("refused after 1 ms"))
    assert not unrepeated.filter(record("refused after 20 ms"))
    assert unrepeated.filter(record("another"))
    assert unrepeated.filter(record("refused after 1 ms", "redis"))
    now[0] += QUIET_SECONDS
    assert unrepeated.filter(record("refused after 3 ms"))
    assert not unrepeated.filter(record("refused after 4 ms"))


def test_what_it_remembers_is_bounded() -> None:
    unrepeated = Unrepeated(lambda: 0.0)
    for number in range(2 * MAX_REMEMBERED):
        word = "".join(chr(97 + int(digit)) for digit in str(number))
        assert unrepeated.filter(record(word))
    assert len(unrepeated._last) <= MAX_REMEMBERED
