"""Jobs whose agents are models behind the three APIs: well-behaved ones, and ones that fail and make
things up. Every job ends with a status, and a wrong edit is never applied.
"""

import re
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codeconvoy.schemas.events import CodeModified, Event, ReviewSubmitted, TestExecuted
from tests.fleets import CORE, Fleet, unique_prefix
from tests.git_repos import repository, tree_of
from tests.llm_server import DROP, MALFORMED, SHAPE, Asked, Fault, ModelServer, helpful, status
from tests.llm_shapes import Said
from tests.services import erase_prefix

LINE = "# improved"
CONTENT = '"""A module."""\n\n\ndef one():\n    return 1\n'
EDITORS = {"chat.py": "chat-editor", "responses.py": "responses-editor", "messages.py": "messages-editor"}
"""A file for the editor behind each API."""
KEY = "the-key-of-the-model"
ROLES = """
[roles.chat-editor]
kind = "edit"
provider = "openai"
model = "gpt-test"
options = {{ base_url = "{url}/v1", api = "chat", breaker_failures = "1000" }}
[roles.responses-editor]
kind = "edit"
provider = "openai"
model = "gpt-test"
options = {{ base_url = "{url}/v1", api = "responses" }}
[roles.messages-editor]
kind = "edit"
provider = "anthropic"
model = "claude-test"
options = {{ base_url = "{url}" }}
[roles.model-reviewer]
kind = "review"
provider = "anthropic"
model = "claude-test"
options = {{ base_url = "{url}" }}
[roles.model-tester]
kind = "test"
provider = "openai"
model = "gpt-test"
options = {{ base_url = "{url}/v1", api = "responses" }}
"""


class Moody:
    """A model that gives some files scripted answers first, and then helps."""

    def __init__(self) -> None:
        self.moods: dict[str, deque[str | Fault]] = {}
        self.always: dict[str, str | Fault] = {}

    def __call__(self, asked: Asked) -> str | Said | Fault:
        path = next(iter(asked.files), "")
        if queue := self.moods.get(path):
            return queue.popleft()
        return self.always.get(path) or helpful(LINE)(asked)


@dataclass(frozen=True)
class Running:
    """A fleet of models."""

    fleet: Fleet
    server: ModelServer
    model: Moody

    def run(self, directory: Path, **more: object) -> Mapping[str, Any]:
        """Each editor improves its own file; the job as JSON, with its tree under `tree`."""
        repo = repository(directory / "repo", {path: CONTENT.encode() for path in EDITORS})
        job = {
            "repository": str(repo),
            "workspace": directory.name,
            # Another prompt in each test: the reply to the same one would be a recorded one.
            "goal": f"improve it ({directory.name})",
            "tasks": [{"role": role, "path": path} for path, role in EDITORS.items()],
            "pipeline": {"generate": [], "review": ["model-reviewer"], "test": ["model-tester"]},
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
        roles = ROLES.format(url=server.url)
        with Fleet(kafka, redis_server, prefix, directory, roles=roles, environment=keys) as fleet:
            fleet.start(*CORE, *EDITORS.values(), "model-reviewer", "model-tester")
            yield Running(fleet, server, model)
            assert KEY not in "".join(log.read_text() for log in directory.glob("*.log"))
    erase_prefix(redis_server, prefix)


@pytest.fixture
def running(shared: Running) -> Running:
    """With a model that is in a good mood."""
    shared.model.moods.clear()
    shared.model.always.clear()
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
        "chat.py": status(500),
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
