"""Reads the state of a job, writes nothing: what people and programs are shown of it."""

import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from codeconvoy.orchestrator.cli.common import plain
from codeconvoy.schemas.budget import has_cap, of_budget
from codeconvoy.schemas.job_facts import JobStatus, Tested
from codeconvoy.schemas.job_state import JobState, Stage, TaskState, TaskStatus
from codeconvoy.schemas.tasks import EditWork, TestWork

STATUS_STYLE = {
    JobStatus.RUNNING: "cyan",
    JobStatus.ENDING: "cyan",
    JobStatus.SUCCEEDED: "green",
    JobStatus.PARTIAL: "yellow",
}
"""All others are red."""


def edits(job: JobState) -> int:
    """Edits that count, without the files that were only brought in."""
    written = sum(file.written for file in job.imported.files) if job.imported else 0
    return max(0, job.tally.edits - written)


def elapsed_seconds(job: JobState, now: int) -> float:
    """From the submission to the last fact of a job that has ended, or to `now` (milliseconds)."""
    return max(0, (job.updated_at if job.ended else now) - job.submitted_at) / 1000


def duration(seconds: float) -> str:
    """Such as 8.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def spent(job: JobState) -> dict[str, float] | None:
    """What a job's model calls have cost, in the units of its budget, and how many there were; None for a
    job without one: nobody counts. Calls of which nobody knows count in full."""
    if job.spec is None or not has_cap(job.spec.budget):
        return None
    total = job.ledger.total
    return {"usd": total.usd, "tokens": total.tokens, "seconds": total.ms / 1000, "calls": job.ledger.calls}


def budget_line(job: JobState) -> str:
    """What is spent of a job's budget, with what calls in flight may cost; empty where it has none."""
    if job.spec is None or not has_cap(job.spec.budget):
        return ""
    held = len(job.ledger.open)
    in_flight = f", {held} calls in flight counted in full" if held else ""
    return f"{of_budget(job.ledger.total, job.spec.budget)}{in_flight}"


def unit_counts(job: JobState) -> dict[str, int]:
    """How many units stand at each stage."""
    found = Counter(unit.stage for unit in job.units.values())
    return {stage.value: found[stage] for stage in Stage if found[stage]}


def task_counts(job: JobState) -> dict[str, dict[str, int]]:
    """How many tasks of each role stand where."""
    roles: dict[str, Counter[str]] = {}
    for state in job.tasks.values():
        roles.setdefault(state.task.role, Counter())[state.status.value] += 1
    return {
        role: {s.value: found[s] for s in TaskStatus if found[s]} for role, found in sorted(roles.items())
    }


def as_json(job: JobState, now: int) -> dict[str, Any]:
    """A job for programs. Times in milliseconds since the epoch, durations in seconds."""
    published = job.published
    return {
        "job_id": job.job_id,
        "status": job.status,
        "ended": job.ended,
        "reason": job.reason,
        "goal": job.spec.goal if job.spec else "",
        "repository": job.spec.repository if job.spec else "",
        "workspace": job.spec.workspace if job.spec else "",
        "submitted_at": job.submitted_at,
        "updated_at": job.updated_at,
        "elapsed_seconds": elapsed_seconds(job, now),
        "units": unit_counts(job),
        "tasks": task_counts(job),
        "skipped": job.imported.skipped if job.imported else (),
        "conflicts": {path: conflict.strategy for path, conflict in job.conflicts.items()},
        "edits": edits(job),
        "budget": job.spec.budget if job.spec else None,
        "spent": spent(job),
        "tally": job.tally,
        "branch": published.branch if published else "",
        "commit": published.commit if published else "",
        "base_commit": published.base_commit if published else "",
        "commits": published.commits if published else 0,
        "facts": job.facts,
    }


def changes(before: JobState | None, after: JobState) -> Iterator[str]:
    """What happened to a job between two looks at it, a line each."""
    if after.imported is not None and (before is None or before.imported is None):
        yield f"imported {len(after.imported.files)} files of {after.imported.commit[:12]}"
        for skip in after.imported.skipped:
            yield f"skipped {plain(skip.path)}: {plain(skip.reason)}"
    for task_id, state in after.tasks.items():
        old = before.tasks.get(task_id) if before else None
        yield from _task_changes(old, state)
    known = before.conflicts if before else {}
    for path, conflict in after.conflicts.items():
        if path not in known or known[path] != conflict:
            yield f"conflict on {plain(path)}: trying {conflict.strategy}"
    for path in known:
        if path not in after.conflicts:
            yield f"conflict on {plain(path)} is settled"
    for unit_id, unit in after.units.items():
        was = before.units.get(unit_id) if before else None
        if unit.stage.ended and (was is None or was.stage is not unit.stage):
            yield f"{plain(unit_id)} {unit.stage}" + (f": {_short(unit.reason)}" if unit.reason else "")
    if after.status is not (before.status if before else JobStatus.RUNNING):
        yield f"job {after.status}: {_short(after.reason)}"


