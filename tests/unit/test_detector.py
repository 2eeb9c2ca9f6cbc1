"""What the conflict detector writes, and to whom, event by event."""

import msgspec
import pytest

from codeconvoy.schemas.events import (
    ConflictDetected,
    ConflictResolved,
    ContextStale,
    Event,
    FileImported,
    Policy,
    Read,
    ReadNoted,
    ResolutionFailed,
    Strategy,
)
from codeconvoy.schemas.file_history import MAX_ENTRIES
from codeconvoy.schemas.job_facts import FileForked, FileSettled, Judgement, ReadJudged, VerdictKind
from tests.builders import BASE, FileLog, event, read_noted, review
from tests.detector_loop import DetectorLoop

HUMAN = Policy(strategies=(Strategy.HUMAN,), human_seconds=100)
REWORK = Policy(strategies=(Strategy.THREE_WAY, Strategy.REWORK), rework_seconds=10)


def changed(line: int, text: bytes) -> bytes:
    lines = BASE.splitlines(True)
    return b"".join([*lines[:line], text, *lines[line + 1 :]])


def forked(left: bytes, right: bytes, policy: Policy) -> tuple[FileLog, DetectorLoop]:
    """A file on which two jobs disagree."""
    log, loop = FileLog(), DetectorLoop()
    log.add(log.make("base", BASE, role="git", job="j0"))
    log.add(log.make("left", left, "base", job="j1", policy=policy))
    log.add(log.make("right", right, "base", job="j2", policy=policy))
    loop.append(*log.events)
    loop.fold()
    return log, loop


def written(loop: DetectorLoop, kind: type) -> list[Event]:
    return [each for each in loop.log if isinstance(each.payload, kind)]


def told(loop: DetectorLoop, kind: type) -> list[tuple[str, object]]:
    return [(job, word) for job, word in loop.facts if isinstance(word, kind)]


def test_every_verdict_reaches_its_job() -> None:
    _, loop = forked(changed(0, b"A\n"), changed(6, b"B\n"), REWORK)
    judged = [(job, word.event_id, word.verdict) for job, word in loop.facts if isinstance(word, Judgement)]
    assert judged[:3] == [
        ("j0", "base", VerdictKind.ACCEPTED),
        ("j1", "left", VerdictKind.ACCEPTED),
        ("j2", "right", VerdictKind.FORKED),
    ]
    words = [word for _, word in loop.facts if isinstance(word, Judgement)]
    assert [(word.offset, word.visible, word.heads) for word in words[:3]] == [
        (0, "base", ("base",)),
        (1, "left", ("left",)),
        (2, "left", ("left", "right")),
    ]


def test_a_fork_that_git_can_merge_is_resolved_in_the_same_transaction() -> None:
    _, loop = forked(changed(0, b"A\n"), changed(6, b"B\n"), REWORK)
    (detected,), (resolved,) = written(loop, ConflictDetected), written(loop, ConflictResolved)
    assert loop.log.index(resolved) == loop.log.index(detected) + 1
    history = loop.history("a.txt")
    edit = history.edit(history.visible)
    assert edit is not None
    assert edit.content == b"A\n\ntwo\n\nthree\n\nB\n"
    assert [job for job, _ in told(loop, FileForked)] == [job for job, _ in told(loop, FileSettled)]
    assert [job for job, _ in told(loop, FileForked)] == ["j1", "j2"]


def test_a_job_whose_fork_an_overtaken_resolution_has_joined_is_told_that_it_is_over() -> None:
    log, loop = FileLog(), DetectorLoop()

    def imported(name: str, content: bytes, job: str, *parents: str) -> Event:
        return log.make(name, content, *parents, kind=FileImported, role="git", job=job)

    loop.append(imported("base", BASE, "j0"))
    loop.append(log.make("x", changed(0, b"X\n"), "base", job="jx"))
    loop.append(log.make("y", changed(2, b"Y\n"), "base", job="jy"))
    loop.append(imported("j", changed(4, b"J\n"), "j", "base"))
    loop.fold(4)
    loop.fold(2)  # x and y are joined, and that and j are about to be
    assert [each.payload.__class__ for each in loop.log[-2:]] == [ConflictDetected, ConflictResolved]
    loop.log.insert(len(loop.log) - 2, imported("k", changed(6, b"K\n"), "k", "j"))
    loop.fold()
    assert not loop.history("a.txt").forked
    words = [word for job, word in loop.facts if job == "j"]
    assert isinstance(words[0], Judgement) and words[0].verdict is VerdictKind.FORKED
    assert isinstance(words[-1], FileSettled) and not words[-1].forked


