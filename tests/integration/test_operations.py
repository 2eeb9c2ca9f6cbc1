"""What operators do to a fleet at work, on a real Redis: rebuild, forget, put back and skip."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from codeconvoy.orchestrator.dead_letters import letters, retry, skip
from codeconvoy.orchestrator.fleet import Fleet, make_process
from codeconvoy.orchestrator.forget import check_alone, check_still, erase_redis, erase_states, look
from codeconvoy.orchestrator.rebuild import Rebuilt, length, rebuild
from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.orchestrator.submit import submit, write
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import BadInput, Unavailable
from codeconvoy.schemas.events import Event, FileImported
from codeconvoy.schemas.hunks import make_patch
from codeconvoy.schemas.job_spec import JobSpec
from codeconvoy.schemas.topics import Topics, file_key, partition_of
from codeconvoy.workers import file_states
from codeconvoy.workers.engine.bus import Outgoing, TopicPartition
from codeconvoy.workers.engine.memory_bus import MemoryBus
from codeconvoy.workers.projector import FILES
from tests.builders import FileLog, event

CODEC = Codec.create()
PARTITIONS = 2
DEADLINE = 30.0
UNKNOWN = b"\xc3\x01" + bytes(8) + b"of a later version"


@pytest.fixture
def run(redis_url: str, prefix: str, tmp_path: Path) -> Callable[[Callable[[Fleet], Awaitable[None]]], None]:
    """Runs a test with a fleet of its own: a bus in memory, a real Redis."""

    def do(test: Callable[[Fleet], Awaitable[None]]) -> None:
        async def body() -> None:
            bus, redis, topics = MemoryBus(), open_redis(redis_url), Topics(prefix, PARTITIONS)
            fleet = Fleet(bus, redis, prefix, CODEC, topics, {}, {}, tmp_path)
            try:
                await fleet.prepare()
                async with asyncio.timeout(2 * DEADLINE):
                    await test(fleet)
            finally:
                await bus.close()
                await redis.aclose()

        asyncio.run(body())

    return do


Run = Callable[[Callable[[Fleet], Awaitable[None]]], None]


@asynccontextmanager
async def projecting(fleet: Fleet) -> AsyncIterator[None]:
    """A projector at work, as a process of its own would be."""
    assert isinstance(fleet.bus, MemoryBus)
    stop = asyncio.Event()
    own = replace(fleet, bus=fleet.bus.another())
    process = make_process(own, "projector", "", "p", CollectorRegistry())
    running = asyncio.ensure_future(process.run(stop))
    try:
        yield
    finally:
        stop.set()
        await running


def imported(number: int, workspace: str = "w") -> Event:
    path = f"file{number}.py"
    patch = make_patch(None, f"x = {number}\n".encode(), executable=False)
    made = event(f"e{number} of {workspace}", FileImported(patch=patch, commit="c0ffee"), path=path)
    return msgspec.structs.replace(made, workspace=workspace)


async def append(fleet: Fleet, events: Sequence[Event]) -> None:
    await write(
        fleet,
        [
            Outgoing(fleet.topics.events, file_key(each.workspace, each.file_path), CODEC.encode(each))
            for each in events
        ],
    )


async def until(look: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                if await look():
                    return
            except Unavailable:
                pass
            await asyncio.sleep(0.01)


async def until_projected(fleet: Fleet, workspace: str, count: int) -> None:
    """Wait until that many files of the workspace can be read."""

    async def look() -> bool:
        paths = await fleet.projection().paths(workspace)
        return len(paths) == count and len(await fleet.projection().histories(workspace, paths)) == count

    await until(look)


async def rebuilt(fleet: Fleet) -> Sequence[Rebuilt]:
    passed: list[int] = []
    found = await rebuild(fleet, passed.append)
    # Beyond the live state there may be the mark of a transaction, which nobody needs.
    assert 0 < sum(passed) <= await length(fleet)
    return found


def test_a_rebuild_beside_a_projector_at_work_is_equal_and_takes_its_place(run: Run) -> None:
    async def test(fleet: Fleet) -> None:
        async with projecting(fleet):
            await append(fleet, [imported(number) for number in range(700)])
            await until_projected(fleet, "w", 700)
            more = asyncio.create_task(keep_appending(fleet, range(700, 760)))
            found = await rebuilt(fleet)
            await more
            assert {each.partition for each in found if each.projection == FILES and each.compared} == {0, 1}
            assert not any(each.differences for each in found)
            await until_projected(fleet, "w", 760)
        assert [key async for key in fleet.redis.scan_iter(match="*:shadow")] == []

    run(test)


async def keep_appending(fleet: Fleet, numbers: range) -> None:
    for number in numbers:
        await append(fleet, [imported(number)])


def test_what_differs_is_named_and_is_right_afterwards(run: Run) -> None:
    async def test(fleet: Fleet) -> None:
        async with projecting(fleet):
            await append(fleet, [imported(1)])
            await until_projected(fleet, "w", 1)
            [holder] = [
                number
                for number in range(PARTITIONS)
                if await fleet.redis.hexists(fleet.store(FILES).key(number), "f:w:file1.py")
            ]
            await fleet.redis.hset(fleet.store(FILES).key(holder), "f:w:file1.py", b"bent")
            differing = [each for each in await rebuilt(fleet) if each.differences]
            assert [(each.projection, each.partition, each.fields) for each in differing] == [
                (FILES, holder, ("f:w:file1.py",))
            ]
            assert not any(each.differences for each in await rebuilt(fleet))

    run(test)


def edits_of_one_file(count: int) -> Sequence[Event]:
    log = FileLog("a.txt")
    for number in range(count):
        log.edit(f"e{number}", f"{number}\n".encode(), *([f"e{number - 1}"] if number else []))
    return log.events


def test_a_projector_does_not_go_on_from_a_memory_that_the_rebuild_has_contradicted(run: Run) -> None:
    """It has read a history that was bent, and would write what follows from that over what is right."""
    events, key = edits_of_one_file(9), file_key("w", "a.txt")

    async def test(fleet: Fleet) -> None:
        async def until_there(count: int) -> None:
            async def look() -> bool:
                histories = await fleet.projection().histories("w", ["a.txt"])
                return list(histories["a.txt"].entries) == [f"e{number}" for number in range(count)]

            await until(look)

        async with projecting(fleet):
            await append(fleet, events[:5])
            await until_there(5)
        store = fleet.store(FILES).key(partition_of(key, PARTITIONS))
        # As if its oldest event were forgotten, and its slot free.
        raw = await fleet.redis.hget(store, file_states.header_field(key))
        assert isinstance(raw, bytes)
        header = msgspec.msgpack.decode(raw)
        bent = msgspec.msgpack.encode([header[0] - 1, *header[1:]])
        await fleet.redis.hset(store, file_states.header_field(key), bent)
        await fleet.redis.hdel(store, file_states.entry_field(key, 0), file_states.content_field(key, "e0"))
        async with projecting(fleet):
            await append(fleet, events[5:6])

            async def heard() -> bool:
                return "e5" in (await fleet.projection().histories("w", ["a.txt"]))["a.txt"].entries

            await until(heard)
            assert [each.differences > 0 for each in await rebuilt(fleet)].count(True) == 1
            for number in range(6, 9):
                await append(fleet, events[number : number + 1])
                await until_there(number + 1)
            assert not any(each.differences for each in await rebuilt(fleet))

    run(test)


def test_a_projector_gives_up_a_state_that_does_not_fit_together_and_folds_it_anew(run: Run) -> None:
    events, key = edits_of_one_file(3), file_key("w", "a.txt")

    async def test(fleet: Fleet) -> None:
        async with projecting(fleet):
            await append(fleet, events[:2])
            await until_projected(fleet, "w", 1)
        store = fleet.store(FILES).key(partition_of(key, PARTITIONS))
        await fleet.redis.hdel(store, file_states.entry_field(key, 0))
        async with projecting(fleet):
            await append(fleet, events[2:])

            async def healed() -> bool:
                history = (await fleet.projection().histories("w", ["a.txt"]))["a.txt"]
                return list(history.entries) == ["e0", "e1", "e2"]

            await until(healed)
            assert not any(each.differences for each in await rebuilt(fleet))

    run(test)


def test_what_redis_lost_comes_back_without_a_projector(run: Run) -> None:
    async def test(fleet: Fleet) -> None:
        async with projecting(fleet):
            await append(fleet, [imported(number) for number in range(20)])
            await until_projected(fleet, "w", 20)
        before = await snapshots(fleet)
        await erase_redis(fleet)
        assert not any((await snapshots(fleet)).values())
        assert not any(each.compared for each in await rebuilt(fleet))
        assert await snapshots(fleet) == before
        await append(fleet, [imported(20)])
        async with projecting(fleet):
            await until_projected(fleet, "w", 21)

    run(test)


async def snapshots(fleet: Fleet) -> dict[int, dict[str, bytes]]:
    """Fields that say something: an idle partition's offset may be there, or not yet."""
    return {
        number: {
            name: value
            for name, value in (await fleet.store(FILES).snapshot(number)).items()
            if not name.startswith("@")
        }
        for number in range(PARTITIONS)
    }


