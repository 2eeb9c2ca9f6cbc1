"""The map that a task is shown: of the projection's state, in memory and in a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import msgspec
import pytest

from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.tasks import Task
from codeconvoy.workers import mapper as module
from codeconvoy.workers.engine.state import MemoryStore, RedisStore
from codeconvoy.workers.file_states import Content
from codeconvoy.workers.llm.outline import Outline
from codeconvoy.workers.llm.repo_map import RepoMap, show
from codeconvoy.workers.mapper import Known, Mapper, MapStore, RedisMaps
from codeconvoy.workers.projection import StoredProjection
from tests.contract.worlds import run
from tests.mapped import Workspace, task

FILES = {
    "a.py": b"from b import used\nused()\n",
    "b.py": b"def used(n: int) -> int: pass\ndef also(): pass\n",
    "deep/down/c.py": b"class C:\n    def m(self): pass\n",
    "notes.md": b"def no_code(): pass\n",
}


class MemoryMaps:
    """Maps in memory."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int, int], RepoMap] = {}

    async def get(self, task: Task, tokens: int) -> RepoMap | None:
        return self.kept.get((task.task_id, task.round, tokens))

    async def put(self, task: Task, whole: RepoMap) -> None:
        self.kept[task.task_id, task.round, whole.tokens] = whole


class Counting:
    """A projection that counts the contents which are read of it."""

    def __init__(self, projection: StoredProjection) -> None:
        self.imported, self.visible = projection.imported, projection.visible
        self._projection, self.read = projection, list[str]()

    async def contents(self, workspace: str, versions: Mapping[str, str]) -> Mapping[str, Content]:
        self.read += versions.values()
        return await self._projection.contents(workspace, versions)


@dataclass
class Place:
    workspace: Workspace
    maps: MapStore

    def mapper(self, tokens: int = 500) -> tuple[Mapper, Counting]:
        """As in a process that has just started."""
        counting = Counting(self.workspace.projection())
        return Mapper(counting, self.maps, tokens), counting  # type: ignore[arg-type]


Opened = Callable[[], AbstractAsyncContextManager[Place]]


@asynccontextmanager
async def _memory() -> AsyncIterator[Place]:
    yield Place(Workspace(MemoryStore(), MemoryStore()), MemoryMaps())


@asynccontextmanager
async def _redis(url: str, prefix: str) -> AsyncIterator[Place]:
    redis = open_redis(url)
    stores = RedisStore(redis, prefix, "files"), RedisStore(redis, prefix, "jobs")
    yield Place(Workspace(*stores), RedisMaps(redis, prefix, 60))
    async for key in redis.scan_iter(f"{{{prefix}:map:*"):
        assert 0 < await redis.ttl(key) <= 60
    await redis.aclose()


@pytest.fixture(params=["memory", "redis"])
def place(request: pytest.FixtureRequest, prefix: str) -> Opened:
    if request.param == "memory":
        return _memory
    return partial(_redis, request.getfixturevalue("redis_url"), prefix)


def text(whole: RepoMap) -> str:
    return show(whole, 10_000, ()).text


def test_a_map_is_of_what_readers_see(place: Opened) -> None:
    async def go() -> None:
        async with place() as at:
            await at.workspace.imported(FILES, "new.py")
            mapper, _ = at.mapper()
            whole = await mapper.of(task(), ())
            assert text(whole) == (
                "b.py\ndef used(n: int) -> int: ...\ndef also(): ...\n"
                "deep/down/c.py\nclass C:\n    def m(self): ...\nnotes.md"
            )
            assert whole.files == 3
            await at.workspace.has("b.py", b"def used(n: str) -> str: pass\n")
            await at.workspace.has("new.py", b"def born(): pass\n")
            await at.workspace.has("notes.md", None)
            await at.workspace.has("deep/down/c.py", None)
            whole = await mapper.of(task(round_=2), ())
            assert text(whole) == "b.py\ndef used(n: str) -> str: ...\nnew.py\ndef born(): ..."
            assert whole.files == 2

    run(go())


def test_a_version_is_looked_into_once_in_a_process(place: Opened) -> None:
    async def go() -> None:
        async with place() as at:
            await at.workspace.imported(FILES)
            mapper, projection = at.mapper()
            await asyncio.gather(*(mapper.of(task(path), ()) for path in FILES))
            # Of what is no Python not even that: it was there when it was imported.
            assert sorted(projection.read) == ["a.py@0", "b.py@0", "deep/down/c.py@0"]
            projection.read.clear()
            await at.workspace.has("b.py", b"x = 1\n")
            await at.workspace.has("notes.md", b"more")
            await mapper.of(task(round_=2), ())
            await mapper.of(task(round_=3), ())
            assert sorted(projection.read) == ["b.py@1", "notes.md@1"]

    run(go())


def test_a_task_that_comes_again_has_the_same_map_and_its_next_round_a_new_one(place: Opened) -> None:
    async def go() -> None:
        async with place() as at:
            await at.workspace.imported(FILES)
            first = await at.mapper()[0].of(task(), ("b.py",))
            await at.workspace.has("b.py", b"def used(): pass\n")
            again, projection = at.mapper()
            assert await again.of(task(), ("b.py",)) == first and not projection.read
            assert "def used(): ..." in text(await again.of(task(round_=2), ("b.py",)))
            narrow, _ = at.mapper(tokens=20)
            assert "def used(): ..." in text(await narrow.of(task(), ("b.py",)))

    run(go())


def test_of_a_large_workspace_the_nearest_files_are_looked_at(
    place: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 3)
    monkeypatch.setattr(module, "AT_ONCE", 1)

    async def go() -> None:
        async with place() as at:
            await at.workspace.imported(FILES, "far/away/absent.py")
            mapper, projection = at.mapper()
            whole = await mapper.of(task("deep/down/c.py"), ())
            assert sorted(projection.read) == ["a.py@0", "b.py@0", "deep/down/c.py@0"]
            shown = show(whole, 10_000, ())
            assert (shown.defined, shown.listed, shown.files, shown.left_out) == (1, 1, 3, 1)

    run(go())


def test_the_projection_is_waited_for_where_it_does_not_know_the_job_yet(
    place: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with place() as at:
            waiting = asyncio.create_task(at.mapper()[0].of(task(), ()))
            await asyncio.sleep(0)
            assert not waiting.done()
            await at.workspace.imported(FILES)
            assert (await waiting).files == 3
        monkeypatch.setattr(module, "BARRIER_SECONDS", 0.0)
        async with place() as at:
            with pytest.raises(Unavailable, match="import of unheard-of"):
                await at.mapper()[0].of(msgspec.structs.replace(task("z.py"), job_id="unheard-of"), ())

    run(go())


def test_what_is_known_of_files_is_bounded() -> None:
    known, one = Known(limit=1_500), Outline()
    for number in range(10):
        known.put(f"{number}.py", "e", one)
        known.get("0.py", "e")
    kept = [number for number in range(10) if known.get(f"{number}.py", "e") is not None]
    assert known.size <= 1_500 and kept == [0, 8, 9]
    known.put("0.py", "e", None)
    found = known.get("0.py", "e")
    assert found is not None and found.outline is None and known.size < 1_500
