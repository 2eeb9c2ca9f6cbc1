"""What can go wrong in a call of a model, by each API of both SDKs, through real worker processes.

The table is one job: each row is a file for each API, and the server does to each file what its row
says. A logical call makes three requests at most, a rate limit uses up no round, and whatever happens
on the way, a file is changed once or not at all.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path
from signal import SIGKILL

import pytest
from redis import Redis

from codeconvoy.orchestrator import fleet as parts
from codeconvoy.orchestrator.log_reader import LogReader
from codeconvoy.orchestrator.submit import submit
from codeconvoy.schemas.events import CodeModified, Event
from codeconvoy.schemas.job_facts import JobStatus
from codeconvoy.schemas.job_spec import JobSpec, Pipeline, TaskSpec
from codeconvoy.schemas.job_state import JobState, TaskState, TaskStatus
from codeconvoy.workers.llm.retry import ATTEMPTS
from tests.fault_process import Step as At
from tests.fault_process import Traps
from tests.fault_process import __file__ as launcher
from tests.fleets import CORE, Fleet, unique_prefix, until
from tests.git_repos import repository, tree_of
from tests.llm_server import (
    CUT,
    DROP,
    HANG,
    MALFORMED,
    SHAPE,
    SHORT,
    STALL,
    Asked,
    Fault,
    ModelServer,
    Step,
    helpful,
    midway,
    status,
)
from tests.llm_shapes import APIS, Said
from tests.services import erase_prefix

KEY = "the-key-of-the-model"
CONTENT = '"""A module."""\n\n\ndef one():\n    return 1\n\n\ndef two():\n    return 1\n'
LINE = "# improved"
ROUNDS = 2
IDLE_SECONDS = 6
"""More than a loaded machine takes for a reply, and the price of a row that hangs."""


@dataclass(frozen=True)
class Row:
    """What the server does to a file, and what comes of it."""

    steps: tuple[Step | Callable[[], Step], ...]
    """For its first requests; from then on the model helps."""
    requests: int
    """That there are in all."""
    reason: str = ""
    """Of the task's failure; empty: it is done."""
    round: int = 1
    """In which it ends."""
    always: bool = False
    """The last step is that of all further requests too."""
    apis: tuple[str, ...] = APIS


def roles_at(url: str) -> str:
    """A role for each API. The breakers never open: the rows go on side by side, each with its own fault."""
    return "".join(
        f"""
        [roles.{api}]
        kind = "edit"
        provider = "{"anthropic" if api == "messages" else "openai"}"
        model = "model-of-{api}"
        concurrency = 100
        [roles.{api}.options]
        base_url = "{url}{"" if api == "messages" else "/v1"}"
        {"" if api == "messages" else f'api = "{api}"'}
        idle_seconds = {IDLE_SECONDS}
        breaker_failures = 100000
        """
        for api in APIS
    )


def in_two_seconds() -> Fault:
    """A rate limit that ends at a date, which knows whole seconds only."""
    return status(429, {"retry-after": formatdate(time.time() + 2, usegmt=True)})


def whole(path: str, content: str) -> str:
    return f"SUMMARY: sure\n{path}\n<<<<<<< WHOLE\n{content}>>>>>>> WHOLE\n"


def search(text: str) -> str:
    return f"SUMMARY: sure\nPATH\n<<<<<<< SEARCH\n{text}\n=======\n    return 2\n>>>>>>> REPLACE\n"


