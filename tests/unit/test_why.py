"""From a line to its causes, on a log in memory that a whole fleet wrote."""

import asyncio
from pathlib import Path

import pytest

from codeconvoy.orchestrator.cli.inspect import locate
from codeconvoy.orchestrator.cli.why import why_json, why_lines
from codeconvoy.orchestrator.log_reader import LogReader
from codeconvoy.orchestrator.why import Because, Branch, because, read_branch
from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.events import EventType, Strategy, Usage
from codeconvoy.schemas.job_spec import JobSpec, Pipeline
from codeconvoy.workers.roles.role import Answer, Context, Edits, FileEdit
from tests.git_repos import commit, git, repository
from tests.memory_fleet import CODEC, MemoryFleet, approving, replacing

FILES = {"a.txt": b"one\n\ntwo\n\nthree\n\nfour\n"}
USAGE = Usage(
    provider="openai",
    model="m",
    tokens_in=10,
    tokens_cached=3,
    tokens_out=5,
    cost_usd=0.25,
    prompt_sha256="a" * 64,
)


def costly(context: Context) -> Answer:
    content = (context.file.content or b"").replace(b"one", b"1")
    return Edits((FileEdit("a.txt", content),), summary="the first line", usage=USAGE)


AGENTS = {"ones": costly, "fours": replacing(b"four", b"4"), "reviewer": approving}


async def worked(tmp_path: Path) -> tuple[MemoryFleet, str, Path]:
    """A fleet after two agents edited a file at once and git merged it; its branch, its repository."""
    repo = repository(tmp_path / "repo", FILES)
    spec = JobSpec(
        repository=str(repo),
        workspace="w",
        goal="digits",
        files=("*.txt",),
        pipeline=Pipeline(generate=("ones", "fours"), review=("reviewer",), test=()),
        together=True,
        strategies=(Strategy.THREE_WAY,),
    )
    fleet = MemoryFleet(AGENTS, tmp_path / "cache")
    async with fleet.running():
        job = await fleet.do("job-1", spec)
    assert job.published is not None
    return fleet, job.published.branch, repo


async def ask(fleet: MemoryFleet, line: int, branch: Branch | None = None) -> Because:
    return await because(LogReader(fleet.bus.reader(), CODEC, fleet.topics), "w", "a.txt", line, branch)


def test_a_line_that_an_agent_wrote(tmp_path: Path) -> None:
    async def run() -> Because:
        fleet, _, _ = await worked(tmp_path)
        return await ask(fleet, 1)

    found = asyncio.run(run())
    assert found.text == b"1\n"
    assert found.edit.event.role == "ones"
    assert found.edit.event.usage == USAGE
    assert [moment.event.event_type for moment in found.merges] == [EventType.CONFLICT_RESOLVED]
    assert [moment.event.event_type for moment in found.ancestors] == [EventType.FILE_IMPORTED]
    assert [moment.event.role for moment in found.reviews] == ["reviewer"]
    assert found.job is not None and found.job.spec is not None
    assert found.task is not None and found.task.task.role == "ones"
    shown = "\n".join(why_lines(found))
    for expected in (
        "a.txt:1: 1",
        "written by  ones",
        "$0.2500",
        "a" * 64,
        "approved",
        "digits",
        "three_way",
    ):
        assert expected in shown
    answer = why_json(found)
    assert answer["edit"]["usage"].cost_usd == 0.25
    assert answer["reviews"][0]["vote"]["approved"] is True


def test_a_line_that_came_from_git(tmp_path: Path) -> None:
    async def run() -> Because:
        fleet, _, _ = await worked(tmp_path)
        return await ask(fleet, 3)

    found = asyncio.run(run())
    assert (found.text, found.edit.event.event_type) == (b"two\n", EventType.FILE_IMPORTED)


def test_a_line_of_a_branch_that_the_user_went_on_from(tmp_path: Path) -> None:
    async def run() -> tuple[Because, BadInput]:
        fleet, branch, repo = await worked(tmp_path)
        git(repo, "checkout", "--quiet", branch)
        commit(repo, {"a.txt": b"mine\n1\n\ntwo\n\nthree\n\n4\n"})
        held = read_branch(repo, branch, "a.txt", tmp_path / "cache")
        with pytest.raises(BadInput) as refused:
            await ask(fleet, 1, held)
        return await ask(fleet, 8, held), refused.value

    found, refused = asyncio.run(run())
    assert (found.text, found.edit.event.role) == (b"4\n", "fours")
    assert "was not written by codeconvoy" in str(refused)


@pytest.mark.parametrize("line", [0, 8])
def test_a_line_that_is_not_there(tmp_path: Path, line: int) -> None:
    async def run() -> None:
        fleet, _, _ = await worked(tmp_path)
        await ask(fleet, line)

    with pytest.raises(BadInput, match=r"a\.txt has 7 lines"):
        asyncio.run(run())


def test_a_branch_without_the_file(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo", FILES)
    with pytest.raises(BadInput, match=r"main holds no b\.txt"):
        read_branch(repo, "main", "b.txt", tmp_path / "cache")


def test_the_only_workspace_is_the_one_that_is_meant(tmp_path: Path) -> None:
    async def run() -> tuple[tuple[str, str], list[str]]:
        fleet, _, repo = await worked(tmp_path)
        projection = fleet.projection()
        found = await locate(projection, None, "./a.txt")
        pipeline = Pipeline(generate=("ones",), review=(), test=())
        spec = JobSpec(repository=str(repo), workspace="v", goal="x", files=("a.txt",), pipeline=pipeline)
        async with fleet.running():
            await fleet.do("job-2", spec)
        with pytest.raises(BadInput) as refused:
            await locate(projection, None, "a.txt")
        named = await locate(projection, "v", "a.txt")
        return found, [str(refused.value), *named]

    found, rest = asyncio.run(run())
    assert found == ("w", "a.txt")
    assert "v, w" in rest[0]
    assert rest[1:] == ["v", "a.txt"]
