"""Reads nothing, writes nothing: the beginning of a job, from its submission to its units.

submitted → import (git in) → [plan → import what the plan adds] → units
"""

import msgspec

from codeconvoy.schemas import ids
from codeconvoy.schemas.job_facts import Imported, JobStatus, JobSubmitted, Planned
from codeconvoy.schemas.job_spec import TaskKind, TaskSpec, complete
from codeconvoy.schemas.job_stages import start_units
from codeconvoy.schemas.job_state import GIT_ROLE
from codeconvoy.schemas.job_step import Step
from codeconvoy.schemas.tasks import ImportWork, PlanWork
from codeconvoy.schemas.test_paths import test_path_for
from codeconvoy.schemas.topics import MAX_TASKS_PER_JOB


def on_submitted(step: Step, fact: JobSubmitted, timestamp: int) -> None:
    """The job begins: its repository is read."""
    spec = complete(fact.spec)
    step.change(spec=spec, submitted_at=timestamp, status=JobStatus.RUNNING)
    _import(
        step,
        spec.files,
        tuple(sorted({p for task in spec.tasks for p in (task.path, *task.also, *task.reads)})),
    )


def _import(step: Step, files: tuple[str, ...], paths: tuple[str, ...]) -> None:
    spec = step.spec
    tests = bool(spec.pipeline.test) or any(task.kind is TaskKind.TEST for task in spec.tasks)
    work = ImportWork(
        repository=spec.repository,
        ref=spec.ref if step.job.imported is None else step.job.imported.commit,
        files=files,
        exclude=spec.exclude,
        paths=paths,
        test_directory=spec.test_directory if tests else "",
    )
    ordinal = 0 if step.job.imported is None else 1
    step.send(ids.task_id(step.job.job_id, "import", GIT_ROLE, "", ordinal), GIT_ROLE, "", work)


def on_imported(step: Step, fact: Imported) -> None:
    """The repository was read: plan, or begin."""
    before = step.job.imported
    if before is not None:
        fact = msgspec.structs.replace(
            before, files=before.files + fact.files, skipped=before.skipped + fact.skipped
        )
    step.change(imported=fact)
    for file in fact.files:
        if step.file(file.path).offset < 0:  # what the detector says is newer than what was read
            step.put_file(file.path, visible=file.visible or file.event_id)
    if step.spec.planner and step.job.planned is None:
        roles = tuple(dict.fromkeys(step.spec.pipeline.generate))
        work = PlanWork(files=tuple(file.path for file in fact.files if file.event_id), roles=roles)
        task_id = ids.task_id(step.job.job_id, "plan", step.spec.planner, "")
        step.send(task_id, step.spec.planner, "", work)
        return
    _begin(step)


def on_planned(step: Step, fact: Planned) -> None:
    """The planner has answered: import what it names besides, then begin."""
    step.change(planned=fact)
    assert step.job.imported is not None, "planned after the import"
    known = {file.path for file in step.job.imported.files}
    unknown = sorted({p for task in fact.tasks for p in (task.path, *task.also, *task.reads)} - known)
    if unknown:
        _import(step, (), tuple(unknown))
    else:
        _begin(step)


def planned_tasks(step: Step) -> tuple[TaskSpec, ...]:
    """The tasks of the first stage: the planner's, the listed ones, or one for each role and file."""
    spec, imported = step.spec, step.job.imported
    assert imported is not None, "planned after the import"
    if step.job.planned is not None:
        return step.job.planned.tasks
    tests = {test_path_for(file.path, spec.test_directory) for file in imported.files}
    named = {path for task in spec.tasks for path in (task.path, *task.also, *task.reads)}
    matched = [
        file.path
        for file in imported.files
        if file.event_id and file.path not in named and not (spec.pipeline.test and file.path in tests)
    ]
    return spec.tasks + tuple(
        TaskSpec(role=role, path=path) for path in matched for role in spec.pipeline.generate if spec.files
    )


def _begin(step: Step) -> None:
    specs = planned_tasks(step)
    assert step.job.imported is not None, "begins after the import"
    if not specs:
        step.ends(JobStatus.FAILED, "nothing to do: no file and no task was found")
    elif len(specs) > MAX_TASKS_PER_JOB:
        step.ends(JobStatus.FAILED, f"{len(specs)} tasks, the limit of a job is {MAX_TASKS_PER_JOB}")
    else:
        start_units(step, specs, {file.path: file for file in step.job.imported.files})
