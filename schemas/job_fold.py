"""Reads nothing, writes nothing: the fold of a job's log.

`fold(job, fact) -> (job, commands)` is pure and total: a fact that comes late, twice or for a
round that was voided is ignored by rule, since logs hold such facts. The orchestrator carries
the commands out; the projector folds the same facts for its readers and drops the commands.

Every wait has a deadline, and a deadline that passes is itself a fact, so that a replay decides
the same.
"""

import msgspec

from codeconvoy.schemas import budget, ids
from codeconvoy.schemas.events import TASKED, Strategy
from codeconvoy.schemas.job_ends import end_if_over, give_up, on_published
from codeconvoy.schemas.job_facts import (
    CallBegun,
    CallEnded,
    CancelRequested,
    Checked,
    DeadlinePassed,
    EventJudged,
    FileForked,
    FileSettled,
    Imported,
    JobFact,
    JobFinished,
    JobStatus,
    JobSubmitted,
    Judgement,
    Planned,
    ReadJudged,
    Reviewed,
    TaskDispatched,
    TaskDone,
    TaskFailed,
    Tested,
    VerdictKind,
)
from codeconvoy.schemas.job_plan import on_imported, on_planned, on_submitted
from codeconvoy.schemas.job_stages import advance, reopen
from codeconvoy.schemas.job_state import (
    Happening,
    JobState,
    OpenConflict,
    TaskState,
    TaskStatus,
    is_waited_for,
    transition,
)
from codeconvoy.schemas.job_step import Command, Step, answers
from codeconvoy.schemas.tasks import (
    CheckWork,
    EditWork,
    Former,
    ImportWork,
    PlanWork,
    PublishWork,
    ResolveWork,
    ReviewWork,
    Task,
    TestWork,
)


def fold(job: JobState, fact: JobFact) -> tuple[JobState, tuple[Command, ...]]:
    """The job after one more fact, and what is to be done about it."""
    step = Step(job)
    # Facts that come after the end count, but the time of the end stays.
    updated_at = job.updated_at if job.ended else max(job.updated_at, fact.timestamp)
    payload = fact.payload
    if isinstance(payload, JobFinished):
        if not job.ended and payload.status.ended:
            step.change(
                status=payload.status, reason=payload.reason, submitted_at=job.submitted_at or fact.timestamp
            )
    elif isinstance(payload, JobSubmitted):
        if job.spec is None and not job.ended:
            on_submitted(step, payload, fact.timestamp)
    elif job.spec is None:
        pass
    elif isinstance(payload, CallBegun | CallEnded):
        _on_call(step, payload, fact.timestamp)
    elif job.ended:
        _after_the_end(step, payload)
    else:
        _dispatch(step, payload, fact.timestamp)
        end_if_over(step)
    return step.finish(facts=job.facts + 1, updated_at=updated_at)


def _dispatch(step: Step, payload: object, timestamp: int) -> None:
    match payload:
        case TaskDispatched():
            _on_dispatched(step, payload)
        case TaskDone():
            _on_done(step, payload)
        case TaskFailed():
            _on_failed(step, payload)
        case EventJudged():
            for judgement in payload.judgements:
                _on_judged(step, judgement)
        case ReadJudged():
            _on_read(step, payload)
        case FileForked():
            _on_forked(step, payload)
        case FileSettled():
            _on_settled(step, payload)
        case DeadlinePassed():
            _on_deadline(step, payload, timestamp)
        case CancelRequested():
            reason = f"cancelled by {payload.requested_by}" + (
                f": {payload.reason}" if payload.reason else ""
            )
            give_up(step, JobStatus.CANCELLED, reason)


def _current(step: Step, task_id: str, round_: int) -> TaskState | None:
    """The task, if this round of it is the one that is waited for."""
    state = step.tasks.get(task_id)
    if state is None or state.task.round != round_ or state.status is not TaskStatus.DISPATCHED:
        return None
    return state


