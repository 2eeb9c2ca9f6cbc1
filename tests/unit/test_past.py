"""Time travel and blame on a small history with a fork, a resolution, and what was said of it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from codeconvoy.orchestrator.cli.inspect import graph_of, moment_json, state_json
from codeconvoy.orchestrator.past import At, FilePast, parse_at, past_and_blame, past_of
from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.events import Event, FileImported
from codeconvoy.schemas.job_facts import VerdictKind
from codeconvoy.workers.engine.bus import Record
from tests.builders import BASE, PATH, WORKSPACE, FileLog, review

MERGED = b"ONE\n\ntwo\n\nthree\n\nFOUR\n"


def story() -> FileLog:
    """base → one, four (fork) → join → an edit that can't apply, and a review."""
    log = FileLog()
    log.add(log.make("base", BASE, kind=FileImported, role="git"))
    log.edit("one", BASE.replace(b"one", b"ONE"), "base")
    log.edit("four", BASE.replace(b"four", b"FOUR"), "base")
    log.add(log.conflict("conflict", "one", "four"))
    log.add(log.resolution("join", MERGED, "one", "four"))
    log.add(log.make("lost", b"x\n", "nowhere"))
    log.add(review("vote", "join"))
    return log


async def recorded(log: FileLog) -> AsyncIterator[tuple[Record, Event]]:
    """The log's events as records at offsets 10, 20, … stamped with as many seconds."""
    for number, event in enumerate(log.events, start=1):
        yield Record("events", 0, 10 * number, "w:a.txt", b"", timestamp=10_000 * number), event


def past_at(at: At | None = None) -> FilePast:
    return asyncio.run(past_of(recorded(story()), WORKSPACE, PATH, at))


def content(past: FilePast) -> bytes | None:
    edit = past.history.edit(past.history.visible)
    return edit.content if edit else None


def test_now_is_what_the_fold_gives() -> None:
    log, past = story(), past_at()
    assert past.history == log.history
    assert content(past) == MERGED
    assert [moment.event.event_id for moment in past.moments] == [event.event_id for event in log.events]
    assert past.verdicts["lost"].kind is VerdictKind.INVALID


@pytest.mark.parametrize(
    ("at", "seen"),
    [
        (At(event="base"), "base"),
        (At(event="fou"), "one"),
        (At(event="join"), "join"),
        (At(offset=9), ""),
        (At(offset=20), "one"),
        (At(offset=49), "one"),
        (At(offset=50), "join"),
        (At(until=9_999), ""),
        (At(until=20_000), "one"),
        (At(until=10**15), "join"),
    ],
)
def test_a_moment_of_the_past(at: At, seen: str) -> None:
    assert past_at(at).history.visible == seen


def test_an_event_that_is_not_there() -> None:
    with pytest.raises(BadInput, match="has no event abcd"):
        past_at(At(event="abcd"))


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("42", At(offset=42)),
        ("6ba3f1c6", At(event="6ba3f1c6")),
        ("6ba3f1c6-2c2b-5e0e-9b5c-0d6c3a0c6f10", At(event="6ba3f1c6-2c2b-5e0e-9b5c-0d6c3a0c6f10")),
        ("1970-01-01T00:00:10+00:00", At(until=10_000)),
        ("1970-01-01T00:00:10Z", At(until=10_000)),
        ("6ba3f1c6-2c", At(event="6ba3f1c6-2c")),
    ],
)
def test_how_a_moment_is_written(text: str, at: At) -> None:
    assert parse_at(text) == at


def test_a_date_is_a_time() -> None:
    assert parse_at("2026-03-01").until is not None


@pytest.mark.parametrize("text", ["", "yesterday", "-5", "abc", "2026-13-01", "6ba3f1c6 "])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(BadInput, match="neither an event, nor a time, nor an offset"):
        parse_at(text)


def owners_of(log: FileLog, version: str, keep: str = "") -> list[str]:
    _, blame = asyncio.run(past_and_blame(recorded(log), WORKSPACE, PATH, keep))
    return list(blame.texts[version].owners)


