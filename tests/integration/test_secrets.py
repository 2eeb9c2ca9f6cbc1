"""Canaries in every place where a process holds a secret; then every sink of the fleet is searched for them.

The servers repeat what they are sent, in errors and in replies; a program prints its environment; the
logs are as wordy as they can be. Not one canary is on a topic, in Redis, in a log, a metric, an answer of
the command line or the result in git. A secret of the user's own, in a file, is on the log as part of its
file, and nowhere else: that shows that the search finds what is there.
"""

import json
import re
import subprocess
import sys
import uuid
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from codeconvoy.orchestrator import fleet as parts
from codeconvoy.orchestrator.conversations import Turn, turns_of
from codeconvoy.schemas.job_facts import TaskFailed
from codeconvoy.workers.redact import MARK
from tests.fleets import CORE, SESSION_MS, Fleet, unique_prefix, until
from tests.git_repos import repository
from tests.llm_server import Asked, Fault, ModelServer, status
from tests.llm_shapes import Said
from tests.services import erase_prefix

ANTHROPIC, OPENAI, WRONG = (f"canary-{name}-{uuid.uuid4().hex}" for name in ("anthropic", "openai", "wrong"))
URL, SASL, TOKEN = (f"canary-{name}-{uuid.uuid4().hex}" for name in ("url", "sasl", "env"))
BASIC = b64encode(f"me:{URL}".encode()).decode()
CANARIES = {
    "anthropic": ANTHROPIC,
    "openai": OPENAI,
    "wrong": WRONG,
    "url": URL,
    "basic": BASIC,
    "sasl": SASL,
    "env": TOKEN,
}
OWN = "ghp_" + uuid.uuid4().hex + "abcd"
"""In a file of the user's own: on the log as part of the file, in no copy of a prompt."""
CONTENT = f'"""A module."""\n\nGITHUB = "{OWN}"\n'
ROLES = """
[roles.editor]
kind = "edit"
provider = "anthropic"
model = "claude-test"
options = {{ base_url = "http://me:{password}@{anthropic}" }}
[roles.critic]
kind = "review"
provider = "openai"
model = "gpt-test"
options = {{ base_url = "http://{openai}/v1", api = "chat" }}
[roles.refused]
kind = "edit"
provider = "openai"
model = "gpt-test"
options = {{ base_url = "http://{openai}/v1", key = "wrong", check_at_start = false }}
[roles.blamed]
kind = "edit"
provider = "openai"
model = "gpt-test"
options = {{ base_url = "http://{openai}/v1", api = "responses" }}
[roles.chatty]
kind = "edit"
provider = "command"
options = {{ argv = ["{python}", "-c", "import os, sys; sys.exit(str(dict(os.environ)))"] }}
[roles.sloppy]
kind = "edit"
provider = "openai"
model = "gpt-test"
options = {{ base_url = "ftp://me:{password}@{openai}/v1" }}
"""
WORKSPACE = "secrets"
FILES = {"editor": "a.py", "refused": "b.py", "blamed": "c.py", "chatty": "d.py"}
SECONDS = 30.0
MODELS = ("editor", "critic", "refused", "blamed", "chatty")


def leaky(asked: Asked) -> str | Said | Fault:
    """A model whose server tells everything it knows."""
    known = " ".join((ANTHROPIC, OPENAI, URL, *asked.headers.values()))
    if '"approved"' in json.dumps(asked.body):
        return json.dumps({"approved": True, "comments": [known]})
    path, text = next(iter(asked.files.items()))
    if path == FILES["blamed"]:
        return status(400, message=known, type="invalid_request_error")
    changed = text.replace("A module", f"A module, by {known}")
    return f"SUMMARY: I know {known}\n{path}\n<<<<<<< WHOLE\n{changed}\n>>>>>>> WHOLE\n"


@dataclass(frozen=True)
class Ran:
    """What a fleet left behind."""

    fleet: Fleet
    job: Mapping[str, Any]
    repo: Path
    kafka: str
    redis_url: str


