"""Reads nothing, writes nothing: what a well-typed record must fulfil besides, in any version.

Types say that a round is a number; these rules say that it is not negative. What breaks them is
garbage for every version: it is neither encoded nor accepted. A job's spec and a plan are not
judged here: they come from users and models, and are answered with a message, not a dead letter.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from codeconvoy.schemas import events, job_facts, tasks
from codeconvoy.schemas.dead_letters import DeadLetter
from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.paths import check_workspace, is_normal

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def problem(record: events.Event | job_facts.JobFact | tasks.Task | DeadLetter) -> str:
    """What is wrong with the record; empty where nothing is."""
    if isinstance(record, events.Event):
        return _first(_event(record))
    if isinstance(record, job_facts.JobFact):
        return _first(_fact(record.payload))
    if isinstance(record, tasks.Task):
        return _first(_task(record))
    return ""


def _first(problems: Iterable[str]) -> str:
    return next(iter(problems), "")


def _event(event: events.Event) -> Iterable[str]:
    payload = event.payload
    if events.TYPE_OF.get(type(payload)) is not event.event_type:
        yield f"event_type {event.event_type} holds a {type(payload).__name__}"
    yield from _workspace(event.workspace)
    yield from _not_negative("round", event.round)
    yield from _paths("file_path", [event.file_path])
    yield from _paths("reads", [read.path for read in event.reads])
    if event.changeset is not None:
        yield from _paths("participants", event.changeset.participants)
        yield from _paths("read_claims", [read.path for read in event.changeset.read_claims])
    if event.usage is not None:
        yield from _sha256("prompt_sha256", event.usage.prompt_sha256)
    check = _PAYLOADS.get(type(payload))
    if check:
        yield from check(payload)


def _patch(patch: events.Patch) -> Iterable[str]:
    for name, value in (("base_sha256", patch.base_sha256), ("result_sha256", patch.result_sha256)):
        if value is not None:
            yield from _sha256(name, value)
    done = 0
    for hunk in patch.hunks:
        if hunk.start < done or hunk.removed < 0:
            yield f"the hunk at line {hunk.start} is negative or overlaps the one before it"
        done = hunk.start + hunk.removed


def _conflict(payload: Any) -> Iterable[str]:
    """A ConflictDetected event or a FileForked fact."""
    yield from _not_negative("attempt", payload.attempt)
    if any(not 0 <= part.start <= part.end for part in payload.overlaps):
        yield "a line range of overlaps runs backwards"


_PAYLOADS: dict[type, Callable[[Any], Iterable[str]]] = {
    events.CodeGenerated: lambda payload: _patch(payload.patch),
    events.CodeModified: lambda payload: _patch(payload.patch),
    events.TestWritten: lambda payload: [*_patch(payload.patch), *_paths("covers", payload.covers)],
    events.ConflictResolved: lambda payload: _patch(payload.patch),
    events.CodeReverted: lambda payload: _patch(payload.patch),
    events.FileImported: lambda payload: _patch(payload.patch),
    events.FileDeleted: lambda payload: _patch(payload.patch),
    events.ConflictDetected: _conflict,
    events.ResolutionFailed: lambda payload: _not_negative("attempt", payload.attempt),
    events.ReadNoted: lambda payload: _paths("reader_path", [payload.reader_path]),
    events.ContextStale: lambda payload: _paths("read_path", [payload.read_path]),
    events.RoundVoided: lambda payload: _not_negative("round", payload.round),
}


def _fact(payload: job_facts.FactPayload) -> Iterable[str]:
    if isinstance(
        payload,
        job_facts.TaskDispatched
        | job_facts.DeadlinePassed
        | job_facts.TaskDone
        | job_facts.TaskFailed
        | job_facts.EventJudged,
    ):
        yield from _not_negative("round", payload.round)
    if isinstance(payload, job_facts.EventJudged | job_facts.FileForked | job_facts.FileSettled):
        yield from _paths("path", [payload.path])
    if isinstance(payload, job_facts.FileForked):
        yield from _conflict(payload)
    if isinstance(payload, job_facts.TaskDone) and isinstance(payload.result, job_facts.Worked):
        yield from _paths("events", [emitted.path for emitted in payload.result.events])


def _task(task: tasks.Task) -> Iterable[str]:
    yield from _workspace(task.workspace)
    yield from _not_negative("round", task.round)
    if task.path:  # a task of the whole job has none
        yield from _paths("path", [task.path])
    yield from _paths("reads", task.reads)
    if isinstance(task.work, tasks.EditWork):
        yield from _paths("also", task.work.also)
    elif isinstance(task.work, tasks.TestWork):
        yield from _paths("test_path", [task.work.test_path])


def _paths(name: str, paths: Iterable[str]) -> Iterable[str]:
    return (f"{name}: {path[:200]!a} is not a normalised path" for path in paths if not is_normal(path))


def _sha256(name: str, value: str) -> Iterable[str]:
    if not _SHA256.match(value):
        yield f"{name} is not a SHA-256 in lower-case hex"


def _not_negative(name: str, value: int) -> Iterable[str]:
    if value < 0:
        yield f"{name} is negative"


def _workspace(name: str) -> Iterable[str]:
    try:
        check_workspace(name)
    except BadInput as error:
        yield str(error)