FAULTS: Mapping[str, Row] = {
    "limited-for-a-second": Row((status(429, {"retry-after": "1"}),), 2),
    "limited-until-a-date": Row((in_two_seconds,), 2),
    "limited-for-milliseconds": Row((status(429, {"retry-after-ms": "300"}),), 2),
    "limited-without-a-word": Row((status(429),), 2),
    "limited-again-and-again": Row((status(429, {"retry-after-ms": "50"}),) * 7, 8),
    "500": Row((status(500),), 2),
    "500-twice": Row((status(500), status(500)), 3),
    "500-all-the-time": Row((status(500),), ATTEMPTS * ROUNDS, "HTTP 500", ROUNDS, always=True),
    "503": Row((status(503, {"retry-after": "1"}),), 2),
    "529": Row((status(529, type="overloaded_error"),), 2),
    "404": Row((status(404, type="not_found_error", message="no such model"),), 1, "no such model"),
    "400": Row((status(400, type="invalid_request_error", message="too long"),), 1, "too long"),
    "dropped": Row((DROP,), 2),
    "hangs": Row((HANG,), 2),
    "stalls": Row((STALL,), 2),
    "cut": Row((CUT,), 2),
    "cut-all-the-time": Row((CUT,), ATTEMPTS * ROUNDS, "connection failed", ROUNDS, always=True),
    "short": Row((SHORT,), 2),
    "not-json": Row((MALFORMED,), 2),
    "wrong-shape": Row((SHAPE,), 2),
    "wrong-then-cut": Row((SHAPE, SHORT), 3),
    "no-stream-all-the-time": Row(
        (Fault("whole"),), ATTEMPTS * ROUNDS, "stream = false", ROUNDS, always=True
    ),
    "error-midway": Row((midway("error", "overloaded_error"),), 2),
    "limited-midway": Row((midway("error", "rate_limit_error"),), 2),
    "rejected-midway": Row((midway("error", "invalid_request_error"),), 1, "by script"),
    "failed-midway": Row((midway("failed", "server_error"),), 2, apis=("responses",)),
}
ANSWERS: Mapping[str, Row] = {
    "no-usage": Row((Said(whole("PATH", f"{CONTENT}{LINE}\n"), usage=None),), 1),
    "truncated": Row((Said(whole("PATH", "half"), "truncated"),), 2),
    "refused": Row((Said("I would rather not", "refused"),), 1, "refused"),
    "empty": Row((Said(""),), 2),
    "prose": Row(("I have improved the file. You are welcome.",), 2),
    "made-up-path": Row((whole("../made/up.py", "x = 1\n"),), 2),
    "emptied": Row((whole("PATH", ""),), 2),
    "does-not-parse": Row((whole("PATH", "def broken(:\n"),), 2),
    "search-matches-twice": Row((search("    return 1"),), 2),
    "search-matches-nothing": Row((search("    return 3"),), 2),
    "wrong-in-three-ways": Row(
        (whole("made/up.py", "x = 1\n"), search("    return 1"), whole("PATH", "def broken(:\n")),
        3,
        "no usable answer",
    ),
}
TABLE: Mapping[str, Row] = {**FAULTS, **ANSWERS}
CASES = [(name, api) for name, row in TABLE.items() for api in row.apis]


def path_of(name: str, api: str) -> str:
    return f"{api}/{name}.py"


@dataclass
class Script:
    """A model that does to each file what its row says, and then helps."""

    rows: dict[str, Row] = field(default_factory=dict)
    """By path."""
    asked: Counter[str] = field(default_factory=Counter)

    def __call__(self, asked: Asked) -> Step:
        row, number = self.rows.get(asked.path), self.asked[asked.path]
        self.asked[asked.path] += 1
        if row is None or (number >= len(row.steps) and not row.always):
            return helpful(LINE)(asked)
        step = row.steps[min(number, len(row.steps) - 1)]
        step = step() if callable(step) else step
        if isinstance(step, str):
            return step.replace("PATH", asked.path)
        if isinstance(step, Said):
            return replace(step, text=step.text.replace("PATH", asked.path))
        return step