def test_a_projector_goes_on_from_what_was_rebuilt_under_it(run: Run) -> None:
    async def test(fleet: Fleet) -> None:
        async with projecting(fleet):
            await append(fleet, [imported(number) for number in range(20)])
            await until_projected(fleet, "w", 20)
            await erase_redis(fleet)
            await rebuilt(fleet)
            await append(fleet, [imported(20)])
            await until_projected(fleet, "w", 21)
            assert not any(each.differences for each in await rebuilt(fleet))

    run(test)


def test_forgetting_takes_one_workspace_and_leaves_the_others(run: Run) -> None:
    async def test(fleet: Fleet) -> None:
        job = JobSpec(repository="/r", workspace="w", goal="g", files=("*.py",))
        async with projecting(fleet):
            await append(fleet, [imported(1), imported(2), imported(1, "w2"), imported(3, "w2")])
            job_id = await submit(fleet, job, "me")
            await until_projected(fleet, "w", 2)
            await until_projected(fleet, "w2", 2)

            async def heard() -> bool:
                return await fleet.projection().job(job_id) is not None

            await until(heard)
            known = await look(fleet, "w")
            assert (known.jobs, known.running, known.events) == (frozenset({job_id}), (job_id,), 2)
            assert known.others == ("w2",)
            with pytest.raises(BadInput, match=job_id):
                check_still(known)
            with pytest.raises(BadInput, match="w2"):
                check_alone(known)
            assert await erase_states(fleet, known) > 0
            assert await fleet.projection().job(job_id) is None
            await until_projected(fleet, "w", 0)
            await until_projected(fleet, "w2", 2)
            await append(fleet, [imported(4, "w2")])
            await until_projected(fleet, "w2", 3)
            await until_projected(fleet, "w", 0)
            # Nothing of it is left in the memory of the projector either.
            await append(fleet, [msgspec.structs.replace(imported(1), event_id="anew")])
            await until_projected(fleet, "w", 1)
            history = (await fleet.projection().histories("w", ["file1.py"]))["file1.py"]
            assert list(history.entries) == ["anew"]
        with pytest.raises(BadInput, match="w2"):
            await look(fleet, "unheard-of")

    run(test)


