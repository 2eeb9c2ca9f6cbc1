"""What can't be used is refused with field, reason and remedy, at the client and on the jobs topic; bytes
that can't be read become dead letters, or stop their partition until somebody decides.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from codeconvoy.orchestrator import dead_letters
from codeconvoy.orchestrator import fleet as parts
from codeconvoy.orchestrator.submit import submit
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.dead_letters import DeadLetter
from codeconvoy.schemas.errors import Flaw
from codeconvoy.schemas.job_facts import CancelRequested, JobFact, JobStatus
from codeconvoy.schemas.job_spec import JobSpec
from codeconvoy.schemas.topics import MAX_RECORD_BYTES, Topics
from codeconvoy.workers.engine.bus import TopicPartition
from tests.builders import voided
from tests.fleets import PARTITIONS, Fleet, unique_prefix, until
from tests.git_repos import commit, repository
from tests.models_endpoint import KEY, endpoint

ROLE = "pyupgrade"
GOOD = "class A(object):\n    pass\n"


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one file that can be edited, and one of each kind that can't."""
    directory = tmp_path_factory.mktemp("bad") / "repo"
    repository(directory, {"good.py": GOOD.encode(), "binary.py": b"\0\1\2", "ten.py": b"x\n" * (5 << 20)})
    os.symlink("good.py", directory / "link.py")
    commit(directory, {"half.py": b"#" * (512 * 1024 + 1)})
    return directory


def job(repo: Path, **changed: object) -> dict[str, Any]:
    given: dict[str, Any] = {
        "repository": str(repo),
        "goal": "modernise",
        "files": ["good.py"],
        "pipeline": {"generate": [ROLE], "review": [], "test": []},
        **changed,
    }
    return {**given, "repository": str(repo / given["repository"])}


def naming(path: str) -> Mapping[str, object]:
    return {"files": [], "tasks": [{"role": ROLE, "path": path}]}


Change = Mapping[str, object]
BAD: Mapping[str, tuple[Change, str, str]] = {
    "unknown role": ({"pipeline": {"generate": ["isrot"]}}, "pipeline.generate[0]", "no role 'isrot'"),
    "empty glob": ({"files": ["lib/**/*.py"]}, "files[0]", "matches no file"),
    "no repository": ({"repository": ".."}, "repository", "not a git repository"),
    "no such ref": ({"ref": "no-such-branch"}, "ref", "no-such-branch"),
    "binary": (naming("binary.py"), "tasks[0].path", "is binary"),
    "ten megabytes": (naming("ten.py"), "tasks[0].path", "10,485,760 bytes"),
    "above the root": (naming("../good.py"), "tasks[0].path", "leaves its directory"),
    "symlink": (naming("link.py"), "tasks[0].path", "is a symlink"),
    "over 512 KiB": (naming("half.py"), "tasks[0].path", "524,289 bytes"),
    "no such strategy": ({"strategies": ["three_way", "coin_toss"]}, "strategies[1]", "coin_toss"),
    "checked out": ({"branch": "main"}, "branch", "'main' is checked out"),
    "nobody merges": ({"strategies": ["semantic"]}, "pipeline.merge", "'merger', which `semantic` asks"),
}
"""What is changed in a good job, the field that is named, and what is said of it."""
BAD_RECORDS = {
    **BAD,
    # A word that the schema does not know is refused when it is read; this one is known, and not there yet.
    "no such strategy": ({"strategies": ["three_way", "structural"]}, "strategies[1]", "structural"),
    # Whether a branch can be written is for the publisher to find, once there is something to write.
    "checked out": (BAD["checked out"][0], "1 of 1 units done; not published: branch", "is checked out"),
}


def ends(fleet: Fleet, topic: Callable[[Topics], str]) -> list[int]:
    async def look(connected: parts.Fleet) -> list[int]:
        reader = connected.bus.reader()
        name = topic(connected.topics)
        found = [(await reader.watermarks(TopicPartition(name, n)))[1] for n in range(PARTITIONS)]
        await reader.close()
        return found

    return fleet.ask(look)


