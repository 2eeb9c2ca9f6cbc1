"""Reads both logs and, for a branch, git; writes nothing: what stands behind one line of a file.

line → the edit that wrote it → its parents, its reviews, its tests → its task, agent and job, and
what the model call cost.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codeconvoy.orchestrator.log_reader import LogReader
from codeconvoy.orchestrator.past import Blame, FilePast, Moment, Text, inherited, past_and_blame, past_of
from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.events import ReviewSubmitted, TestExecuted
from codeconvoy.schemas.hunks import lines
from codeconvoy.schemas.job_fold import fold
from codeconvoy.schemas.job_state import JobState, TaskState
from codeconvoy.workers.git.selection import content_at
from codeconvoy.workers.git.source import open_source
from codeconvoy.workers.git.trailers import newest_events

MAX_ANCESTORS = 20


@dataclass(frozen=True, slots=True)
class Because:
    """Why a line is as it is."""

    path: str
    line: int
    """From 1."""
    text: bytes
    version: str
    """The version that was asked about: an event, which holds the line."""
    edit: Moment
    """The edit that wrote the line."""
    verdict: str
    merges: tuple[Moment, ...]
    """Resolutions that carried the line into that version, in log order."""
    ancestors: tuple[Moment, ...]
    """Its parents, theirs, and so on: the nearest first, at most `MAX_ANCESTORS`."""
    reviews: tuple[Moment, ...]
    """Votes on versions that hold the edit."""
    tests: tuple[Moment, ...]
    """Runs of tests that read versions that hold the edit."""
    job: JobState | None
    task: TaskState | None


@dataclass(frozen=True, slots=True)
class Branch:
    """A version of the file as a branch holds it."""

    name: str
    commit: str
    event: str
    """The edit that codeconvoy committed last; empty: it never did."""
    content: bytes


def read_branch(repository: Path, name: str, path: str, cache: Path) -> Branch:
    """What a branch of a local repository holds of a file.

    Raises:
        BadInput: there is no such repository, branch or file.
    """
    source = open_source(str(repository), name, cache)
    file = content_at(source, path)
    if file is None:
        raise BadInput("FILE", f"{name} holds no {path}", "Give a path from the root of the repository")
    event = newest_events(source.repo, source.commit, [path]).get(path, "")
    return Branch(name, source.commit, event, file.content)


async def because(
    log: LogReader, workspace: str, path: str, line: int, branch: Branch | None = None
) -> Because:
    """Walk from a line to its causes.

    Args:
        log: both logs.
        workspace: the file's workspace.
        path: the file.
        line: from 1.
        branch: the version that is meant; None: what readers see now.

    Raises:
        BadInput: there is no such file or line, or none of ours wrote it.
    """
    keep = branch.event if branch else ""
    past, blame = await past_and_blame(log.file_events(workspace, path), workspace, path, keep)
    version = branch.event if branch else past.history.visible
    text = _text_of(past, blame, version, branch)
    content = lines(text.content)
    if not 1 <= line <= len(content):
        raise BadInput("LINE", f"{path} has {len(content)} lines", "Lines count from 1")
    owner = text.owners[line - 1]
    moments = past.by_id()
    if owner not in moments:
        where = f"{branch.name} ({branch.commit[:12]})" if branch else path
        raise BadInput("LINE", f"line {line} of {where} was not written by codeconvoy", "See `git blame`")
    edit = moments[owner]
    carriers = _carriers(past, owner)
    job, task = await _job_of(log, edit)
    return Because(
        path=path,
        line=line,
        text=content[line - 1],
        version=version,
        edit=edit,
        verdict=str(past.verdicts[owner].kind),
        merges=tuple(
            moments[event_id]
            for event_id in _on_the_way(past, moments, owner, version)
            if len(moments[event_id].event.parent_event_ids) > 1 and event_id != owner
        ),
        ancestors=_ancestors(moments, owner),
        reviews=tuple(
            moment
            for moment in past.moments
            if isinstance(moment.event.payload, ReviewSubmitted) and moment.event.payload.version in carriers
        ),
        tests=await _tests_of(log, workspace, path, job, carriers),
        job=job,
        task=task,
    )


def _text_of(past: FilePast, blame: Blame, version: str, branch: Branch | None) -> Text:
    text = blame.texts.get(version)
    if text is None and branch is None:
        raise BadInput("FILE", f"the log has no {past.history.path}", "`convoy jobs` shows what there is")
    if branch is None:
        assert text is not None
        return text
    owners = inherited(text, branch.content) if text else [None] * len(lines(branch.content))
    return Text(branch.content, tuple(owner or "" for owner in owners))


def _carriers(past: FilePast, owner: str) -> frozenset[str]:
    """The edit and all live edits that descend from it."""
    found = {owner}
    for moment in past.moments:
        event = moment.event
        if past.is_live(event.event_id) and not found.isdisjoint(event.parent_event_ids):
            found.add(event.event_id)
    return frozenset(found)


def _on_the_way(past: FilePast, moments: Mapping[str, Moment], owner: str, version: str) -> Sequence[str]:
    """The live edits between the owner and the version, in log order."""
    carriers = _carriers(past, owner)
    found: set[str] = set()
    stack = [version]
    while stack:
        event_id = stack.pop()
        if event_id in carriers and event_id not in found and event_id in moments:
            found.add(event_id)
            stack.extend(moments[event_id].event.parent_event_ids)
    return sorted(found, key=lambda event_id: moments[event_id].offset)


def _ancestors(moments: Mapping[str, Moment], owner: str) -> tuple[Moment, ...]:
    found: dict[str, Moment] = {}
    queue = deque(moments[owner].event.parent_event_ids)
    while queue and len(found) < MAX_ANCESTORS:
        event_id = queue.popleft()
        if event_id in moments and event_id not in found:
            found[event_id] = moments[event_id]
            queue.extend(moments[event_id].event.parent_event_ids)
    return tuple(found.values())


async def _job_of(log: LogReader, edit: Moment) -> tuple[JobState | None, TaskState | None]:
    """The job and the task of an edit, as the job's log folds."""
    job = JobState(job_id=edit.event.job_id)
    async for _, fact in log.job_facts(edit.event.job_id):
        job, _ = fold(job, fact)
    if job.spec is None:
        return None, None
    return job, job.tasks.get(edit.event.task_id)


async def _tests_of(
    log: LogReader, workspace: str, path: str, job: JobState | None, versions: frozenset[str]
) -> tuple[Moment, ...]:
    """Runs of the tests that the job has for the file, on versions that hold the edit."""
    units = job.units.values() if job else ()
    found: list[Moment] = []
    for test_path in sorted({unit.test_path for unit in units if unit.path == path and unit.test_path}):
        past = await past_of(log.file_events(workspace, test_path), workspace, test_path)
        found += [
            moment
            for moment in past.moments
            if isinstance(moment.event.payload, TestExecuted)
            and any(read.path == path and read.event_id in versions for read in moment.event.reads)
        ]
    return tuple(found)
