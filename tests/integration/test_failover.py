"""A role with two providers, through real worker processes: who answers, what it cost, what is said of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codeconvoy.schemas.events import CodeModified
from tests.fleets import CORE, Fleet, unique_prefix, until
from tests.git_repos import repository, tree_of
from tests.llm_server import Asked, Fault, ModelServer, helpful, status
from tests.llm_shapes import Said
from tests.services import erase_prefix

LINE = "# improved"
CONTENT = '"""A module."""\n\n\ndef one():\n    return 1\n'
KEY = "the-key-of-the-model"
ROLES = """
[roles.editor]
kind = "edit"
provider = "openai"
model = "first"
options = {{ base_url = "{first}/v1", api = "responses", breaker_seconds = 3600 }}
[[roles.editor.next]]
provider = "anthropic"
model = "second"
options = {{ base_url = "{second}" }}
"""


class Fickle:
    """A model that helps, until a test says what it does instead."""

    def __init__(self) -> None:
        self.instead: str | Said | Fault | None = None

    def __call__(self, asked: Asked) -> str | Said | Fault:
        return self.instead or helpful(LINE)(asked)


@dataclass(frozen=True)
class Pair:
    """A fleet of one role, and the servers of its two providers."""

    fleet: Fleet
    first: ModelServer
    second: ModelServer
    models: tuple[Fickle, Fickle]

    def run(self, directory: Path) -> Any:
        repo = repository(directory / "repo", {"a.py": CONTENT.encode()})
        ended = self.fleet.run_job(
            {
                "repository": str(repo),
                "workspace": directory.name,
                "goal": f"improve it ({directory.name})",
                "files": ["a.py"],
                "pipeline": {"generate": ["editor"], "review": [], "test": []},
            }
        )
        [(_, content)] = tree_of(repo, ended["branch"]).values()
        report = self.fleet.audit()
        assert report.clean, report.as_json()
        return {**ended, "content": content.decode()}


@pytest.fixture
def pair(kafka: str, redis_server: str, tmp_path: Path) -> Iterator[Pair]:
    prefix, models = unique_prefix(), (Fickle(), Fickle())
    keys = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}
    with ModelServer(model=models[0], key=KEY) as first, ModelServer(model=models[1], key=KEY) as second:
        roles = ROLES.format(first=first.url, second=second.url)
        with Fleet(kafka, redis_server, prefix, tmp_path / "fleet", roles=roles, environment=keys) as fleet:
            fleet.start(*CORE, "editor")
            yield Pair(fleet, first, second, models)
    erase_prefix(redis_server, prefix)


def test_an_outage_of_the_first_provider_costs_its_breaker_s_calls_and_nothing_else(
    pair: Pair, tmp_path: Path
) -> None:
    pair.models[0].instead = status(503)
    for name in ("one", "two"):
        job = pair.run(tmp_path / name)
        assert job["status"] == "succeeded", job
        assert job["content"] == f"{CONTENT}{LINE}\n"
        [edit] = [e for e in pair.fleet.events(name, "a.py") if isinstance(e.payload, CodeModified)]
        assert edit.usage is not None and (edit.usage.provider, edit.usage.model) == ("anthropic", "second")
        assert edit.usage.tokens_in == 100
    assert len(pair.first.asked) == 3, "the failures that open its breaker, fleet-wide"
    assert len(pair.second.asked) == 2
    assert pair.fleet["editor"].metric("convoy_provider_failovers_total") == 2
    [found] = [f for f in pair.fleet.convoy("doctor", "-o", "json").json() if f["what"] == "breaker"]
    assert found["grade"] == "note" and [state["breaker"] for state in found["models"]] == ["open", "closed"]

    is_open = r'convoy_breaker_state\{[^}]*state="open"\}'
    until(lambda: pair.fleet["editor"].metric(is_open) == 1, "the open breaker among the metrics")


def test_a_refusal_and_made_up_edits_go_to_the_next_and_wrong_keys_end_the_job_at_once(
    pair: Pair, tmp_path: Path
) -> None:
    pair.models[0].instead = Said("I won't.", stop="refused")
    assert pair.run(tmp_path / "refused")["status"] == "succeeded"
    assert (len(pair.first.asked), len(pair.second.asked)) == (1, 1)
    pair.models[0].instead = "a.py\n<<<<<<< WHOLE\nx = 1\n>>>>>>> WHOLE\n"
    dropped = pair.run(tmp_path / "dropped")
    assert dropped["status"] == "succeeded" and dropped["content"] == f"{CONTENT}{LINE}\n"
    assert (len(pair.first.asked), len(pair.second.asked)) == (3, 2), "the same wrong answer twice"
    pair.models[0].instead = pair.models[1].instead = status(401, type="authentication_error")
    job = pair.run(tmp_path / "wrong")
    assert job["status"] == "failed" and job["content"] == CONTENT
    assert (len(pair.first.asked), len(pair.second.asked)) == (4, 3), "no retries"
    assert "key is not accepted" in job["reason"]
    log = pair.fleet["editor"].log()
    assert log.count("does not take our calls") == 1 and KEY not in log
