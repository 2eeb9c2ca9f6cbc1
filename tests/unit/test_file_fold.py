"""Every rule of the file fold, one by one."""

import msgspec
import pytest

from codeconvoy.schemas.events import CodeReverted, Consistency, FileImported, Hunk, Patch, Strategy
from codeconvoy.schemas.file_fold import MAX_ATTEMPTS, Verdict, fold, lowest_common_ancestor
from codeconvoy.schemas.file_history import MAX_DEFERRED, MAX_EDITS, MAX_ENTRIES, MAX_HEADS, MAX_READERS
from codeconvoy.schemas.hunks import make_patch
from codeconvoy.schemas.job_facts import VerdictKind as V
from tests.builders import FileLog, executed, read_noted, review, voided


@pytest.fixture
def log() -> FileLog:
    return FileLog()


@pytest.fixture
def forked() -> FileLog:
    log = FileLog()
    log.edit("base", b"0\n")
    log.edit("left", b"1\n", "base")
    log.edit("right", b"2\n", "base")
    return log


@pytest.fixture
def claimed(forked: FileLog) -> FileLog:
    assert forked.add(forked.conflict("claim", "left", "right")).kind is V.NOTED
    return forked


def heads(log: FileLog) -> tuple[str, ...]:
    return log.history.heads


def content(log: FileLog) -> bytes | None:
    edit = log.history.edit(log.history.visible)
    return edit.content if edit else b"nothing was ever here"


# Accepted, duplicate ------------------------------------------------------------------------------


def test_an_edit_of_the_head_is_accepted_and_visible(log: FileLog) -> None:
    assert log.edit("a", b"1\n") == Verdict(V.ACCEPTED, heads=("a",))
    assert log.edit("b", b"2\n", "a") == Verdict(V.ACCEPTED, heads=("b",))
    assert (heads(log), log.history.visible, content(log)) == (("b",), "b", b"2\n")


def test_an_event_seen_before_is_a_duplicate_and_changes_nothing(forked: FileLog) -> None:
    for event in list(forked.events):
        history, judged = fold(forked.history, event)
        assert history is forked.history
        assert judged == ((event.event_id, Verdict(V.DUPLICATE)),)


def test_a_refused_edit_sent_again_is_a_duplicate_too(log: FileLog) -> None:
    bad = log.make("a", b"1\n", "unknown")
    assert log.add(bad).kind is V.INVALID
    assert log.add(bad).kind is V.DUPLICATE


def test_a_deleted_file_is_a_tombstone_that_a_new_creation_names(log: FileLog) -> None:
    log.edit("a", b"1\n")
    assert log.edit("gone", None, "a").kind is V.ACCEPTED
    assert content(log) is None
    assert log.edit("again", b"2\n", "gone").kind is V.ACCEPTED


# Invalid ------------------------------------------------------------------------------------------


def reason(verdict: Verdict) -> str:
    assert verdict.kind is V.INVALID
    return verdict.reason


def test_a_parent_that_was_never_on_the_log(log: FileLog) -> None:
    assert "unknown" in reason(log.edit("a", b"1\n", "nobody"))
    assert (heads(log), log.history.visible) == ((), "")


def test_nothing_comes_in_through_a_dead_parent(log: FileLog) -> None:
    log.edit("dead", b"1\n", "nobody")
    assert "not live" in reason(log.edit("child", b"2\n", "dead"))
    assert "not live" in reason(log.edit("grandchild", b"3\n", "child"))


def test_a_note_is_no_parent(log: FileLog) -> None:
    log.edit("a", b"1\n")
    log.add(review("note", "a"))
    assert "not live" in reason(log.edit("b", b"2\n", "note"))


