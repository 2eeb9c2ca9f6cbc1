"""Reads a job's repository, writes `jobs`: what a client does about a job.

Everything that can be wrong with a job is found here, before a word is on the log; the
orchestrator checks once more, since a record may come from any language.
"""

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pygit2
from opentelemetry.trace import SpanKind

from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.orchestrator.job_file import check, job_id_for, load
from codeconvoy.schemas import ids
from codeconvoy.schemas.errors import Aborted, BadInput
from codeconvoy.schemas.job_facts import (
    CancelRequested,
    FactPayload,
    Imported,
    ImportedFile,
    JobFact,
    JobSubmitted,
)
from codeconvoy.schemas.job_plan import planned_tasks
from codeconvoy.schemas.job_spec import JobSpec, TaskSpec, complete
from codeconvoy.schemas.job_state import JobState
from codeconvoy.schemas.job_step import Step
from codeconvoy.schemas.topics import MAX_TASKS_PER_JOB
from codeconvoy.workers.engine.bus import Outgoing
from codeconvoy.workers.git import trailers
from codeconvoy.workers.git.publish import check_movable, checked_out
from codeconvoy.workers.git.selection import Selection, Skipped, select
from codeconvoy.workers.git.source import Local, Source, locate, open_source
from codeconvoy.workers.roles.role import Role

SOURCE = "client"
ATTEMPTS = 3
"""Of one transaction."""
OWN_BRANCH = "convoy/…"
"""Of a job that names none: it ends with the job's id, which is not there before the job is submitted."""
_PATHS = re.compile(r"paths\[(\d+)\]\Z")


@dataclass(frozen=True, slots=True)
class Preview:
    """What would be planned if the job were submitted now."""

    spec: JobSpec
    """With its workspace, and the repository as a worker finds it."""
    commit: str
    files: tuple[str, ...]
    absent: tuple[str, ...]
    """Named paths that the commit does not have: they may be created."""
    skipped: tuple[Skipped, ...]
    tasks: tuple[TaskSpec, ...]
    """Of the first stage; empty where a planner will say."""


def preview(path: Path, roles: Mapping[str, Role], cache: Path) -> Preview:
    """Check a job file against its repository, and see what it comes to.

    Raises:
        BadInput: the job can't be done; names the field.
        Unavailable: the repository's server does not answer.
    """
    spec = complete(load(path))
    check(spec, roles)
    source = _open(spec, cache)
    if isinstance(source.location, Local):
        check_free(source, spec.branch)
    selection = _select(spec, lambda paths: select(source, spec.files, spec.exclude, paths))
    tasks = () if spec.planner else _tasks(spec, selection, source.commit)
    if not tasks and not spec.planner:
        raise BadInput("files", "nothing to do: no file and no task was found", "Choose other files")
    if len(tasks) > MAX_TASKS_PER_JOB:
        reason = f"{len(tasks)} tasks (files × roles) are more than {MAX_TASKS_PER_JOB}"
        raise BadInput("files", reason, "Narrow the globs, or make several jobs of it")
    files = tuple(file.path for file in selection.files)
    return Preview(spec, source.commit, files, selection.absent, selection.skipped, tasks)


def _open(spec: JobSpec, cache: Path) -> Source:
    """The job's repository; a local one that can't be opened is refused with what can be done about it."""
    try:
        return open_source(spec.repository, spec.ref, cache)
    except BadInput as bad:
        location = locate(spec.repository)
        if bad.field != "repository" or not isinstance(location, Local):
            raise
        if (more := _unopened(location.path, bad.reason)) is not None:
            raise more from bad
        raise


def _unopened(path: Path, reason: str) -> BadInput | None:
    """Why a path is not taken for a repository, where more can be told than the reason that was given."""
    try:
        inside = pygit2.discover_repository(str(path))
        if inside is None:
            return None
        around = pygit2.Repository(inside)
    except pygit2.GitError as error:
        if "object format" not in str(error):
            return None
        said = f"the repository at {path} has SHA-256 objects, which are not supported yet"
        return BadInput("repository", said, "Use one with SHA-1 objects, which are git's default")
    except (KeyError, ValueError):
        return None
    root = Path(around.workdir or around.path)
    return BadInput("repository", reason, f"Name the root of the repository around it ({root})")


