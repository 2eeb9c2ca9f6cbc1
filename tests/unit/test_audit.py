"""A whole fleet in memory does a job whose edits fork; the audit is clean, and finds each planted fault."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from codeconvoy.orchestrator.audit import audit
from codeconvoy.orchestrator.audit_jobs import Claims, JobsAudit, Publication
from codeconvoy.orchestrator.audit_report import Check, Counts, Findings, Report, Unreadable
from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.events import Event, Strategy
from codeconvoy.schemas.job_facts import (
    CancelRequested,
    Emitted,
    EventJudged,
    JobFact,
    JobFinished,
    JobStatus,
    JobSubmitted,
    TaskDone,
    VerdictKind,
    Worked,
)
from codeconvoy.schemas.job_spec import JobSpec, Pipeline
from codeconvoy.schemas.job_state import JobState, TaskStatus
from codeconvoy.schemas.topics import file_key, partition_of
from codeconvoy.workers.engine.bus import Outgoing, TopicPartition
from codeconvoy.workers.engine.state import MemoryStore, Write
from codeconvoy.workers.projection import Standing
from codeconvoy.workers.roles.role import Answer, Context, Role, RoleKind, Vote
from tests.git_repos import commit, git, repository
from tests.memory_fleet import CODEC, MemoryFleet, approving, replacing

FILES = {
    "a.txt": b"one\n\ntwo\n\nthree\n\nfour\n",
    "b.txt": b"one\n\ntwo\n\nthree\n\nfour\n",
    "untouched.txt": b"nothing here\n",
}


def away(context: Context) -> Answer:
    """An agent whose model does not answer: its tasks wait."""
    raise Unavailable("model", "it does not answer", "Wait")


AGENTS = {
    "ones": replacing(b"one", b"1"),
    "fours": replacing(b"four", b"4"),
    "ichi": replacing(b"one", b"ichi"),
    "reviewer": approving,
    "away": away,
}


Plant = Callable[[MemoryFleet, JobState], Awaitable[None]]


def spec_of(repo: Path) -> JobSpec:
    return JobSpec(
        repository=str(repo),
        workspace="w",
        goal="digits",
        files=("*.txt",),
        pipeline=Pipeline(generate=("ones", "fours", "ichi"), review=("reviewer",), test=()),
        together=True,
        strategies=(Strategy.THREE_WAY, Strategy.REWORK),
    )


def audited(tmp_path: Path, plant: Plant | None = None, job: str = "") -> Report:
    """The report on a fleet that did its job, after something was done to what it left behind."""

    async def run() -> Report:
        repo = repository(tmp_path / "repo", FILES)
        fleet = MemoryFleet(AGENTS, tmp_path / "cache")
        async with fleet.running():
            state = await fleet.do("job-1", spec_of(repo))
            assert state.status is JobStatus.SUCCEEDED, state.reason
            await fleet.settle()
        if plant is not None:
            await plant(fleet, state)
        return await audit(fleet.sources(), job)

    return asyncio.run(run())


def checks(report: Report) -> dict[Check, int]:
    return dict(report.findings.by_check)


async def overwrite(store: MemoryStore, partition: int, name: str, value: bytes | None) -> None:
    """Change one field of a projection, as no projector would."""
    at = await store.take(partition, "vandal")
    await store.commit("vandal", [Write(partition, at, at, {name: value})])


async def field_of(fleet: MemoryFleet, prefix: str) -> tuple[int, str, bytes]:
    """The first field of the projection of files that begins so."""
    for partition in range(fleet.topics.partitions):
        async for name, value in fleet.store("files").scan(partition, prefix):
            return partition, name, value
    raise AssertionError(f"no field begins with {prefix}")


async def events_of(fleet: MemoryFleet, path: str) -> list[Event]:
    key = file_key("w", path)
    at = TopicPartition(fleet.topics.events, partition_of(key, fleet.topics.partitions))
    records = await fleet.bus.reader().read(at, 0, 1000, 1.0)
    return [CODEC.decode(record.value, Event) for record in records if record.key == key]


def test_a_job_in_the_middle_is_clean_and_workers_know_where_it_stands(tmp_path: Path) -> None:
    standings: list[Standing | None] = []

    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        spec = msgspec.structs.replace(spec_of(tmp_path / "repo"), workspace="other")
        waiting = msgspec.structs.replace(spec, pipeline=Pipeline(generate=("away",), review=(), test=()))
        async with fleet.running():
            await fleet.tell("job-2", JobSubmitted(spec=waiting))
            await fleet.until(lambda: handed_out(fleet))
        state = await fleet.projection().job("job-2")
        assert state is not None
        for task_id in state.tasks:
            standings.append(await fleet.projection().standing("job-2", task_id))

    async def handed_out(fleet: MemoryFleet) -> bool:
        state = await fleet.projection().job("job-2")
        return state is not None and any(one.task.role == "away" for one in state.tasks.values())

    report = audited(tmp_path, plant)
    assert checks(report) == {}, report.findings.kept
    assert {one and one.job for one in standings} == {JobStatus.RUNNING}
    assert [one and one.task for one in standings] == [TaskStatus.DONE] + 3 * [TaskStatus.DISPATCHED]


def test_what_a_fleet_did_is_clean(tmp_path: Path) -> None:
    report = audited(tmp_path)
    assert checks(report) == {}, report.findings.kept
    assert report.clean
    counts = report.counts
    assert counts.forks == 4, "two of the three edits of two files, whatever their order"
    assert counts.edits["invalid"] == counts.edits["deferred"] == 0
    assert counts.overlapping >= 2
    assert sum(counts.resolved.values()) >= 2
    assert counts.jobs == {"succeeded": 1}
    assert (counts.branches, counts.files) == (1, 3)
    assert counts.commits >= 4
    assert counts.fields > 20


def test_one_job_is_audited_alone(tmp_path: Path) -> None:
    report = audited(tmp_path, job="job-1")
    assert report.clean, report.findings.kept
    assert (report.counts.branches, report.counts.files) == (1, 3)


def test_an_edit_that_the_projection_lost(tmp_path: Path) -> None:
    lost: list[str] = []

    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        partition, name, value = await field_of(fleet, "e:w:a.txt")
        lost.append(msgspec.msgpack.decode(value)["event_id"])
        await overwrite(fleet.store("files"), partition, name, None)

    report = audited(tmp_path, plant)
    assert checks(report) == {Check.PROJECTION: 1}
    [found] = report.findings.kept
    assert (found.where, found.ids) == ("w:a.txt", tuple(lost))
    assert "is missing" in found.what


def test_a_byte_of_the_projection_that_changed(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        partition, name, value = await field_of(fleet, "e:w:b.txt")
        await overwrite(fleet.store("files"), partition, name, value[:-1] + bytes([value[-1] ^ 1]))

    for job in ("", "job-1"):
        report = audited(tmp_path / (job or "all"), plant, job)
        assert checks(report) == {Check.PROJECTION: 1}
        assert "differs" in report.findings.kept[0].what


def test_an_open_conflict_that_the_projection_does_not_list(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        edit = next(event for event in await events_of(fleet, "a.txt") if event.role == "ones")
        async with fleet.running(without="detector"):
            await fleet.append(msgspec.structs.replace(edit, event_id="fork", task_id="t", job_id=""))
        partition, name, _ = await field_of(fleet, "!conflict:")
        await overwrite(fleet.store("files"), partition, name, None)

    report = audited(tmp_path, plant)
    assert checks(report) == {Check.PROJECTION: 1}
    assert "conflict:w:a.txt' is missing" in report.findings.kept[0].what


def test_a_field_that_nobody_wrote(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        await overwrite(fleet.store("jobs"), 0, "j:ghost", b"x")

    report = audited(tmp_path, plant)
    assert checks(report) == {Check.PROJECTION: 1}
    assert "not on the log" in report.findings.kept[0].what


def test_a_projection_that_is_gone(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        fleet.store("files").lose()

    report = audited(tmp_path, plant)
    assert checks(report) == {Check.PROJECTION: 2}, "one for each partition"
    assert "convoy projector" in report.findings.kept[0].what


def test_a_job_in_the_projection_that_changed(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        partition = partition_of("job-1", fleet.topics.partitions)
        await overwrite(fleet.store("jobs"), partition, "j:job-1", b"vandalised")

    report = audited(tmp_path, plant, job="job-1")
    assert checks(report) == {Check.PROJECTION: 1}
    assert report.findings.kept[0].where == "job-1"


def test_a_redelivered_event_is_no_difference(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        async with fleet.running():
            await fleet.append(*await events_of(fleet, "a.txt"))

    report = audited(tmp_path, plant)
    assert report.clean, report.findings.kept
    assert report.counts.redelivered > 3


def test_a_second_effect_of_one_round(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        events = await events_of(fleet, "a.txt")
        edit = next(event for event in events if event.role == "ones")
        async with fleet.running():
            await fleet.append(msgspec.structs.replace(edit, event_id="twin"))

    report = audited(tmp_path, plant)
    assert checks(report) == {Check.DOUBLED: 1}
    assert "two live edits" in report.findings.kept[0].what


def test_a_parent_that_comes_after_its_child(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        edit = next(event for event in await events_of(fleet, "a.txt") if event.role == "ones")
        child = msgspec.structs.replace(edit, event_id="child", task_id="t1", parent_event_ids=("parent",))
        parent = msgspec.structs.replace(edit, event_id="parent", task_id="t2")
        async with fleet.running():
            await fleet.append(child, parent)

    report = audited(tmp_path, plant)
    assert checks(report) == {Check.ORDER: 1}
    assert report.findings.kept[0].ids == ("parent",)


def test_a_verdict_that_nobody_reported(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        edit = next(event for event in await events_of(fleet, "a.txt") if event.role == "ones")
        late = msgspec.structs.replace(edit, event_id="late", task_id="t1", parent_event_ids=("nowhere",))
        async with fleet.running(without="detector"):
            await fleet.append(late)

    report = audited(tmp_path, plant)
    assert checks(report) == {Check.VERDICT: 1}
    assert report.findings.kept[0].ids == ("late",)
    assert "invalid was not reported" in report.findings.kept[0].what


def test_a_verdict_that_was_reported_otherwise(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        edit = next(event for event in await events_of(fleet, "a.txt") if event.role == "ones")
        lie = EventJudged(
            event_id=edit.event_id,
            task_id=edit.task_id,
            round=1,
            path="a.txt",
            verdict=VerdictKind.INVALID,
            partition=partition_of("w:a.txt", fleet.topics.partitions),
            offset=0,
        )
        async with fleet.running():
            await fleet.tell("job-1", lie)

    report = audited(tmp_path, plant)
    assert checks(report) == {Check.VERDICT: 1}
    assert "is not what the log folds to" in report.findings.kept[0].what


def test_an_event_that_a_task_speaks_of_and_never_wrote(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        task = next(iter(job.tasks))
        worked = Worked(events=(Emitted(path="a.txt", event_id="never", is_edit=True),))
        async with fleet.running():
            await fleet.tell("job-1", TaskDone(task_id=task, round=1, agent_id="x", result=worked))

    report = audited(tmp_path, plant)
    assert checks(report) == {Check.LOST: 1}
    assert report.findings.kept[0].ids == ("never",)


def test_a_job_that_is_said_to_have_ended(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        said = JobFinished(status=JobStatus.FAILED, reason="no")
        async with fleet.running():
            await fleet.tell("job-1", said)

    report = audited(tmp_path, plant)
    assert checks(report) == {Check.DOUBLED: 1}
    assert "again as failed" in report.findings.kept[0].what


def test_a_branch_that_was_rewritten(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        assert job.published is not None
        repo = tmp_path / "repo"
        git(repo, "checkout", "--quiet", job.published.branch)
        git(repo, "reset", "--quiet", "--hard", "HEAD~1")
        commit(repo, {"a.txt": b"vandalised\n"})

    report = audited(tmp_path, plant)
    assert checks(report) == {Check.BRANCH: 1}
    assert "does not hold" in report.findings.kept[0].what


def test_commits_of_the_user_on_top_are_no_difference(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        assert job.published is not None
        git(tmp_path / "repo", "checkout", "--quiet", job.published.branch)
        commit(tmp_path / "repo", {"a.txt": b"mine\n"})

    assert audited(tmp_path, plant).clean


def test_a_repository_that_is_gone(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        (tmp_path / "repo").rename(tmp_path / "elsewhere")

    assert checks(audited(tmp_path, plant)) == {Check.BRANCH: 1}


AGAIN = Pipeline(generate=("ones", "fours"), review=("reviewer",), test=())


def refusing(context: Context) -> Answer:
    """A reviewer who likes nothing."""
    return Vote(approved=False, comments=("no",))


class FleetThatIdles(MemoryFleet):
    """A fleet whose role `idle` never does its tasks, so that its jobs run until they are cancelled."""

    @property
    def roles(self) -> Mapping[str, Role]:
        return {**super().roles, "critic": Role("critic", RoleKind.REVIEW, "critic", "test")}

    def _pool(self, role: str) -> Any:
        return Idle() if role == "idle" else super()._pool(role)


class Idle:
    async def run(self, stop: asyncio.Event) -> None:
        await stop.wait()


def test_a_job_that_is_run_again_and_finds_nothing_to_do(tmp_path: Path) -> None:
    async def run() -> Report:
        spec = msgspec.structs.replace(
            spec_of(repository(tmp_path / "repo", FILES)), together=False, pipeline=AGAIN
        )
        fleet = MemoryFleet(AGENTS, tmp_path / "cache")
        async with fleet.running():
            first, second = await fleet.do("job-1", spec), await fleet.do("job-2", spec)
            await fleet.settle()
        assert first.published is not None and second.published is not None
        assert second.published.commits == first.published.commits == 4, "what the first did, once more"
        assert second.tally.edits == 0
        return await audit(fleet.sources())

    report = asyncio.run(run())
    assert report.clean, report.findings.kept
    assert (report.counts.branches, report.counts.commits) == (2, 8)


def test_what_was_on_the_log_when_a_job_began_is_told_of_its_branch(tmp_path: Path) -> None:
    async def run() -> tuple[JobState, list[Publication]]:
        spec = msgspec.structs.replace(
            spec_of(repository(tmp_path / "repo", FILES)), together=False, pipeline=AGAIN
        )
        fleet = MemoryFleet(AGENTS, tmp_path / "cache")
        async with fleet.running():
            first, _ = await fleet.do("job-1", spec), await fleet.do("job-2", spec)
            await fleet.settle()
        jobs = JobsAudit(CODEC, Findings(), Counts(), Claims(), unreadable=Unreadable(), only="job-2")
        at = TopicPartition(fleet.topics.jobs, partition_of("job-2", fleet.topics.partitions))
        for record in await fleet.bus.reader().read(at, 0, 1000, 1.0):
            jobs.feed(record)
        return first, jobs.finish()

    first, [second] = asyncio.run(run())
    assert second.seen == {}, "it was told nothing of its files"
    assert first.imported is not None
    imported = {file.path: file.event_id for file in first.imported.files}
    for path in ("a.txt", "b.txt"):
        assert second.begun_with[path] == {imported[path], first.files[path].visible} - {""}
        assert len(second.begun_with[path]) == 2, "the import, and what the first job made of it"


def test_a_cancelled_job_that_only_watched_others_work(tmp_path: Path) -> None:
    agents = {**AGENTS, "idle": replacing(b"", b""), "critic": refusing}

    async def run() -> Report:
        spec = msgspec.structs.replace(
            spec_of(repository(tmp_path / "repo", FILES)), together=False, pipeline=AGAIN
        )
        refused = Pipeline(generate=("ichi",), review=("critic",), test=())
        slow = Pipeline(generate=("idle",), review=("reviewer",), test=())
        fleet = FleetThatIdles(agents, tmp_path / "cache")
        async with fleet.running():
            first = await fleet.do("job-1", msgspec.structs.replace(spec, pipeline=refused))
            assert first.tally.rejections > 0
            await fleet.tell("job-2", JobSubmitted(spec=msgspec.structs.replace(spec, pipeline=slow)))
            await fleet.until(partial(has_imported, fleet, "job-2"))
            await fleet.do("job-3", spec)
            await fleet.tell("job-2", CancelRequested(requested_by="me"))
            cancelled = await fleet.end_of("job-2")
            await fleet.settle()
        assert cancelled.status is JobStatus.CANCELLED
        assert cancelled.published is not None and cancelled.published.commits > 0
        return await audit(fleet.sources())

    report = asyncio.run(run())
    assert report.clean, report.findings.kept
    assert report.counts.branches == 3


async def has_imported(fleet: MemoryFleet, job_id: str) -> bool:
    job = await fleet.projection().job(job_id)
    return job is not None and job.imported is not None


def test_garbage_has_a_dead_letter(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        async with fleet.running():
            await fleet.write(Outgoing(fleet.topics.events, "w:a.txt", b"garbage"))

    report = audited(tmp_path, plant)
    assert report.clean, report.findings.kept
    assert (report.counts.garbage, report.counts.dead_letters) == (1, 2), "one letter a consumer group"


def test_a_fact_under_a_wrong_key_is_garbage(tmp_path: Path) -> None:
    async def plant(fleet: MemoryFleet, job: JobState) -> None:
        fact = JobFact(
            fact_id="f",
            job_id="job-1",
            timestamp=0,
            source="x",
            payload=JobFinished(status=JobStatus.FAILED, reason="no"),
        )
        async with fleet.running():
            await fleet.write(Outgoing(fleet.topics.jobs, "job-2", CODEC.encode(fact)))

    report = audited(tmp_path, plant)
    assert report.clean, report.findings.kept
    assert (report.counts.garbage, report.counts.dead_letters) == (1, 2), "one letter a consumer group"
