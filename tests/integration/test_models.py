"""Jobs whose agents are models behind the three APIs: well-behaved ones, and ones that fail and make
things up. Every job ends with a status, and a wrong edit is never applied.
"""

import json
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from codeconvoy.schemas.events import CodeModified, Event, ReviewSubmitted, TestExecuted
from codeconvoy.workers.llm.retry import ATTEMPTS
from tests.fleets import CORE, Fleet, unique_prefix, until
from tests.git_repos import repository, tree_of
from tests.llm_server import (
    CUT,
    DROP,
    MALFORMED,
    SHAPE,
    SHORT,
    Asked,
    ModelServer,
    Step,
    helpful,
    midway,
    status,
)
from tests.llm_shapes import Said
from tests.services import erase_prefix

LINE = "# improved"
CONTENT = '"""A module."""\n\n\ndef one():\n    return 1\n'
EDITORS = {"chat.py": "chat-editor", "responses.py": "responses-editor", "messages.py": "messages-editor"}
"""A file for the editor behind each API."""
KEY = "the-key-of-the-model"
SEED_VARIABLE = "CONVOY_MODEL_SEED"
EACH = 4
"""Files of an editor in a job with faults drawn from a seed."""
PROVIDERS = {"openai": ("chat", "responses"), "anthropic": ("messages",)}
"""With the names of their editors' files."""


def role_at(url: str, name: str, kind: str, api: str) -> str:
    """A role. Its breaker closes soon, and lets a probe through each second."""
    provider = "anthropic" if api == "messages" else "openai"
    return f"""
    [roles.{name}]
    kind = "{kind}"
    provider = "{provider}"
    model = "{"claude-test" if api == "messages" else "gpt-test"}"
    [roles.{name}.options]
    base_url = "{url}{"" if api == "messages" else "/v1"}"
    breaker_seconds = 1
    {"" if api == "messages" else f'api = "{api}"'}
    """


def roles_at(url: str) -> str:
    """An editor for each API, and for each provider a reviewer and a tester."""
    wanted = [(role, "edit", path.removesuffix(".py")) for path, role in EDITORS.items()]
    wanted += ((f"{provider}-reviewer", "review", apis[-1]) for provider, apis in PROVIDERS.items())
    wanted += ((f"{provider}-tester", "test", apis[-1]) for provider, apis in PROVIDERS.items())
    return "".join(role_at(url, *role) for role in wanted)


HELPERS = tuple(f"{provider}-{what}" for provider in PROVIDERS for what in ("reviewer", "tester"))


class Moody:
    """A model that gives some files scripted answers first, and then helps."""

    def __init__(self) -> None:
        self.moods: dict[str, deque[Step]] = {}
        self.always: dict[str, Step] = {}
        self.storm: Storm | None = None

    def __call__(self, asked: Asked) -> Step:
        if queue := self.moods.get(asked.path):
            return queue.popleft()
        if self.storm and (fault := self.storm(asked)):
            return fault
        return self.always.get(asked.path) or helpful(LINE)(asked)


class Storm:
    """Faults drawn from a seed: for what is asked about each file by each kind of role up to two that
    pass, perhaps an answer that is of no use, and up to two again."""

    def __init__(self, seed: int) -> None:
        self._seed, self._left = seed, dict[tuple[str, str], deque[Step]]()
        self.struck = 0

    def __call__(self, asked: Asked) -> Step | None:
        kind = "review" if '"approved"' in json.dumps(asked.body) else asked.prompt[:40]
        if (asked.path, kind) not in self._left:
            self._left[asked.path, kind] = deque(self._drawn(asked.path, kind))
        left = self._left[asked.path, kind]
        self.struck += bool(left)
        return left.popleft() if left else None

    def _drawn(self, path: str, kind: str) -> Iterator[Step]:
        random = Random(f"{self._seed} {path} {kind}")
        yield from random.sample(PASSING, random.randrange(3))
        if random.random() < 0.5:
            yield random.choice(USELESS)
            yield from random.sample(PASSING, random.randrange(3))


PASSING: Sequence[Step] = (
    status(429, {"retry-after-ms": "100"}),
    status(429),
    status(500),
    status(529, type="overloaded_error"),
    CUT,
    SHORT,
    MALFORMED,
    SHAPE,
    midway("error", "overloaded_error"),
)
USELESS: Sequence[Step] = (
    "It looks fine, and I approve of it.",
    '{"approved": "perhaps"}',
    Said("half of", "truncated"),
    Said(""),
    "SUMMARY: more\nelsewhere.py\n<<<<<<< WHOLE\nx = 1\n>>>>>>> WHOLE\n",
)