@dataclass(frozen=True)
class World:
    """A fleet with a worker for each API, and the server that they call."""

    fleet: Fleet
    server: ModelServer
    script: Script
    traps: Traps
    redis: str

    def begin(self, directory: Path, rows: Mapping[str, Row]) -> str:
        """Submit the job of these rows."""
        cases = [(path_of(name, api), api) for name, row in rows.items() for api in row.apis]
        self.script.rows |= {path_of(name, api): row for name, row in rows.items() for api in row.apis}
        directory.mkdir(exist_ok=True)
        repo = repository(directory / "repo", {path: CONTENT.encode() for path, _ in cases})
        spec = JobSpec(
            repository=str(repo),
            workspace=directory.name,
            goal=f"improve it ({directory.name})",
            tasks=tuple(TaskSpec(role=api, path=path) for path, api in cases),
            pipeline=Pipeline(generate=(), review=(), test=()),
            max_rounds=ROUNDS,
        )
        return self.fleet.ask(lambda parts: submit(parts, spec, "tests"))

    def end(self, directory: Path, job_id: str) -> "Ended":
        """Wait for its end."""
        job = self.fleet.ended(job_id)
        tree = tree_of(directory / "repo", f"convoy/{job_id}")
        files = {path: content.decode() for path, (_, content) in tree.items()}
        edits = self.fleet.ask(lambda parts: _edits(parts, directory.name, list(files)))
        return Ended(job, files, edits)

    def tries(self, api: str) -> float:
        """How often its worker has begun a task."""
        return self.fleet[api].metric("convoy_task_seconds_count")

    def seen(self, rows: Mapping[str, Row]) -> list[int]:
        """How often the server was asked for each file of these rows."""
        return [
            len(self.server.requests(path_of(name, api))) for name, row in rows.items() for api in row.apis
        ]


async def _edits(fleet: parts.Fleet, workspace: str, paths: Sequence[str]) -> dict[str, list[Event]]:
    reader = fleet.bus.reader()
    log = LogReader(reader, fleet.codec, fleet.topics)
    try:
        return {
            path: [
                event
                async for _, event in log.file_events(workspace, path)
                if isinstance(event.payload, CodeModified)
            ]
            for path in paths
        }
    finally:
        await reader.close()


@dataclass(frozen=True)
class Ended:
    """A job that has ended, its tree, and the changes of each file."""

    job: JobState
    tree: Mapping[str, str]
    edits: Mapping[str, Sequence[Event]]

    def task(self, path: str) -> TaskState:
        """The task on a file."""
        return next(state for state in self.job.tasks.values() if state.task.path == path and state.unit)


@pytest.fixture(scope="module")
def world(kafka: str, redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory, prefix, script = tmp_path_factory.mktemp("faults"), unique_prefix(), Script()
    traps = Traps(directory / "traps")
    keys = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}
    with ModelServer(model=script, key=KEY) as server:
        roles = roles_at(server.url)
        with Fleet(
            kafka,
            redis_server,
            prefix,
            directory,
            roles=roles,
            environment=keys,
            program=(sys.executable, launcher, str(traps.directory)),
        ) as fleet:
            fleet.start(*CORE, *APIS)
            yield World(fleet, server, script, traps, redis_server)
            report = fleet.audit()
            assert report.clean, report.as_json()
            assert report.counts.dead_letters == 0
            assert KEY not in "".join(log.read_text() for log in directory.glob("*.log"))
    erase_prefix(redis_server, prefix)