def _on_dispatched(step: Step, fact: TaskDispatched) -> None:
    if not fact.task_id:
        step.change(deadline=max(fact.deadline, step.job.deadline))
    for task_id, round_ in ((fact.task_id, fact.round), *((one.task_id, one.round) for one in fact.also)):
        state = _current(step, task_id, round_)
        if state is not None and fact.deadline > state.deadline:
            mark = step.ended_in_role(state.task.role)
            step.put_task(task_id, msgspec.structs.replace(state, deadline=fact.deadline, mark=mark))


def _on_done(step: Step, fact: TaskDone) -> None:
    state = _current(step, fact.task_id, fact.round)
    if state is None:
        return
    if answers(state.task.work, fact.result):
        _conclude(step, step.report(state, fact))
    else:
        asked, got = type(state.task.work).__name__, type(fact.result).__name__
        _give_up(step, state, f"role {state.task.role} was asked for {asked} and answered {got}")


def _on_failed(step: Step, fact: TaskFailed) -> None:
    state = _current(step, fact.task_id, fact.round)
    if state is None:
        return
    if fact.over_budget:
        step.ends(JobStatus.BUDGET_EXHAUSTED, fact.reason)
    if fact.retryable and step.can_retry(state):
        step.send_again(state, fact.reason)
    else:
        _give_up(step, state, fact.reason)


def _on_call(step: Step, fact: CallBegun | CallEnded, timestamp: int) -> None:
    """What a call costs counts whenever it is heard of, after the job's end too."""
    ledger = step.job.ledger
    if isinstance(fact, CallBegun):
        step.change(ledger=budget.began(ledger, fact.call_id, fact.worst, timestamp))
    else:
        step.change(ledger=budget.ended(ledger, fact.call_id, fact.spent))


def _give_up(step: Step, state: TaskState, reason: str) -> None:
    """A task is not done in any round."""
    _fail(step, state, Happening.GAVE_UP, reason)


def _fail(step: Step, state: TaskState, happening: Happening, reason: str) -> None:
    """A task has failed for good."""
    status = transition(state.status, happening)
    state = msgspec.structs.replace(state, status=status, reason=reason, pending=frozenset(), deadline=0)
    step.put_task(state.task.task_id, state)
    work = state.task.work
    if isinstance(work, ResolveWork):
        step.give_back(state.task.path, state.task, work, reason)
    elif isinstance(work, PublishWork):
        on_published(step, None, reason)
    elif isinstance(work, ImportWork | PlanWork | CheckWork):
        step.ends(JobStatus.FAILED, reason)
    else:
        advance(step, state.unit)


def _conclude(step: Step, state: TaskState) -> None:
    """Take down a task's state. One that waits for nothing any more is done, or, if an event was refused,
    goes again."""
    if state.status is not TaskStatus.REPORTED or state.pending or state.unread > 0:
        step.put_task(state.task.task_id, state)
        return
    if state.refusal:
        step.put_task(state.task.task_id, state)
        # A review is of one version: when that has moved on, the unit asks for a review of the next.
        if isinstance(state.task.work, ResolveWork | ReviewWork) or not step.can_retry(state):
            _fail(step, state, Happening.REFUSED, state.refusal)
        else:
            step.send_again(state, f"the edit was refused: {state.refusal}", base="")
        return
    state = msgspec.structs.replace(state, status=transition(state.status, Happening.JUDGED))
    step.put_task(state.task.task_id, state)
    match state.result:
        case Imported() as imported:
            on_imported(step, imported)
        case Planned() as planned:
            on_planned(step, planned)
        case Checked(passed=passed, executed=executed, exit_code=exit_code, detail=detail):
            if executed and not passed:
                said = f": {detail[-500:]}" if detail.strip() else ", without a word"
                step.ends(JobStatus.FAILED, f"the check failed with exit status {exit_code}{said}")
            elif not executed:
                step.ends(JobStatus.FAILED, f"the check was not run: {detail}")
        case Reviewed(approved=approved):
            step.count(**{"approvals" if approved else "rejections": 1})
            advance(step, state.unit)
        case Tested():
            step.count(tests_run=1)
            advance(step, state.unit)
        case _:
            if isinstance(state.task.work, PublishWork):
                on_published(step, state.result, "")
            advance(step, state.unit)