def test_a_merge_owns_no_line_that_a_side_has() -> None:
    assert owners_of(story(), "join") == ["one", *["base"] * 5, "four"]


def test_a_merge_owns_what_no_side_has() -> None:
    log = FileLog()
    log.edit("base", b"1\n2\n")
    log.edit("left", b"1\nleft\n", "base")
    log.edit("right", b"1\nright\n", "base")
    log.add(log.resolution("join", b"1\nboth\n", "left", "right"))
    assert owners_of(log, "join") == ["base", "join"]


def test_lines_move_with_what_is_inserted_and_removed() -> None:
    log = FileLog()
    log.edit("base", b"a\nb\nc\n")
    log.edit("more", b"0\na\nb\nc\nd\n", "base")
    log.edit("less", b"0\nb\nd", "more")
    assert owners_of(log, "less") == ["more", "base", "less"], "the last line lost its newline"


def test_a_deleted_file_has_no_lines() -> None:
    log = FileLog()
    log.edit("base", b"a\n")
    log.edit("gone", None, "base")
    log.edit("back", b"a\n", "gone")
    assert owners_of(log, "gone") == []
    assert owners_of(log, "back") == ["back"]


def test_a_version_that_is_wanted_is_kept() -> None:
    log = FileLog()
    log.edit("e0", b"0\n")
    for number in range(1, 330):
        log.edit(f"e{number}", b"%d\n" % number, f"e{number - 1}")
    assert owners_of(log, "e0", keep="e0") == ["e0"]
    _, blame = asyncio.run(past_and_blame(recorded(log), WORKSPACE, PATH))
    assert "e0" not in blame.texts
    assert len(blame.texts) <= 320


def test_the_graph_in_the_terminal() -> None:
    past = past_at()
    assert graph_of(past, past.moments) == [
        "·  vote  REVIEW_SUBMITTED  generator/task of   noted  approved",
        "x  lost  CODE_MODIFIED  generator/task of   invalid (parent unknown or too old)",
        "●  join  CONFLICT_RESOLVED  merger/task of   accepted  rework  [head, visible]",
        "├─╮",
        "│ │ ·  conflict  CONFLICT_DETECTED  detector/task of   noted  2 heads, tries rework",
        "● │  four  CODE_MODIFIED  generator/task of   forked (the file has more than one head)",
        "│ ●  one  CODE_MODIFIED  generator/task of   accepted",
        "├─╯",
        "●  base  FILE_IMPORTED  git/task of   accepted",
    ]


def test_a_path_can_not_steer_the_terminal() -> None:
    log = FileLog()
    log.add(log.make("base", b"1\n", role="\x1b[2J"))
    past = asyncio.run(past_of(recorded(log), WORKSPACE, PATH))
    assert "\x1b" not in "".join(graph_of(past, past.moments))


def test_an_event_as_json() -> None:
    past = past_at()
    rows = {moment.event.event_id: moment_json(past, moment) for moment in past.moments}
    assert rows["join"]["parents"] == ("four", "one")
    assert (rows["join"]["head"], rows["one"]["head"], rows["one"]["live"]) == (True, False, True)
    assert (rows["lost"]["verdict"], rows["lost"]["live"]) == ("invalid", False)


def test_a_state_as_json() -> None:
    shown = state_json(past_at().history)
    assert (shown["visible"], shown["content"], shown["encoding"]) == ("join", MERGED.decode(), "utf-8")
    forked = state_json(past_at(At(offset=40)).history)
    assert (forked["forked"], forked["heads"]) == (True, ("one", "four"))
    assert forked["conflict"]["strategy"] == "rework"


def test_bytes_that_are_no_text_as_json() -> None:
    log = FileLog()
    log.edit("base", b"\xff\n")
    shown = state_json(log.history)
    assert (shown["encoding"], shown["content"]) == ("base64", b"\xff\n")