def _task_changes(old: TaskState | None, new: TaskState) -> Iterator[str]:
    what = f"{new.task.role} {plain(new.task.path)}".rstrip()
    if old is not None and new.task.round > old.task.round:
        work = new.task.work
        why = work.feedback[-1] if isinstance(work, EditWork | TestWork) and work.feedback else old.refusal
        yield f"{what}: round {new.task.round}" + (f": {_short(why)}" if why else "")
    elif (old is None or old.status is not new.status) and new.status in (
        TaskStatus.DONE,
        TaskStatus.FAILED,
        TaskStatus.CANCELLED,
    ):
        yield f"{what}: {new.status}" + (f": {_short(new.reason)}" if new.reason else "")


def _short(text: str) -> str:
    line = plain(text).strip().partition("\n")[0]
    return line if len(line) <= 160 else line[:157] + "…"


def status_line(job: JobState, now: int) -> str:
    """Where a job stands, on one line."""
    ended = sum(unit.stage.ended for unit in job.units.values())
    conflicts = f", {len(job.conflicts)} conflicts open" if job.conflicts else ""
    paid = f", {line}" if (line := budget_line(job)) else ""
    return (
        f"{job.status} {duration(elapsed_seconds(job, now))}: {ended}/{len(job.units)} units, "
        f"{edits(job)} edits, {job.tally.forks} forks{conflicts}{paid}"
    )


def progress(job: JobState, now: int, events: tuple[str, ...]) -> Table:
    """A job while it runs, for a terminal: units by stage, tasks by role, conflicts, last events."""
    grid = Table.grid(padding=(0, 2))
    ended = sum(unit.stage.ended for unit in job.units.values())
    total = len(job.units)
    grid.add_row("job", Text(f"{job.job_id}  {status_line(job, now)}", STATUS_STYLE.get(job.status, "red")))
    grid.add_row("units", ProgressBar(total=max(total, 1), completed=ended, width=40))
    grid.add_row("", Text("  ".join(f"{stage} {count}" for stage, count in unit_counts(job).items())))
    for role, found in task_counts(job).items():
        grid.add_row(role, Text("  ".join(f"{status} {count}" for status, count in found.items())))
    for path, conflict in list(job.conflicts.items())[:5]:
        grid.add_row(
            "conflict", Text(f"{plain(path)}: {conflict.strategy}, attempt {conflict.attempt}", "yellow")
        )
    for line in events:
        grid.add_row("", Text(line, "dim"))
    return grid


def _runs(job: JobState) -> str:
    results = (state.result for state in job.tasks.values())
    not_executed = sum(isinstance(result, Tested) and result.outcome == "not_executed" for result in results)
    left = f", {not_executed} not executed: no sandbox there" if not_executed else ""
    return f"{job.tally.tests_run - not_executed} runs{left}"


def summary(job: JobState, now: int) -> Iterator[tuple[str, str]]:
    """A job at its end: names and values, in order."""
    tally = job.tally
    yield "job", job.job_id
    yield "status", str(job.status)
    yield "reason", plain(job.reason)
    done = sum(state.status is TaskStatus.DONE for state in job.tasks.values())
    roles = ", ".join(f"{role} {sum(found.values())}" for role, found in task_counts(job).items())
    yield "tasks", f"{len(job.tasks)} ({done} done): {roles}" if job.tasks else "0"
    yield "edits", str(edits(job))
    yield "forks", f"{tally.forks}; {tally.overlapping} conflicts on the same lines"
    if tally.resolved:
        yield "resolved", ", ".join(f"{name} {count}" for name, count in sorted(tally.resolved.items()))
    yield "reviews", f"{tally.approvals} approved, {tally.rejections} rejected"
    yield "tests", f"{tally.tests_written} files written, {_runs(job)}"
    if tally.stale or tally.reworks:
        yield "repaired", f"{tally.stale} built on something that moved, {tally.reworks} reworks"
    if job.imported and job.imported.skipped:
        first = job.imported.skipped[0]
        yield (
            "skipped",
            f"{len(job.imported.skipped)} files, such as {plain(first.path)}: {plain(first.reason)}",
        )
    yield "elapsed", duration(elapsed_seconds(job, now))
    if line := budget_line(job):
        yield "spent", f"{line}, in {job.ledger.calls} calls"
    if job.published is not None and job.spec is not None:
        yield "branch", f"{job.published.branch}, {job.published.commits} commits"
        where = "" if "://" in job.spec.repository else f"-C {shlex.quote(job.spec.repository)} "
        span = f"{job.published.base_commit[:12]}..{shlex.quote(job.published.branch)}"
        yield "look", f"git {where}log --stat {span}"
        yield "", f"git {where}diff {span}"