def test_a_bad_job_is_refused_before_anything_is_submitted(fleet: Fleet, repo: Path) -> None:
    before = ends(fleet, lambda topics: topics.jobs)
    files = [
        fleet.job_file(job(repo, **change), f"bad-{i}.yaml") for i, (change, _, _) in enumerate(BAD.values())
    ]
    files.append(fleet.job_file("files: [a.py\ngoal: x: y", "bad-yaml.yaml"))
    expected = {**{name: row[1:] for name, row in BAD.items()}, "invalid YAML": ("job", "it is not YAML")}
    done = fleet.together(*(("submit", file) for file in files))
    for (name, (field, reason)), refused in zip(expected.items(), done, strict=True):
        assert refused.status == 2, (name, refused)
        assert refused.out == "", name
        error, remedy = refused.err.strip().splitlines()
        assert error.startswith(f"Error: {field}: "), (name, error)
        assert reason in error, (name, error)
        assert re.match(r"Remedy: \S", remedy), (name, remedy)
    assert ends(fleet, lambda topics: topics.jobs) == before


def test_a_worker_whose_key_or_model_is_not_known_does_not_start(fleet: Fleet, tmp_path: Path) -> None:
    with endpoint("m") as server:
        role = '[roles.generator]\nprovider = "anthropic"\nmodel = "{}"\noptions = {{ base_url = "{}" }}\n'
        for model, key, said in (
            ("m", "sk-wrong", "Error: roles.generator.provider: anthropic: the key is not accepted"),
            ("gone", KEY, "Error: roles.generator.model: the server of 'anthropic' has no model 'gone'"),
        ):
            roles = tmp_path / f"{model}.toml"
            roles.write_text(role.format(model, server.url))
            done = fleet.convoy("worker", "generator", CONVOY_ROLES=str(roles), ANTHROPIC_API_KEY=key)
            assert done.status == 2 and said in done.err, done
            assert "sk-wrong" not in done.err


def test_the_same_as_a_record_ends_the_job_as_failed_with_the_message(fleet: Fleet, repo: Path) -> None:
    async def submit_all(connected: parts.Fleet) -> dict[str, str]:
        return {
            name: await submit(
                connected, msgspec.convert(job(repo, workspace="bad", **change), JobSpec), "elsewhere"
            )
            for name, (change, _, _) in BAD_RECORDS.items()
        }

    for name, job_id in fleet.ask(submit_all).items():
        ended = fleet.ended(job_id)
        _, field, reason = BAD_RECORDS[name]
        assert ended.status is JobStatus.FAILED, name
        # The importing worker knows the task's path as one of those that it was given.
        assert ended.reason.startswith((f"{field}: ", "paths[0]: ")), (name, ended.reason)
        assert reason in ended.reason, (name, ended.reason)
        assert re.search(r"\. \S.*$", ended.reason), f"{name} has no remedy: {ended.reason}"


def test_what_is_missing_is_said_with_the_remedy(fleet: Fleet, repo: Path, tmp_path: Path) -> None:
    without_kafka = {"CONVOY_KAFKA": "127.0.0.1:1"}
    without_redis = {"CONVOY_REDIS": "redis://127.0.0.1:1/0"}
    submit_good = ("submit", fleet.job_file(job(repo), "good.yaml"))
    for service, environment, arguments in (
        ("Kafka", without_kafka, ("projector",)),
        ("Kafka", without_kafka, submit_good),
        ("Redis", without_redis, ("projector",)),
        ("Redis", without_redis, ("jobs",)),
    ):
        done = fleet.convoy(*arguments, **environment)
        assert done.status == 3, done
        error, remedy = done.err.strip().splitlines()[-2:]
        assert error.startswith(f"Error: {service}"), done.err
        assert remedy.startswith("Remedy: Check"), done.err
    keyless = tmp_path / "roles.toml"
    keyless.write_text('[roles.generator]\nprovider = "openai"\nmodel = "gpt-test"\n')
    done = fleet.convoy("worker", "generator", CONVOY_ROLES=str(keyless))
    assert done.status == 2, done
    assert "there is no key 'openai'" in done.err
    assert "OPENAI_API_KEY" in done.err


