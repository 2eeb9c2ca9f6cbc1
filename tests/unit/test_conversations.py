"""A task and its model calls, as the command line shows them; and the prompt behind a line."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from codeconvoy.orchestrator.cli.tasks import task_json, task_lines, turn_json, turn_lines
from codeconvoy.orchestrator.cli.why import why_lines
from codeconvoy.orchestrator.conversations import Turn, find_task, turns_of
from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.llm.kept import KeptCall, KeptPrompt, reply_key
from codeconvoy.workers.llm.provider import Message, Origin
from tests.memory_fleet import MemoryFleet
from tests.unit.test_keeping import MemoryPrompts
from tests.unit.test_why import USAGE, ask, worked

T = TypeVar("T")
PROMPT = KeptPrompt(system="be brief", messages=(Message("user", "do it\nnow"),), max_output_tokens=9, seed=7)
FAILED = KeptCall(
    at=1_000,
    round=1,
    server="openai:m",
    provider="openai",
    model="m",
    prompt="b" * 64,
    outcome="timeout",
    reason="no reply within 60 s",
    seconds=60.0,
)
DONE = msgspec.structs.replace(
    FAILED, prompt=USAGE.prompt_sha256, reply=reply_key("done"), outcome="finished", reason="", usage=USAGE
)
AGAIN = msgspec.structs.replace(DONE, round=2, recorded=True)


async def talked(*calls: KeptCall) -> tuple[Turn, ...]:
    store = MemoryPrompts()
    for call in calls:
        await store.keep(Origin("w", "j", "t", call.round), call, PROMPT, "done" if call.reply else "")
    return tuple(await turns_of(store, "w", "t"))


def after_work(tmp_path: Path, look: Callable[[MemoryFleet], Awaitable[T]]) -> T:
    async def run() -> T:
        fleet, _, _ = await worked(tmp_path)
        return await look(fleet)

    return asyncio.run(run())


def test_a_task_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    async def look(fleet: MemoryFleet) -> None:
        projection = fleet.projection()
        [job] = await projection.jobs()
        ids = sorted(job.tasks)
        for task_id in ids:
            found, state = await find_task(projection, task_id[:13])
            assert (found.job_id, state.task.task_id) == (job.job_id, task_id)
        with pytest.raises(BadInput, match=f"{len(ids)} tasks' ids begin with ''|no task"):
            await find_task(projection, "")
        with pytest.raises(BadInput, match="no task's id begins with 'nobody'"):
            await find_task(projection, "nobody")

    after_work(tmp_path, look)


def test_several_tasks_that_begin_alike_are_named() -> None:
    class Jobs:
        async def jobs(self) -> list[Any]:
            return [type("Job", (), {"tasks": {"abc": 1, "abd": 2, "ab": 3}})]

    with pytest.raises(BadInput, match="3 tasks' ids begin with 'a': ab, abc, abd"):
        asyncio.run(find_task(Jobs(), "a"))  # type: ignore[arg-type]
    assert asyncio.run(find_task(Jobs(), "ab"))[1] == 3  # type: ignore[arg-type, comparison-overlap]


def test_every_call_of_a_task_is_shown_the_failed_ones_too(tmp_path: Path) -> None:
    turns = asyncio.run(talked(FAILED, DONE, AGAIN))
    lines = list(turn_lines(turns, texts=False))
    assert "openai:m  timeout: no reply within 60 s  1 min 00 s  sha256 bbbbbbbbbbbb" in lines[0]
    assert "finished  1 min 00 s  $0.2500, 10 tokens in (3 cached), 5 out  sha256 aaaaaaaaaaaa" in lines[1]
    assert "round 2" in lines[2] and "finished (recorded)" in lines[2] and "nothing paid" in lines[2]

    async def look(fleet: MemoryFleet) -> list[str]:
        [job] = await fleet.projection().jobs()
        state = next(each for each in job.tasks.values() if each.task.role == "ones")
        assert task_json(job, state)["path"] == "a.txt"
        return [*task_lines(job, state, turns), *task_lines(job, state, ())]

    shown = "\n".join(after_work(tmp_path, look))
    assert "ones a.txt" in shown and "calls   3 kept" in shown and "calls   none kept" in shown


def test_what_was_said_is_shown_while_it_is_kept() -> None:
    [failed, done] = asyncio.run(talked(FAILED, DONE))
    said = [line.strip() for line in turn_lines([failed, done], texts=True)]
    conversation = ["--- system", "be brief", "--- user", "do it", "now"]
    assert said[1:7] == [*conversation, ""] and said[8:] == [*conversation, "--- reply", "done", ""]
    gone = "\n".join(turn_lines([Turn(DONE, None, None)], texts=True))
    assert gone.count("not kept any more") == 2 and "be brief" not in gone
    for texts in (True, False):
        shown = msgspec.json.encode(turn_json(done, texts=texts))
        assert (b"be brief" in shown, b'"kept":true' in shown) == (texts, True)


def test_a_line_names_its_prompt_and_says_whether_it_is_kept(tmp_path: Path) -> None:
    found = after_work(tmp_path, lambda fleet: ask(fleet, 1))
    for turns, expected in (
        (asyncio.run(talked(FAILED, DONE)), "kept, with 2 calls of this round: --prompt"),
        ((Turn(DONE, None, None),), "not kept any more"),
        ((), "not kept any more"),
    ):
        assert f"sha256 {USAGE.prompt_sha256} ({expected})" in "\n".join(why_lines(found, turns))