@pytest.mark.parametrize(
    "patch",
    [
        make_patch(b"another base\n", b"2\n"),
        Patch(base_sha256=None, result_sha256="0" * 64, content=b"2\n"),
        msgspec.structs.replace(make_patch(b"1\n", b"2\n"), result_sha256="0" * 64),
        msgspec.structs.replace(
            make_patch(b"1\n", b"2\n"), content=None, hunks=(Hunk(start=7, removed=1, lines=b""),)
        ),
    ],
)
def test_a_patch_that_does_not_give_what_it_promises(log: FileLog, patch: Patch) -> None:
    log.edit("a", b"1\n")
    assert "does not apply" in reason(log.add(log.make("b", b"2\n", "a", patch=patch)))
    assert (heads(log), content(log)) == (("a",), b"1\n")


def test_edits_of_a_voided_round_are_dead_and_those_of_another_are_not(log: FileLog) -> None:
    log.edit("a", b"1\n")
    log.add(voided("void", "t", 1))
    assert "voided" in reason(log.add(log.make("late", b"2\n", "a", task="t", round_=1)))
    assert log.add(log.make("next", b"3\n", "a", task="t", round_=2)).kind is V.ACCEPTED


def test_an_edit_that_came_before_its_round_was_voided_stays(log: FileLog) -> None:
    log.add(log.make("a", b"1\n", task="t", round_=1))
    log.add(voided("void", "t", 1))
    assert log.edit("b", b"2\n", "a").kind is V.ACCEPTED


def test_only_a_resolution_names_several_parents(forked: FileLog) -> None:
    assert "at most one" in reason(forked.edit("both", b"3\n", "left", "right"))


@pytest.mark.parametrize("parents", [("left",), ("right", "left"), ("left", "left"), ()])
def test_a_resolution_names_two_or_more_parents_in_order(forked: FileLog, parents: tuple[str, ...]) -> None:
    event = forked.resolution("r", b"3\n", "left", "right")
    assert "sorted by id" in reason(forked.add(msgspec.structs.replace(event, parent_event_ids=parents)))


# Forked -------------------------------------------------------------------------------------------


def test_an_edit_off_an_older_version_forks_and_nothing_is_dropped(forked: FileLog) -> None:
    assert heads(forked) == ("left", "right")
    assert forked.history.entries["right"].verdict is V.FORKED
    assert (forked.history.visible, content(forked)) == ("left", b"1\n")


def test_a_fork_names_its_base_and_heads(log: FileLog) -> None:
    log.edit("base", b"0\n")
    log.edit("left", b"1\n", "base")
    verdict = log.edit("right", b"2\n", "base")
    assert (verdict.base, verdict.heads) == ("base", ("left", "right"))


def test_concurrent_creates_fork_without_a_base(log: FileLog) -> None:
    log.edit("one", b"1\n")
    verdict = log.edit("two", b"2\n")
    assert (verdict.kind, verdict.base, verdict.heads) == (V.FORKED, None, ("one", "two"))


@pytest.mark.parametrize("first", ["delete", "edit"])
def test_a_delete_against_an_edit_is_a_fork(log: FileLog, first: str) -> None:
    contents = {"delete": None, "edit": b"1\n"}
    log.edit("base", b"0\n")
    assert log.edit(first, contents.pop(first), "base").kind is V.ACCEPTED
    ((second, what),) = contents.items()
    assert log.edit(second, what, "base").kind is V.FORKED


def test_what_forks_off_a_head_replaces_it(forked: FileLog) -> None:
    verdict = forked.edit("more", b"1\n1\n", "left")
    assert (verdict.kind, verdict.heads) == (V.FORKED, ("right", "more"))
    assert forked.history.visible == "left", "readers see the earlier content until it is resolved"


def test_a_fork_off_the_side_of_a_merge(forked: FileLog) -> None:
    assert forked.add(forked.resolution("merge", b"3\n", "left", "right")).kind is V.ACCEPTED
    verdict = forked.edit("late", b"9\n", "right")
    assert (verdict.kind, verdict.base, verdict.heads) == (V.FORKED, "right", ("merge", "late"))


def test_a_resolution_of_all_heads_joins_them(forked: FileLog) -> None:
    verdict = forked.add(forked.resolution("merge", b"3\n", "left", "right"))
    assert verdict == Verdict(V.ACCEPTED, heads=("merge",))
    assert (forked.history.visible, content(forked)) == ("merge", b"3\n")


