"""Reads nothing, writes nothing: how a unit of a job goes through the stages of its pipeline.

    generate ─▶ review ─▶ test ─▶ run ─▶ done
        ▲          │         ▲      │
        └──────────┴─────────┴──────┘   a rejection, a regression: back with the feedback, a
                   │                    bounded number of times; then the job's edits are taken
                   ▼                    out of the file (revert) and the unit has failed.

A unit moves only when every task of its stage has ended, all their events are judged, and no
fork of its files is open. Called by the job fold after each fact that may have been the last.
"""

import msgspec

from codeconvoy.schemas import ids
from codeconvoy.schemas.job_facts import ImportedFile, Reviewed, Tested
from codeconvoy.schemas.job_spec import TaskKind, TaskSpec
from codeconvoy.schemas.job_state import (
    GIT_ROLE,
    MAX_REPAIRS,
    RUNNER_ROLE,
    STAGES,
    Stage,
    TaskState,
    TaskStatus,
    Unit,
)
from codeconvoy.schemas.job_step import Step
from codeconvoy.schemas.tasks import EditWork, RevertWork, ReviewWork, RunWork, TestWork, Work
from codeconvoy.schemas.test_paths import test_path_for


def start_units(step: Step, specs: tuple[TaskSpec, ...], bases: dict[str, ImportedFile]) -> None:
    """Cut the job into units, one a file, and dispatch their first stage."""
    edits: dict[str, list[TaskSpec]] = {}
    for spec in specs:
        if spec.kind is TaskKind.EDIT:
            edits.setdefault(spec.path, []).append(spec)
    for path, of_file in edits.items():
        _start_edits(step, path, of_file, bases)
    for spec in specs:
        if spec.kind is TaskKind.TEST:
            _start_test_alone(step, spec, bases)


def _start_edits(step: Step, path: str, specs: list[TaskSpec], bases: dict[str, ImportedFile]) -> None:
    job = step.job
    base = bases[path].event_id if path in bases else ""
    unit = Unit(unit_id=path, path=path, stage=Stage.GENERATE, base=base)
    task_ids: list[str] = []
    for ordinal, spec in enumerate(specs):
        task_id = ids.task_id(job.job_id, "edit", spec.role, path, ordinal)
        work = EditWork(base=base if step.spec.together else "", also=spec.also)
        step.send(task_id, spec.role, path, work, unit=path, goal=spec.goal, reads=spec.reads)
        task_ids.append(task_id)
    for watched in sorted({path, *(other for spec in specs for other in spec.also)}):
        step.watch(watched, unit.unit_id)
    step.put_unit(msgspec.structs.replace(unit, authors=tuple(task_ids), tasks=tuple(task_ids)))


def _start_test_alone(step: Step, spec: TaskSpec, bases: dict[str, ImportedFile]) -> None:
    base = bases[spec.path].event_id if spec.path in bases else ""
    unit = Unit(unit_id=f"{spec.path}#{spec.role}", path=spec.path, stage=Stage.TEST, base=base, alone=True)
    _enter_test(step, unit, (spec.role,), spec.goal)


def advance(step: Step, unit_id: str) -> None:
    """Move a unit on if its stage is over."""
    unit = step.units.get(unit_id)
    if unit is None or unit.stage.ended or step.job.ends_as is not None:
        return
    # Tasks of one file are done in their order: one that is open is found at the end.
    if any(step.tasks[task_id].status.open for task_id in reversed(unit.tasks)) or _unsettled(step, unit):
        return
    states = [step.tasks[task_id] for task_id in unit.tasks]
    if _repair(step, unit):
        return
    match unit.stage:
        case Stage.GENERATE:
            _after_generate(step, unit, states)
        case Stage.REVIEW:
            _after_review(step, unit, states)
        case Stage.TEST:
            _after_test(step, unit, states)
        case Stage.RUN:
            _after_run(step, unit, states)
        case Stage.REVERT:
            _after_revert(step, unit, states)


def reopen(step: Step, state: TaskState) -> None:
    """What an ended unit was built on has moved: it goes back to that stage."""
    unit = step.units.get(state.unit)
    if unit is None or step.job.ends_as is not None:
        return
    if unit.stage is not Stage.DONE:
        advance(step, unit.unit_id)
    elif isinstance(state.task.work, ReviewWork):
        if unit.reviewed != step.file(unit.path).visible:
            _review_again(step, unit)
    else:
        _repair(step, unit, state.task.task_id)


def _unsettled(step: Step, unit: Unit) -> bool:
    """True while a file of the unit has more than one head, or is held by a conflict."""
    paths = {unit.path} if not unit.alone else set()
    paths |= {unit.test_path} if unit.test_path else set()
    for task_id in unit.tasks:
        work = step.tasks[task_id].task.work
        paths |= set(work.also) if isinstance(work, EditWork) else set()
    files = [step.file(path) for path in paths]
    return any(file.forked or file.conflict is not None for file in files)