def test_no_command_answers_from_where_it_can_not_look(fleet: Fleet) -> None:
    """With another partition count it would not find what is there, and say that it is not."""
    for arguments in (
        ("jobs",),
        ("watch",),
        ("cancel", "5f0c"),
        ("state", "good.py", "-w", "bad"),
        ("log", "good.py", "-w", "bad"),
        ("why", "good.py:1", "-w", "bad"),
        ("task", "show", "5f0c"),
        ("conflicts", "list"),
        ("audit",),
        ("rebuild",),
        ("dlq", "list"),
    ):
        done = fleet.convoy(*arguments, CONVOY_PARTITIONS=str(PARTITIONS + 1))
        assert (done.status, done.out) == (2, ""), (arguments, done)
        assert f"the settings say {PARTITIONS + 1}" in done.err, done
        assert f"Remedy: Set CONVOY_PARTITIONS={PARTITIONS}" in done.err, done
    fleet.convoy("jobs", CONVOY_PREFIX=unique_prefix(), CONVOY_PARTITIONS=str(PARTITIONS + 1)).good()


# Bytes on the topics ------------------------------------------------------------------------------


def produce(fleet: Fleet, *records: tuple[str, bytes]) -> None:
    """Write (topic, value) records to partition 0, as any other program might."""
    settings = {"bootstrap.servers": fleet.environment["CONVOY_KAFKA"], "message.max.bytes": 2_000_000}
    producer = Producer(settings)
    failed: list[object] = []
    for topic, value in records:
        producer.produce(
            topic,
            value,
            key=b"somebody:else",
            partition=0,
            on_delivery=lambda error, _: failed.append(error) if error else None,
        )
    assert producer.flush(30) == 0
    assert failed == []


def garbage() -> dict[Flaw, bytes]:
    """Bytes that no version can read, one of each kind, wherever an event, fact or task belongs."""
    codec = Codec.create()
    whole = codec.encode(
        JobFact(
            fact_id="f",
            job_id="j",
            timestamp=0,
            source="tests",
            payload=CancelRequested(requested_by="nobody"),
        )
    )
    letter = DeadLetter(
        topic="t",
        partition=0,
        offset=0,
        reason="poison",
        detail="",
        attempts=1,
        service="tests",
        timestamp=0,
    )
    return {
        Flaw.NO_MARKER: b"not a record",
        Flaw.TRUNCATED: whole[:6],
        Flaw.OVERSIZE: whole + bytes(MAX_RECORD_BYTES),
        Flaw.WRONG_TYPES: codec.encode(letter),
    }


def topics_of(fleet: Fleet) -> tuple[str, str, str]:
    topics = Topics(fleet.prefix, PARTITIONS)
    return topics.events, topics.jobs, topics.tasks(ROLE)


def readers_of(fleet: Fleet) -> dict[str, set[str]]:
    """Who reads each topic, as dead letters name them."""
    events, jobs, tasks = topics_of(fleet)
    group = Topics(fleet.prefix).group
    return {
        events: {group("files"), group("detector")},
        jobs: {group("jobs"), group("orchestrator")},
        tasks: {group(f"worker.{ROLE}")},
    }


def listed(fleet: Fleet) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = fleet.convoy("dlq", "list", "-o", "json").json()
    return found


