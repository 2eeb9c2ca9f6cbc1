"""What a command takes for "the latest", "the only one" or "now": what is left out, never what is empty."""

import asyncio
from typing import cast

import pytest
import typer.main

from codeconvoy.orchestrator.cli import make_app
from codeconvoy.orchestrator.cli.jobs import find_job
from codeconvoy.orchestrator.past import At, check_reached
from codeconvoy.schemas.errors import BadInput, Unavailable
from codeconvoy.schemas.job_state import JobState
from codeconvoy.workers.projection import Projection


class Jobs:
    """A projection that holds nothing but these jobs, the latest first."""

    def __init__(self, *ids: str) -> None:
        self._jobs = [JobState(job_id=each) for each in ids]

    async def jobs(self) -> list[JobState]:
        return self._jobs

    async def job(self, job_id: str) -> JobState | None:
        return next((job for job in self._jobs if job.job_id == job_id), None)


def find(wanted: str | None, *ids: str) -> str:
    return asyncio.run(find_job(cast(Projection, Jobs(*ids)), wanted)).job_id


def run(*arguments: str) -> None:
    typer.main.get_command(make_app()).main(list(arguments), "convoy", standalone_mode=False)


@pytest.fixture(autouse=True)
def no_fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("KAFKA", "REDIS", "DATA", "ROLES", "PARTITIONS"):
        monkeypatch.delenv(f"CONVOY_{name}", raising=False)
    monkeypatch.chdir(str(tmp_path))


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (("cancel",), "job"),
        (("watch",), "job"),
        (("audit",), "job"),
        (("task", "show"), "TASK"),
        (("forget", "--yes"), "WORKSPACE"),
        (("worker", "git", "--instance"), "--instance"),
        (("projector", "--instance"), "--instance"),
        (("state", "a.py", "-w"), "--workspace"),
        (("state", "a.py", "--at"), "--at"),
        (("log", "a.py", "-w"), "--workspace"),
        (("why", "a.py:1", "-w"), "--workspace"),
        (("why", "a.py:1", "--branch"), "--branch"),
        (("conflicts", "show", "a.py", "-w"), "--workspace"),
        (("conflicts", "resolve", "a.py", "--file", "a.py", "-w"), "--workspace"),
        (("conflicts", "resolve", "a.py", "--file", "a.py", "--take"), "--take"),
    ],
)
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_id_is_refused_and_never_taken_for_the_default(
    command: tuple[str, ...], field: str, empty: str
) -> None:
    with pytest.raises(BadInput) as caught:
        run(*command, empty)
    assert (caught.value.field, caught.value.reason) == (field, "it is empty")
    assert caught.value.remedy


@pytest.mark.parametrize("command", ["watch", "audit", "state a.py", "log a.py", "why a.py:1"])
def test_what_is_left_out_has_its_default(command: str) -> None:
    with pytest.raises(Unavailable, match="no broker is set"):
        run(*command.split())


def test_no_id_is_the_latest_job_and_an_empty_one_is_none() -> None:
    assert find(None, "b1", "a1") == "b1"
    assert find("a", "b1", "a1") == "a1"
    with pytest.raises(BadInput, match="it is empty"):
        find("", "b1")
    with pytest.raises(BadInput, match="there is no job yet"):
        find(None)
    with pytest.raises(BadInput, match="begins 2 ids"):
        find("a", "a1", "a2")


def test_an_offset_that_the_log_has_not_reached_is_no_moment_of_the_past() -> None:
    for at, end in ((At(offset=9), 10), (At(offset=0), 0), (At(event="abcd"), 3), (At(until=10**15), 3)):
        check_reached(at, end)
    with pytest.raises(BadInput, match="the last one of the file's partition is 9") as caught:
        check_reached(At(offset=10), 10)
    assert caught.value.field == "--at"
