"""Reads nothing, writes nothing: what a role is, what an agent is shown, and what it may answer.

A role is a small declaration. An agent is what does a role's work: a model behind a provider, a
rule set, or a program. Agents never touch a log: they get a `Context` and give an `Answer`; the
worker turns answers into events.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from codeconvoy.schemas.events import Usage
from codeconvoy.schemas.job_spec import TaskSpec
from codeconvoy.schemas.tasks import Task
from codeconvoy.workers.llm.repo_map import RepoMap
from codeconvoy.workers.resolution.regions import PartialMerge


class RoleKind(StrEnum):
    """What a role may emit."""

    EDIT = "edit"
    """Edits of the task's files; it also reconciles its own edits in a conflict (`rework`)."""
    REVIEW = "review"
    """A vote on a version."""
    TEST = "test"
    """One test file for a file."""
    MERGE = "merge"
    """Resolutions of conflicts."""
    PLAN = "plan"
    """The tasks of a job."""


@dataclass(frozen=True, slots=True)
class NextProvider:
    """Who is asked where the providers before it can't do a task."""

    provider: str
    model: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Role:
    """A role: a name, a prompt, what does its work, what it may emit."""

    name: str
    kind: RoleKind
    description: str
    provider: str
    """`codemod`, `openai`, `anthropic`, `command`, or a provider from an entry point."""
    prompt: str = ""
    """Instructions for a model or program; rule-based agents need none."""
    model: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    """What the provider needs besides: `rules`, `base_url`, `argv`, …"""
    lens: str = "correctness"
    """What a reviewer looks for."""
    concurrency: int = 4
    """Tasks in flight in one process."""
    next: tuple[NextProvider, ...] = ()
    """Further providers, in the order in which they are asked."""

    def by_provider(self) -> "tuple[tuple[str, Role], ...]":
        """The role as each of its providers does it, under the field of the roles file that names it."""
        place = f"roles.{self.name}"
        further = (
            (
                f"{place}.next[{i}]",
                replace(self, provider=n.provider, model=n.model, options=n.options, next=()),
            )
            for i, n in enumerate(self.next)
        )
        return ((place, replace(self, next=())), *further)


@dataclass(frozen=True, slots=True)
class Version:
    """A file at one version."""

    path: str
    event_id: str
    """Empty: absent, never written."""
    content: bytes | None
    """None: absent or deleted."""
    executable: bool = False
    role: str = ""
    """Who wrote it, for prompts."""
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Intent:
    """What an edit was about."""

    role: str
    goal: str
    """What its job asked for; empty where that is not known any more."""
    summary: str


@dataclass(frozen=True, slots=True)
class Merge:
    """A conflict that is merged region by region: what git made of it, and what the sides are about."""

    partial: PartialMerge
    intents: tuple[tuple[Intent, ...], tuple[Intent, ...]]
    """Of each side, in the order of `partial.sides`: the edits that only it holds, in log order."""


@dataclass(frozen=True, slots=True)
class Former:
    """What the same task answered in an earlier round, and to what."""

    shown: Mapping[str, Version]
    """The files as the agent was shown them then, by path, as far as they are remembered."""
    own: Version
    """What it made of its file."""
    is_live: bool
    """Its edit is in the file's history, and what there is now was built on it or merged with it."""
    tokens: int = 0
    """What it took."""


@dataclass(frozen=True, slots=True)
class Context:
    """All that an agent is shown. It reads nothing else."""

    task: Task
    file: Version
    """The version to edit, to review, to test, or (in a conflict) the agent's own edit."""
    base: Version | None = None
    """What a review or test compares with; the common ancestor of a conflict's heads."""
    others: tuple[Version, ...] = ()
    """Further files that the agent may read (the task's `reads` and `also`)."""
    heads: tuple[Version, ...] = ()
    """The other heads of a conflict, in log order: what moved under the agent's own edit."""
    merge: Merge | None = None
    """Where the strategy is `semantic`: then `file` is the first side, and the one of `heads` the second."""
    former: Former | None = None
    """In a later round, where the task has edited its file before."""
    map: RepoMap | None = None
    """What there is besides, for a role of a model. A hint, and no part of what was read."""


@dataclass(frozen=True, slots=True)
class FileEdit:
    """New content of one file; None deletes it."""

    path: str
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Edits:
    """The agent's edits. None at all: nothing needs to be changed."""

    files: tuple[FileEdit, ...]
    summary: str = ""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Vote:
    """A reviewer's vote."""

    approved: bool
    comments: tuple[str, ...] = ()
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A planner's tasks."""

    tasks: tuple[TaskSpec, ...]
    usage: Usage | None = None


Answer = Edits | Vote | Plan


class Agent(Protocol):
    """Does the work of a role."""

    async def work(self, context: Context) -> Answer:
        """Answer a task. Cancelling the call ends whatever it started.

        Raises:
            AgentError: the task can't be done; `retryable` says whether trying again may help.
        """
        ...

    async def close(self) -> None:
        """Give up connections and processes."""
        ...
