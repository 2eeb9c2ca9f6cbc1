"""Reads nothing, writes nothing: what a user asks for, as a job file or a record on the jobs topic.

The field names are those of the YAML file. Values are checked by `orchestrator.job_file` when a
job is submitted and again when it is planned, since a record may come from any language.
"""

import re
from enum import StrEnum

import msgspec

from codeconvoy.schemas import ids
from codeconvoy.schemas.events import Consistency, Strategy

DEFAULT_STRATEGIES = (Strategy.THREE_WAY, Strategy.REWORK, Strategy.HUMAN)


class _Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the parts of a job file: unknown fields are an error, not ignored."""


class Pipeline(_Spec, frozen=True, kw_only=True):
    """The roles of each stage. An empty stage is skipped."""

    generate: tuple[str, ...] = ("generator",)
    """Roles that edit each file, side by side."""
    review: tuple[str, ...] = ("reviewer",)
    """Roles that vote on the version that the generate stage settled on."""
    test: tuple[str, ...] = ("tester",)
    """The role (at most one) that writes tests for it; the tests are then run."""
    quorum: int = 1
    """Approvals of the head that a file needs to leave the review stage."""
    merge: str = "merger"
    """The role that is asked where a strategy is `semantic`."""


class TaskKind(StrEnum):
    """What an explicit task does with its path."""

    EDIT = "edit"
    TEST = "test"
    """Writes tests for the path, at the same time as others edit it."""


class TaskSpec(_Spec, frozen=True, kw_only=True):
    """One task given explicitly, instead of by globs."""

    role: str
    path: str
    kind: TaskKind = TaskKind.EDIT
    goal: str = ""
    also: tuple[str, ...] = ()
    """Further paths that the task may write."""
    reads: tuple[str, ...] = ()
    """Further paths that the agent is shown."""


class OnMove(StrEnum):
    """What becomes of an agent's call when a file that it was shown moves under it."""

    REPAIR = "repair"
    """It goes on; what it writes is merged, or done again, as any other fork or stale read."""
    RESTART = "restart"
    """It is cancelled, and begun anew on the new version: a few times, then as `repair`."""
    IGNORE = "ignore"
    """Nobody looks; the log judges its edit all the same."""


class StrategyOverride(_Spec, frozen=True, kw_only=True):
    """Strategies for the files that match a glob; the first match wins."""

    glob: str
    strategies: tuple[Strategy, ...]


class HumanSpec(_Spec, frozen=True, kw_only=True):
    """How long a conflict waits for a person, and what settles it when nobody came."""

    deadline_seconds: int = 86_400
    default: Strategy = Strategy.FIRST_WRITER_WINS


class Budget(_Spec, frozen=True, kw_only=True):
    """Caps of a job; 0 means no cap."""

    usd: float = 0.0
    tokens: int = 0
    seconds: int = 0


class JobSpec(_Spec, frozen=True, kw_only=True):
    """A job: what to do to which files of which repository, by whom, and within which limits."""

    repository: str
    """A path of a local git repository, or a URL that git can clone."""
    ref: str = "HEAD"
    workspace: str = ""
    """Names the shared history that jobs edit; derived from repository and ref if empty."""
    branch: str = ""
    """The branch that the result is written to; `convoy/<job id>` if empty."""
    goal: str
    files: tuple[str, ...] = ()
    """Globs of the files to work on. One of files, tasks or planner is needed."""
    exclude: tuple[str, ...] = ()
    tasks: tuple[TaskSpec, ...] = ()
    planner: str = ""
    """A role that plans the tasks from the goal and the files."""
    pipeline: Pipeline = Pipeline()
    together: bool = False
    """True: the roles of the generate stage all start from the imported version, as agents that
    began at the same time do. False: each starts from the head that it finds."""
    on_move: OnMove = OnMove.REPAIR
    consistency: Consistency = Consistency.EVENTUAL
    strategies: tuple[Strategy, ...] = DEFAULT_STRATEGIES
    overrides: tuple[StrategyOverride, ...] = ()
    human: HumanSpec = HumanSpec()
    check: str = ""
    """A shell command, run on the final tree in the sandbox; its exit status decides the job."""
    test_command: str = "{python} -m unittest {path}"
    """How one test file is run; `{python}` and `{path}` are filled in."""
    test_directory: str = "tests/convoy"
    """Where testers put the test files they write."""
    unsandboxed: bool = False
    """True allows tests and the check to run without bubblewrap, where it is missing."""
    max_rounds: int = 3
    """Rounds of one task's work, the first included."""
    task_deadline_seconds: int = 600
    deadline_seconds: int = 7_200
    budget: Budget = Budget()
    priority: int = 0


def complete(spec: JobSpec) -> JobSpec:
    """The spec with a workspace: its own, or one derived from repository and ref."""
    if spec.workspace:
        return spec
    return msgspec.structs.replace(spec, workspace=workspace_for(spec.repository, spec.ref))


def workspace_for(repository: str, ref: str) -> str:
    """The name of the workspace that jobs on this repository and ref share: readable, and unique."""
    spelled = repository.rstrip("/").removesuffix(".git").rstrip("/")
    slugs = (_slug(re.split(r"[/:]", spelled)[-1], 40), _slug(ref, 20))
    digest = ids.sha256(f"{spelled}\0{ref}".encode())[:8]
    return "-".join((*(slug for slug in slugs if slug), digest))


def _slug(text: str, limit: int) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:limit].rstrip("-")