def _review_again(step: Step, unit: Unit) -> None:
    """What was approved is not what there is now: a bounded number of times it is looked at again."""
    if unit.visits < MAX_REPAIRS + STAGES * step.spec.max_rounds:
        _enter_review(step, unit)
    else:
        step.end_unit(unit, Stage.FAILED, "it changes faster than it can be reviewed")


def _repair(step: Step, unit: Unit, *further: str) -> bool:
    """Do again what was built on a version that has moved, a bounded number of times.

    Reviews are not repaired here: the stages look at the version that was approved.
    """
    candidates = dict.fromkeys(
        (*unit.authors, *((unit.tester,) if unit.tester else ()), *unit.tasks, *further)
    )
    moved = [state for state in (step.tasks[task_id] for task_id in candidates) if _repairable(state)]
    if not moved:
        return False
    stage = _STAGE_OF.get(type(moved[0].task.work), Stage.RUN)
    again = [state for state in moved if _STAGE_OF.get(type(state.task.work), Stage.RUN) is stage]
    for state in again:
        state = msgspec.structs.replace(state, repairs=state.repairs + 1)
        step.put_task(state.task.task_id, state)
        why = "what this was built on has changed; do it again on the present version"
        step.send_again(state, why, base="")
    step.put_unit(
        msgspec.structs.replace(unit, stage=stage, tasks=tuple(state.task.task_id for state in again))
    )
    return True


_STAGE_OF: dict[type, Stage] = {EditWork: Stage.GENERATE, TestWork: Stage.TEST, RunWork: Stage.RUN}


def _repairable(state: TaskState) -> bool:
    return (
        state.stale
        and not state.status.open
        and state.repairs < MAX_REPAIRS
        and type(state.task.work) in _STAGE_OF
    )


def _after_generate(step: Step, unit: Unit, states: list[TaskState]) -> None:
    failed = [state for state in states if state.status is TaskStatus.FAILED]
    wrote = any(state.events for state in states) or unit.cycles > 1
    if failed:
        reasons = "; ".join(f"{state.task.role}: {state.reason}" for state in failed)
        unit = msgspec.structs.replace(unit, reason=reasons)
    if not wrote or (step.file(unit.path).visible or unit.base) == unit.base:
        elsewhere = any(event.path != unit.path for state in states for event in state.events)
        if not elsewhere or failed:
            step.end_unit(unit, Stage.FAILED if failed else Stage.DONE)
            return
    _enter_review(step, unit)


def _enter_review(step: Step, unit: Unit) -> None:
    roles = step.spec.pipeline.review
    if not roles:
        _enter_test(step, unit, step.spec.pipeline.test)
        return
    version = step.file(unit.path).visible or unit.base
    unit = msgspec.structs.replace(unit, stage=Stage.REVIEW, visits=unit.visits + 1)
    task_ids = []
    for role in roles:
        task_id = ids.task_id(step.job.job_id, "review", role, unit.path, unit.visits)
        step.send(task_id, role, unit.path, ReviewWork(version=version, base=unit.base), unit=unit.unit_id)
        task_ids.append(task_id)
    step.put_unit(msgspec.structs.replace(unit, tasks=tuple(task_ids)))


def _after_review(step: Step, unit: Unit, states: list[TaskState]) -> None:
    """An approval counts only for the version that is the head now."""
    votes = [state.result for state in states if isinstance(state.result, Reviewed)]
    current = step.file(unit.path).visible
    counted = [
        vote
        for vote, state in zip(votes, (s for s in states if isinstance(s.result, Reviewed)), strict=True)
        if vote.version == current and not state.stale and not state.refusal
    ]
    if len(counted) < len(votes):
        _review_again(step, unit)
        return
    if sum(vote.approved for vote in counted) >= step.spec.pipeline.quorum:
        _enter_test(step, msgspec.structs.replace(unit, reviewed=current), step.spec.pipeline.test)
        return
    comments = [comment for vote in counted if not vote.approved for comment in vote.comments]
    failed = [f"{state.task.role}: {state.reason}" for state in states if state.status is TaskStatus.FAILED]
    feedback = "review: " + ("; ".join(comments or failed) or "no quorum")
    if failed and all(vote.approved for vote in counted):
        # Nobody found fault with it, so its author could do nothing about it; nor was it approved.
        _revert(step, unit, unit.path, feedback)
    else:
        _back(step, unit, feedback)


def _back(step: Step, unit: Unit, feedback: str) -> None:
    """Back to the agent that wrote last, or, when the rounds are used up, its work is undone."""
    wrote = [step.tasks[task_id] for task_id in unit.authors if step.tasks[task_id].result is not None]
    author = next((state for state in reversed(wrote) if state.events), wrote[-1] if wrote else None)
    if author is None or unit.cycles >= step.spec.max_rounds:
        _revert(step, unit, unit.path, feedback)
        return
    step.send_again(author, feedback, base="")
    step.put_unit(
        msgspec.structs.replace(
            unit, stage=Stage.GENERATE, tasks=(author.task.task_id,), cycles=unit.cycles + 1, reason=feedback
        )
    )