@dataclass(frozen=True)
class Running:
    """A fleet of models."""

    fleet: Fleet
    server: ModelServer
    model: Moody

    def run(self, directory: Path, **more: object) -> Mapping[str, Any]:
        """Each editor improves its own file; the job as JSON, with its tree under `tree`."""
        tasks = more.pop("tasks", [{"role": role, "path": path} for path, role in EDITORS.items()])
        assert isinstance(tasks, list)
        repo = repository(directory / "repo", {task["path"]: CONTENT.encode() for task in tasks})
        job = {
            "repository": str(repo),
            "workspace": directory.name,
            # Another prompt in each test: the reply to the same one would be a recorded one.
            "goal": f"improve it ({directory.name})",
            "tasks": tasks,
            "pipeline": {"generate": [], "review": ["anthropic-reviewer"], "test": ["openai-tester"]},
            **more,
        }
        ended = self.fleet.run_job(job)
        tree = tree_of(repo, ended["branch"])
        assert {mode for mode, _ in tree.values()} == {"100644"}
        report = self.fleet.audit()
        assert report.clean, report.as_json()
        assert report.counts.dead_letters == 0
        return {**ended, "tree": {path: content.decode() for path, (_, content) in tree.items()}}

    def edits(self, directory: Path, path: str) -> list[Event]:
        found = self.fleet.events(directory.name, path)
        return [event for event in found if isinstance(event.payload, CodeModified)]


@pytest.fixture(scope="module")
def shared(kafka: str, redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory, prefix, model = tmp_path_factory.mktemp("models"), unique_prefix(), Moody()
    keys = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}
    with ModelServer(model=model, key=KEY) as server:
        roles = roles_at(server.url)
        with Fleet(kafka, redis_server, prefix, directory, roles=roles, environment=keys) as fleet:
            fleet.start(*CORE, *EDITORS.values(), *HELPERS)
            yield Running(fleet, server, model)
            assert KEY not in "".join(log.read_text() for log in directory.glob("*.log"))
    erase_prefix(redis_server, prefix)


@pytest.fixture
def running(shared: Running) -> Running:
    """With a model that is in a good mood."""
    shared.model.moods.clear()
    shared.model.always.clear()
    shared.model.storm = None
    return shared


def test_models_behind_all_three_apis_do_a_job(running: Running, tmp_path: Path) -> None:
    job = running.run(tmp_path)
    assert job["status"] == "succeeded", job
    assert {path: job["tree"][path] for path in EDITORS} == dict.fromkeys(EDITORS, f"{CONTENT}{LINE}\n")
    assert {asked.api for asked in running.server.asked} == {"chat", "responses", "messages"}
    assert job["tally"]["approvals"] == job["tally"]["tests_run"] == len(EDITORS)
    for path, role in EDITORS.items():
        [edit] = running.edits(tmp_path, path)
        assert edit.role == role
        assert edit.usage is not None
        assert edit.usage.model == ("claude-test" if role == "messages-editor" else "gpt-test")
        assert (edit.usage.tokens_in, edit.usage.tokens_cached, edit.usage.tokens_out) == (100, 40, 7)
        votes = [e.payload for e in running.fleet.events(tmp_path.name, path)]
        assert [vote.version for vote in votes if isinstance(vote, ReviewSubmitted)] == [edit.event_id]
    test = running.fleet.events(tmp_path.name, "tests/convoy/test_chat.py")
    runs = [event.payload for event in test if isinstance(event.payload, TestExecuted)]
    expected = ("passed", "bubblewrap") if shutil.which("bwrap") else ("not_executed", "none")
    assert [(run.outcome, run.sandbox) for run in runs] == [expected]


def test_errors_of_the_provider_are_tried_again(running: Running, tmp_path: Path) -> None:
    slow_down = status(429, {"retry-after": "1"}, type="rate_limit_error")
    running.model.moods = {
        "chat.py": deque([slow_down, status(500)]),
        "responses.py": deque([MALFORMED, DROP]),
        "messages.py": deque([status(529, type="overloaded_error"), SHAPE]),
    }
    job = running.run(tmp_path)
    assert job["status"] == "succeeded", job
    assert {path: job["tree"][path] for path in EDITORS} == dict.fromkeys(EDITORS, f"{CONTENT}{LINE}\n")


def answer(path: str, *body: str, kind: str = "WHOLE") -> str:
    return "\n".join(("SUMMARY: sure", path, f"<<<<<<< {kind}", *body, f">>>>>>> {kind}", ""))