def test_a_fork_with_overlapping_lines_claims_the_file_for_the_later_author() -> None:
    _, loop = forked(changed(0, b"A\n"), changed(0, b"B\n"), REWORK)
    assert not written(loop, ConflictResolved)
    claim = loop.history("a.txt").claim
    assert claim is not None
    assert (claim.strategy, claim.deadline, claim.base) == (Strategy.REWORK, 10_000, "base")
    ((_, word), _) = told(loop, FileForked)
    assert isinstance(word, FileForked)
    assert (word.loser_task, word.own, word.overlaps[0].end) == ("task of right", "right", 1)


def test_a_claim_that_nobody_answers_goes_to_the_next_strategy_and_at_last_to_the_default() -> None:
    _, loop = forked(changed(0, b"A\n"), changed(0, b"B\n"), HUMAN)
    assert loop.fire_next_deadline()
    assert not loop.fire_next_deadline()
    (resolved,) = written(loop, ConflictResolved)
    payload = resolved.payload
    assert isinstance(payload, ConflictResolved)
    assert (payload.strategy, payload.losers) == (Strategy.FIRST_WRITER_WINS, ("right",))
    assert [tried.strategy for tried in payload.tried] == [Strategy.HUMAN]


def test_rework_is_not_asked_of_git() -> None:
    log, loop = FileLog(), DetectorLoop()
    for name, line in (("one", b"1\n"), ("two", b"2\n")):
        log.add(log.make(name, line, role="git", policy=REWORK))
    loop.append(*log.events)
    loop.fold()
    history = loop.history("a.txt")
    assert len(history.heads) == 1
    (resolved,) = written(loop, ConflictResolved)
    assert "no agent" in resolved.payload.tried[-1].reason  # type: ignore[union-attr]


SEMANTIC = Policy(strategies=(Strategy.THREE_WAY, Strategy.SEMANTIC, Strategy.REWORK), rework_seconds=10)


def test_a_merger_is_asked_before_the_author_where_the_job_says_so() -> None:
    _, loop = forked(changed(0, b"A\n"), changed(0, b"B\n"), SEMANTIC)
    claim = loop.history("a.txt").claim
    assert claim is not None
    assert (claim.strategy, claim.deadline, claim.remaining) == (
        Strategy.SEMANTIC,
        10_000,
        (Strategy.REWORK,),
    )
    assert [tried.strategy for tried in claim.tried] == [Strategy.THREE_WAY]
    words = [(job, word.loser_task) for job, word in loop.facts if isinstance(word, FileForked)]
    assert words == [("j1", "task of right"), ("j2", "task of right")]


def test_a_merger_that_is_late_or_gives_up_makes_room_for_the_next_strategy() -> None:
    _, loop = forked(changed(0, b"A\n"), changed(0, b"B\n"), SEMANTIC)
    assert loop.fire_next_deadline()
    claim = loop.history("a.txt").claim
    assert claim is not None
    assert (claim.strategy, claim.attempt) == (Strategy.REWORK, 2)
    failed = ResolutionFailed(
        conflict_id=claim.conflict_id, attempt=1, strategy=Strategy.SEMANTIC, reason="said twice"
    )
    loop.append(event("failed", failed))
    loop.fold()
    again = loop.history("a.txt").claim
    assert again is not None and again.attempt == 2, "the attempt that it speaks of is over"
    assert [tried.strategy for tried in again.tried] == [Strategy.THREE_WAY, Strategy.SEMANTIC]
    assert "deadline" in again.tried[-1].reason


