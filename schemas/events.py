"""Reads nothing, writes nothing: the event, the fact about a file that the `events` log holds.

An event is immutable. Its `event_id` is derived (see `ids.event_id`), so a redelivered task
can't make a second fact. Order is log order; `timestamp` is information only.
"""

from enum import StrEnum

import msgspec


class EventType(StrEnum):
    """Every kind of fact about a file (design section 4)."""

    CODE_GENERATED = "CODE_GENERATED"
    CODE_MODIFIED = "CODE_MODIFIED"
    TEST_WRITTEN = "TEST_WRITTEN"
    CONFLICT_RESOLVED = "CONFLICT_RESOLVED"
    CODE_REVERTED = "CODE_REVERTED"
    FILE_IMPORTED = "FILE_IMPORTED"
    FILE_DELETED = "FILE_DELETED"
    REVIEW_SUBMITTED = "REVIEW_SUBMITTED"
    CONFLICT_DETECTED = "CONFLICT_DETECTED"
    RESOLUTION_FAILED = "RESOLUTION_FAILED"
    TEST_EXECUTED = "TEST_EXECUTED"
    READ_NOTED = "READ_NOTED"
    CONTEXT_STALE = "CONTEXT_STALE"
    CHANGESET_COMMITTED = "CHANGESET_COMMITTED"
    CHANGESET_ABORTED = "CHANGESET_ABORTED"
    ROUND_VOIDED = "ROUND_VOIDED"


class Consistency(StrEnum):
    """What a job chose: merge forks (`eventual`) or refuse what would fork (`strong`)."""

    EVENTUAL = "eventual"
    STRONG = "strong"


class Strategy(StrEnum):
    """Ways to join the heads of a fork, in the words that a job file uses."""

    THREE_WAY = "three_way"
    STRUCTURAL = "structural"
    SEMANTIC = "semantic"
    REWORK = "rework"
    LAST_WRITER_WINS = "last_writer_wins"
    FIRST_WRITER_WINS = "first_writer_wins"
    HUMAN = "human"
    IDENTICAL = "identical"
    """Both sides hold the same content: they collapse without a merge (never chosen by a job)."""


class _Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False, gc=False):
    """Base of every record on a log: immutable, by keyword only, and never part of a cycle."""


TASKED = frozenset({Strategy.SEMANTIC, Strategy.REWORK})
"""Strategies that an agent carries out: the job of the later edit has a task of it."""


class Read(_Record, frozen=True, kw_only=True):
    """One entry of a read set: the version of another file that an agent's context held."""

    path: str
    event_id: str
    """The event read; empty where the path was absent."""


class Hunk(_Record, frozen=True, kw_only=True):
    """Replace `removed` lines of the base, from line `start` (0-based), with `lines`."""

    start: int
    removed: int
    lines: bytes


class Patch(_Record, frozen=True, kw_only=True):
    """What an edit does to the content of its first parent. Content is bytes.

    Either `content` is given (whole file) or `hunks` apply to the first parent. The outcome must
    hash to `result_sha256`, or the event is invalid. `result_sha256` None deletes the file.
    """

    base_sha256: str | None
    """Hash of the first parent's content, None where there is no parent or it is a tombstone."""
    result_sha256: str | None
    hunks: tuple[Hunk, ...] = ()
    content: bytes | None = None
    executable: bool = False


class Usage(_Record, frozen=True, kw_only=True):
    """What a model call cost. Prompts and replies are referenced by hash, never inline."""

    provider: str
    model: str
    tokens_in: int
    tokens_cached: int
    tokens_out: int
    cost_usd: float
    prompt_sha256: str


class Changeset(_Record, frozen=True, kw_only=True):
    """The multi-file edit that an event belongs to: all of its participants take effect or none."""

    changeset_id: str
    participants: tuple[str, ...]
    read_claims: tuple[Read, ...] = ()


class Policy(_Record, frozen=True, kw_only=True):
    """How a fork that this edit makes is to be resolved: travels with the edit, so that the
    detector looks nothing up."""

    strategies: tuple[Strategy, ...]
    rework_seconds: int = 600
    """For an agent: of the strategies `rework` and `semantic`."""
    human_seconds: int = 86_400
    default: Strategy = Strategy.FIRST_WRITER_WINS


