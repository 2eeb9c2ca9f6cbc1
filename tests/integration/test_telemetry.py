"""Real processes that tell their spans to a collector: one job is one connected trace."""

import sys
from pathlib import Path

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.fleets import CORE, Fleet
from tests.git_repos import repository
from tests.llm_server import ModelServer, helpful
from tests.otlp_server import Collector

KEY = "the-key-of-the-model"
LINE = "# improved"
CONTENT = b'"""A module."""\n\n\ndef one():\n    return 1\n'
TELLING = (
    "import atexit, sys; from codeconvoy.orchestrator.cli import main\n"
    "what = ('opentelemetry.sdk.trace', 'opentelemetry.exporter.otlp')\n"
    "atexit.register(lambda: print('loaded:', *(name for name in what if name in sys.modules)))\n"
    "main()"
)
"""A program that says at its end what it has loaded."""
ROLES = """
[roles.one]
kind = "edit"
provider = "openai"
model = "gpt-test"
options = {{ base_url = "{url}/v1", api = "responses" }}
[roles.two]
kind = "edit"
provider = "anthropic"
model = "claude-test"
options = {{ base_url = "{url}" }}
"""


def test_a_job_of_real_processes_is_one_trace(
    kafka: str, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    repo = repository(tmp_path / "repo", {"a.py": CONTENT})
    with Collector() as collector, ModelServer(model=helpful(LINE), key=KEY) as server:
        environment = {
            "CONVOY_OTEL_ENDPOINT": collector.url,
            "OPENAI_API_KEY": KEY,
            "ANTHROPIC_API_KEY": KEY,
        }
        roles = ROLES.format(url=server.url)
        with Fleet(
            kafka, redis_url, prefix, tmp_path / "fleet", roles=roles, environment=environment
        ) as fleet:
            fleet.start(*CORE, "one", "two")
            job = fleet.run_job(
                {
                    "repository": str(repo),
                    "workspace": "w",
                    "goal": "improve it, says nobody's business",
                    "files": ["a.py"],
                    "pipeline": {"generate": ["one", "two"], "review": [], "test": []},
                    "together": True,
                }
            )
            assert job["status"] == "succeeded", job
            for member in fleet.members.values():
                assert member.terminate() == 0, member.log()
            logged = fleet["one"].log()
    told = collector.told
    [submitted] = [one for one in told if one.span.name == "convoy.submit"]
    assert submitted.attributes["convoy.job.id"] == job["job_id"]
    assert {one.span.trace_id for one in told} == {submitted.span.trace_id}
    known = {one.span.span_id for one in told}
    assert [one.span.name for one in told if one.span.parent_span_id not in known] == ["convoy.submit"]
    senders = {(one.span.name, one.sender["convoy.process"]) for one in told}
    assert {
        ("convoy.submit", "client"),
        ("convoy.task git", "worker git"),
        ("convoy.publish", "worker git"),
        ("convoy.task one", "worker one"),
        ("chat gpt-test", "worker one"),
        ("convoy.commit", "worker one"),
        ("chat claude-test", "worker two"),
        ("convoy.resolve", "detector"),
    } <= senders
    assert {one.sender["service.name"] for one in told} == {"codeconvoy"}
    chats = [one for one in told if one.span.name.startswith("chat")]
    assert {one.span.kind for one in chats} == {Span.SPAN_KIND_CLIENT}
    assert {one.attributes["gen_ai.usage.output_tokens"] for one in chats} == {7}
    assert "trace_id=" not in logged.splitlines()[0]
    for secret in (KEY, LINE, "nobody's business"):
        assert secret.encode() not in collector.raw


def test_a_fleet_works_on_while_its_collector_is_away(
    kafka: str, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    repo = repository(tmp_path / "repo", {"a.py": b"import os\nimport abc\n\nprint(os, abc)\n"})
    with Collector() as gone:
        environment = {"CONVOY_OTEL_ENDPOINT": gone.url}
    with Fleet(kafka, redis_url, prefix, tmp_path / "fleet", environment=environment) as fleet:
        fleet.start(*CORE, "isort")
        job = fleet.run_job(
            {
                "repository": str(repo),
                "workspace": "w",
                "goal": "sort imports",
                "files": ["a.py"],
                "pipeline": {"generate": ["isort"], "review": [], "test": []},
            }
        )
        assert (job["status"], job["commits"]) == ("succeeded", 1), job
        assert fleet["isort"].terminate() == 0
        assert "spans batch" in fleet["isort"].log()


def test_a_process_that_does_not_trace_does_not_load_the_sdk(
    kafka: str, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    program = (sys.executable, "-c", TELLING)
    for endpoint, loaded in (
        ("", "loaded:"),
        ("http://127.0.0.1:9", "loaded: opentelemetry.sdk.trace opentelemetry.exporter.otlp"),
    ):
        with Fleet(kafka, redis_url, prefix, tmp_path / "fleet", program=program) as fleet:
            fleet.start("isort", CONVOY_OTEL_ENDPOINT=endpoint)
            assert fleet["isort"].terminate() == 0
            assert loaded in fleet["isort"].log().splitlines()