def _revert(step: Step, unit: Unit, path: str, reason: str) -> None:
    """Nothing that was refused stays on the branch: the job's edits are taken out of the file, not those of
    others; its history remains."""
    unit = msgspec.structs.replace(unit, stage=Stage.REVERT, visits=unit.visits + 1, reason=reason)
    task_id = ids.task_id(step.job.job_id, "revert", GIT_ROLE, unit.unit_id, unit.visits)
    step.send(task_id, GIT_ROLE, path, RevertWork(reason=reason), unit=unit.unit_id)
    step.put_unit(msgspec.structs.replace(unit, tasks=(task_id,)))


def _after_revert(step: Step, unit: Unit, states: list[TaskState]) -> None:
    """A reverted file has failed; a test that says nothing is dropped, and its file stays."""
    failed = [state.reason for state in states if state.status is TaskStatus.FAILED]
    if failed:
        step.end_unit(unit, Stage.FAILED, f"{unit.reason}; could not be set back: {failed[0]}")
        return
    if states[0].task.path != unit.path and not unit.alone:
        _finish(step, unit, unit.reason)
    else:
        step.end_unit(unit, Stage.FAILED)


def _enter_test(step: Step, unit: Unit, roles: tuple[str, ...], goal: str = "") -> None:
    if not roles or step.file(unit.path).visible == "" == unit.base:
        _finish(step, unit)
        return
    role = roles[0]
    test_path = test_path_for(unit.path, step.spec.test_directory)
    step.watch(test_path, unit.unit_id)
    task_id = ids.task_id(step.job.job_id, "test", role, unit.unit_id)
    before = step.tasks.get(task_id)
    if before is not None:
        step.send_again(before, "the file has changed since the tests were written")
    else:
        work = TestWork(base=unit.base, test_path=test_path)
        step.send(task_id, role, unit.path, work, unit=unit.unit_id, goal=goal)
    step.put_unit(
        msgspec.structs.replace(
            unit,
            stage=Stage.TEST,
            test_path=test_path,
            tester=task_id,
            tasks=(task_id,),
            visits=unit.visits + 1,
        )
    )


def _finish(step: Step, unit: Unit, note: str = "") -> None:
    """The unit is through, unless what was approved is not what there is, or an author failed."""
    current = step.file(unit.path).visible
    if step.spec.pipeline.review and unit.reviewed and unit.reviewed != current:
        _review_again(step, unit)
        return
    failed = any(step.tasks[task_id].status is TaskStatus.FAILED for task_id in unit.authors)
    if failed:
        step.end_unit(unit, Stage.FAILED)
    else:
        step.put_unit(msgspec.structs.replace(unit, stage=Stage.DONE, tasks=(), reason=note))


def _after_test(step: Step, unit: Unit, states: list[TaskState]) -> None:
    state = states[0]
    if state.status is TaskStatus.FAILED:
        step.end_unit(unit, Stage.FAILED, f"{state.task.role}: {state.reason}")
    elif not step.file(unit.test_path).visible and not state.events:
        _finish(step, unit, "no tests were written")
    else:
        if state.events:
            step.count(tests_written=1)
        _enter_run(step, unit)


def _enter_run(step: Step, unit: Unit) -> None:
    spec, imported = step.spec, step.job.imported
    assert imported is not None, "tests run after the import"
    unit = msgspec.structs.replace(unit, stage=Stage.RUN, visits=unit.visits + 1)
    work: Work = RunWork(
        repository=spec.repository,
        commit=imported.commit,
        command=spec.test_command,
        subjects=(unit.path,),
        unsandboxed=spec.unsandboxed,
    )
    task_id = ids.task_id(step.job.job_id, "run", RUNNER_ROLE, unit.unit_id, unit.visits)
    step.send(task_id, RUNNER_ROLE, unit.test_path, work, unit=unit.unit_id)
    step.put_unit(msgspec.structs.replace(unit, tasks=(task_id,)))


def _after_run(step: Step, unit: Unit, states: list[TaskState]) -> None:
    """What the tests say of the change, as a difference from the base."""
    result = states[0].result
    if states[0].status is TaskStatus.FAILED or not isinstance(result, Tested):
        step.end_unit(unit, Stage.FAILED, f"tests could not be run: {states[0].reason}")
        return
    if result.outcome in ("passed", "not_executed"):
        note = "" if result.outcome == "passed" else "tests were not executed: no sandbox"
        _finish(step, unit, note)
        return
    feedback = f"the tests in {unit.test_path} {result.outcome}:\n{result.detail}"
    if result.outcome == "regressed" and not unit.alone:
        _back(step, unit, feedback)
        return
    test_task = step.tasks[unit.tester]
    if step.can_retry(test_task):
        step.send_again(test_task, feedback)
        step.put_unit(msgspec.structs.replace(unit, stage=Stage.TEST, tasks=(unit.tester,), reason=feedback))
    else:
        _revert(step, unit, unit.test_path, "tests dropped, they fail on the base too")