def test_a_record_of_a_later_version_is_passed_over_only_on_purpose(run: Run) -> None:
    async def test(fleet: Fleet) -> None:
        events = fleet.topics.events
        await append(fleet, [imported(1)])
        await write(fleet, [Outgoing(events, "w:x", UNKNOWN, partition=1)])
        reader = fleet.bus.reader()
        low, high = await reader.watermarks(TopicPartition(events, 1))
        records = await reader.read(TopicPartition(events, 1), low, 10, 1.0)
        [offset] = [record.offset for record in records if record.value == UNKNOWN]
        with pytest.raises(Unavailable, match=f"{events}/1/{offset}"):
            await rebuild(fleet, lambda passed: None)
        for topic, partition, at in (
            (events, 1, high + 5),
            (events, 9, 0),
            (fleet.topics.dead_letters, 0, 0),
        ):
            with pytest.raises(BadInput):
                await skip(fleet, topic, partition, at)
        [other] = [
            (number, found[0].offset)
            for number in range(PARTITIONS)
            if (found := await reader.read(TopicPartition(events, number), 0, 1, 0.2))
            and found[0].value != UNKNOWN
        ]
        with pytest.raises(BadInput, match="nothing to skip"):
            await skip(fleet, events, *other)
        await skip(fleet, events, 1, offset)
        assert not any(each.differences for each in await rebuild(fleet, lambda passed: None))

    run(test)


def test_a_dead_letter_is_put_back_once_where_it_came_from(run: Run) -> None:
    async def test(fleet: Fleet) -> None:
        queue = TopicPartition(fleet.topics.events, 1)
        async with projecting(fleet):
            await write(fleet, [Outgoing(queue.topic, "w:a", b"garbage", partition=1)])

            async def given_up() -> bool:
                return bool(await letters(fleet))

            await until(given_up)
        [letter] = (await letters(fleet)).values()
        assert (letter.value, letter.told.reason, letter.key) == (b"garbage", "no_marker", "w:a")
        await retry(fleet, [letter])
        records = await fleet.bus.reader().read(queue, 0, 10, 0.2)
        assert [(record.key, record.value) for record in records] == 2 * [("w:a", b"garbage")]
        [again] = (await letters(fleet)).values()
        assert again.retried_to == f"{queue.topic}/1"
        with pytest.raises(BadInput, match="already"):
            await retry(fleet, [again])

    run(test)