class CodeGenerated(_Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.CodeGenerated"):
    """A file was created by an agent."""

    patch: Patch
    summary: str = ""


class CodeModified(_Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.CodeModified"):
    """A file was changed by an agent."""

    patch: Patch
    summary: str = ""


class TestWritten(_Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.TestWritten"):
    """A test file was written for the files in `covers`."""

    __test__ = False
    patch: Patch
    covers: tuple[str, ...] = ()
    summary: str = ""


class Tried(_Record, frozen=True, kw_only=True):
    """One strategy that was tried on a conflict before the one that resolved it."""

    strategy: Strategy
    reason: str


class ConflictResolved(
    _Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.ConflictResolved"
):
    """A merge commit on the log: joins the heads named in `parent_event_ids`."""

    patch: Patch
    conflict_id: str
    strategy: Strategy
    tried: tuple[Tried, ...] = ()
    losers: tuple[str, ...] = ()
    """Heads whose content was not taken (writer-wins strategies): they stay on the log."""
    summary: str = ""


class CodeReverted(_Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.CodeReverted"):
    """A job's edits were taken out of a file: it is as the event `reverts_to` left it (empty: absent, or as
    no event did)."""

    patch: Patch
    reverts_to: str
    reason: str


class FileImported(_Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.FileImported"):
    """Content that came from git, at `commit`."""

    patch: Patch
    commit: str


class FileDeleted(_Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.FileDeleted"):
    """A file was deleted: its head is a tombstone, which a re-creation names as parent."""

    patch: Patch
    summary: str = ""


class ReviewSubmitted(
    _Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.ReviewSubmitted"
):
    """A reviewer's vote on one version of this file. It counts only while that is the head."""

    version: str
    approved: bool
    lens: str
    comments: tuple[str, ...] = ()


class LineRange(_Record, frozen=True, kw_only=True):
    """Lines `start` to `end` (0-based, end exclusive) of the base that several heads changed."""

    start: int
    end: int


class ConflictDetected(
    _Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.ConflictDetected"
):
    """A fork was found, and the file is claimed for its resolution by `strategy`."""

    conflict_id: str
    heads: tuple[str, ...]
    """The heads to be joined, sorted by id; all were heads when this was decided."""
    base: str | None
    overlaps: tuple[LineRange, ...]
    strategy: Strategy
    attempt: int
    """Counts the strategies tried on this conflict, from 1."""
    deadline: int
    """Milliseconds since the epoch, decided by the detector: when it passes, the next strategy's turn."""
    remaining: tuple[Strategy, ...] = ()
    """What is tried next, in order, if this strategy fails."""
    default: Strategy = Strategy.FIRST_WRITER_WINS
    """What settles the conflict when everything else failed."""
    tried: tuple[Tried, ...] = ()


class ResolutionFailed(
    _Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.ResolutionFailed"
):
    """A strategy gave up on a conflict, or its deadline passed: the next one's turn."""

    conflict_id: str
    attempt: int
    strategy: Strategy
    reason: str


class TestExecuted(_Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.TestExecuted"):
    """Tests of this file were run, on the versions named in the event's `reads`."""

    __test__ = False
    version: str
    """The event whose content was executed."""
    outcome: str
    """passed, regressed (failed here, passed on the base), failed (on both) or not_executed."""
    exit_code: int
    base_exit_code: int | None
    duration_ms: int
    output_tail: str
    sandbox: str
    """bubblewrap, unsandboxed or none (not executed)."""
    unset_limits: tuple[str, ...] = ()


class ReadNoted(_Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.ReadNoted"):
    """Keyed by the file that was read: `reader_event` was built on `version` of this file."""

    version: str
    reader_event: str
    reader_path: str


class ContextStale(_Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.ContextStale"):
    """Keyed by the reader's file: `reader_event` was built on a version that is no longer the head."""

    reader_event: str
    read_path: str
    read_version: str
    head: str


class ChangesetCommitted(
    _Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.ChangesetCommitted"
):
    """All participants of a changeset said yes: its claimed edits count now."""

    changeset_id: str


class ChangesetAborted(
    _Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.ChangesetAborted"
):
    """A changeset was refused: its claimed edits are dead."""

    changeset_id: str
    reason: str


class RoundVoided(_Record, frozen=True, kw_only=True, tag_field="-type", tag="codeconvoy.RoundVoided"):
    """A dispatch was given up: edits of this task and round that come later are dead."""

    task_id: str
    round: int
    reason: str


EditPayload = (
    CodeGenerated | CodeModified | TestWritten | ConflictResolved | CodeReverted | FileImported | FileDeleted
)
Payload = (
    CodeGenerated
    | CodeModified
    | TestWritten
    | ConflictResolved
    | CodeReverted
    | FileImported
    | FileDeleted
    | ReviewSubmitted
    | ConflictDetected
    | ResolutionFailed
    | TestExecuted
    | ReadNoted
    | ContextStale
    | ChangesetCommitted
    | ChangesetAborted
    | RoundVoided
)

TYPE_OF: dict[type[Payload], EventType] = {
    CodeGenerated: EventType.CODE_GENERATED,
    CodeModified: EventType.CODE_MODIFIED,
    TestWritten: EventType.TEST_WRITTEN,
    ConflictResolved: EventType.CONFLICT_RESOLVED,
    CodeReverted: EventType.CODE_REVERTED,
    FileImported: EventType.FILE_IMPORTED,
    FileDeleted: EventType.FILE_DELETED,
    ReviewSubmitted: EventType.REVIEW_SUBMITTED,
    ConflictDetected: EventType.CONFLICT_DETECTED,
    ResolutionFailed: EventType.RESOLUTION_FAILED,
    TestExecuted: EventType.TEST_EXECUTED,
    ReadNoted: EventType.READ_NOTED,
    ContextStale: EventType.CONTEXT_STALE,
    ChangesetCommitted: EventType.CHANGESET_COMMITTED,
    ChangesetAborted: EventType.CHANGESET_ABORTED,
    RoundVoided: EventType.ROUND_VOIDED,
}


class Event(_Record, frozen=True, kw_only=True):
    """An immutable fact about one file, with its causes."""

    event_id: str
    event_type: EventType
    workspace: str
    file_path: str
    job_id: str
    task_id: str
    round: int
    agent_id: str
    role: str
    timestamp: int
    """Milliseconds since the epoch. Information only: order is log order."""
    parent_event_ids: tuple[str, ...] = ()
    reworks: str | None = None
    """The dead edit that this one replaces."""
    reads: tuple[Read, ...] = ()
    consistency: Consistency = Consistency.EVENTUAL
    policy: Policy | None = None
    changeset: Changeset | None = None
    usage: Usage | None = None
    payload: Payload

    @property
    def edit(self) -> EditPayload | None:
        """The payload if this event changes a file, else None."""
        return self.payload if isinstance(self.payload, EditPayload) else None