def _on_judged(step: Step, fact: Judgement) -> None:
    if step.is_news(fact.path, fact.partition, fact.offset):
        # A fork that this job has no part in is no matter of its own: nobody will tell it of the end.
        ours = fact.verdict is VerdictKind.FORKED or step.file(fact.path).forked
        step.put_file(
            fact.path,
            visible=fact.visible,
            forked=ours and len(fact.heads) > 1,
            partition=fact.partition,
            offset=fact.offset,
        )
    state = step.task_of(fact.event_id)
    if state is not None:
        _on_verdict(step, state, fact)
    for unit_id in step.file(fact.path).watchers:
        advance(step, unit_id)


def _on_verdict(step: Step, state: TaskState, fact: Judgement) -> None:
    """An event of a task was judged."""
    placed = _placed(state, fact)
    if fact.event_id in placed.pending and fact.verdict not in (VerdictKind.OUTDATED, VerdictKind.DEFERRED):
        _tally(step, placed, fact.verdict)
        refused = fact.verdict in (VerdictKind.INVALID, VerdictKind.STALE)
        judged = msgspec.structs.replace(
            placed,
            pending=placed.pending - {fact.event_id},
            refusal=placed.refusal or (f"{fact.verdict}: {fact.reason}" if refused else ""),
        )
        _conclude(step, judged)
        return
    if placed is not state:
        step.put_task(placed.task.task_id, placed)
    if fact.verdict is VerdictKind.OUTDATED and any(e.event_id == fact.event_id for e in placed.events):
        _moved(step, placed)


def _placed(state: TaskState, fact: Judgement) -> TaskState:
    """A task that knows where its latest edit of its own file is on the log: from the first verdict on."""
    known = state.edited
    is_own = isinstance(state.task.work, EditWork | TestWork) and fact.path == task_subject(state.task)
    if not is_own or (known is not None and known.event_id == fact.event_id):
        return state
    if not any(event.event_id == fact.event_id and event.is_edit for event in state.events):
        return state
    edited = Former(event_id=fact.event_id, partition=fact.partition, offset=fact.offset)
    return msgspec.structs.replace(state, edited=edited)


def _tally(step: Step, state: TaskState, verdict: VerdictKind) -> None:
    """Count an edit that is live. A resolution joins: it is counted where the conflict is settled."""
    if isinstance(state.task.work, ResolveWork):
        return
    if verdict is VerdictKind.FORKED:
        step.count(edits=1, forks=1)
    elif verdict is VerdictKind.ACCEPTED:
        step.count(edits=1)


def _moved(step: Step, state: TaskState) -> None:
    """Something that this task's round was built on is not the head any more."""
    if not state.stale:
        step.count(stale=1)
        state = msgspec.structs.replace(state, stale=True)
        step.put_task(state.task.task_id, state)
        reopen(step, state)


def _on_read(step: Step, fact: ReadJudged) -> None:
    state = step.task_of(fact.reader_event)
    if state is None or all(event.event_id != fact.reader_event for event in state.events):
        return
    answer = f"{fact.reader_event} {fact.read_path}"
    if answer not in state.answered:
        state = msgspec.structs.replace(state, answered=(*state.answered, answer), unread=state.unread - 1)
    has_moved = not fact.fresh and not state.stale
    if has_moved:
        step.count(stale=1)
        state = msgspec.structs.replace(state, stale=True)
    if state.status is TaskStatus.REPORTED:
        _conclude(step, state)
        return
    step.put_task(state.task.task_id, state)
    if has_moved:  # told once more it changes nothing: the unit may have gone on without this task
        reopen(step, state)


