"""Contexts of tasks, as a worker would hand them to an agent."""

from dataclasses import replace

from codeconvoy.schemas.events import Strategy, Tried
from codeconvoy.schemas.tasks import EditWork, PlanWork, ResolveWork, ReviewWork, Task, TestWork, Work
from codeconvoy.workers.llm.repo_map import RepoMap
from codeconvoy.workers.resolution.regions import PartialMerge, partial_merge
from codeconvoy.workers.roles.role import Context, Intent, Merge, Version
from tests.fork_histories import fork_of

BASE = b"def one():\n    return 1\n"


def version(content: bytes | None = BASE, path: str = "a.py", event: str = "e1", role: str = "") -> Version:
    """A file at a version."""
    return Version(path, event if content is not None else "", content, role=role)


def context(
    work: Work,
    *,
    file: Version | None = None,
    base: Version | None = None,
    others: tuple[Version, ...] = (),
    heads: tuple[Version, ...] = (),
    map: RepoMap | None = None,
    goal: str = "improve it",
    deadline_seconds: int = 60,
) -> Context:
    """A task on `a.py`, and what its agent is shown."""
    task = Task(
        task_id="t1",
        job_id="j1",
        workspace="w",
        role="r",
        path="a.py",
        round=1,
        goal=goal,
        deadline_seconds=deadline_seconds,
        work=work,
    )
    return Context(task, file or version(), base, others, heads, map=map)


def edit(**parts: object) -> Context:
    """An edit of `a.py`."""
    return context(EditWork(), **parts)  # type: ignore[arg-type]


def review(**parts: object) -> Context:
    """A review of `a.py`, which did not exist before."""
    return context(ReviewWork(version="e1", base="", lens="speed"), **parts)  # type: ignore[arg-type]


def testing(**parts: object) -> Context:
    """Tests of `a.py`, to be written into `t/test_a.py`."""
    return context(TestWork(base="e0", test_path="t/test_a.py"), **parts)  # type: ignore[arg-type]


def plan(**parts: object) -> Context:
    """A plan for two files and one role."""
    return context(PlanWork(files=("a.py", "b.py"), roles=("generator",)), **parts)  # type: ignore[arg-type]


def resolve(**parts: object) -> Context:
    """A conflict on `a.py` between the agent's own edit and another head."""
    work = ResolveWork(
        conflict_id="c1",
        attempt=2,
        heads=("e1", "e2"),
        base="e0",
        own="e1",
        strategy=Strategy.REWORK,
        tried=(Tried(strategy=Strategy.THREE_WAY, reason="both changed line 2"),),
    )
    shown: dict[str, object] = {
        "file": version(b"def one():\n    return 11\n", event="e1"),
        "base": version(event="e0"),
        "heads": (version(b"def uno():\n    return 1\n", event="e2", role="namer"),),
    }
    return context(work, **(shown | parts))  # type: ignore[arg-type]


MERGE_BASE = b"import os\n\n\ndef one():\n    return 1\n\n\ndef two():\n    return 2\n"
MERGE_SIDES = (
    MERGE_BASE.replace(b"return 1", b"return 1 + 0").replace(b"import os\n", b"import os\nimport re\n"),
    MERGE_BASE.replace(b"return 1", b"return int(1)"),
)
"""Both change the body of `one`; git merges the import by itself."""


def merging(
    base: bytes = MERGE_BASE, sides: tuple[bytes, bytes] = MERGE_SIDES, path: str = "a.py"
) -> Context:
    """A conflict on a file, for a merger."""
    partial = partial_merge(*fork_of(base, *sides, path=path))
    assert isinstance(partial, PartialMerge), partial
    work = ResolveWork(
        conflict_id="c1",
        attempt=2,
        heads=("e1", "e2"),
        base="e0",
        own="e2",
        strategy=Strategy.SEMANTIC,
        tried=(Tried(strategy=Strategy.THREE_WAY, reason="both changed line 5"),),
    )
    intents = ((Intent("adder", "add", "adds zero"),), (Intent("typer", "type", "makes an int"),))
    shown = context(
        work,
        file=version(sides[0], path, event="e1"),
        base=version(base, path, event="e0"),
        heads=(version(sides[1], path, event="e2"),),
    )
    return replace(shown, merge=Merge(partial, intents))


async def at_once() -> None:
    """What `earlier` is where nothing of the same key waits to be committed."""
