"""A job whose budget does not last, by real processes on a real Kafka: never overshot, and not lost."""

from pathlib import Path

from tests.fleets import CORE, Fleet, unique_prefix
from tests.git_repos import repository, tree_of
from tests.llm_server import Asked, ModelServer, helpful
from tests.llm_shapes import Said
from tests.services import erase_prefix

LINE = "# improved"
CONTENT = '"""A module."""\n\n\ndef one():\n    return 1\n'
FILES = [f"file{number}.py" for number in range(12)]
KEY = "the-key-of-the-model"
TOLD = (3_000, 1_000, 100)
"""What the server says of each reply: in, cached among them, out."""
COST = 2_000 * 1.00 + 1_000 * 0.10 + 100 * 5.00
"""In millionths of a dollar, at the price of the role below."""
ROLES = """
[roles.editor]
kind = "edit"
provider = "openai"
model = "gpt-test"
concurrency = 3
options = {{ base_url = "{url}/v1", api = "responses", max_output_tokens = 500, \
price_in = 1.0, price_cached = 0.1, price_out = 5.0 }}
[roles.unpriced]
kind = "edit"
provider = "openai"
model = "gpt-test"
options = {{ base_url = "{url}/v1" }}
"""


def expensive(asked: Asked) -> Said:
    """A helpful model, with much to pay for."""
    answer = helpful(LINE)(asked)
    assert isinstance(answer, str)
    return Said(answer, usage=TOLD)


def test_a_job_stops_at_its_budget_with_its_work_on_the_branch(
    kafka: str, redis_server: str, tmp_path: Path
) -> None:
    prefix, repo = unique_prefix(), repository(tmp_path / "repo", dict.fromkeys(FILES, CONTENT.encode()))
    job = {
        "repository": str(repo),
        "workspace": prefix,
        "goal": f"improve it ({prefix})",
        "tasks": [{"role": "editor", "path": path} for path in FILES],
        "pipeline": {"generate": [], "review": [], "test": []},
        "budget": {"usd": 0.04},
    }
    with ModelServer(model=expensive, key=KEY) as server:
        roles, keys = ROLES.format(url=server.url), {"OPENAI_API_KEY": KEY}
        with Fleet(kafka, redis_server, prefix, tmp_path / "fleet", roles=roles, environment=keys) as fleet:
            fleet.start(*CORE, "editor")
            unpriced = {**job, "tasks": [{"role": "unpriced", "path": FILES[0]}]}
            refused = fleet.convoy("submit", fleet.job_file(unpriced))
            ended = fleet.run_job(job)
            report = fleet.audit()
    erase_prefix(redis_server, prefix)
    assert refused.status == 2 and "price_in" in refused.err and "'unpriced'" in refused.err
    assert ended["status"] == "budget_exhausted", ended
    assert "the budget is used up: $" in ended["reason"] and "of $0.04 spent" in ended["reason"]
    calls, done = len(server.asked), ended["edits"]
    assert 0 < done < len(FILES) and calls == done
    assert ended["spent"]["calls"] == calls
    assert ended["spent"]["usd"] == round(calls * COST / 1e6, 9) <= 0.04
    tree = {path: content.decode() for path, (_, content) in tree_of(repo, ended["branch"]).items()}
    assert sorted(tree) == sorted(FILES)
    assert sum(content == f"{CONTENT}{LINE}\n" for content in tree.values()) == done
    assert sum(content == CONTENT for content in tree.values()) == len(FILES) - done
    assert report.clean, report.as_json()