def test_the_late_answer_of_a_merger_still_joins_the_heads() -> None:
    log, loop = forked(changed(0, b"A\n"), changed(0, b"B\n"), SEMANTIC)
    loop.fire_next_deadline()
    loop.append(
        log.resolution("late", changed(0, b"AB\n"), "left", "right", strategy=Strategy.SEMANTIC, task="t")
    )
    loop.fold()
    assert loop.history("a.txt").heads == ("late",)
    settled = [word.strategy for _, word in loop.facts if isinstance(word, FileSettled)]
    assert settled == [Strategy.SEMANTIC, Strategy.SEMANTIC]


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        (changed(0, b"A\0\n"), changed(0, b"B\n"), "binary"),
        (None, changed(0, b"B\n"), "deleted"),
    ],
)
def test_what_is_no_work_for_a_merger_goes_to_the_next_strategy_at_once(
    left: bytes | None, right: bytes, reason: str
) -> None:
    log, loop = FileLog(), DetectorLoop()
    log.add(log.make("base", BASE, role="git", job="j0"))
    log.add(log.make("left", left, "base", job="j1", policy=SEMANTIC))
    log.add(log.make("right", right, "base", job="j2", policy=SEMANTIC))
    loop.append(*log.events)
    loop.fold()
    claim = loop.history("a.txt").claim
    assert claim is not None and (claim.strategy, claim.attempt) == (Strategy.REWORK, 1)
    assert claim.tried[-1].strategy is Strategy.SEMANTIC and reason in claim.tried[-1].reason


def test_what_came_from_git_is_merged_by_the_job_that_imported_it() -> None:
    log, loop = FileLog(), DetectorLoop()
    log.add(log.make("base", BASE, role="git", job="j0"))
    log.add(log.make("left", changed(0, b"A\n"), "base", job="j1", policy=SEMANTIC))
    log.add(log.make("right", changed(0, b"B\n"), "base", role="git", job="j2", policy=SEMANTIC))
    loop.append(*log.events)
    loop.fold()
    words = [word for _, word in loop.facts if isinstance(word, FileForked)]
    assert {(word.strategy, word.loser_task) for word in words} == {(Strategy.SEMANTIC, "task of right")}
    loop.fire_next_deadline()
    words = [word for _, word in loop.facts if isinstance(word, FileForked) and word.attempt == 2]
    assert {(word.strategy, word.loser_task) for word in words} == {(Strategy.REWORK, "task of left")}


def test_of_three_heads_a_merger_joins_two() -> None:
    log, loop = FileLog(), DetectorLoop()
    log.add(log.make("base", BASE, role="git", job="j0"))
    for name in ("eins", "uno", "zwei"):
        log.add(log.make(name, changed(0, name.encode() + b"\n"), "base", job="j1", policy=SEMANTIC))
    loop.append(*log.events)
    loop.fold()
    claim = loop.history("a.txt").claim
    assert claim is not None
    assert (claim.strategy, claim.heads) == (Strategy.SEMANTIC, ("eins", "uno"))
    loop.append(
        log.resolution("m", changed(0, b"1 2\n"), "eins", "uno", strategy=Strategy.SEMANTIC, task="t")
    )
    loop.fold()
    claim = loop.history("a.txt").claim
    assert claim is not None and claim.heads == ("m", "zwei")


def test_a_reason_without_end_is_cut_so_that_the_conflict_can_be_written() -> None:
    _, loop = forked(changed(0, b"A\n"), changed(0, b"B\n"), REWORK)
    claim = loop.history("a.txt").claim
    assert claim is not None
    failed = ResolutionFailed(
        conflict_id=claim.conflict_id, attempt=1, strategy=claim.strategy, reason="x" * 500_000
    )
    loop.append(event("failed", failed))
    loop.fold()
    assert len(loop.history("a.txt").heads) == 1
    assert len(written(loop, ConflictResolved)[0].payload.tried[-1].reason) == 2_000  # type: ignore[union-attr]


def test_more_strategies_than_attempts_still_come_to_an_end() -> None:
    endless = Policy(strategies=(Strategy.HUMAN,) * 40, human_seconds=1)
    _, loop = forked(changed(0, b"A\n"), changed(0, b"B\n"), endless)
    for _ in range(40):
        loop.fire_next_deadline()
    assert len(loop.history("a.txt").heads) == 1


@pytest.mark.parametrize("default", [Strategy.HUMAN, Strategy.THREE_WAY])
def test_a_default_that_may_have_no_answer_does_not_stop_the_partition(default: Strategy) -> None:
    policy = msgspec.structs.replace(HUMAN, default=default)
    _, loop = forked(changed(0, b"A\n"), changed(0, b"B\n"), policy)
    loop.fire_next_deadline()
    assert len(loop.history("a.txt").heads) == 1