def test_a_resolution_of_some_heads_is_visible_if_it_joins_what_readers_see(forked: FileLog) -> None:
    forked.edit("third", b"3\n", "base")
    aside = forked.add(forked.resolution("aside", b"4\n", "right", "third"))
    assert (aside.kind, aside.heads, forked.history.visible) == (V.FORKED, ("left", "aside"), "left")
    forked.edit("fourth", b"5\n", "base")
    forked.add(forked.resolution("seen", b"6\n", "left", "aside"))
    assert (heads(forked), forked.history.visible) == (("fourth", "seen"), "seen")


def test_no_more_than_so_many_heads(log: FileLog) -> None:
    log.edit("base", b"0\n")
    for number in range(MAX_HEADS):
        assert log.edit(f"h{number}", b"%d\n" % number, "base").kind in (V.ACCEPTED, V.FORKED)
    assert "heads already" in reason(log.edit("one more", b"x\n", "base"))
    assert log.edit("on top", b"y\n", "h0").kind is V.FORKED, "it replaces the head that it is built on"


# Strong -------------------------------------------------------------------------------------------


def test_a_strong_edit_that_would_fork_is_stale_and_of_no_effect(log: FileLog) -> None:
    log.edit("base", b"0\n")
    log.edit("left", b"1\n", "base")
    before = log.history
    late = log.make("late", b"2\n", "base", consistency=Consistency.STRONG)
    assert log.add(late).kind is V.STALE
    assert (log.history.heads, log.history.visible) == (before.heads, before.visible)
    assert "stale, not live" in reason(log.edit("child", b"3\n", "late"))


def test_a_strong_edit_of_the_head_is_accepted(log: FileLog) -> None:
    log.edit("base", b"0\n")
    edit = log.make("next", b"1\n", "base", consistency=Consistency.STRONG)
    assert log.add(edit).kind is V.ACCEPTED


def test_a_strong_jobs_resolution_is_never_stale(claimed: FileLog) -> None:
    claimed.add(claimed.make("third", b"7\n", "base"))
    merge = claimed.resolution("merge", b"3\n", "left", "right", consistency=Consistency.STRONG)
    assert claimed.add(merge).kind is V.ACCEPTED
    assert heads(claimed) == ("merge", "third")


# Claims -------------------------------------------------------------------------------------------


def test_a_conflict_holds_the_file_and_its_resolution_lets_the_others_in_by_order(claimed: FileLog) -> None:
    assert claimed.edit("late", b"7\n", "left").kind is V.DEFERRED
    assert claimed.edit("later", b"8\n", "late").kind is V.DEFERRED
    assert heads(claimed) == ("left", "right")
    _, judged = fold(claimed.history, claimed.resolution("merge", b"3\n", "left", "right"))
    assert [(event_id, verdict.kind) for event_id, verdict in judged] == [
        ("merge", V.ACCEPTED),
        ("late", V.FORKED),
        ("later", V.FORKED),
    ]
    claimed.add(claimed.resolution("merge", b"3\n", "left", "right"))
    assert (claimed.history.claim, claimed.history.deferred) == (None, ())
    assert heads(claimed) == ("merge", "later")
    assert claimed.verdicts["later"] == [V.DEFERRED, V.FORKED]
    assert list(claimed.history.entries) == ["base", "left", "right", "claim", "late", "later", "merge"]
    assert [entry.seq for entry in claimed.history.entries.values()] == list(range(7))


def test_a_deferred_edit_is_judged_as_any_other(claimed: FileLog) -> None:
    claimed.add(claimed.make("bad", b"9\n", "left", patch=make_patch(b"no\n", b"9\n")))
    claimed.add(claimed.make("strong", b"9\n", "left", consistency=Consistency.STRONG))
    claimed.add(claimed.make("void", b"9\n", "left", task="t"))
    claimed.add(voided("v", "t"))
    claimed.add(claimed.resolution("merge", b"3\n", "left", "right"))
    assert claimed.verdicts["bad"] == [V.DEFERRED, V.INVALID]
    assert claimed.verdicts["strong"] == [V.DEFERRED, V.STALE]
    assert claimed.verdicts["void"] == [V.DEFERRED, V.INVALID]
    assert heads(claimed) == ("merge",)


