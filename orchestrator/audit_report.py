"""Reads nothing, writes nothing: what an audit counts and finds."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import Undecodable
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.job_facts import JobFact
from codeconvoy.workers.engine.bus import Record
from codeconvoy.workers.records import decoded

R = TypeVar("R", Event, JobFact)

MAX_KEPT = 1_000
"""Differences that are kept with their text; all are counted."""


class Check(StrEnum):
    """What an audit compares or demands."""

    PROJECTION = "projection"
    """The projection is, byte for byte, what the log folds to."""
    BRANCH = "branch"
    """A job's branch is what the histories gave when it was published."""
    LOST = "lost"
    """Every live edit is in the result, and every event that a task speaks of is on the log."""
    DOUBLED = "doubled"
    """Nothing takes effect twice."""
    ORDER = "order"
    """Edits come after their parents, and rounds one after the other."""
    VERDICT = "verdict"
    """The verdict of every event is on its job's log, and is the fold's."""
    ENDED = "ended"
    """A job that says it ended has ended."""
    MISPLACED = "misplaced"
    """Every record is on the partition of its key."""
    UNREADABLE = "unreadable"
    """What can't be read is a dead letter, or was skipped on purpose."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as the log says it should be."""

    check: Check
    where: str
    """A file key, a job id, or a topic and partition."""
    what: str
    ids: tuple[str, ...] = ()


@dataclass(slots=True)
class Findings:
    """The differences so far."""

    kept: list[Difference] = field(default_factory=list)
    by_check: Counter[Check] = field(default_factory=Counter)

    def add(self, check: Check, where: str, what: str, *ids: str) -> None:
        """Take a difference down."""
        self.by_check[check] += 1
        if len(self.kept) < MAX_KEPT:
            self.kept.append(Difference(check, where, what, ids))


@dataclass(slots=True)
class Counts:
    """What was read, for people."""

    events: int = 0
    redelivered: int = 0
    """Events that were on the log already, and changed nothing."""
    files: int = 0
    edits: Counter[str] = field(default_factory=Counter)
    """By their last verdict."""
    conflicts: int = 0
    overlapping: int = 0
    """Conflicts in which several heads changed the same lines."""
    forks: int = 0
    """Edits that became one more head, resolutions apart."""
    resolved: Counter[str] = field(default_factory=Counter)
    """Resolutions that took effect, by strategy."""
    stale: int = 0
    """Reads, reviews and test runs whose version was not, or is no longer, what readers see."""
    reviews: int = 0
    tests_written: int = 0
    tests_run: int = 0
    facts: int = 0
    jobs: Counter[str] = field(default_factory=Counter)
    """By status."""
    tasks: int = 0
    branches: int = 0
    commits: int = 0
    fields: int = 0
    """Fields of the projection that were compared."""
    garbage: int = 0
    """Records that no version can read."""
    dead_letters: int = 0
    """Records on the dead-letters topic, skip marks apart."""


Point = tuple[str, int, int]
"""Topic, partition and offset of a record."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Records that the folds passed over, as the dead-letters topic says."""

    lettered: frozenset[Point] = frozenset()
    """Those that have a dead letter."""
    skipped: frozenset[Point] = frozenset()
    """Those that an operator has skipped."""

    def read(
        self, codec: Codec, record: Record, kind: type[R], findings: Findings, counts: Counts
    ) -> R | None:
        """What the record holds; None where every fold passes over it.

        Raises:
            Undecodable: a newer version wrote it, and nobody skipped it: nothing after it is folded.
        """
        point = (record.topic, record.partition, record.offset)
        try:
            return decoded(codec, record, kind)
        except Undecodable as undecodable:
            if not undecodable.is_garbage and point not in self.skipped:
                raise
            counts.garbage += 1
            if undecodable.is_garbage and point not in self.lettered:
                where = f"{record.topic}/{record.partition}"
                findings.add(Check.UNREADABLE, where, f"offset {record.offset} has no dead letter")
            return None


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of an audit."""

    counts: Counts
    findings: Findings

    @property
    def clean(self) -> bool:
        """True where nothing differs."""
        return not self.findings.by_check

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        counts, found = self.counts, self.findings
        return {
            "clean": self.clean,
            "counts": {
                "events": counts.events,
                "redelivered": counts.redelivered,
                "files": counts.files,
                "edits": dict(sorted(counts.edits.items())),
                "forks": counts.forks,
                "conflicts": counts.conflicts,
                "overlapping": counts.overlapping,
                "resolved": dict(sorted(counts.resolved.items())),
                "stale": counts.stale,
                "reviews": counts.reviews,
                "tests_written": counts.tests_written,
                "tests_run": counts.tests_run,
                "facts": counts.facts,
                "jobs": dict(sorted(counts.jobs.items())),
                "tasks": counts.tasks,
                "branches": counts.branches,
                "commits": counts.commits,
                "projection_fields": counts.fields,
                "garbage": counts.garbage,
                "dead_letters": counts.dead_letters,
                "lost": found.by_check[Check.LOST],
                "doubled": found.by_check[Check.DOUBLED],
                "out_of_order": found.by_check[Check.ORDER],
            },
            "differences": {str(check): count for check, count in sorted(found.by_check.items())},
            "first": [
                {"check": str(one.check), "where": one.where, "what": one.what, "ids": one.ids}
                for one in found.kept
            ],
        }
