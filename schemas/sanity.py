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
        return _event(record)
    if isinstance(record, job_facts.JobFact):
        check = _FACTS.get(type(record.payload))
        return check(record.payload) if check else ""
    if isinstance(record, tasks.Task):
        return _task(record)
    return ""


def _event(event: events.Event) -> str:
    payload = event.payload
    if events.TYPE_OF.get(type(payload)) is not event.event_type:
        return f"event_type {event.event_type} holds a {type(payload).__name__}"
    check = _PAYLOADS.get(type(payload))
    return (
        _workspace(event.workspace)
        or _not_negative("round", event.round)
        or _path("file_path", event.file_path)
        or (_paths("reads", [read.path for read in event.reads]) if event.reads else "")
        or (_changeset(event.changeset) if event.changeset is not None else "")
        or (_sha256("prompt_sha256", event.usage.prompt_sha256) if event.usage is not None else "")
        or (check(payload) if check else "")
    )


def _changeset(changeset: events.Changeset) -> str:
    claimed = [read.path for read in changeset.read_claims]
    return _paths("participants", changeset.participants) or _paths("read_claims", claimed)


def _patch(patch: events.Patch) -> str:
    for name, value in (("base_sha256", patch.base_sha256), ("result_sha256", patch.result_sha256)):
        if value is not None and (found := _sha256(name, value)):
            return found
    done = 0
    for hunk in patch.hunks:
        if hunk.start < done or hunk.removed < 0:
            return f"the hunk at line {hunk.start} is negative or overlaps the one before it"
        done = hunk.start + hunk.removed
    return ""


def _conflict(payload: Any) -> str:
    """A ConflictDetected event or a FileForked fact."""
    if any(not 0 <= part.start <= part.end for part in payload.overlaps):
        return "a line range of overlaps runs backwards"
    return _not_negative("attempt", payload.attempt)


_PAYLOADS: dict[type, Callable[[Any], str]] = {
    events.CodeGenerated: lambda payload: _patch(payload.patch),
    events.CodeModified: lambda payload: _patch(payload.patch),
    events.TestWritten: lambda payload: _patch(payload.patch) or _paths("covers", payload.covers),
    events.ConflictResolved: lambda payload: _patch(payload.patch),
    events.CodeReverted: lambda payload: _patch(payload.patch),
    events.FileImported: lambda payload: _patch(payload.patch),
    events.FileDeleted: lambda payload: _patch(payload.patch),
    events.ConflictDetected: _conflict,
    events.ResolutionFailed: lambda payload: _not_negative("attempt", payload.attempt),
    events.ReadNoted: lambda payload: _path("reader_path", payload.reader_path),
    events.ContextStale: lambda payload: _path("read_path", payload.read_path),
    events.RoundVoided: lambda payload: _not_negative("round", payload.round),
}


def _done(payload: job_facts.TaskDone) -> str:
    result = payload.result
    written = result.events if isinstance(result, job_facts.Worked) else ()
    return _not_negative("round", payload.round) or _paths("events", [event.path for event in written])


def _judgement(judgement: job_facts.Judgement) -> str:
    return _not_negative("round", judgement.round) or _path("path", judgement.path)


def _amounts(name: str, amounts: Any) -> str:
    fields: tuple[str, ...] = amounts.__struct_fields__
    return next(
        (f for field in fields if (f := _not_negative(f"{name}.{field}", getattr(amounts, field)))), ""
    )


_FACTS: dict[type, Callable[[Any], str]] = {
    job_facts.TaskDispatched: lambda payload: _not_negative(
        "round", min((payload.round, *(one.round for one in payload.also)))
    ),
    job_facts.DeadlinePassed: lambda payload: _not_negative("round", payload.round),
    job_facts.TaskDone: _done,
    job_facts.TaskFailed: lambda payload: _not_negative("round", payload.round),
    job_facts.CallBegun: lambda payload: (
        _not_negative("round", payload.round) or _amounts("worst", payload.worst)
    ),
    job_facts.CallEnded: lambda payload: _amounts("spent", payload.spent),
    job_facts.EventJudged: lambda payload: next(filter(None, map(_judgement, payload.judgements)), ""),
    job_facts.FileForked: lambda payload: _path("path", payload.path) or _conflict(payload),
    job_facts.FileSettled: lambda payload: _path("path", payload.path),
}


def _task(task: tasks.Task) -> str:
    work = task.work
    return (
        _workspace(task.workspace)
        or _not_negative("round", task.round)
        or (_path("path", task.path) if task.path else "")  # a task of the whole job has none
        or _paths("reads", task.reads)
        or (_paths("also", work.also) if isinstance(work, tasks.EditWork) else "")
        or (_path("test_path", work.test_path) if isinstance(work, tasks.TestWork) else "")
    )


def _paths(name: str, paths: Iterable[str]) -> str:
    return next((found for path in paths if (found := _path(name, path))), "") if paths else ""


def _path(name: str, path: str) -> str:
    return "" if is_normal(path) else f"{name}: {path[:200]!a} is not a normalised path"


def _sha256(name: str, value: str) -> str:
    return "" if _SHA256.match(value) else f"{name} is not a SHA-256 in lower-case hex"


def _not_negative(name: str, value: int) -> str:
    return f"{name} is negative" if value < 0 else ""


def _workspace(name: str) -> str:
    try:
        check_workspace(name)
    except BadInput as error:
        return str(error)
    return ""