@pytest.fixture(scope="module")
def table(world: World, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    directory = tmp_path_factory.mktemp("table")
    ended = world.end(directory, world.begin(directory, TABLE))
    assert ended.job.status is JobStatus.PARTIAL, ended.job.reason
    return ended


@pytest.mark.parametrize(("name", "api"), CASES)
def test_each_fault_has_its_outcome(world: World, table: Ended, name: str, api: str) -> None:
    row, path = TABLE[name], path_of(name, api)
    task, edits, asked = table.task(path), table.edits[path], world.server.requests(path)
    assert {one.api for one in asked} == {api}
    assert task.task.round == row.round, task.reason
    if row.reason:
        assert task.status is TaskStatus.FAILED
        assert row.reason in task.reason
        assert table.tree[path] == CONTENT and edits == []
    else:
        assert task.status is TaskStatus.DONE, task.reason
        assert table.tree[path] == f"{CONTENT}{LINE}\n" and len(edits) == 1
        assert edits[0].usage is not None and edits[0].usage.tokens_in > 0 and edits[0].usage.tokens_out > 0
    assert len(asked) == row.requests, [one.messages[-1][1][-200:] for one in asked]


def all_done(ended: Ended, name: str, round_: int = 1) -> None:
    """See that the file of each API was changed once, in this round."""
    assert ended.job.status is JobStatus.SUCCEEDED, ended.job.reason
    for path in (path_of(name, api) for api in APIS):
        assert ended.tree[path] == f"{CONTENT}{LINE}\n" and len(ended.edits[path]) == 1
        assert ended.task(path).task.round == round_


def test_a_worker_that_dies_after_a_reply_does_not_ask_again(world: World, tmp_path: Path) -> None:
    rows = {"dies": Row((), 1)}
    for api in APIS:
        world.traps.set(api, At.REPLIED, SIGKILL)
    job_id = world.begin(tmp_path, rows)
    until(lambda: {trap.name for trap in world.traps.sprung()} == set(APIS), "all workers were killed")
    assert world.seen(rows) == [1, 1, 1]
    for api in APIS:
        world.fleet[api].kill()
    world.fleet.start(*APIS)
    all_done(world.end(tmp_path, job_id), "dies")
    assert world.seen(rows) == [1, 1, 1], "the recorded reply was not used"


def test_a_wrong_key_is_no_outage(world: World, tmp_path: Path) -> None:
    rows = {"key": Row((), 1)}
    world.server.key = "the key that is right from now on"
    try:
        ended = world.end(tmp_path, world.begin(tmp_path, rows))
    finally:
        world.server.key = KEY
    assert ended.job.status is JobStatus.FAILED
    for api in APIS:
        path = path_of("key", api)
        assert "the key is not accepted" in ended.task(path).reason and KEY not in ended.task(path).reason
        assert ended.task(path).task.round == 1 and not ended.edits[path]
    assert world.seen(rows) == [1, 1, 1]


def test_a_server_that_is_down_is_named(world: World, tmp_path: Path) -> None:
    rows = {"down": Row((), 0)}
    with world.server.refusing():
        ended = world.end(tmp_path, world.begin(tmp_path, rows))
    assert ended.job.status is JobStatus.FAILED
    for api in APIS:
        task = ended.task(path_of("down", api))
        assert "the connection failed" in task.reason and task.task.round == ROUNDS
    assert world.seen(rows) == [0, 0, 0]
    again = tmp_path / "again"
    all_done(world.end(again, world.begin(again, rows)), "down")


def test_an_absurd_wait_is_waited_for_without_a_slot_and_without_using_up_a_round(
    world: World, tmp_path: Path
) -> None:
    rows = {"hour": Row((status(429, {"retry-after": "3600"}),), 2)}
    job_id = world.begin(tmp_path, rows)
    until(lambda: world.seen(rows) == [1, 1, 1], "each was asked")
    begun = {api: world.tries(api) for api in APIS}
    until(lambda: all(world.tries(api) >= begun[api] + 2 for api in APIS), "all have looked again, twice")
    until(lambda: all(world.fleet[api].metric("convoy_blocked_keys") == 1 for api in APIS), "they wait")
    assert world.seen(rows) == [1, 1, 1], "it was asked within the hour"
    with Redis.from_url(world.redis) as redis:  # as when the hour is over
        redis.delete(*redis.scan_iter(f"{{{world.fleet.prefix}:line:*"))
    all_done(world.end(tmp_path, job_id), "hour")
    assert world.seen(rows) == [2, 2, 2]
