"""A job whose conflicts a model merges, region by region: what it may answer, and what becomes of it."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from codeconvoy.schemas.events import ConflictResolved, Event, Strategy
from tests.fleets import CORE, Fleet, unique_prefix, until
from tests.git_repos import git, repository, tree_of
from tests.llm_server import Asked, ModelServer
from tests.services import erase_prefix

CONTENT = '"""A module."""\n\nimport os\n\n\ndef one():\n    return 1\n\n\ndef two():\n    return os\n'
ADDED = CONTENT.replace("return 1", "return 1 + 0").replace("import os", "import os\nimport re")
TYPED = CONTENT.replace("return 1", "return int(1)")
MERGED = ADDED.replace("return 1 + 0", "return int(1 + 0)")
EDITOR = """
import json, sys
task = json.load(sys.stdin)
if task["kind"] == "resolve":
    print(json.dumps({"error": "no idea"}))
else:
    text = task["file"]["content"]
    for change in json.loads(task["prompt"]):
        text = text.replace(*change)
    print(json.dumps({"edits": [{"path": task["file"]["path"], "content": text}], "summary": "changes one"}))
"""
PROGRAM = """
import json, sys
task = json.load(sys.stdin)
regions = [{"number": region["number"], "content": "    return int(1 + 0)"} for region in task["regions"]]
print(json.dumps({"regions": regions, "summary": "by program"}))
"""
ROLES = """
[roles.adder]
kind = "edit"
provider = "command"
options = {{ argv = ["python3", "{directory}/editor.py"] }}
prompt = '[["return 1", "return 1 + 0"], ["import os", "import os\\nimport re"]]'
[roles.typer]
kind = "edit"
provider = "command"
options = {{ argv = ["python3", "{directory}/editor.py"] }}
prompt = '[["return 1", "return int(1)"]]'
[roles.merger]
provider = "openai"
model = "gpt-test"
options = {{ base_url = "{url}/v1" }}
[roles.program]
kind = "merge"
provider = "command"
options = {{ argv = ["python3", "{directory}/program.py"] }}
"""


def block(*lines: str) -> str:
    return "\n".join(("SUMMARY: both", "<<<<<<< REGION 1", *lines, ">>>>>>> REGION 1", ""))


GOOD = block("    return int(1 + 0)")


@dataclass
class Merger:
    """A model that answers by file, and again where it is asked again."""

    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    may_answer: threading.Event = field(default_factory=threading.Event)

    def __call__(self, asked: Asked) -> str:
        path = asked.prompt.partition("Two sides changed ")[2].partition(". git merged")[0]
        self.asked.append(path)
        assert self.may_answer.wait(120)
        tries = self.answers[path]
        return tries[min(len(asked.messages) // 2, len(tries) - 1)]


@dataclass(frozen=True)
class Running:
    """A fleet of two editors that clash, and two mergers."""

    fleet: Fleet
    model: Merger

    def job(self, directory: Path, *paths: str, merger: str = "merger") -> dict[str, object]:
        repo = repository(directory / "repo", {path: CONTENT.encode() for path in paths})
        return {
            "repository": str(repo),
            "workspace": directory.name,
            "goal": f"improve it ({directory.name})",
            "files": ["*.py"],
            "together": True,
            "pipeline": {"generate": ["adder", "typer"], "review": [], "test": [], "merge": merger},
            "strategies": ["three_way", "semantic", "rework", "last_writer_wins"],
        }

    def resolutions(self, workspace: str, path: str) -> list[tuple[Event, ConflictResolved]]:
        found = [(event, event.payload) for event in self.fleet.events(workspace, path)]
        return [(event, payload) for event, payload in found if isinstance(payload, ConflictResolved)]


@pytest.fixture(scope="module")
def running(kafka: str, redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory, prefix, model = tmp_path_factory.mktemp("semantic"), unique_prefix(), Merger()
    (directory / "editor.py").write_text(EDITOR)
    (directory / "program.py").write_text(PROGRAM)
    with ModelServer(model=model, key="k") as server:
        roles = ROLES.format(url=server.url, directory=directory)
        keys = {"OPENAI_API_KEY": "k"}
        with Fleet(kafka, redis_server, prefix, directory, roles=roles, environment=keys) as fleet:
            fleet.start(*CORE, "adder", "typer", "merger", "program")
            yield Running(fleet, model)
    erase_prefix(redis_server, prefix)


def contents(repo: object, branch: str) -> dict[str, str]:
    return {path: content.decode() for path, (_, content) in tree_of(Path(str(repo)), branch).items()}


def clean(fleet: Fleet) -> Any:
    report = fleet.audit()
    assert report.clean, report.as_json()
    assert report.counts.dead_letters == 0
    return report


def test_a_model_merges_and_what_it_gets_wrong_goes_to_the_next_strategy(
    running: Running, tmp_path: Path
) -> None:
    fleet, model = running.fleet, running.model
    model.may_answer.set()
    model.answers = {
        "good.py": (GOOD,),
        "second.py": (block("    return int(1 + 0"), GOOD),
        "conflict.py": ("CONFLICT 1: an int is no sum",),
        "garbage.py": ("Sure, I merged it.", "Done!"),
        "syntax.py": (block("    return int(1 + 0"),),
        "name.py": (block("    return one_and_none"), block("=======", "    return 1")),
    }
    job = running.job(tmp_path, *model.answers)
    ended = fleet.run_job(job)
    assert ended["status"] == "succeeded", (ended, fleet.logs())
    tree = contents(job["repository"], ended["branch"])
    merged, given_up = ("good.py", "second.py"), ("conflict.py", "garbage.py", "syntax.py", "name.py")
    assert {path: tree[path] for path in merged} == dict.fromkeys(merged, MERGED)
    # The last writer won there: whoever that was, one side as it was made.
    assert all(tree[path] in (ADDED, TYPED) for path in given_up), tree
    assert ended["tally"]["resolved"] == {"semantic": 2, "last_writer_wins": 4}
    tried = {}
    for path in model.answers:
        ((event, payload),) = running.resolutions(tmp_path.name, path)
        tried[path] = [(str(one.strategy), one.reason) for one in payload.tried]
        if path in merged:
            assert (event.role, payload.strategy, payload.summary) == ("merger", Strategy.SEMANTIC, "both")
            assert event.usage is not None and event.usage.model == "gpt-test"
    assert {path: [name for name, _ in tries] for path, tries in tried.items()} == {
        **{path: ["three_way"] for path in merged},
        **{path: ["three_way", "semantic", "rework"] for path in given_up},
    }
    for path, reason in {
        "conflict.py": "the sides can't be reconciled: region 1: an int is no sum",
        "garbage.py": "2 tries: Region 1 is not answered",
        "syntax.py": "does not parse",
        "name.py": "conflict marker",
    }.items():
        assert reason in tried[path][1][1], tried[path]
    calls = {path: model.asked.count(path) for path in model.answers}
    assert calls == {
        "good.py": 1,
        "second.py": 2,
        "conflict.py": 1,
        "garbage.py": 2,
        "syntax.py": 2,
        "name.py": 2,
    }
    clean(fleet)
    commits = git(Path(str(job["repository"])), "log", "--format=%B", ended["branch"], "--", "good.py")
    assert "merger: semantic: both (good.py)" in commits
    assert "Convoy-Agent: merger/" in commits
    line = MERGED.splitlines().index("    return int(1 + 0)") + 1
    why = fleet.convoy("why", f"good.py:{line}", "--workspace", tmp_path.name).good().out
    assert "semantic: both" in why and "merger" in why


def test_a_conflict_that_waits_for_a_merger_says_so(running: Running, tmp_path: Path) -> None:
    fleet, model = running.fleet, running.model
    model.may_answer.clear()
    model.answers = {"waits.py": (GOOD,)}
    job = running.job(tmp_path, *model.answers)
    job_id = fleet.submit(job)
    until(lambda: "waits.py" in model.asked, "the merger is asked")
    shown = fleet.convoy("conflicts", "show", "waits.py", "--workspace", tmp_path.name, "-o", "json").json()
    assert (shown["strategy"], [one["strategy"] for one in shown["tried"]]) == ("semantic", ["three_way"])
    model.may_answer.set()
    state = fleet.ended(job_id)
    assert state.tally.resolved == {"semantic": 1}
    assert contents(job["repository"], f"convoy/{job_id}") == {"waits.py": MERGED}


def test_a_program_merges_as_a_model_does(running: Running, tmp_path: Path) -> None:
    job = running.job(tmp_path, "program.py", merger="program")
    ended = running.fleet.run_job(job)
    assert ended["status"] == "succeeded", (ended, running.fleet.logs())
    assert contents(job["repository"], ended["branch"]) == {"program.py": MERGED}
    ((event, payload),) = running.resolutions(tmp_path.name, "program.py")
    assert (event.role, payload.summary) == ("program", "by program")
    clean(running.fleet)
