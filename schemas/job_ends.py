"""Reads nothing, writes nothing: the end of a job. Every job ends, with a status and a reason.

A job is over when every unit has ended, no task is open and no conflict of its files is. Then its
check runs, its work is published, and it finishes. One that is cancelled or out of time publishes
what was accepted so far. One whose budget is used up dispatches nothing more; it publishes once the
tasks in flight, which are paid for, have ended.

    status            when
    succeeded         every unit is done, and the check (if any) passed
    partial           some units failed, others are done or left accepted edits
    failed            no unit is done, or the check failed, or the job could not begin
    cancelled, timed_out, budget_exhausted   as said, with the work so far on the branch
"""

import msgspec

from codeconvoy.schemas import ids
from codeconvoy.schemas.events import Strategy
from codeconvoy.schemas.job_facts import JobFinished, JobStatus, Published, Result
from codeconvoy.schemas.job_state import GIT_ROLE, RUNNER_ROLE, Happening, Stage, TaskStatus, Unit, transition
from codeconvoy.schemas.job_step import MAX_END_CHARS, Say, Step
from codeconvoy.schemas.tasks import CheckWork, PublishWork, ResolveWork, RevertWork


def end_if_over(step: Step) -> None:
    """Take the next step towards the end, if the job is over."""
    job = step.job
    if job.status is not JobStatus.RUNNING or job.imported is None:
        if job.status is JobStatus.RUNNING and job.ends_as is not None:
            _publish(step)
        return
    if job.ends_as is None:
        if step.open_tasks or step.open_units or step.open_conflicts or not len(step.units):
            return
        if step.spec.check and _check(step):
            return
        status, reason = _outcome(step)
        step.ends(status, reason)
    elif job.ends_as is JobStatus.BUDGET_EXHAUSTED and (step.open_tasks or _is_joining(step)):
        return
    _publish(step)


def _is_joining(step: Step) -> bool:
    """True while heads are being joined by somebody who will not be waited for in vain: no person."""
    return any(
        file.forked if file.conflict is None else file.conflict.strategy is not Strategy.HUMAN
        for file in step.files.values()
    )


def _check(step: Step) -> bool:
    """Have the final tree checked, unless just this tree was. True where the answer is to come."""
    spec, imported = step.spec, step.job.imported
    assert imported is not None, "checked after the import"
    task_id = ids.task_id(step.job.job_id, "check", RUNNER_ROLE, "")
    paths = _paths(step)
    before = step.tasks.get(task_id)
    if before is not None and before.task.must_see == step.must_see(paths):
        return False
    work = CheckWork(
        repository=spec.repository,
        commit=imported.commit,
        command=spec.check,
        paths=paths,
        unsandboxed=spec.unsandboxed,
    )
    step.send(task_id, RUNNER_ROLE, "", work)
    return True


def _paths(step: Step) -> tuple[str, ...]:
    """Every file that this job knows of, sorted."""
    imported = step.job.imported
    known = {file.path for file in imported.files} if imported else set()
    return tuple(sorted(known | {event.path for state in step.tasks.values() for event in state.events}))


def _outcome(step: Step) -> tuple[JobStatus, str]:
    units = step.units.values()
    failed = [unit for unit in units if unit.stage is Stage.FAILED]
    if not failed:
        return JobStatus.SUCCEEDED, f"{len(step.units)} of {len(step.units)} units done"
    done = len(step.units) - len(failed)
    first = f"{failed[0].path}: {failed[0].reason}"
    reason = f"{done} of {len(step.units)} units done; {first}"[:2000]
    some = done > 0 or _left_edits(step, failed)
    return (JobStatus.PARTIAL if some else JobStatus.FAILED), reason


def _left_edits(step: Step, failed: list[Unit]) -> bool:
    """True where a failed unit has changed its file and not set it back."""
    imported = step.job.imported.files if step.job.imported else ()
    untouched = {(file.path, event_id) for file in imported for event_id in ("", file.event_id, file.visible)}
    set_back = {
        (state.unit, state.task.path)
        for state in step.tasks.values()
        if isinstance(state.task.work, RevertWork) and state.status is TaskStatus.DONE
    }
    return any(
        (unit.path, step.file(unit.path).visible) not in untouched
        and (unit.unit_id, unit.path) not in set_back
        for unit in failed
    )


def _publish(step: Step) -> None:
    """Write the accepted work to git; where nothing was imported there is nothing to write."""
    job, spec, imported = step.job, step.spec, step.job.imported
    assert job.ends_as is not None, "published once the end is decided"
    if imported is None:
        _finish(step, "", "")
        return
    step.change(status=JobStatus.ENDING)
    bases = {file.path: file.event_id for file in imported.files}
    paths = _paths(step)
    work = PublishWork(
        repository=spec.repository,
        commit=imported.commit,
        branch=spec.branch or f"convoy/{job.job_id}",
        imports=tuple(bases.get(path, "") for path in paths),
        paths=paths,
        message=spec.goal,
    )
    task_id = ids.task_id(job.job_id, "publish", GIT_ROLE, "")
    if task_id not in step.tasks:
        step.send(task_id, GIT_ROLE, "", work)


def on_published(step: Step, result: Result | None, reason: str) -> None:
    """The work is on its branch, or could not be put there: the job ends."""
    if isinstance(result, Published):
        step.change(published=result)
        _finish(step, result.branch[:MAX_END_CHARS], result.commit[:MAX_END_CHARS])
        return
    why = f"{step.job.reason}; not published: {reason}"[: 2 * MAX_END_CHARS]
    step.change(ends_as=JobStatus.FAILED, reason=why)
    _finish(step, "", "")


def _finish(step: Step, branch: str, commit: str) -> None:
    job = step.job
    assert job.ends_as is not None, "finished once the end is decided"
    step.change(status=job.ends_as)
    step.commands.append(
        Say(JobFinished(status=job.ends_as, reason=job.reason, branch=branch, commit=commit))
    )


def give_up(step: Step, status: JobStatus, reason: str) -> None:
    """End the job now: what is open is voided, what was accepted is published."""
    if step.job.status is not JobStatus.RUNNING:
        return
    step.ends(status, reason)
    for task_id, state in list(step.tasks.items()):
        if state.status.open:
            if state.status is TaskStatus.DISPATCHED:
                step.void(state, reason)
                if isinstance(state.task.work, ResolveWork):
                    step.give_back(state.task.path, state.task, state.task.work, reason)
            cancelled = transition(state.status, Happening.CANCEL)
            step.put_task(
                task_id, msgspec.structs.replace(state, status=cancelled, deadline=0, reason=reason)
            )
    _publish(step)
