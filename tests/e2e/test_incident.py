"""The incident that codeconvoy is for, on real Kafka: five agents refactor the same files at once, one
of them writes tests against a version that moves under it. Nothing is lost, and nothing goes unnoticed.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codeconvoy.schemas.events import EventType, FileImported, TestWritten
from codeconvoy.schemas.test_paths import test_path_for
from tests.fleets import CORE, Fleet, unique_prefix, until
from tests.gated_agent import Gates
from tests.gated_agent import __file__ as program
from tests.git_repos import git, repository, tree_of
from tests.services import erase_prefix

EDITORS = {"renamer": "rename", "typer": "annotate", "documenter": "document", "logger": "log"}
TESTER = "test-writer"
LATE, EARLY, PLAIN = "shop/orders.py", "shop/prices.py", "shop/stock.py"
"""The tests of the first are written after it has moved, those of the second before."""
PATHS = (LATE, EARLY, PLAIN)
TESTS = {path: test_path_for(path, "tests/convoy") for path in (LATE, EARLY)}
BEFORE = '''"""A module."""


def total(items):
    return sum(items)


def most(items):
    return max(items)
'''
AFTER = '''"""A module."""

import logging


def total(lines: list[int]) -> int:
    """The total of them."""
    logging.debug('%s', sum(lines))
    return sum(lines)


def most(lines: list[int]) -> int:
    """The most of them."""
    logging.debug('%s', max(lines))
    return max(lines)
'''


@dataclass(frozen=True)
class Incident:
    """What was left of it."""

    fleet: Fleet
    repo: Path
    job: dict[str, Any]


def roles_file(gates: Path) -> str:
    lines = []
    for role, does in {**EDITORS, TESTER: "test"}.items():
        argv = json.dumps([sys.executable, program, str(gates), role, does])
        kind = "test" if role == TESTER else "edit"
        lines += [
            f"[roles.{role}]",
            f'kind = "{kind}"',
            'provider = "command"',
            f"options = {{argv = {argv}}}",
        ]
    return "\n".join(lines)


def job(repo: Path) -> dict[str, object]:
    edits = [{"role": role, "path": path} for path in PATHS for role in EDITORS]
    tests = [{"role": TESTER, "path": path, "kind": "test"} for path in TESTS]
    return {
        "repository": str(repo),
        "workspace": "shop",
        "goal": "a better shop",
        "tasks": edits + tests,
        "together": True,
        "pipeline": {"generate": [], "review": [], "test": []},
    }


def moved(fleet: Fleet, path: str) -> bool:
    """Whether readers see another version of the file than the one that came from git."""
    found = fleet.events("shop", path)
    return any(event.edit is not None and not isinstance(event.payload, FileImported) for event in found)


@pytest.fixture(scope="module")
def incident(kafka: str, redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Incident]:
    """Run it once: all have begun on the same version before anyone may answer."""
    directory = tmp_path_factory.mktemp("incident")
    gates = Gates(directory / "gates")
    repo = repository(directory / "repo", {path: BEFORE.encode() for path in PATHS})
    prefix = unique_prefix()
    with Fleet(kafka, redis_server, prefix, directory, roles=roles_file(gates.directory)) as fleet:
        fleet.start(*CORE, *EDITORS, TESTER)
        for role in (*EDITORS, TESTER):
            gates.hold(role)
        running = fleet.begin("run", fleet.job_file(job(repo)), "-o", "json")
        for role in EDITORS:
            until(lambda role=role: len(gates.begun(role)) == len(PATHS), f"{role} has begun")  # type: ignore[misc]
        until(lambda: len(gates.begun(TESTER)) == len(TESTS), "the tester has begun")
        # One file: the tests are written first, and only then does it move.
        gates.hold(TESTER, LATE)
        for role in EDITORS:
            gates.hold(role, EARLY)
        gates.release(TESTER)
        noted = EventType.READ_NOTED
        until(lambda: noted in {e.event_type for e in fleet.events("shop", EARLY)}, "the read is noted")
        for role in EDITORS:
            gates.release(role, EARLY)
            gates.release(role)
        # The other: it moves first, and only then come tests of what it was.
        until(lambda: moved(fleet, LATE), "the file has moved")
        gates.release(TESTER, LATE)
        yield Incident(fleet, repo, fleet.end(running).json())
    erase_prefix(redis_server, prefix)


def test_it_ends_and_every_edit_is_in_the_branch(incident: Incident) -> None:
    job = incident.job
    assert job["status"] == "succeeded", job
    tree = tree_of(incident.repo, job["branch"])
    assert {path: tree[path][1].decode() for path in PATHS} == dict.fromkeys(PATHS, AFTER)


def test_edits_of_the_same_lines_were_forks_that_their_authors_reconciled(incident: Incident) -> None:
    tally = incident.job["tally"]
    # Four agents on each of three files, all from one version: three forks a file, none without overlap.
    forks = (len(EDITORS) - 1) * len(PATHS)
    assert tally["forks"] >= forks
    assert tally["overlapping"] == sum(tally["resolved"].values()) == forks
    assert tally["resolved"]["rework"] > 0


def test_no_edit_is_missing_among_the_causes_of_the_branch(incident: Incident) -> None:
    span = f"{incident.job['base_commit']}..{incident.job['branch']}"
    named = set(git(incident.repo, "log", "--format=%(trailers:valueonly,unfold)", span).split())
    for path in PATHS:
        events = incident.fleet.events("shop", path)
        edits = [event for event in events if event.role in EDITORS and event.edit is not None]
        first = [event for event in edits if event.event_type is not EventType.CONFLICT_RESOLVED]
        assert {event.role for event in first} == set(EDITORS)
        assert {event.event_id for event in first} <= named


@pytest.mark.parametrize("path", TESTS)
def test_the_stale_test_was_found_and_written_again(incident: Incident, path: str) -> None:
    fleet, test_path = incident.fleet, TESTS[path]
    assert incident.job["tally"]["stale"] >= len(TESTS)
    written = [e for e in fleet.events("shop", test_path) if isinstance(e.payload, TestWritten)]
    imported = fleet.events("shop", path)[0]
    assert isinstance(imported.payload, FileImported)
    stale, fresh = written[0], written[-1]
    # Its first version was built on what came from git, and says so; its last on what the job made of it.
    assert (path, imported.event_id) in {(read.path, read.event_id) for read in stale.reads}
    assert (path, imported.event_id) not in {(read.path, read.event_id) for read in fresh.reads}
    assert fresh.round > stale.round
    noted = [e for e in fleet.events("shop", path) if e.event_type is EventType.READ_NOTED]
    assert stale.event_id in {getattr(event.payload, "reader_event", "") for event in noted}
    marks = [e for e in fleet.events("shop", test_path) if e.event_type is EventType.CONTEXT_STALE]
    assert stale.event_id in {getattr(event.payload, "reader_event", "") for event in marks}


def test_the_tests_of_the_branch_pass_on_the_branch(incident: Incident, tmp_path: Path) -> None:
    git(
        incident.repo,
        "worktree",
        "add",
        "--quiet",
        "--detach",
        str(tmp_path / "tree"),
        incident.job["branch"],
    )
    for path in TESTS.values():
        argv = [sys.executable, "-m", "unittest", path]
        done = subprocess.run(argv, cwd=tmp_path / "tree", capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
    tree = tree_of(incident.repo, incident.job["branch"])
    assert b"'lines'" in tree[TESTS[LATE]][1] and b"'lines'" in tree[TESTS[EARLY]][1]


def test_the_audit_finds_nothing(incident: Incident) -> None:
    report = incident.fleet.audit()
    assert report.clean, report.as_json()