def test_only_a_resolution_of_these_heads_passes(claimed: FileLog) -> None:
    other = claimed.resolution(
        "other", b"3\n", "base", "right", conflict=claimed.conflict_of("left", "right")
    )
    stranger = claimed.resolution("stranger", b"3\n", "left", "right", conflict="another conflict")
    assert claimed.add(other).kind is V.DEFERRED
    assert claimed.add(stranger).kind is V.DEFERRED
    assert claimed.add(claimed.resolution("merge", b"3\n", "left", "right")).kind is V.ACCEPTED


def test_an_invalid_resolution_leaves_the_claim(claimed: FileLog) -> None:
    event = claimed.resolution("bad", b"3\n", "left", "right")
    payload = msgspec.structs.replace(event.payload, patch=make_patch(b"no\n", b"3\n"))
    assert claimed.add(msgspec.structs.replace(event, payload=payload)).kind is V.INVALID
    assert claimed.history.claim is not None


def test_the_next_attempt_takes_the_claims_place_and_an_old_one_does_not(claimed: FileLog) -> None:
    assert claimed.add(claimed.conflict("second", "left", "right", attempt=2, deadline=9)).kind is V.NOTED
    claim = claimed.history.claim
    assert claim is not None
    assert (claim.attempt, claim.deadline, claim.event_id) == (2, 9, "second")
    assert "claimed already" in reason(claimed.add(claimed.conflict("again", "left", "right", attempt=2)))
    assert claimed.history.claim == claim


def test_a_claimed_file_is_not_claimed_for_other_heads(claimed: FileLog) -> None:
    assert "claimed already" in reason(claimed.add(claimed.conflict("other", "base", "left", attempt=2)))


def test_no_more_attempts_than_the_bound(forked: FileLog) -> None:
    late = forked.conflict("late", "left", "right", attempt=MAX_ATTEMPTS + 1)
    assert "attempts" in reason(forked.add(late))
    last = forked.conflict("last", "left", "right", attempt=MAX_ATTEMPTS)
    assert forked.add(last).kind is V.NOTED


def test_a_conflict_whose_heads_have_moved_is_stale_and_claims_nothing(forked: FileLog) -> None:
    forked.edit("more", b"1\n1\n", "left")
    assert forked.add(forked.conflict("claim", "left", "right")).kind is V.STALE
    assert forked.history.claim is None


@pytest.mark.parametrize("named", [("left", "left"), ("left",), ()])
def test_one_head_is_no_conflict(forked: FileLog, named: tuple[str, ...]) -> None:
    assert forked.add(forked.conflict("claim", *named)).kind is V.STALE


def test_a_conflict_of_some_of_the_heads_claims_the_file(forked: FileLog) -> None:
    forked.edit("third", b"3\n", "base")
    assert forked.add(forked.conflict("claim", "left", "third")).kind is V.NOTED
    assert forked.add(forked.resolution("merge", b"3\n", "left", "third")).kind is V.FORKED
    assert (forked.history.claim, heads(forked)) == (None, ("right", "merge"))


def test_too_many_deferred_edits_are_refused_so_that_memory_is_bounded(claimed: FileLog) -> None:
    for number in range(MAX_DEFERRED):
        assert claimed.edit(f"d{number}", b"%d\n" % number, "left").kind is V.DEFERRED
    assert "too many" in reason(claimed.edit("one more", b"x\n", "left"))
    assert len(claimed.history.deferred) == MAX_DEFERRED


