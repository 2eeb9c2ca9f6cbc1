"""Reads nothing, writes nothing: the task, one unit of work on a role's queue.

A task carries everything that its worker needs to know besides the contents of files, which it
reads from the projection once that has passed everything in `must_see`.
"""

import msgspec

from codeconvoy.schemas.events import Consistency, Policy, Strategy, Tried
from codeconvoy.schemas.job_spec import Budget, OnMove, TaskSpec


class _Part(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of the parts of a task: immutable, by keyword only."""


class MustSee(_Part, frozen=True, kw_only=True):
    """The projection must have passed this offset of the events log before the task is read for."""

    partition: int
    offset: int


class Former(_Part, frozen=True, kw_only=True):
    """The edit that the task made of its file in an earlier round, and where it is on the events log."""

    event_id: str
    partition: int
    offset: int
    moved: bool = False
    """It came to nothing because what it was built on had moved."""


class EditWork(_Part, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.EditWork"):
    """Edit `path` towards the goal. Feedback is why an earlier round was not accepted."""

    base: str = ""
    """The event to start from; the visible version where empty."""
    also: tuple[str, ...] = ()
    feedback: tuple[str, ...] = ()
    reworks: str | None = None


class ReviewWork(_Part, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.ReviewWork"):
    """Vote on `version` of `path`, against what it was at `base` (empty: absent)."""

    version: str
    base: str
    lens: str = "correctness"


class TestWork(_Part, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.TestWork"):
    """Write tests for `path` (as it is visible, against `base`) into `test_path`."""

    __test__ = False
    base: str
    test_path: str
    feedback: tuple[str, ...] = ()
    reworks: str | None = None


class ResolveWork(_Part, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.ResolveWork"):
    """Reconcile the heads of a conflict on `path`: answers with a CONFLICT_RESOLVED."""

    conflict_id: str
    attempt: int
    heads: tuple[str, ...]
    base: str | None
    own: str
    """The head that was made later than the others; for `rework` the role's own edit."""
    strategy: Strategy
    """`rework`: the later author reconciles. `semantic`: a merger fills what git could not merge."""
    tried: tuple[Tried, ...] = ()


class PlanWork(_Part, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.PlanWork"):
    """Plan the tasks of a job from its goal and these files."""

    files: tuple[str, ...]
    roles: tuple[str, ...]


class ImportWork(_Part, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.ImportWork"):
    """Read the repository at `ref` and import the files that the job names."""

    repository: str
    ref: str
    files: tuple[str, ...]
    exclude: tuple[str, ...]
    paths: tuple[str, ...]
    """Exact paths to import too, or to note as absent."""
    test_directory: str = ""
    """Where the files' tests are written: existing ones are imported as well. Empty: no tests."""


class RunWork(_Part, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.RunWork"):
    """Run the test file `path` on the visible tree and on the tree at `commit`."""

    repository: str
    commit: str
    command: str
    subjects: tuple[str, ...]
    unsandboxed: bool


class CheckWork(_Part, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.CheckWork"):
    """Run the job's check command on the visible tree."""

    repository: str
    commit: str
    command: str
    paths: tuple[str, ...]
    unsandboxed: bool


class RevertWork(_Part, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.RevertWork"):
    """Take the edits of the job out of `path` again, on top of the head."""

    reason: str


class PublishWork(_Part, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.PublishWork"):
    """Write the visible changes of `paths` since `commit` to a branch."""

    repository: str
    commit: str
    branch: str
    imports: tuple[str, ...]
    """The import event of each path, in the order of `paths` (empty: was absent)."""
    paths: tuple[str, ...]
    message: str


Work = (
    EditWork
    | ReviewWork
    | TestWork
    | ResolveWork
    | PlanWork
    | ImportWork
    | RunWork
    | CheckWork
    | RevertWork
    | PublishWork
)


class Task(_Part, frozen=True, kw_only=True):
    """One unit of work for a role."""

    task_id: str
    job_id: str
    workspace: str
    role: str
    path: str
    """The file that the task is keyed by; tasks of a role on one file run one after the other."""
    round: int
    goal: str
    reads: tuple[str, ...] = ()
    """Further paths that the agent is shown; they become the read set of its edits."""
    must_see: tuple[MustSee, ...] = ()
    consistency: Consistency = Consistency.EVENTUAL
    policy: Policy | None = None
    on_move: OnMove = OnMove.REPAIR
    deadline_seconds: int = 600
    priority: int = 0
    budget: Budget = Budget()
    """The job's: all of its tasks share it."""
    former: Former | None = None
    """For a later round: what the agent is to go on from."""
    work: Work


__all__ = [
    "CheckWork",
    "EditWork",
    "Former",
    "ImportWork",
    "MustSee",
    "PlanWork",
    "PublishWork",
    "ResolveWork",
    "RevertWork",
    "ReviewWork",
    "RunWork",
    "Task",
    "TaskSpec",
    "TestWork",
    "Work",
]