def test_garbage_becomes_dead_letters_and_the_partitions_go_on(fleet: Fleet, repo: Path) -> None:
    flaws, readers = garbage(), readers_of(fleet)
    codec = Codec.create()
    trailing = {topics_of(fleet)[0]: codec.encode(voided("e", "t")) + b"more"}
    records = [(topic, value) for topic in readers for value in flaws.values()]
    produce(fleet, *records, *trailing.items())
    expected = {(topic, str(flaw), who) for topic, whos in readers.items() for flaw in flaws for who in whos}
    expected |= {(topic, str(Flaw.TRAILING_BYTES), who) for topic in trailing for who in readers[topic]}

    def all_there() -> bool:
        told = [each.told for each in fleet.ask(dead_letters.letters).values()]
        return expected <= {(letter.topic, letter.reason, letter.service) for letter in told}

    until(all_there, "all dead letters")
    found = listed(fleet)
    assert {each["key"] for each in found} == {"somebody:else"}
    for name in ("orchestrator", "projector", "detector", ROLE):
        assert fleet[name].health()[0] == 200
        assert fleet[name].metric("convoy_dead_letters_total") >= len(flaws)

    one = next(each for each in found if each["letter"]["reason"] == Flaw.NO_MARKER)
    shown, raw, retried = (
        fleet.convoy("dlq", "show", one["id"]).good(),
        fleet.convoy("dlq", "show", one["id"], "--raw").good(),
        fleet.convoy("dlq", "retry", one["id"]).good(),
    )
    assert "no_marker" in shown.out
    assert raw.out == "not a record"
    assert f"is back on {one['letter']['topic']}" in retried.out
    assert one["id"] not in {each["id"] for each in listed(fleet)}
    again = fleet.convoy("dlq", "retry", one["id"])
    assert (again.status, "put back already" in again.err) == (2, True)
    none = fleet.convoy("dlq", "retry", "--all", CONVOY_PREFIX=unique_prefix()).good()
    assert (none.out, "nothing to put back" in none.err) == ("", True)

    ended = fleet.run_job(job(repo, workspace="after-garbage"))
    assert ended["status"] == "succeeded", ended
    report = fleet.audit()
    assert report.clean, report.as_json()
    assert report.counts.garbage > 0


def test_an_unknown_schema_stops_its_partition_until_it_is_skipped(fleet: Fleet, repo: Path) -> None:
    members = {name: fleet[name] for name in ("orchestrator", "projector", "detector", ROLE)}
    newer = b"\xc3\x01" + b"\xfe" * 8 + b"from the future"
    produce(fleet, *((topic, newer) for topic in topics_of(fleet)))
    remedies: set[tuple[str, ...]] = set()
    for member in members.values():
        until(lambda member=member: member.health()[0] == 503, f"{member.name} says that it is stopped")  # type: ignore[misc]
        [*problems] = member.health()[1]["problems"]
        assert "Upgrade codeconvoy" in problems[0]
        assert member.metric("convoy_stopped_partitions") >= 1
        assert member.metric("convoy_healthy") == 0
    # The projector reads two topics: it names both when both have stopped.
    until(lambda: len(members["projector"].health()[1]["problems"]) == 2, "both engines are stopped")
    for member in members.values():
        text = " ".join(member.health()[1]["problems"])
        remedies |= {tuple(found) for found in re.findall(r"`convoy (dlq) (skip) (\S+) (\d+) (\d+)`", text)}
    assert {remedy[2] for remedy in remedies} == set(topics_of(fleet))
    for done in fleet.together(*((*remedy, "--yes") for remedy in sorted(remedies))):
        done.good()
    for member in members.values():
        until(lambda member=member: member.health()[0] == 200, f"{member.name} goes on")  # type: ignore[misc]
        assert member.metric("convoy_stopped_partitions") == 0
    ended = fleet.run_job(job(repo, workspace="after-skip"))
    assert ended["status"] == "succeeded", ended
    report = fleet.audit()
    assert report.clean, report.as_json()
    # Who reads the whole log passes over it too.
    stranger = fleet.convoy("forget", "nobody", "--yes")
    assert (stranger.status, "holds nothing of 'nobody'" in stranger.err) == (2, True), stranger