# Notes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("note", [review, executed, read_noted])
def test_a_note_on_the_head_is_taken_down_and_outdated_when_it_moves(log: FileLog, note: object) -> None:
    assert callable(note)
    log.edit("a", b"1\n")
    assert log.add(note("n", "a")).kind is V.NOTED
    log.edit("b", b"2\n", "a")
    assert log.verdicts["n"] == [V.NOTED, V.OUTDATED]
    log.edit("c", b"3\n", "b")
    assert log.verdicts["n"] == [V.NOTED, V.OUTDATED], "once is enough"


@pytest.mark.parametrize("note", [review, executed, read_noted])
def test_a_note_on_an_older_version_is_stale(log: FileLog, note: object) -> None:
    assert callable(note)
    log.edit("a", b"1\n")
    log.edit("b", b"2\n", "a")
    assert log.add(note("n", "a")).kind is V.STALE
    assert log.add(note("m", "nobody")).kind is V.STALE
    log.edit("c", b"3\n", "b")
    assert log.verdicts["n"] == [V.STALE]


def test_what_was_read_as_absent_is_stale_once_the_file_is_there(log: FileLog) -> None:
    assert log.add(read_noted("n", "")).kind is V.NOTED
    log.edit("a", b"1\n")
    assert log.verdicts["n"] == [V.NOTED, V.OUTDATED]
    assert log.add(read_noted("m", "")).kind is V.STALE


def test_another_event_with_the_same_content_outdates_nobody(log: FileLog) -> None:
    log.edit("a", b"1\n")
    log.add(review("n", "a"))
    log.edit("same", b"1\n", "a")
    assert log.verdicts["n"] == [V.NOTED]
    assert log.add(review("m", "a")).kind is V.NOTED, "and it may still be named by the older one"
    log.edit("b", b"2\n", "same")
    assert log.verdicts["n"] == log.verdicts["m"] == [V.NOTED, V.OUTDATED]


def test_the_executable_bit_is_part_of_the_content(log: FileLog) -> None:
    log.edit("a", b"1\n")
    log.add(review("n", "a"))
    log.add(log.make("b", b"1\n", "a", executable=True))
    assert log.verdicts["n"] == [V.NOTED, V.OUTDATED]


def test_a_fork_alone_outdates_nobody_its_resolution_does(forked: FileLog) -> None:
    forked.add(review("n", "left"))
    forked.edit("third", b"3\n", "base")
    assert forked.verdicts["n"] == [V.NOTED]
    forked.add(forked.resolution("merge", b"4\n", "left", "right", "third"))
    assert forked.verdicts["n"] == [V.NOTED, V.OUTDATED]


def test_notes_pass_while_a_conflict_holds_the_file(claimed: FileLog) -> None:
    assert claimed.add(review("n", "left")).kind is V.NOTED


def test_a_reader_that_is_forgotten_for_want_of_room_is_told(log: FileLog) -> None:
    log.edit("a", b"1\n")
    for number in range(MAX_READERS):
        log.add(read_noted(f"n{number}", "a"))
    assert log.verdicts["n0"] == [V.NOTED]
    log.add(read_noted("one more", "a"))
    assert (log.verdicts["n0"], log.verdicts["n1"]) == ([V.NOTED, V.OUTDATED], [V.NOTED])
    assert len(log.history.readers) == MAX_READERS


# Kinds of edits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FileImported, CodeReverted])
def test_imports_and_reverts_are_edits_like_any(
    log: FileLog, kind: type[FileImported] | type[CodeReverted]
) -> None:
    log.edit("a", b"1\n")
    log.edit("b", b"2\n", "a")
    assert log.add(log.make("c", b"3\n", "a", kind=kind)).kind is V.FORKED


# Bounds -------------------------------------------------------------------------------------------


def edits_of(log: FileLog) -> list[str]:
    return [key for key, entry in log.history.entries.items() if entry.edit is not None]


def chain(log: FileLog, count: int, first: str = "") -> None:
    parent = first
    for number in range(count):
        log.edit(f"{first}e{number:04}", b"%d\n" % number, *((parent,) if parent else ()))
        parent = f"{first}e{number:04}"


FULL_EDITS, FULL_ENTRIES = MAX_EDITS * 5 // 4, MAX_ENTRIES * 5 // 4


