"""What a merger is shown of a conflict, and that nothing but a merge by regions is taken from it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from codeconvoy.orchestrator.log_reader import LogReader
from codeconvoy.schemas.events import ConflictResolved, Event, Strategy
from codeconvoy.schemas.job_spec import JobSpec, Pipeline, TaskSpec
from codeconvoy.schemas.job_state import JobState
from codeconvoy.workers.resolution.regions import Region
from codeconvoy.workers.roles.role import Answer, Context, Edits, FileEdit, Intent
from tests.git_repos import commit, repository
from tests.memory_fleet import CODEC, MemoryFleet, replacing

CONTENT = b"one\n\ntwo\n\nthree\n\nfour\n"


class Merger:
    """Keeps what it is shown, and joins both sides of each region, or does what it is told."""

    def __init__(self, make: Callable[[Context], Answer] | None = None) -> None:
        self.shown: list[Context] = []
        self._make = make or both

    def __call__(self, context: Context) -> Answer:
        self.shown.append(context)
        return self._make(context)


def both(context: Context) -> Answer:
    assert context.merge is not None
    partial = context.merge.partial
    filled = {region.number: b"".join(region.sides) for region in partial.regions}
    return Edits((FileEdit(context.task.path, partial.assembled(filled)),), summary="both")


def spec(repo: Path, *tasks: TaskSpec, goal: str = "digits") -> JobSpec:
    return JobSpec(
        repository=str(repo),
        workspace="w",
        goal=goal,
        tasks=tasks,
        pipeline=Pipeline(generate=(), review=(), test=()),
        together=True,
        strategies=(Strategy.THREE_WAY, Strategy.SEMANTIC, Strategy.FIRST_WRITER_WINS),
    )


TASKS = (TaskSpec(role="digit", path="a.txt", goal="a digit"), TaskSpec(role="upper", path="a.txt"))


def agents(merger: Merger) -> dict[str, Callable[[Context], Answer]]:
    return {"digit": replacing(b"one", b"1"), "upper": replacing(b"one", b"ONE"), "merger": merger}


async def resolutions(fleet: MemoryFleet) -> list[tuple[Event, ConflictResolved]]:
    log = LogReader(fleet.bus.reader(), CODEC, fleet.topics)
    events = [event async for _, event in log.file_events("w", "a.txt")]
    return [(event, event.payload) for event in events if isinstance(event.payload, ConflictResolved)]


def test_a_merger_is_shown_the_regions_and_what_each_side_meant(tmp_path: Path) -> None:
    merger = Merger()
    repo = repository(tmp_path / "repo", {"a.txt": CONTENT})

    async def run() -> tuple[JobState, list[tuple[Event, ConflictResolved]], bytes | None]:
        fleet = MemoryFleet(agents(merger), tmp_path / "cache")
        async with fleet.running():
            job = await fleet.do("job-1", spec(repo, *TASKS))
            history = (await fleet.projection().histories("w", ["a.txt"]))["a.txt"]
            edit = history.edit(history.visible)
            return job, await resolutions(fleet), edit.content if edit else None

    job, found, content = asyncio.run(run())
    assert job.tally.resolved == {"semantic": 1}
    (context,) = merger.shown
    assert context.merge is not None
    intents = {"digit": Intent("digit", "a digit", "'1'"), "upper": Intent("upper", "digits", "'ONE'")}
    of_side = {b"1\n": (intents["digit"],), b"ONE\n": (intents["upper"],)}
    (region,) = context.merge.partial.regions
    assert region == Region(1, b"one\n", region.sides) and set(region.sides) == set(of_side)
    assert context.merge.intents == tuple(of_side[side] for side in region.sides)
    assert context.base is not None and context.base.content == CONTENT
    assert [context.file.content, context.heads[0].content] == list(context.merge.partial.sides)
    assert content == CONTENT.replace(b"one\n", b"".join(region.sides))
    ((event, payload),) = found
    assert (event.role, payload.strategy, payload.summary) == ("merger", Strategy.SEMANTIC, "both")
    assert [tried.strategy for tried in payload.tried] == [Strategy.THREE_WAY]


def test_whoever_merges_what_is_outside_of_the_regions_is_not_taken(tmp_path: Path) -> None:
    def too_much(context: Context) -> Answer:
        return Edits((FileEdit("a.txt", CONTENT.replace(b"one", b"1").replace(b"four", b"4")),))

    repo = repository(tmp_path / "repo", {"a.txt": CONTENT})

    async def run() -> list[tuple[Event, ConflictResolved]]:
        fleet = MemoryFleet(agents(Merger(too_much)), tmp_path / "cache")
        async with fleet.running():
            await fleet.do("job-1", spec(repo, *TASKS))
            return await resolutions(fleet)

    ((_, payload),) = asyncio.run(run())
    assert payload.strategy is Strategy.FIRST_WRITER_WINS
    reasons = [(tried.strategy, tried.reason) for tried in payload.tried]
    assert [strategy for strategy, _ in reasons] == [Strategy.THREE_WAY, Strategy.SEMANTIC]
    assert "after the last conflicting region" in reasons[1][1]


def test_what_the_user_committed_is_merged_by_the_job_that_imports_it(tmp_path: Path) -> None:
    merger = Merger()
    repo = repository(tmp_path / "repo", {"a.txt": CONTENT, "b.txt": CONTENT})

    async def run() -> tuple[JobState, JobState]:
        fleet = MemoryFleet(agents(merger), tmp_path / "cache")
        async with fleet.running():
            first = await fleet.do("job-1", spec(repo, TASKS[0], goal="first"))
            commit(repo, {"a.txt": CONTENT.replace(b"one", b"uno")})
            again = TaskSpec(role="upper", path="b.txt", reads=("a.txt",))
            return first, await fleet.do("job-2", spec(repo, again, goal="second"))

    first, second = asyncio.run(run())
    assert (first.tally.resolved, second.tally.resolved) == ({}, {"semantic": 1})
    (context,) = merger.shown
    assert context.task.job_id == "job-2"
    assert context.merge is not None
    assert sorted(intents[-1].role for intents in context.merge.intents) == ["digit", "git"]
    goals = {intent.role: intent.goal for intents in context.merge.intents for intent in intents}
    assert goals == {"digit": "a digit", "git": "second"}