@pytest.fixture(scope="module")
def ran(kafka: str, redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    directory, prefix = tmp_path_factory.mktemp("secrets"), unique_prefix()
    environment = {
        "ANTHROPIC_API_KEY": ANTHROPIC,
        "OPENAI_API_KEY": OPENAI,
        "WRONG_API_KEY": WRONG,
        "SOME_SERVICE_TOKEN": TOKEN,
        "CONVOY_LOG_LEVEL": "debug",
        "CONVOY_KAFKA_OPTIONS": json.dumps({"session.timeout.ms": SESSION_MS, "sasl.password": SASL}),
    }
    repo = repository(directory / "repo", {path: CONTENT.encode() for path in FILES.values()})
    with (
        ModelServer(
            model=leaky, key=f"Basic {BASIC}"
        ) as anthropic,  # a URL with a password goes before a key
        ModelServer(model=leaky, key=OPENAI) as openai,
    ):
        hosts = {"anthropic": anthropic.url, "openai": openai.url}
        addresses = {name: url.removeprefix("http://") for name, url in hosts.items()}
        roles = ROLES.format(password=URL, python=sys.executable, **addresses)
        with Fleet(kafka, redis_server, prefix, directory, roles=roles, environment=environment) as fleet:
            fleet.start(*CORE, *MODELS)
            job = {
                "repository": str(repo),
                "workspace": WORKSPACE,
                "goal": "improve it",
                "tasks": [{"role": role, "path": path} for role, path in FILES.items()],
                "pipeline": {"generate": [], "review": ["critic"], "test": []},
                "max_rounds": 1,
            }
            yield Ran(fleet, fleet.run_job(job), repo, kafka, redis_server)
    erase_prefix(redis_server, prefix)


def leaks(where: str, text: str | bytes) -> list[str]:
    """Which canaries are in a text."""
    raw = text.encode() if isinstance(text, str) else text
    return [f"{name} in {where}" for name, canary in CANARIES.items() if canary.encode() in raw]


def everything(ran: Ran) -> Iterator[tuple[str, bytes]]:
    """Every raw record: key, value and headers, each with where it stands."""
    admin = AdminClient({"bootstrap.servers": ran.kafka})
    names = [name for name in admin.list_topics(timeout=10).topics if name.startswith(f"{ran.fleet.prefix}.")]
    consumer = Consumer(
        {
            "bootstrap.servers": ran.kafka,
            "group.id": unique_prefix(),
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_uncommitted",
        }
    )
    try:
        topics = admin.list_topics(timeout=10).topics
        ats = [TopicPartition(name, number) for name in names for number in topics[name].partitions]
        consumer.assign([TopicPartition(at.topic, at.partition, OFFSET_BEGINNING) for at in ats])
        left = len(ats)
        while left:
            record = consumer.poll(SECONDS)
            assert record is not None, f"{left} partitions can't be read"
            if (error := record.error()) is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                left -= 1
                continue
            for part in (record.key(), record.value(), repr(record.headers()).encode()):
                yield str(record.topic()).removeprefix(f"{ran.fleet.prefix}."), part or b""
    finally:
        consumer.close()


def stored(ran: Ran) -> Iterator[tuple[str, bytes]]:
    """Every key of the fleet in Redis with all that it holds, unpacked where it is packed."""
    reads: dict[bytes, Any] = {
        b"string": lambda client, key: [client.get(key)],
        b"hash": lambda client, key: [part for pair in client.hgetall(key).items() for part in pair],
        b"list": lambda client, key: client.lrange(key, 0, -1),
        b"zset": lambda client, key: client.zrange(key, 0, -1),
        b"set": lambda client, key: client.smembers(key),
    }
    with redis.Redis.from_url(ran.redis_url) as client:
        for key in client.scan_iter(f"*{ran.fleet.prefix}*", count=1_000):
            for part in (key, *reads[client.type(key)](client, key)):
                yield key.decode(), part or b""
                with suppress(zlib.error, TypeError):
                    yield key.decode(), zlib.decompress(part)


def test_no_record_on_any_topic_holds_a_secret(ran: Ran) -> None:
    topics, own, found = set[str](), set[str](), list[str]()
    for topic, part in everything(ran):
        topics.add(topic)
        found += leaks(topic, part)
        if OWN.encode() in part:
            own.add(topic)
    assert found == []
    assert {"events", "jobs", "tasks.editor"} <= topics
    assert own == {"events"}, "the search finds a secret of the user's own where it belongs, and only there"


def test_nothing_in_redis_holds_a_secret(ran: Ran) -> None:
    fleet = ran.fleet
    until(lambda: len(turns(ran)) >= len(FILES), "the calls of the tasks are kept")
    kinds, found, own = set[str](), list[str](), list[str]()
    for key, part in stored(ran):
        kind = re.sub(rf"^\{{{fleet.prefix}:([^:}}.]+).*", r"\1", key)  # without a state's version
        kinds.add(kind)
        found += leaks(key, part)
        own += [key] if kind == "kept" and OWN.encode() in part else []
    assert found == []
    assert {"kept", "reply", "breaker", "files", "jobs"} <= kinds, kinds
    assert own == [], "a copy of a prompt holds none of the user's either"


def tasks_of(ran: Ran) -> list[str]:
    """The tasks of the job that went to its agents."""
    state = ran.fleet.job(ran.job["job_id"])
    assert state is not None
    return [task_id for task_id, each in state.tasks.items() if each.task.role in MODELS]


def turns(ran: Ran) -> list[Turn]:
    """What is kept of the calls of all tasks."""
    tasks = tasks_of(ran)

    async def look(fleet: parts.Fleet) -> list[Turn]:
        return [turn for task in tasks for turn in await turns_of(fleet.prompts(), WORKSPACE, task)]

    return ran.fleet.ask(look)


def test_no_log_and_no_metric_holds_a_secret(ran: Ran) -> None:
    found, seen = [], 0
    for log in sorted(ran.fleet.directory.glob("*.log")):
        text = log.read_text(errors="replace")
        found += leaks(log.name, text)
        seen += "DEBUG" in text
    assert found == []
    assert seen == len(CORE) + len(MODELS), "all of them are as wordy as can be"
    for name, member in ran.fleet.members.items():
        for path in ("metrics", "healthz"):
            assert leaks(f"{path} of {name}", member.read(path)) == []


def test_no_answer_of_the_command_line_holds_a_secret(ran: Ran) -> None:
    commands = [
        ("doctor", "-o", "json"),
        ("roles", "-o", "json"),
        ("watch", ran.job["job_id"], "-o", "json"),
        ("why", "a.py:1", "--prompt"),
        ("log", "a.py", "-o", "json"),
        ("state", "a.py"),
        ("dlq", "list", "-o", "json"),
        *(("task", "show", task, "--prompts") for task in tasks_of(ran)),
    ]
    said = ""
    for command, done in zip(commands, ran.fleet.together(*commands), strict=True):
        assert done.status in (0, 1), (command, done)
        assert leaks(" ".join(command), done.out + done.err) == []
        said += done.out
    assert f"I know {MARK}" in said and f"ftp://me:{MARK}@" in said
    broken = ran.fleet.convoy("jobs", CONVOY_REDIS=f"redis://:{URL}@127.0.0.1:1/0")
    assert broken.status == 3 and leaks("an error", broken.out + broken.err) == []


def test_the_result_and_what_is_told_of_failures_hold_a_mark_where_the_secrets_were(ran: Ran) -> None:
    assert ran.job["status"] == "partial", ran.job
    log = subprocess.run(
        ["git", "-C", ran.repo, "log", "-p", "--format=%B", f"HEAD..{ran.job['branch']}"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert leaks("the branch", log) == [] and f'+"""A module, by {MARK}' in log and f"I know {MARK}" in log
    facts = [fact.payload for fact in ran.fleet.facts(ran.job["job_id"])]
    failed = [fact.reason for fact in facts if isinstance(fact, TaskFailed)]
    assert any("HTTP 401" in reason for reason in failed), failed
    assert any("HTTP 400" in reason and MARK in reason for reason in failed), failed
    assert any("WRONG_API_KEY" in reason and MARK in reason for reason in failed), failed
    kept = turns(ran)
    assert {"finished", "key", "rejected"} <= {turn.call.outcome for turn in kept}
    asked = "".join(message.content for turn in kept if turn.prompt for message in turn.prompt.messages)
    assert f'GITHUB = "{MARK}"' in asked


def test_a_conversation_is_shown_while_it_is_kept_and_gone_with_its_workspace(ran: Ran) -> None:
    """The last one here, since it forgets what the others look at."""
    shown = ran.fleet.convoy("why", "a.py:1", "--prompt").good().out
    assert "kept, with 1 calls" in shown and "--- system" in shown and "--- reply" in shown
    forgotten = ran.fleet.convoy("forget", WORKSPACE, "--yes", "-o", "json").good().json()
    assert forgotten["erased"]["kept prompts and replies"] > 0
    kept = [key for key, _ in stored(ran) if ":kept}:" in key]
    assert not [key for key in kept if WORKSPACE in key]
    gone = ran.fleet.convoy("why", "a.py:1", "--prompt", "-w", WORKSPACE).good().out
    assert "not kept any more" in gone and "--- system" not in gone
