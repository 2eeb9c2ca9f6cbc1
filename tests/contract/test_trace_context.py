"""The trace context of a record is that of whatever is written because of it, through both engines."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from codeconvoy.workers.engine.bus import Outgoing, Reader, Record, TopicPartition
from codeconvoy.workers.tracing import OFF, TRACEPARENT, TRACESTATE, Tracing
from tests.contract import test_fold_engine as folds
from tests.contract import test_pool_engine as pools
from tests.contract.worlds import PARTITIONS, World, read_all, run
from tests.spans import Spans, attributes, context, parent, traceparent

pytestmark = pytest.mark.parametrize("world", ["memory", "kafka"], indirect=True)

GIVEN = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HEADERS = {TRACEPARENT: GIVEN, TRACESTATE: b"vendor=1"}
MALFORMED = {TRACEPARENT: b"00-1"}


async def headers_on(reader: Reader, topic: str) -> dict[bytes, dict[str, bytes]]:
    """The trace context of each record of a topic, by value."""
    found: list[Record] = []
    for number in range(PARTITIONS):
        found += await read_all(reader, TopicPartition(topic, number))
    names = (TRACEPARENT, TRACESTATE)
    return {
        record.value: {name: record.headers[name] for name in names if name in record.headers}
        for record in found
    }


def test_a_task_that_comes_again_hangs_where_it_hung(world: World) -> None:
    async def go() -> None:
        async with pools.place_in(world) as place:
            spans = Spans()
            place.tracing = spans.tracing
            await place.send("a/gate-1", headers=HEADERS)
            async with place.engine() as (_, work, _):
                await pools.until_true(lambda: work.begun == ["gate-1"])
            async with place.engine() as (_, work, _):
                await pools.until_true(lambda: work.begun == ["gate-1"])
                work.gates["gate-1"].set()
                await place.until_landed("gate-1")
            cancelled, done = spans.named("convoy.task")
            assert attributes(cancelled)["error.type"] == "CancelledError"
            assert parent(cancelled) == parent(done) == int(GIVEN[36:52], 16)
            written = {TRACEPARENT: traceparent(done), TRACESTATE: b"vendor=1"}
            assert await headers_on(place.reader, place.target) == {b"gate-1": written}
            [commit] = spans.named("convoy.commit")
            assert parent(commit) == context(done).span_id

    run(go())


def test_a_group_commit_is_told_once_in_each_trace(world: World) -> None:
    async def go() -> None:
        async with pools.place_in(world) as place:
            spans = Spans()
            place.tracing = spans.tracing
            other = {TRACEPARENT: GIVEN.replace(b"0af7", b"1111")}
            await place.send("a/1", "b/2", headers=HEADERS)
            await place.send("c/3", headers=other)
            await place.send("d/4", headers=MALFORMED)
            async with place.engine():
                await place.until_landed("1", "2", "3", "4")
            tasks = {context(task).span_id for task in spans.named("convoy.task")}
            commits = spans.named("convoy.commit")
            assert len({context(commit).trace_id for commit in commits}) == 3
            assert {link.context.span_id for commit in commits for link in commit.links} == tasks
            for commit in commits:
                assert {link.context.trace_id for link in commit.links} == {context(commit).trace_id}

    run(go())


def test_a_dead_letter_keeps_the_context_of_its_record(world: World) -> None:
    async def go() -> None:
        async with pools.place_in(world) as place:
            place.tracing = Spans().tracing
            await place.send("a/bug", "b/garbage", headers=HEADERS)
            async with place.engine():
                await pools.until(place.letters_of, lambda found: len(found) == 2)
            found = await headers_on(place.reader, place.letters)
            assert found == {b"bug": HEADERS, b"garbage": HEADERS}

    run(go())


def test_a_worker_that_does_not_trace_passes_contexts_on(world: World) -> None:
    async def go() -> None:
        async with pools.place_in(world) as place:
            await place.send("a/1", headers=HEADERS)
            await place.send("b/2", headers=MALFORMED)
            await place.send("c/3")
            async with place.engine():
                await place.until_landed("1", "2", "3")
            assert await headers_on(place.reader, place.target) == {b"1": HEADERS, b"2": {}, b"3": {}}

    run(go())


@dataclass
class Resolving(folds.Counting):
    """Counts, and tells a span for each record."""

    tracing: Tracing = OFF

    def step(self, state: int, record: Record, now: int) -> tuple[int, Sequence[Outgoing]]:
        with self.tracing.span("convoy.resolve", {}):
            after, outputs = super().step(state, record, now)
            return after, self.tracing.stamped(outputs)


def test_a_fold_passes_contexts_on_and_tells_nothing_twice(
    world: World, request: pytest.FixtureRequest
) -> None:
    async def go() -> None:
        async with folds.place_in(world, request) as place:
            spans = Spans()
            place.tracing = spans.tracing
            place.counting = Resolving(place.counting.topic, place.counting.target, tracing=spans.tracing)
            await place.send("a/x", "a/garbage", headers=HEADERS)
            await place.send("b/x", headers=MALFORMED)
            await place.send("c/x")
            async with place.engine():
                await place.until_said("a1", "b1", "c1")
                span, failed = spans.named("convoy.resolve")
                assert attributes(failed) == {"error.type": "Undecodable"}
                assert parent(span) == int(GIVEN[36:52], 16)
                told = {TRACEPARENT: traceparent(span), TRACESTATE: b"vendor=1"}
                target, letters = place.counting.target, place.letters
                assert await headers_on(place.reader, target) == {b"a1": told, b"b1": {}, b"c1": {}}
                assert await headers_on(place.reader, letters) == {b"garbage": HEADERS}
            await place.lose()
            async with place.engine():
                await place.until_stored("a", 1)
            assert len(spans.all()) == 2, "what is folded again in silence is not told again"

    run(go())
