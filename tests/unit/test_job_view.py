"""What people and programs are shown of a job, from its submission to its end."""

import io
from itertools import pairwise
from pathlib import Path

import msgspec
from rich.console import Console

from codeconvoy.orchestrator.cli import job_view
from codeconvoy.orchestrator.cli.common import plain
from codeconvoy.schemas.budget import Amounts
from codeconvoy.schemas.job_facts import CallBegun, CallEnded, JobStatus
from codeconvoy.schemas.job_spec import Budget, Pipeline
from codeconvoy.schemas.job_state import JobState
from codeconvoy.schemas.tasks import EditWork, TestWork
from tests.job_world import EDITS_ONLY, JobWorld, spec


def rendered(job: JobState, now: int) -> str:
    console = Console(file=io.StringIO(), width=150, force_terminal=False)
    console.print(job_view.progress(job, now, ("something happened",)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def finished(repository: str = "/repo") -> JobWorld:
    world = JobWorld(spec(repository=repository, pipeline=Pipeline(review=("reviewer",), test=())))
    world.imports("a.py", "b.py")
    for found in world.open(EditWork):
        world.writes(found)
    world.now += 65_000
    for path in ("a.py", "b.py"):
        world.votes(path=path)
    world.publishes()
    return world


def test_a_job_is_told_from_look_to_look() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    looks = [world.state]
    world.imports("a.py", "b.py")
    looks.append(world.state)
    first, second = world.open(EditWork)
    world.writes(first)
    looks.append(world.state)
    world.fail(second[0], "the model\x1b[2J refused\nat length")
    looks.append(world.state)
    world.publishes()
    looks.append(world.state)
    told = [list(job_view.changes(before, after)) for before, after in pairwise(looks)]
    assert told == [
        ["imported 2 files of c0ffee", "git: done"],
        ["generator a.py: done", "a.py done"],
        [
            "generator b.py: failed: the model\\x1b[2J refused",
            "b.py failed: " + plain(world.state.units["b.py"].reason).partition("\n")[0],
            f"job ending: {world.state.reason.partition(chr(10))[0]}".replace("\x1b", "\\x1b"),
        ],
        ["git: done", f"job partial: {world.state.reason.partition(chr(10))[0]}".replace("\x1b", "\\x1b")],
    ]
    assert list(job_view.changes(world.state, world.state)) == []


def test_another_round_is_told_with_its_reason() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py")
    before = world.state
    world.fail(world.one(EditWork)[0], "429", retryable=True)
    assert list(job_view.changes(before, world.state)) == ["generator a.py: round 2: 429"]


def test_progress_shows_where_everything_stands() -> None:
    world = JobWorld(spec(pipeline=EDITS_ONLY))
    world.imports("a.py", "b.py")
    world.writes(world.open(EditWork)[0])
    shown = rendered(world.state, world.now + 2_000)
    assert "running 2.0 s: 1/2 units, 1 edits, 0 forks" in shown
    assert "generate 1  done 1" in shown
    assert "generator" in shown and "dispatched 1  done 1" in shown
    assert "something happened" in shown


def test_the_time_of_the_end_stays() -> None:
    world = finished()
    assert job_view.elapsed_seconds(world.state, world.now + 10**9) == 65.0
    world.now += 50_000
    world.cancel()
    assert job_view.elapsed_seconds(world.state, world.now) == 65.0


def test_the_summary_says_what_became_of_it_and_how_to_look(tmp_path: Path) -> None:
    world = finished("/re po")
    lines = dict(job_view.summary(world.state, world.now))
    assert lines["status"] == "succeeded"
    assert lines["edits"] == "2", "the imports are none"
    assert lines["forks"] == "0; 0 conflicts on the same lines"
    assert lines["reviews"] == "2 approved, 0 rejected"
    assert lines["elapsed"] == "1 min 05 s"
    assert lines["branch"] == "convoy/job, 1 commits"
    assert lines["look"] == "git -C '/re po' log --stat c0ffee..convoy/job"
    assert lines[""] == "git -C '/re po' diff c0ffee..convoy/job"
    remote = dict(job_view.summary(finished("https://h/r.git").state, 0))
    assert remote["look"] == "git log --stat c0ffee..convoy/job"


def test_the_summary_does_not_call_a_test_run_that_was_not_executed() -> None:
    world = JobWorld(spec())
    world.imports("a.py")
    world.writes(world.one(EditWork))
    world.votes()
    world.writes(world.one(TestWork))
    world.runs("not_executed")
    world.publishes()
    assert "0 runs, 1 not executed" in dict(job_view.summary(world.state, world.now))["tests"]


def test_forks_and_their_resolutions_are_counted_apart() -> None:
    world = finished()
    tally = msgspec.structs.replace(
        world.state.tally, forks=5, overlapping=2, resolved={"three_way": 3, "rework": 2}
    )
    lines = dict(job_view.summary(msgspec.structs.replace(world.state, tally=tally), 0))
    assert lines["forks"] == "5; 2 conflicts on the same lines"
    assert lines["resolved"] == "rework 2, three_way 3"


def test_json_holds_the_same() -> None:
    world = finished()
    told = msgspec.json.decode(msgspec.json.encode(job_view.as_json(world.state, world.now)))
    assert told["status"] == "succeeded" and told["ended"] and told["elapsed_seconds"] == 65.0
    assert told["units"] == {"done": 2}
    assert told["tasks"] == {"generator": {"done": 2}, "git": {"done": 2}, "reviewer": {"done": 2}}
    assert (told["branch"], told["commits"], told["edits"]) == ("convoy/job", 1, 2)
    empty = job_view.as_json(JobState(job_id="j"), 5)
    assert empty["status"] is JobStatus.RUNNING and not empty["ended"]


def test_durations() -> None:
    assert [job_view.duration(s) for s in (0, 8.24, 59.94, 60, 185, 3600, 7800)] == [
        "0.0 s",
        "8.2 s",
        "59.9 s",
        "1 min 00 s",
        "3 min 05 s",
        "1 h 00 min",
        "2 h 10 min",
    ]


def test_what_is_spent_is_shown_beside_the_budget() -> None:
    world = JobWorld(spec(budget=Budget(usd=5.0, tokens=1_000)))
    world.imports("a.py")
    worst, cost = Amounts(nano_usd=10**9, tokens=100, ms=2_000), Amounts(nano_usd=10**8, tokens=10, ms=500)
    for name in ("one", "two"):
        world.say(CallBegun(call_id=name, task_id="t", round=1, worst=worst))
    world.say(CallEnded(call_id="one", spent=cost))
    told = job_view.as_json(world.state, world.now)
    assert told["spent"] == {"usd": 1.1, "tokens": 110, "seconds": 2.5, "calls": 2}
    assert msgspec.to_builtins(told["budget"]) == {"usd": 5.0, "tokens": 1_000, "seconds": 0}
    shown = "$1.10 of $5.00, 110 of 1,000 tokens, 1 calls in flight counted in full"
    assert shown in rendered(world.state, world.now)
    assert dict(job_view.summary(world.state, 0))["spent"] == f"{shown}, in 2 calls"


def test_a_job_without_a_budget_shows_none() -> None:
    world = finished()
    assert job_view.as_json(world.state, 0)["spent"] is None
    assert "spent" not in dict(job_view.summary(world.state, 0))