def check_free(source: Source, branch: str) -> None:
    """See that the result of a job can be put on its branch, as far as that can be told before it is there:
    whoever publishes it would refuse in the same words, after all the work is paid for.

    Args:
        source: a local repository, at the commit that the job starts from.
        branch: the one that the job names; empty: one of ours is made, named after the job.

    Raises:
        BadInput: it is checked out, has commits of others, or can't be beside another one.
    """
    repo, name = source.repo, branch or OWN_BRANCH
    full = f"refs/heads/{name}"
    try:
        current = repo.references.get(full)
        if (beside := _in_the_way(repo, full)) is not None:
            reason = (
                f"{name!r} can't be written: {beside!r} is there, and one would be a directory of the other"
            )
            raise BadInput("branch", reason, "Choose another branch")
        if current is None:
            if not repo.is_bare and repo.head_is_unborn and repo.lookup_reference("HEAD").target == full:
                raise checked_out(name)
            return
        found = repo.lookup_branch(name)
        if found is not None and not repo.is_bare and found.is_checked_out():
            raise checked_out(name)
        # An earlier job's commits are not in the way where this one builds on its edits, which nobody knows
        # yet: all that are ours are taken for such.
        target = str(current.resolve().target)
        beyond = [
            trailers.of_commit(commit) for commit in trailers.commits_between(repo, source.commit, target)
        ]
        ours = frozenset[str]().union(*(each.edits for each in beyond if each is not None))
        check_movable(repo, name, source.commit, target, source.commit, ours)
    except (pygit2.GitError, KeyError, ValueError, OSError) as error:
        raise BadInput("branch", f"{name!r} can't be written: {error}", "Choose another branch") from error


def _in_the_way(repo: pygit2.Repository, full: str) -> str | None:
    """A branch that can't be there together with one of this name: git keeps them as files in directories."""
    for other in repo.references:
        if other.startswith(f"{full}/") or full.startswith(f"{other}/"):
            return other.removeprefix("refs/heads/")
    return None


def _select(spec: JobSpec, choose: Callable[[Sequence[str]], Selection]) -> Selection:
    """The job's files. A complaint about the i-th path names the task that it is of."""
    fields: dict[str, str] = {}
    for i, task in enumerate(spec.tasks):
        fields.setdefault(task.path, f"tasks[{i}].path")
        for name, paths in (("also", task.also), ("reads", task.reads)):
            for j, path in enumerate(paths):
                fields.setdefault(path, f"tasks[{i}].{name}[{j}]")
    named = sorted(fields)
    try:
        return choose(named)
    except BadInput as bad:
        if found := _PATHS.match(bad.field):
            raise BadInput(fields[named[int(found[1])]], bad.reason, bad.remedy) from bad
        raise


def _tasks(spec: JobSpec, selection: Selection, commit: str) -> tuple[TaskSpec, ...]:
    """The first stage's tasks, by the rule of the job fold itself."""
    there = tuple(ImportedFile(path=file.path, event_id="there") for file in selection.files)
    absent = tuple(ImportedFile(path=path, event_id="") for path in selection.absent)
    imported = Imported(commit=commit, files=there + absent)
    return planned_tasks(Step(JobState(job_id="preview", spec=spec, imported=imported)))


async def submit(fleet: Fleet, spec: JobSpec, submitted_by: str) -> str:
    """Put a job on the log; answers its id.

    Raises:
        Unavailable: the broker can't be reached.
        TooLarge: the job does not fit a record.
    """
    nonce = uuid.uuid4().hex
    job_id = job_id_for(spec, nonce)
    told = {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": fleet.topics.jobs,
        "convoy.job.id": job_id,
    }
    with fleet.tracing.begin("convoy.submit", {}, SpanKind.PRODUCER, told):
        await say(fleet, job_id, JobSubmitted(spec=spec, submitted_by=submitted_by), nonce)
    return job_id


async def cancel(fleet: Fleet, job_id: str, requested_by: str, reason: str) -> None:
    """Ask for a job to end now.

    Raises:
        Unavailable: the broker can't be reached.
    """
    await say(fleet, job_id, CancelRequested(requested_by=requested_by, reason=reason), uuid.uuid4().hex)


async def say(fleet: Fleet, job_id: str, payload: FactPayload, nonce: str) -> None:
    """Write one fact about a job."""
    fact = JobFact(
        fact_id=ids.derived("fact", job_id, type(payload).__name__, nonce),
        job_id=job_id,
        timestamp=fleet.now(),
        source=SOURCE,
        payload=payload,
    )
    fact_record = Outgoing(fleet.topics.jobs, job_id, fleet.codec.encode(fact))
    await write(fleet, fleet.tracing.stamped([fact_record]))


async def write(fleet: Fleet, outputs: Sequence[Outgoing]) -> None:
    """Write records as a client, all or none. A transaction that the broker aborted is tried again.

    Raises:
        Unavailable: the broker can't be reached.
        TooLarge: a record is over the cap.
    """
    producer = await fleet.bus.producer(f"{fleet.topics.group(SOURCE)}.{uuid.uuid4().hex}")
    try:
        for attempt in range(ATTEMPTS):
            try:
                await producer.transaction(outputs)
                return
            except Aborted:
                if attempt + 1 == ATTEMPTS:
                    raise
    finally:
        await producer.close()