def test_the_last_256_edits_are_remembered_with_their_contents(log: FileLog) -> None:
    chain(log, FULL_EDITS)
    assert len(edits_of(log)) == log.history.edits == FULL_EDITS == 320
    log.add(review("n", f"e{FULL_EDITS - 1:04}"))
    assert len(edits_of(log)) == FULL_EDITS, "a note needs no room among the edits"
    log.edit("last", b"x\n", f"e{FULL_EDITS - 1:04}")
    assert len(edits_of(log)) == log.history.edits == MAX_EDITS == 256
    gone = FULL_EDITS + 1 - MAX_EDITS
    assert log.history.edit(f"e{gone - 1:04}") is None
    assert log.history.edit(f"e{gone:04}") is not None


def test_a_parent_that_is_too_old_is_refused_and_says_so(log: FileLog) -> None:
    chain(log, FULL_EDITS + 1)
    gone = FULL_EDITS + 1 - MAX_EDITS
    assert reason(log.edit("late", b"x\n", f"e{gone - 1:04}")) == "parent too old"
    assert log.edit("not so late", b"x\n", f"e{gone:04}").kind is V.FORKED


def test_heads_and_what_readers_see_are_never_forgotten(log: FileLog) -> None:
    log.edit("base", b"0\n")
    log.edit("left", b"1\n", "base")
    chain(log, MAX_EDITS * 2, "base")
    assert heads(log)[0] == "left"
    assert log.history.edit("left") is not None
    assert log.history.visible == "left"
    assert MAX_EDITS <= len(edits_of(log)) <= FULL_EDITS


def test_edits_let_in_at_the_end_of_a_claim_are_brought_back_to_the_bound(claimed: FileLog) -> None:
    chain(claimed, MAX_DEFERRED, "left")
    claimed.add(claimed.resolution("merge", b"3\n", "left", "right"))
    assert MAX_EDITS <= len(edits_of(claimed)) <= FULL_EDITS


def test_the_last_1024_events_are_remembered(log: FileLog) -> None:
    log.edit("a", b"1\n")
    for number in range(FULL_ENTRIES - 1):
        log.add(voided(f"n{number}", "t", number))
    assert len(log.history.entries) == FULL_ENTRIES == 1280
    log.add(voided("last", "t", FULL_ENTRIES))
    assert len(log.history.entries) == MAX_ENTRIES == 1024
    assert "a" in log.history.entries, "an edit whose content is remembered stays"
    gone = FULL_ENTRIES + 1 - MAX_ENTRIES
    assert f"n{gone - 1}" not in log.history.entries
    assert f"n{gone}" in log.history.entries
    assert log.history.next_seq == FULL_ENTRIES + 1
    slots = {entry.slot for entry in log.history.entries.values()}
    assert sorted(log.history.free) == sorted(set(range(FULL_ENTRIES + 1)) - slots)
    log.add(voided("one more", "t", FULL_ENTRIES + 1))
    assert log.history.entries["one more"].slot == 1, "the lowest that is free"


def test_the_common_ancestor_is_the_latest_one(forked: FileLog) -> None:
    assert lowest_common_ancestor(forked.history, ("left", "right")) == "base"
    forked.add(forked.resolution("merge", b"3\n", "left", "right"))
    forked.edit("x", b"4\n", "merge")
    forked.edit("y", b"5\n", "merge")
    assert lowest_common_ancestor(forked.history, ("x", "y")) == "merge"
    assert lowest_common_ancestor(forked.history, ()) is None


def test_the_entry_says_in_a_line_what_happened(forked: FileLog) -> None:
    forked.add(forked.conflict("claim", "left", "right"))
    forked.add(forked.resolution("merge", b"3\n", "left", "right", strategy=Strategy.HUMAN))
    forked.add(review("no", "merge", approved=False))
    entries = forked.history.entries
    assert [entries[name].summary for name in ("claim", "merge", "no")] == [
        "2 heads, tries rework",
        "human",
        "rejected",
    ]