def _on_forked(step: Step, fact: FileForked) -> None:
    known = step.file(fact.path).conflict
    if known is not None and known.conflict_id == fact.conflict_id and known.attempt >= fact.attempt:
        return
    if not step.is_news(fact.path, fact.partition, fact.offset):
        return
    if (known is None or known.conflict_id != fact.conflict_id) and fact.overlaps:
        step.count(overlapping=1)
    step.put_conflict(
        fact.path,
        OpenConflict(
            conflict_id=fact.conflict_id, strategy=fact.strategy, attempt=fact.attempt, deadline=fact.deadline
        ),
    )
    step.put_file(fact.path, forked=True, partition=fact.partition, offset=fact.offset)
    loser = step.tasks.get(fact.loser_task)
    if fact.strategy not in TASKED or loser is None:
        return
    role = step.spec.pipeline.merge if fact.strategy is Strategy.SEMANTIC else fact.loser_role
    work = ResolveWork(
        conflict_id=fact.conflict_id,
        attempt=fact.attempt,
        heads=fact.heads,
        base=fact.base,
        own=fact.own,
        strategy=fact.strategy,
        tried=fact.tried,
    )
    if step.job.ends_as is not None:
        step.give_back(fact.path, loser.task, work, f"the job {step.job.job_id} ends as {step.job.ends_as}")
        return
    task_id = ids.derived("task", step.job.job_id, "resolve", fact.conflict_id, fact.attempt)
    if task_id not in step.tasks:
        step.send(task_id, role, fact.path, work, goal=loser.task.goal)


def _on_settled(step: Step, fact: FileSettled) -> None:
    known = step.file(fact.path).conflict
    if known is not None and known.conflict_id == fact.conflict_id:
        step.put_conflict(fact.path, None)
        resolved = step.tally.resolved
        step.tally = msgspec.structs.replace(
            step.tally, resolved={**resolved, fact.strategy: resolved.get(fact.strategy, 0) + 1}
        )
    elif known is not None:
        return  # where none is known it was never opened: the fork may be over all the same
    # The verdict on the resolution, from the same record, may have been heard before.
    if fact.offset >= step.file(fact.path).offset:
        step.put_file(
            fact.path,
            visible=fact.head,
            forked=fact.forked,
            partition=fact.partition,
            offset=fact.offset,
        )
    for unit_id in step.file(fact.path).watchers:
        advance(step, unit_id)


def _on_deadline(step: Step, fact: DeadlinePassed, timestamp: int) -> None:
    """A wait was too long. A queue that moves is waited for: its tasks were given no turn yet."""
    if not fact.task_id:
        give_up(step, JobStatus.TIMED_OUT, f"not done after {step.spec.deadline_seconds} s")
        return
    state = _current(step, fact.task_id, fact.round)
    # The time is that of the clock which set the deadline: an earlier one is of a deadline since moved.
    if state is None or not is_waited_for(state) or timestamp < state.deadline:
        return
    role = state.task.role
    if step.ended_in_role(role) > state.mark:
        step.wait_anew(fact.task_id, state)
        return
    seconds = step.spec.task_deadline_seconds
    reason = (
        f"no answer from role {role} within {seconds} s; is `convoy worker {role}` running, and does all "
        "that it calls answer? `convoy doctor` tells"
    )
    step.void(state, reason)
    if step.can_retry(state) and not isinstance(state.task.work, ResolveWork):
        step.send_again(state, reason)
    else:
        _give_up(step, state, reason)


def _after_the_end(step: Step, payload: object) -> None:
    """A conflict must not wait for a job that has ended: its next strategy's turn."""
    if not isinstance(payload, FileForked) or payload.strategy not in TASKED:
        return
    loser = step.tasks.get(payload.loser_task)
    if loser is None:
        return
    work = ResolveWork(
        conflict_id=payload.conflict_id,
        attempt=payload.attempt,
        heads=payload.heads,
        base=payload.base,
        own=payload.own,
        strategy=payload.strategy,
    )
    reason = f"the job {step.job.job_id} has ended as {step.job.status}"
    step.give_back(payload.path, loser.task, work, reason)


def task_subject(task: Task) -> str:
    """The file that a task is about, for people."""
    return task.work.test_path if isinstance(task.work, TestWork) else task.path
