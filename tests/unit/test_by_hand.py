"""A person resolves a conflict: what becomes of the answer on the log."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from codeconvoy.orchestrator.by_hand import (
    OpenConflict,
    check_content,
    conflict_of,
    resolution,
    side_of,
    submit_resolution,
)
from codeconvoy.orchestrator.cli.conflicts import run_merge_tool, summary_json, unified
from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.events import Event, FileImported
from codeconvoy.schemas.file_history import Entry
from codeconvoy.schemas.job_facts import VerdictKind
from tests.builders import FileLog
from tests.memory_fleet import CODEC, MemoryFleet

BASE = b"x = 1\ny = 2\n"
LEFT, RIGHT = b"x = 10\ny = 2\n", b"x = 100\ny = 2\n"
ONE, TWO = "aaaa-one", "bbbb-two"


def forked(path: str = "a.py", right: bytes | None = RIGHT) -> FileLog:
    """Two edits of one line, and the conflict that claims the file for them."""
    log = FileLog(path)
    log.add(log.make("base", BASE, kind=FileImported))
    log.edit(ONE, LEFT, "base")
    log.edit(TWO, right, "base")
    found = log.conflict("conflict", ONE, TWO)
    log.add(msgspec.structs.replace(found, payload=msgspec.structs.replace(found.payload, base="base")))
    return log


def open_conflict(log: FileLog) -> OpenConflict:
    return conflict_of(log.history)


def answer(conflict: OpenConflict, content: bytes | None, *losers: str) -> Event:
    return resolution(conflict, content, executable=False, losers=losers, author="ann", now=5)


def test_an_answer_is_accepted_and_visible() -> None:
    log = forked()
    event = answer(open_conflict(log), b"x = 55\ny = 2\n")
    assert event.parent_event_ids == (ONE, TWO)
    assert log.add(event).kind is VerdictKind.ACCEPTED
    assert log.history.visible == event.event_id
    assert log.history.claim is None


@pytest.mark.parametrize("content", [LEFT, RIGHT, None])
def test_a_head_or_a_deletion_is_an_answer_too(content: bytes | None) -> None:
    log = forked()
    assert log.add(answer(open_conflict(log), content)).kind is VerdictKind.ACCEPTED
    edit = log.history.edit(log.history.visible)
    assert edit is not None and edit.content == content


def test_the_same_answer_makes_the_same_event() -> None:
    conflict = open_conflict(forked())
    assert answer(conflict, LEFT).event_id == answer(conflict, LEFT).event_id
    assert answer(conflict, LEFT).event_id != answer(conflict, RIGHT).event_id


def test_a_later_answer_is_refused_by_the_fold() -> None:
    log = forked()
    conflict = open_conflict(log)
    log.add(answer(conflict, LEFT))
    log.edit("next", b"x = 7\n", log.history.visible)
    verdict = log.add(answer(conflict, RIGHT))
    assert verdict.kind is VerdictKind.FORKED, "nothing is overwritten: it is one more head"


def test_a_head_is_named_by_how_it_begins() -> None:
    conflict = open_conflict(forked())
    assert side_of(conflict, "aaaa").event_id == ONE
    for wrong in ("cc", ""):
        with pytest.raises(BadInput, match=f"Heads: {ONE}, {TWO}"):
            side_of(conflict, wrong)


def test_a_file_without_a_conflict() -> None:
    log = FileLog("a.py")
    log.edit("base", BASE)
    with pytest.raises(BadInput, match="not in conflict"):
        conflict_of(log.history)
    log.edit(ONE, LEFT, "base")
    log.edit(TWO, RIGHT, "base")
    with pytest.raises(BadInput, match="not claimed yet"):
        conflict_of(log.history)


def test_an_answer_that_does_not_parse_needs_force() -> None:
    conflict = open_conflict(forked())
    check_content(conflict, b"x = 3\n")
    check_content(conflict, LEFT)
    for wrong in (b"x = (\n", b"<<<<<<< ours\nx = 1\n>>>>>>> theirs\n"):
        with pytest.raises(BadInput, match="--force"):
            check_content(conflict, wrong)


def test_a_merge_tool_gets_the_files_and_its_answer_is_taken() -> None:
    conflict = open_conflict(forked())
    assert run_merge_tool(conflict, 'cat "$LOCAL" "$BASE" "$REMOTE" > "$MERGED"') == LEFT + BASE + RIGHT
    assert b"<<<<<<<" in run_merge_tool(conflict, "true"), "it begins as git's merge"
    with pytest.raises(BadInput, match="ended with 3"):
        run_merge_tool(conflict, "exit 3")
    with pytest.raises(BadInput, match="two texts"):
        run_merge_tool(open_conflict(forked(right=None)), "true")


def test_how_a_conflict_is_shown() -> None:
    shown = summary_json(forked().history)
    assert (shown["heads"], shown["strategy"], shown["attempt"]) == ((ONE, TWO), "rework", 1)
    assert unified(BASE, LEFT) == ["@@ -1,1 +1,1 @@", "-x = 1", "+x = 10"]
    assert unified(BASE, BASE + b"z\n") == ["@@ -3,0 +3,1 @@", "+z"]
    assert unified(BASE, None) == ["(deleted)"]


def test_it_goes_through_the_log(tmp_path: Path) -> None:
    log = forked()

    async def run() -> Entry:
        fleet = MemoryFleet({}, tmp_path)
        # No detector: what matters here is the transaction, and the verdict that comes back.
        async with fleet.running(without="detector"):
            await fleet.append(*log.events)
            bus = fleet.bus.another()
            return await submit_resolution(
                answer(open_conflict(log), LEFT, TWO), bus, CODEC, fleet.topics, fleet.projection()
            )

    entry = asyncio.run(run())
    assert (entry.verdict, entry.role) == (VerdictKind.ACCEPTED, "human")