def test_what_a_model_makes_up_is_never_applied(running: Running, tmp_path: Path) -> None:
    elsewhere = answer("../outside.py", "x = 1")
    no_match = "SUMMARY: x\nchat.py\n<<<<<<< SEARCH\nnot there\n=======\nx\n>>>>>>> REPLACE\n"
    running.model.moods = {"chat.py": deque([no_match])}
    running.model.always = {
        "responses.py": answer("responses.py", "def broken(:"),
        "messages.py": elsewhere,
    }
    job = running.run(tmp_path)
    assert job["status"] == "partial", job
    assert job["tree"]["chat.py"] == f"{CONTENT}{LINE}\n"
    for path in ("responses.py", "messages.py"):
        assert job["tree"][path] == CONTENT
        assert running.edits(tmp_path, path) == []
    assert not (tmp_path / "outside.py").exists()
    assert set(job["tree"]) == {*EDITORS, "tests/convoy/test_chat.py"}


def test_a_provider_that_never_answers_well_ends_the_job_as_failed(running: Running, tmp_path: Path) -> None:
    running.model.always = {
        "chat.py": status(404, type="not_found_error"),
        "responses.py": answer("responses.py"),
        "messages.py": status(400, type="invalid_request_error"),
    }
    job = running.run(tmp_path, max_rounds=2)
    assert job["status"] == "failed", job
    assert job["reason"]
    assert job["tree"] == dict.fromkeys(EDITORS, CONTENT)
    assert job["commits"] == 0


def test_a_model_is_shown_a_map_of_the_projection_s_state(running: Running, tmp_path: Path) -> None:
    added = "def added_by_a_model(number: int) -> int:"
    running.model.moods = {"chat.py": deque([answer("chat.py", CONTENT, "", added, "    return number")])}
    running.run(tmp_path)
    asked = len(running.server.asked)
    again = running.run(tmp_path / "again", workspace=tmp_path.name, goal=f"once more ({tmp_path.name})")
    assert again["status"] == "succeeded", again
    prompts = [each.prompt for each in running.server.asked[asked:] if "responses.py" in each.files]
    assert len(prompts) == 3
    for prompt in prompts:
        [(_, drawn)] = re.findall(
            r"A map of other files.*\n<data (\w+)>\n(.*)\n</data \1>\n", prompt, re.DOTALL
        )
        assert f"{added} ..." in drawn and "\nresponses.py" not in drawn
        assert "The map shows" in prompt


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_job_with_faults_drawn_from_a_seed_succeeds(
    running: Running, tmp_path: Path, provider: str
) -> None:
    seed = int(os.environ.get(SEED_VARIABLE, "1"))
    print(f"replay: {SEED_VARIABLE}={seed} pytest tests/integration/test_models.py -k {provider}")
    storm = running.model.storm = Storm(seed)
    tasks = [
        {"role": f"{api}-editor", "path": f"{api}{number}.py"}
        for api in PROVIDERS[provider]
        for number in range(EACH)
    ]
    pipeline = {"generate": [], "review": [f"{provider}-reviewer"], "test": [f"{provider}-tester"]}
    job = running.run(tmp_path, tasks=tasks, pipeline=pipeline)
    assert job["status"] == "succeeded", job
    assert storm.struck > len(tasks)
    for path in (task["path"] for task in tasks):
        assert job["tree"][path] == f"{CONTENT}{LINE}\n"
        assert len(running.edits(tmp_path, path)) == 1
    assert job["tally"]["approvals"] == job["tally"]["tests_run"] == len(tasks)


def test_tasks_wait_for_the_end_of_an_outage(running: Running, tmp_path: Path) -> None:
    tasks = [{"role": EDITORS[path], "path": path} for path in ("responses.py", "messages.py")]
    paths = [task["path"] for task in tasks]
    running.model.always = dict.fromkeys(paths, status(503))
    before = {path: len(running.server.requests(path)) for path in paths}

    def asked() -> int:
        return min(len(running.server.requests(path)) - before[path] for path in paths)

    with ThreadPoolExecutor(1) as pool:
        alone: dict[str, list[str]] = {"generate": [], "review": [], "test": []}
        ended = pool.submit(running.run, tmp_path, tasks=tasks, pipeline=alone)
        try:
            until(lambda: asked() > ATTEMPTS, "a probe was let through")
        finally:
            running.model.always.clear()
        job = ended.result()
    assert job["status"] == "succeeded", job
