"""Reads a job file, writes nothing: a checked `JobSpec`, with its workspace and its id.

The checks run when a job is submitted and again when a record of the jobs topic is planned, since
that may come from any language. Every complaint names the field in the words of the file.
"""

import math
import string
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import msgspec

from codeconvoy.orchestrator.job_yaml import MAX_BYTES, did_you_mean, parse
from codeconvoy.schemas import ids
from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.events import Strategy
from codeconvoy.schemas.job_spec import JobSpec, TaskKind, TaskSpec
from codeconvoy.schemas.paths import check_workspace, normalise
from codeconvoy.schemas.topics import MAX_TASKS_PER_JOB
from codeconvoy.workers.git.globs import compile_glob, compile_globs
from codeconvoy.workers.git.publish import check_branch
from codeconvoy.workers.git.source import Local, check_ref, locate
from codeconvoy.workers.llm.prices import unpriced
from codeconvoy.workers.resolution.strategies import CLAIMS, STRATEGIES, WRITER_WINS
from codeconvoy.workers.roles.role import Role, RoleKind

MAX_SECONDS = 365 * 86_400
MAX_ROUNDS = 100
MAX_NUMBER = 2**31 - 1


def load(path: Path) -> JobSpec:
    """The job that a YAML file asks for, with a relative repository path made absolute.

    A relative path starts from the file's own directory, wherever the command is run.

    Raises:
        BadInput: the file can't be read, is no YAML or is no job; nothing else is checked here.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadInput(str(path), f"it can't be read: {error.strerror}", "Check the path") from error
    return absolute(parse(text), path.resolve().parent)


def absolute(spec: JobSpec, directory: Path) -> JobSpec:
    """The spec with a local repository as an absolute path: a worker runs somewhere else.

    Raises:
        BadInput: the repository is neither a path nor a URL.
    """
    where = locate(spec.repository)
    if isinstance(where, Local):
        return msgspec.structs.replace(spec, repository=str((directory / where.path).resolve()))
    return spec


def job_id_for(spec: JobSpec, nonce: str) -> str:
    """The id of a job: the same spec and nonce are the same job, however often they are sent."""
    return ids.derived("job", msgspec.json.encode(spec).hex(), nonce)


def check(spec: JobSpec, roles: Mapping[str, Role]) -> None:
    """Refuse a job that can't be done as it stands.

    Args:
        spec: what was asked for.
        roles: the roles of this fleet, by name.

    Raises:
        BadInput: the first of its problems.
    """
    for problem in problems(spec, roles):
        raise problem


def roles_asked(spec: JobSpec) -> tuple[str, ...]:
    """The roles that a job names, each once."""
    stages = spec.pipeline
    edits = stages.generate if spec.files or spec.planner else ()
    planner = (spec.planner,) if spec.planner else ()
    tasks = (task.role for task in spec.tasks)
    return tuple(dict.fromkeys((*planner, *edits, *tasks, *stages.review, *stages.test)))


def problems(spec: JobSpec, roles: Mapping[str, Role]) -> Iterator[BadInput]:
    """Everything that is wrong with a job, in the order of its fields."""
    texts: tuple[Callable[[], object], ...] = (
        partial(locate, spec.repository),
        partial(check_ref, spec.ref),
        *((partial(check_workspace, spec.workspace),) if spec.workspace else ()),
        *((partial(check_branch, spec.branch),) if spec.branch else ()),
        partial(compile_globs, spec.files, "files"),
        partial(compile_globs, spec.exclude, "exclude"),
        *(partial(compile_glob, o.glob, f"overrides[{i}].glob") for i, o in enumerate(spec.overrides)),
        partial(normalise, spec.test_directory, "test_directory"),
    )
    for text in texts:
        try:
            text()
        except BadInput as bad:
            yield bad
    if not spec.goal.strip() and not (spec.tasks and all(task.goal.strip() for task in spec.tasks)):
        yield BadInput("goal", "it is empty", "Say what shall be done")
    yield from _work(spec)
    for i, task in enumerate(spec.tasks[:MAX_TASKS_PER_JOB]):
        yield from _task(task, f"tasks[{i}]", roles)
    yield from _pipeline(spec, roles)
    yield from _strategies(spec)
    yield from _merge(spec, roles)
    yield from _limits(spec)
    yield from _prices(spec, roles)
    yield from _test_command(spec.test_command)


def _work(spec: JobSpec) -> Iterator[BadInput]:
    if not (spec.files or spec.tasks or spec.planner):
        yield BadInput("files", "there is neither files nor tasks nor planner", "Give the files to work on")
    if spec.planner and spec.tasks:
        yield BadInput("planner", "there are tasks as well", "Leave out the planner, or the tasks")
    if len(spec.tasks) > MAX_TASKS_PER_JOB:
        yield BadInput(
            "tasks", f"{len(spec.tasks)} are more than {MAX_TASKS_PER_JOB}", "Make several jobs of it"
        )
    if spec.files and not spec.pipeline.generate:
        yield BadInput("pipeline.generate", "nobody edits the files", "Name a role")


def _task(task: TaskSpec, field: str, roles: Mapping[str, Role]) -> Iterator[BadInput]:
    kind = RoleKind.TEST if task.kind is TaskKind.TEST else RoleKind.EDIT
    yield from _role(task.role, f"{field}.role", kind, roles)
    named = [(task.path, f"{field}.path")]
    named += [(path, f"{field}.also[{i}]") for i, path in enumerate(task.also)]
    named += [(path, f"{field}.reads[{i}]") for i, path in enumerate(task.reads)]
    for path, at in named:
        try:
            spelled = normalise(path, at)
        except BadInput as bad:
            yield bad
        else:
            if spelled != path:
                yield BadInput(at, f"{path!r} is not the shortest spelling", f"Write {spelled}")


def _pipeline(spec: JobSpec, roles: Mapping[str, Role]) -> Iterator[BadInput]:
    stages = (
        ("generate", spec.pipeline.generate, RoleKind.EDIT),
        ("review", spec.pipeline.review, RoleKind.REVIEW),
        ("test", spec.pipeline.test, RoleKind.TEST),
    )
    for stage, names, kind in stages:
        for i, name in enumerate(names):
            yield from _role(name, f"pipeline.{stage}[{i}]", kind, roles)
            if name in names[:i]:
                yield BadInput(f"pipeline.{stage}[{i}]", f"{name!r} is there twice", "Name each role once")
    if spec.planner:
        yield from _role(spec.planner, "planner", RoleKind.PLAN, roles)
    if len(spec.pipeline.test) > 1:
        yield BadInput("pipeline.test", "only one role can write the tests", "Name one")
    reviewers = len(spec.pipeline.review)
    if spec.pipeline.quorum < 1 or (reviewers and spec.pipeline.quorum > reviewers):
        yield BadInput(
            "pipeline.quorum",
            f"{spec.pipeline.quorum} of {reviewers} reviewers",
            f"Use 1 to {max(reviewers, 1)}",
        )


def _role(name: str, field: str, kind: RoleKind, roles: Mapping[str, Role]) -> Iterator[BadInput]:
    role = roles.get(name)
    if role is None:
        yield BadInput(field, f"there is no role {name!r}", did_you_mean(name, roles))
    elif role.kind is not kind:
        fit = ", ".join(sorted(other.name for other in roles.values() if other.kind is kind))
        yield BadInput(
            field, f"{name!r} is a role for {role.kind}, not {kind}", f"Use one of: {fit or 'none yet'}"
        )


def _strategies(spec: JobSpec) -> Iterator[BadInput]:
    lists = [("strategies", spec.strategies)]
    lists += [(f"overrides[{i}].strategies", o.strategies) for i, o in enumerate(spec.overrides)]
    usable = sorted((STRATEGIES.keys() | CLAIMS) - {Strategy.IDENTICAL})
    for field, strategies in lists:
        if not strategies:
            yield BadInput(field, "it is empty", f"Use some of: {', '.join(usable)}")
        for i, strategy in enumerate(strategies):
            if strategy not in usable:
                yield BadInput(
                    f"{field}[{i}]", f"{strategy!s} is not there", f"Use some of: {', '.join(usable)}"
                )
            elif strategy in strategies[:i]:
                yield BadInput(f"{field}[{i}]", f"{strategy!s} is there twice", "Name each strategy once")
    if spec.human.default not in WRITER_WINS:
        yield BadInput(
            "human.default",
            f"{spec.human.default!s} may have no answer",
            f"Use one of: {', '.join(sorted(WRITER_WINS))}",
        )


def _merge(spec: JobSpec, roles: Mapping[str, Role]) -> Iterator[BadInput]:
    """Who merges is there, and somebody does its work: a merger that ships has no provider yet."""
    if not _merges(spec):
        return
    name = spec.pipeline.merge
    yield from _role(name, "pipeline.merge", RoleKind.MERGE, roles)
    if name in roles and not roles[name].provider:
        reason = f"{name!r}, which `semantic` asks, has no provider"
        remedy = "Give it one in the roles file (CONVOY_ROLES), or leave semantic out of the strategies"
        yield BadInput("pipeline.merge", reason, remedy)


def _limits(spec: JobSpec) -> Iterator[BadInput]:
    limits: tuple[tuple[str, float, float, float], ...] = (
        ("max_rounds", spec.max_rounds, 1, MAX_ROUNDS),
        ("task_deadline_seconds", spec.task_deadline_seconds, 1, MAX_SECONDS),
        ("deadline_seconds", spec.deadline_seconds, 1, MAX_SECONDS),
        ("human.deadline_seconds", spec.human.deadline_seconds, 1, MAX_SECONDS),
        ("budget.usd", spec.budget.usd, 0, MAX_NUMBER),
        ("budget.tokens", spec.budget.tokens, 0, 2**53),
        ("budget.seconds", spec.budget.seconds, 0, MAX_SECONDS),
        ("priority", spec.priority, -1000, 1000),
    )
    for field, value, least, most in limits:
        if not math.isfinite(value) or not least <= value <= most:
            yield BadInput(field, f"{value} is out of range", f"Use {least} to {most}")


def _prices(spec: JobSpec, roles: Mapping[str, Role]) -> Iterator[BadInput]:
    """A budget in money needs to know what each model of the job costs."""
    if not spec.budget.usd > 0:
        return
    for name in dict.fromkeys(_asked(spec)):
        if name in roles and (bad := unpriced(roles[name])) is not None:
            yield bad


def _asked(spec: JobSpec) -> Iterator[str]:
    """The roles that a job may ask."""
    pipeline = spec.pipeline
    yield from (task.role for task in spec.tasks)
    yield from (*pipeline.generate, *pipeline.review, *pipeline.test)
    if spec.planner:
        yield spec.planner
    if _merges(spec):
        yield pipeline.merge


def _merges(spec: JobSpec) -> bool:
    """True where a merger may be asked."""
    lists = (spec.strategies, *(override.strategies for override in spec.overrides))
    return any(Strategy.SEMANTIC in strategies for strategies in lists)


def _test_command(command: str) -> Iterator[BadInput]:
    remedy = "Use {python} and {path}, and no other braces ({{ and }} for braces themselves)"
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(command) if name is not None}
    except ValueError as error:
        yield BadInput("test_command", f"it is no template: {error}", remedy)
        return
    if unknown := names - {"python", "path"}:
        yield BadInput("test_command", f"{{{min(unknown)}}} is unknown", remedy)
    elif "path" not in names:
        yield BadInput("test_command", "it does not say which file to run", remedy)