# Reads --------------------------------------------------------------------------------------------


def reader(path: str, event_id: str, version: str) -> Event:
    """An edit of another file, built on a version of a.txt."""
    other = FileLog(path)
    return other.make(event_id, b"1\n", reads=(Read(path="a.txt", event_id=version),), job="j9")


def test_what_was_read_is_noted_on_the_file_and_answered() -> None:
    log, loop = FileLog(), DetectorLoop()
    log.edit("a", b"1\n")
    loop.append(*log.events, reader("b.txt", "b", "a"))
    loop.fold()
    (note,) = written(loop, ReadNoted)
    assert (note.file_path, note.job_id) == ("a.txt", "j9")
    ((job, word),) = told(loop, ReadJudged)
    assert word == ReadJudged(reader_event="b", read_path="a.txt", version="a", fresh=True, head="a")
    assert job == "j9"


@pytest.mark.parametrize("first", ["the read", "the edit"])
def test_a_stale_read_is_found_in_whatever_order_the_two_come(first: str) -> None:
    log, loop = FileLog(), DetectorLoop()
    log.edit("a", b"1\n")
    log.edit("next", b"2\n", "a")
    read = reader("b.txt", "b", "a")
    loop.append(*([log.events[0], read] if first == "the read" else [*log.events, read]))
    loop.fold()
    loop.append(*log.events[1:])
    loop.fold()
    (mark,) = written(loop, ContextStale)
    assert mark.file_path == "b.txt"
    assert mark.payload == ContextStale(reader_event="b", read_path="a.txt", read_version="a", head="next")
    _, word = told(loop, ReadJudged)[-1]
    assert isinstance(word, ReadJudged)
    assert (word.fresh, word.head) == (False, "next")


def test_what_is_outdated_is_told_before_the_verdict_that_outdated_it() -> None:
    """That verdict may be all that a job still waits for: it would end with the stale mark unheard."""
    log, loop = FileLog(), DetectorLoop()
    log.edit("a", b"1\n")
    loop.append(log.events[0], review("vote", "a"), read_noted("note", "a"))
    loop.fold()
    log.edit("next", b"2\n", "a")
    loop.facts.clear()
    loop.append(log.events[1])
    loop.fold()
    assert [type(word).__name__ for _, word in loop.facts] == ["Judgement", "ReadJudged", "Judgement"]
    assert [word.verdict for _, word in loop.facts if isinstance(word, Judgement)] == [
        VerdictKind.OUTDATED,
        VerdictKind.ACCEPTED,
    ]


def test_a_reader_is_told_though_its_note_is_forgotten() -> None:
    log, loop = FileLog(), DetectorLoop()
    log.edit("a", b"1\n")
    log.add(read_noted("note", "a"))
    log.edit("next", b"2\n", "a")
    loop.append(*log.events[:2])
    loop.fold()
    history = loop.history("a.txt")
    entries = history.entries.updated({"note": None})
    assert len(entries) < MAX_ENTRIES
    loop.forget("a.txt", msgspec.structs.replace(history, entries=entries))
    loop.append(log.events[2])
    loop.fold()
    assert [word.fresh for _, word in loop.facts if isinstance(word, ReadJudged)] == [True, False]


LONG = 600_000
"""Of a name by somebody else: what names it twice is too large to be written."""


def test_what_fits_into_no_record_is_left_out_and_the_file_goes_on() -> None:
    log, loop = FileLog(), DetectorLoop()
    log.add(log.make("n" * LONG, b"1\n", task="t"))
    log.add(log.make("next", b"2\n", "n" * LONG))
    loop.append(*log.events)
    loop.fold()
    assert loop.history("a.txt").visible == "next"
    assert [word.event_id for _, word in loop.facts if isinstance(word, Judgement)] == ["next"]


def test_a_conflict_that_fits_into_no_record_is_neither_opened_nor_waited_for() -> None:
    log, loop = FileLog(), DetectorLoop()
    log.edit("base", BASE)
    for side in ("1", "2"):
        log.add(log.make(side * LONG, changed(0, side.encode()), "base", task="t"))
    loop.append(*log.events)
    loop.fold()
    assert len(loop.log) == 3
    assert loop.history("a.txt").forked
    assert not loop.fire_next_deadline()
