"""The file fold and the conflict detector on random logs: what must hold for every order of events."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from unittest.mock import patch

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from codeconvoy.schemas import file_fold, file_history, job_fold
from codeconvoy.schemas.events import (
    ConflictDetected,
    ConflictResolved,
    Consistency,
    Event,
    Policy,
    ResolutionFailed,
    Strategy,
)
from codeconvoy.schemas.file_fold import fold
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.hunks import make_patch
from codeconvoy.schemas.job_facts import EventJudged, FileForked, FileSettled, JobFact, Judgement, VerdictKind
from codeconvoy.schemas.job_state import JobState
from codeconvoy.workers import file_states
from tests.builders import BASE, WORKSPACE, FileLog, event, executed, read_noted, review, voided
from tests.detector_loop import DetectorLoop
from tests.job_world import spec

LIVE = {VerdictKind.ACCEPTED, VerdictKind.FORKED}
TASKS = ["t1", "t2"]
CONTENTS = st.one_of(
    st.none(),
    st.integers(0, 6).flatmap(
        lambda at: st.sampled_from([b"", b"x\n", b"y\n"]).map(
            lambda line: b"".join([*BASE.splitlines(True)[:at], line, *BASE.splitlines(True)[at + 1 :]])
        )
    ),
)
"""What an edit makes of a file: mostly the base with one line changed."""


@st.composite
def edits(draw: st.DrawFn, log: FileLog, name: str) -> Event:
    """An edit off any earlier event, or none: often a live edit, at times a dead one or no edit at all."""
    earlier = [each.event_id for each in log.events]
    live = [key for key, entry in log.history.entries.items() if entry.edit is not None]
    among: list[list[str]] = [live, live, live, live, earlier, ["nobody"]]
    parents = draw(st.sampled_from(among))
    parent = (draw(st.sampled_from(parents)),) if parents and draw(st.integers(0, 9)) > 0 else ()
    content = draw(CONTENTS)
    good = draw(st.integers(0, 9)) > 0
    return log.make(
        name,
        content,
        *parent,
        patch=None if good else make_patch(b"not the base\n", content),
        task=draw(st.sampled_from(TASKS)),
        round_=draw(st.integers(1, 3)),
        consistency=Consistency.EVENTUAL if draw(st.integers(0, 5)) > 0 else Consistency.STRONG,
    )


@st.composite
def next_event(draw: st.DrawFn, log: FileLog, name: str) -> Event:
    """Whatever may come next on a log."""
    kind = draw(st.sampled_from(["edit"] * 8 + ["resolve"] * 3 + ["claim"] * 2 + ["again", "note", "void"]))
    ids = [each.event_id for each in log.events]
    heads = list(log.history.heads)
    if kind == "again" and ids:
        return draw(st.sampled_from(log.events))
    if kind == "note" and ids:
        make = draw(st.sampled_from([review, executed, read_noted]))
        return make(name, draw(st.sampled_from([*ids, ""])))
    if kind == "void":
        return voided(name, draw(st.sampled_from(TASKS)), draw(st.integers(1, 3)))
    some = ids if draw(st.integers(0, 4)) == 0 else heads
    if kind in ("resolve", "claim") and len(set(some)) > 1:
        of = draw(st.lists(st.sampled_from(some), min_size=2, max_size=3, unique=True))
        claim = log.history.claim
        if claim is not None and draw(st.booleans()):
            of = list(claim.heads)
        if kind == "claim":
            return log.conflict(name, *of, attempt=draw(st.integers(1, 3)))
        return log.resolution(name, draw(CONTENTS), *of)
    return draw(edits(log, name))


@st.composite
def file_logs(draw: st.DrawFn, path: str = "a.txt", length: int = 25) -> FileLog:
    """A random log of one file, folded."""
    log = FileLog(path)
    for number in range(draw(st.integers(1, length))):
        added = draw(next_event(log, f"{path}{number:02}"))
        log.add(msgspec.structs.replace(added, file_path=path))
    return log


def refold(path: str, events: Sequence[Event]) -> FileHistory:
    history = FileHistory(workspace=WORKSPACE, path=path)
    for each in events:
        history, _ = fold(history, each)
    return history


@given(file_logs())
def test_heads_ancestry_and_what_is_visible_are_sound_at_every_step(log: FileLog) -> None:
    history = FileHistory(workspace=WORKSPACE, path=log.history.path)
    landed: set[str] = set()
    for each in log.events:
        history, judged = fold(history, each)
        landed |= {event_id for event_id, verdict in judged if verdict.kind in LIVE}
        live = {key: entry.edit for key, entry in history.entries.items() if entry.edit is not None}
        assert set(live) == landed, "an edit is live if and only if it was accepted or forked"
        assert all(edit.live and set(edit.parents) <= set(live) for edit in live.values())
        parents = {parent for edit in live.values() for parent in edit.parents}
        assert set(history.heads) == set(live) - parents
        assert len(set(history.heads)) == len(history.heads)
        assert history.ancestors(history.heads) == set(live), "nothing that landed is ever lost"
        if live:
            seen = history.entries[history.visible]
            assert seen.verdict is VerdictKind.ACCEPTED or seen.event_type == "CONFLICT_RESOLVED"
            assert history.visible in live
        for key, edit in live.items():
            assert edit.content == log.contents[key], "what landed is what its author made"
        assert (history.claim is None) <= (not history.deferred)


@given(file_logs("a.txt"), file_logs("b.txt"), st.randoms(use_true_random=False))
def test_what_other_files_do_changes_no_verdict(one: FileLog, two: FileLog, random: object) -> None:
    queues = {"a.txt": list(one.events), "b.txt": list(two.events)}
    histories = {path: FileHistory(workspace=WORKSPACE, path=path) for path in queues}
    verdicts: dict[str, list[VerdictKind]] = {}
    while any(queues.values()):
        path = random.choice(sorted(path for path in queues if queues[path]))  # type: ignore[attr-defined]
        histories[path], judged = fold(histories[path], queues[path].pop(0))
        for event_id, verdict in judged:
            verdicts.setdefault(event_id, []).append(verdict.kind)
    assert histories == {"a.txt": one.history, "b.txt": two.history}
    assert verdicts == one.verdicts | two.verdicts


@given(file_logs(), st.data())
def test_redelivery_of_any_prefix_at_any_time_changes_nothing(log: FileLog, data: st.DataObject) -> None:
    upto = data.draw(st.integers(0, len(log.events)), label="where it is redelivered")
    prefix = log.events[: data.draw(st.integers(0, upto), label="how much")]
    twice = [*log.events[:upto], *prefix, *log.events[upto:]]
    history = refold(log.history.path, twice)
    assert file_states.fields_of(history, "w:a.txt") == file_states.fields_of(log.history, "w:a.txt")


@given(file_logs(length=60), st.integers(1, 12))
def test_the_stored_state_is_the_state(log: FileLog, batch: int) -> None:
    """With bounds so tight that most is forgotten: written in steps, written at once, and read back."""
    bounds = {"MAX_EDITS": 6, "MAX_ENTRIES": 20, "MAX_DEFERRED": 3, "MAX_HEADS": 3, "MAX_READERS": 2}
    with ExitStack() as tight:
        for name, bound in bounds.items():
            for module in (file_fold, file_history):
                if hasattr(module, name):
                    tight.enter_context(patch.object(module, name, bound))
        key = f"{WORKSPACE}:{log.history.path}"
        stored: dict[str, bytes] = {}
        before, history = None, FileHistory(workspace=WORKSPACE, path=log.history.path)
        for number, each in enumerate(log.events, 1):
            history, _ = fold(history, each)
            if number % batch:
                continue
            for name, value in file_states.dump_view(key, before, history).items():
                if value is None:
                    del stored[name]
                else:
                    stored[name] = value
            assert stored == file_states.fields_of(history, key)

            async def read(names: Sequence[str], stored: dict[str, bytes] = stored) -> list[bytes | None]:
                return [stored.get(name) for name in names]

            loaded = asyncio.run(file_states.load([key], read))[key]
            assert loaded is not None and loaded == history
            assert list(loaded.entries) == list(history.entries)
            before = history = loaded
            edits = [entry for entry in history.entries.values() if entry.edit is not None]
            assert history.edits == len(edits) <= 7, "six and a quarter of it"
            assert len(history.entries) <= 25
            assert sorted(history.entries, key=lambda key: loaded.entries[key].seq) == list(history.entries)
            slots = [entry.slot for entry in history.entries.values()]
            assert sorted([*slots, *history.free]) == list(range(len(slots) + len(history.free)))
            assert set(history.heads) <= {entry.event_id for entry in edits}


# The detector -------------------------------------------------------------------------------------

POLICIES = st.builds(
    Policy,
    strategies=st.lists(
        st.sampled_from(
            [
                Strategy.THREE_WAY,
                Strategy.THREE_WAY,
                Strategy.REWORK,
                Strategy.HUMAN,
                Strategy.LAST_WRITER_WINS,
                Strategy.SEMANTIC,
            ]
        ),
        max_size=3,
    ).map(tuple),
    default=st.sampled_from([Strategy.FIRST_WRITER_WINS, Strategy.LAST_WRITER_WINS, Strategy.HUMAN]),
)


@st.composite
def races(draw: st.DrawFn) -> DetectorLoop:
    """Writers and a detector at work on one file at the same time, until the writers are done.

    The detector lags: what it decides is on the log behind what the writers have written meanwhile.
    """
    loop, log = DetectorLoop(), FileLog()
    log.edit("base", BASE)
    loop.append(log.events[0])
    policy = draw(POLICIES)
    for number in range(draw(st.integers(2, 12))):
        added = draw(answers(loop, f"n{number}") if draw(st.integers(0, 3)) == 0 else writes(log, number))
        if added is not None:
            job = f"j{draw(st.integers(1, 2))}"
            loop.append(msgspec.structs.replace(added, policy=policy, job_id=job))
        before = len(log.events)
        loop.fold(draw(st.integers(0, 4)))
        for each in loop.log[before:]:
            if isinstance(each.payload, ConflictResolved):
                log.contents.setdefault(each.event_id, None)
            log.add(each)
            edit = log.history.edit(each.event_id)
            if edit is not None:
                log.contents[each.event_id] = edit.content
    return loop


def writes(log: FileLog, number: int) -> st.SearchStrategy[Event | None]:
    """An edit by a writer that read whatever version."""
    return edits(log, f"n{number}")


@st.composite
def answers(draw: st.DrawFn, loop: DetectorLoop, name: str) -> Event | None:
    """What an agent or a person answers to the claim: a resolution, a bad one, or that they gave up."""
    history = loop.history("a.txt")
    claim = history.claim
    if claim is None:
        return None
    if draw(st.booleans()):
        gave_up = ResolutionFailed(
            conflict_id=claim.conflict_id, attempt=claim.attempt, strategy=claim.strategy, reason="no idea"
        )
        return event(name, gave_up)
    first = history.edit(claim.heads[0])
    assert first is not None
    content = draw(CONTENTS)
    good = draw(st.booleans())
    payload = ConflictResolved(
        patch=make_patch(first.content if good else b"not the base\n", content),
        conflict_id=claim.conflict_id,
        strategy=claim.strategy,
    )
    return event(name, payload, parents=claim.heads, role="merger")


@settings(max_examples=200)
@given(races())
def test_every_fork_ends_in_one_head_or_a_wait_with_a_deadline_and_then_in_one_head(
    loop: DetectorLoop,
) -> None:
    loop.fold()
    history = loop.history("a.txt")
    assert not history.forked or (history.claim is not None and history.claim.deadline > loop.now)
    assert (history.claim is None) <= (not history.deferred)
    told_of_forks(loop)
    for _ in range(40):
        if not loop.fire_next_deadline():
            break
    history = loop.history("a.txt")
    assert (len(history.heads), history.claim, history.deferred) == (1, None, ())
    told_of_forks(loop)
    assert believing_in_a_fork(loop) == set()
    live = {key for key, entry in history.entries.items() if entry.edit is not None}
    assert history.ancestors(history.heads) == live


def told_of_forks(loop: DetectorLoop) -> None:
    """Every job with an open conflict knows of it, and of no other: none waits for what is over."""
    open_for: dict[str, set[str]] = {}
    for job, word in loop.facts:
        if isinstance(word, FileForked):
            open_for.setdefault(job, set()).add(word.conflict_id)
        if isinstance(word, FileSettled):  # maybe of one that was never opened
            open_for.setdefault(job, set()).discard(word.conflict_id)
    history = loop.history("a.txt")
    claim = history.claim
    at_stake: dict[str, set[str]] = {}
    for head in claim.heads if claim is not None else ():
        for event_id in history.ancestors((head,)):
            at_stake.setdefault(event_id, set()).add(head)
    told = {job for job, conflicts in open_for.items() if conflicts}
    assert told == {
        history.entries[event_id].job_id
        for event_id, held_by in at_stake.items()
        if claim is not None and held_by != set(claim.heads)
    }
    known = {conflict for conflicts in open_for.values() for conflict in conflicts}
    assert known == ({claim.conflict_id} if claim is not None else set())


def believing_in_a_fork(loop: DetectorLoop) -> set[str]:
    """The jobs that wait for the file to have one head, by what the fold of their log says."""
    jobs: dict[str, JobState] = {}
    for number, (job, told) in enumerate(loop.facts):
        word = EventJudged.of([told]) if isinstance(told, Judgement) else told
        state = jobs.get(job) or JobState(job_id=job, spec=spec())
        fact = JobFact(fact_id=f"f{number}", job_id=job, timestamp=0, source="detector", payload=word)
        jobs[job], _ = job_fold.fold(state, fact)
    files = {job: state.files["a.txt"] for job, state in jobs.items() if "a.txt" in state.files}
    return {job for job, file in files.items() if file.forked or file.conflict is not None}


def test_an_edit_that_overtakes_the_conflict_does_not_make_the_detector_chase_itself() -> None:
    log, loop = FileLog(), DetectorLoop()
    lines = BASE.splitlines(True)
    log.edit("base", BASE)
    log.edit("a", b"".join([b"A\n", *lines[1:]]), "base")
    log.edit("b", b"".join([*lines[:-1], b"B\n"]), "base")
    log.edit("c", b"".join([b"A\nC\n", *lines[1:]]), "a")
    loop.append(*log.events)
    loop.fold()
    history = loop.history("a.txt")
    assert len(history.heads) == 1
    edit = history.edit(history.visible)
    assert edit is not None
    assert edit.content == b"".join([b"A\nC\n", *lines[1:-1], b"B\n"])
    conflicts = [each for each in loop.log if isinstance(each.payload, ConflictDetected)]
    assert len(conflicts) == 2
