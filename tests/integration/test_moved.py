"""A file moves while a model is asked about it, by real worker processes: what the job's `on_move` says."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codeconvoy.orchestrator import fleet as parts
from codeconvoy.schemas.file_history import FileHistory
from tests.fleets import CORE, Fleet, unique_prefix
from tests.git_repos import repository, tree_of
from tests.llm_server import HANG, Asked, Fault, ModelServer
from tests.services import erase_prefix

CONTENT = "one = 1\n" + "".join(f"line{number} = {number}\n" for number in range(20)) + "last = 1\n"
SLOW = "SUMMARY: first\na.py\n<<<<<<< SEARCH\none = 1\n=======\none = 11\n>>>>>>> REPLACE\n"
QUICK = "SUMMARY: last\na.py\n<<<<<<< SEARCH\nlast = 1\n=======\nlast = 99\n>>>>>>> REPLACE\n"
BOTH = CONTENT.replace("one = 1\n", "one = 11\n").replace("last = 1\n", "last = 99\n")
ROLES = """
[roles.slow-editor]
kind = "edit"
provider = "anthropic"
model = "claude-test"
options = {{ base_url = "{slow}" }}
[roles.quick-editor]
kind = "edit"
provider = "openai"
model = "gpt-test"
options = {{ base_url = "{quick}/v1", api = "responses" }}
"""
SECONDS = 60.0


def wait(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@dataclass
class Race:
    """Two models that are asked about one file: the quick one answers while the slow one still thinks."""

    fleet: Fleet
    slow: ModelServer
    quick: ModelServer

    def run(
        self, directory: Path, on_move: str, first: Callable[[], str | Fault], **more: str
    ) -> dict[str, Any]:
        """The job as JSON, with what it made of the file. `first` is the slow one's first answer."""
        before = len(self.slow.asked)

        def slowly(asked: Asked) -> str | Fault:
            return first() if len(self.slow.asked) == before + 1 else SLOW

        def quickly(asked: Asked) -> str:
            wait(lambda: len(self.slow.asked) > before, "the slow one is asked")
            return QUICK

        self.slow.model, self.quick.model = slowly, quickly
        self.slow.closed_by_client.clear()
        repo = repository(directory / "repo", {"a.py": CONTENT.encode()})
        ended: dict[str, Any] = self.fleet.run_job(
            {
                "repository": str(repo),
                "workspace": directory.name,
                "goal": f"improve it ({directory.name})",
                "files": ["a.py"],
                "on_move": on_move,
                **more,
                "pipeline": {"generate": ["slow-editor", "quick-editor"], "review": [], "test": []},
            }
        )
        assert ended["status"] == "succeeded", ended
        report = self.fleet.audit()
        assert report.clean, report.as_json()
        return {**ended, "content": tree_of(repo, ended["branch"])["a.py"][1].decode()}

    def visible(self, workspace: str) -> FileHistory:
        async def look(fleet: parts.Fleet) -> FileHistory:
            return (await fleet.projection().histories(workspace, ["a.py"]))["a.py"]

        return self.fleet.ask(look)


@pytest.fixture(scope="module")
def race(kafka: str, redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Race]:
    directory, prefix = tmp_path_factory.mktemp("moved"), unique_prefix()
    keys = {"OPENAI_API_KEY": "secret", "ANTHROPIC_API_KEY": "secret"}
    with ModelServer() as slow, ModelServer() as quick:
        roles = ROLES.format(slow=slow.url, quick=quick.url)
        with Fleet(kafka, redis_server, prefix, directory, roles=roles, environment=keys) as fleet:
            fleet.start(*CORE, "slow-editor", "quick-editor")
            yield Race(fleet, slow, quick)
    erase_prefix(redis_server, prefix)


def moved_calls(race: Race) -> float:
    """Calls of the slow one under which a file was seen to move."""
    return _metric(race, "convoy_moved_calls_total")


def wasted_tokens(race: Race) -> float:
    """What it has used for nothing (and no more: none of its calls has saved anything)."""
    return _metric(race, "convoy_moved_tokens_total")


def _metric(race: Race, name: str) -> float:
    try:
        return race.fleet["slow-editor"].metric(name)
    except AssertionError:
        return 0.0  # no call of this process has had one yet


def test_restart_closes_the_stream_and_asks_about_what_there_is_now(race: Race, tmp_path: Path) -> None:
    asked, counted = len(race.slow.asked), moved_calls(race)
    job = race.run(tmp_path, "restart", lambda: HANG)
    first, second = (asked.files["a.py"] for asked in race.slow.asked[asked:])
    assert "last = 1\n" in f"{first}\n" and "last = 99\n" in f"{second}\n"
    assert race.slow.closed_by_client.is_set()
    assert (job["content"], job["tally"]["forks"], job["tally"]["edits"]) == (BOTH, 0, 3)
    assert moved_calls(race) == counted + 1
    assert race.fleet["slow-editor"].metric("convoy_moved_tokens_total") > 0


def test_repair_lets_it_finish_and_merges(race: Race, tmp_path: Path) -> None:
    asked, counted = len(race.slow.asked), moved_calls(race)

    def when_it_was_noticed() -> str:
        wait(lambda: moved_calls(race) == counted + 1, "the move is noticed")
        return SLOW

    job = race.run(tmp_path, "repair", when_it_was_noticed)
    assert len(race.slow.asked) == asked + 1
    assert (job["content"], job["tally"]["forks"]) == (BOTH, 1)
    assert job["tally"]["resolved"] == {"three_way": 1}


def test_a_refused_edit_is_done_again_in_the_same_conversation(race: Race, tmp_path: Path) -> None:
    """The job is strong: the slow one's edit of what has moved is refused, and it goes on from there."""
    asked, counted, wasted = len(race.slow.asked), moved_calls(race), wasted_tokens(race)

    def when_it_was_noticed() -> str:
        wait(lambda: moved_calls(race) == counted + 1, "the move is noticed")
        return SLOW

    job = race.run(tmp_path, "repair", when_it_was_noticed, consistency="strong")
    assert (job["content"], job["tally"]["forks"], job["tally"]["reworks"]) == (BOTH, 0, 1)
    first, second = race.slow.asked[asked:]
    assert second.system == first.system and second.messages[0] == first.messages[0]
    (role, own), (_, moved) = second.messages[1:]
    assert role == "assistant" and "+one" not in own and "one = 11\n" in own
    assert "-last = 1\n+last = 99" in moved and "stale" in moved
    assert wasted_tokens(race) == wasted + 107, "what the refused edit had taken"


def test_ignore_is_not_told(race: Race, tmp_path: Path) -> None:
    asked, counted = len(race.slow.asked), moved_calls(race)

    def when_it_can_be_seen() -> str:
        def is_there() -> bool:
            history = race.visible(tmp_path.name)
            return history.entries[history.visible].role == "quick-editor"

        wait(is_there, "the quick one's edit is what readers see")
        return SLOW

    job = race.run(tmp_path, "ignore", when_it_can_be_seen)
    assert len(race.slow.asked) == asked + 1
    assert (job["content"], job["tally"]["forks"]) == (BOTH, 1)
    assert moved_calls(race) == counted
