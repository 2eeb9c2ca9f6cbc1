"""Builds events, and the histories that they fold to, in few words: for tests of the folds."""

from codeconvoy.schemas.events import (
    TYPE_OF,
    CodeModified,
    CodeReverted,
    ConflictDetected,
    ConflictResolved,
    Consistency,
    Event,
    FileDeleted,
    FileImported,
    Patch,
    Payload,
    Policy,
    Read,
    ReadNoted,
    ReviewSubmitted,
    RoundVoided,
    Strategy,
    TestExecuted,
    TestWritten,
)
from codeconvoy.schemas.file_fold import Verdict, fold
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.hunks import make_patch
from codeconvoy.schemas.ids import conflict_id
from codeconvoy.schemas.job_facts import VerdictKind

WORKSPACE, PATH = "w", "a.txt"
POLICY = Policy(strategies=(Strategy.THREE_WAY, Strategy.REWORK, Strategy.HUMAN))
BASE = b"one\n\ntwo\n\nthree\n\nfour\n"
"""Lines that lie far enough apart for git to merge changes of different ones."""


def event(
    event_id: str,
    payload: Payload,
    *,
    path: str = PATH,
    parents: tuple[str, ...] = (),
    task: str = "",
    round_: int = 1,
    job: str = "j",
    role: str = "generator",
    reads: tuple[Read, ...] = (),
    consistency: Consistency = Consistency.EVENTUAL,
    policy: Policy | None = POLICY,
) -> Event:
    """An event of a file; its task is named after it."""
    return Event(
        event_id=event_id,
        event_type=TYPE_OF[type(payload)],
        workspace=WORKSPACE,
        file_path=path,
        job_id=job,
        task_id=task or f"task of {event_id}",
        round=round_,
        agent_id=f"{role}-1",
        role=role,
        timestamp=0,
        parent_event_ids=parents,
        reads=reads,
        consistency=consistency,
        policy=policy,
        payload=payload,
    )


def review(event_id: str, version: str, *, approved: bool = True) -> Event:
    """A vote on a version."""
    return event(event_id, ReviewSubmitted(version=version, approved=approved, lens="correctness"))


def executed(event_id: str, version: str) -> Event:
    """A run of a version of a test file."""
    payload = TestExecuted(
        version=version,
        outcome="passed",
        exit_code=0,
        base_exit_code=None,
        duration_ms=1,
        output_tail="",
        sandbox="bubblewrap",
    )
    return event(event_id, payload)


def read_noted(event_id: str, version: str, reader: str = "reader", *, path: str = PATH) -> Event:
    """The note that an event of another file was built on a version of this one."""
    payload = ReadNoted(version=version, reader_event=reader, reader_path="b.txt")
    return event(event_id, payload, path=path, role="detector")


def voided(event_id: str, task: str, round_: int = 1) -> Event:
    """The fact that a round of a task was given up."""
    return event(event_id, RoundVoided(task_id=task, round=round_, reason="late"), role="orchestrator")


class FileLog:
    """The log of one file: makes events that stand on it, folds them, and keeps what was judged."""

    def __init__(self, path: str = PATH) -> None:
        self.history = FileHistory(workspace=WORKSPACE, path=path)
        self.events: list[Event] = []
        self.contents: dict[str, bytes | None] = {}
        self.verdicts: dict[str, list[VerdictKind]] = {}
        """All verdicts of each event, in order."""

    def add(self, added: Event) -> Verdict:
        """Fold one more event. Its own verdict."""
        self.history, judged = fold(self.history, added)
        self.events.append(added)
        for event_id, verdict in judged:
            self.verdicts.setdefault(event_id, []).append(verdict.kind)
        assert judged[0][0] == added.event_id, "the event's own verdict comes first"
        return judged[0][1]

    def make(
        self,
        event_id: str,
        content: bytes | None = None,
        *parents: str,
        executable: bool = False,
        kind: type[CodeModified] | type[TestWritten] | type[FileImported] | type[CodeReverted] = CodeModified,
        patch: Patch | None = None,
        task: str = "",
        round_: int = 1,
        job: str = "j",
        role: str = "generator",
        reads: tuple[Read, ...] = (),
        consistency: Consistency = Consistency.EVENTUAL,
        policy: Policy | None = POLICY,
    ) -> Event:
        """An edit of the file that makes `content` of its parent's; None deletes the file."""
        before = self.contents.get(parents[0]) if parents else None
        self.contents[event_id] = content
        patch = patch or make_patch(before, content, executable=executable)
        payload: Payload
        if content is None:
            payload = FileDeleted(patch=patch)
        elif kind is FileImported:
            payload = FileImported(patch=patch, commit="c0ffee")
        elif kind is CodeReverted:
            payload = CodeReverted(patch=patch, reverts_to="", reason="")
        else:
            payload = kind(patch=patch)  # type: ignore[call-arg]
        return event(
            event_id,
            payload,
            path=self.history.path,
            parents=parents,
            task=task,
            round_=round_,
            job=job,
            role=role,
            reads=reads,
            consistency=consistency,
            policy=policy,
        )

    def edit(self, event_id: str, content: bytes | None = None, *parents: str, job: str = "j") -> Verdict:
        """Fold an edit made by `make`."""
        return self.add(self.make(event_id, content, *parents, job=job))

    def resolution(
        self,
        event_id: str,
        content: bytes | None,
        *heads: str,
        conflict: str = "",
        strategy: Strategy = Strategy.REWORK,
        task: str = "",
        consistency: Consistency = Consistency.EVENTUAL,
    ) -> Event:
        """A CONFLICT_RESOLVED that joins these heads, sorted by id."""
        parents = tuple(sorted(heads))
        self.contents[event_id] = content
        payload = ConflictResolved(
            patch=make_patch(self.contents.get(parents[0]), content),
            conflict_id=conflict or self.conflict_of(*heads),
            strategy=strategy,
        )
        return event(
            event_id,
            payload,
            path=self.history.path,
            parents=parents,
            task=task,
            role="merger",
            consistency=consistency,
        )

    def conflict_of(self, *heads: str) -> str:
        """The id of the conflict between these heads."""
        return conflict_id(WORKSPACE, self.history.path, heads)

    def conflict(self, event_id: str, *heads: str, attempt: int = 1, deadline: int = 1000) -> Event:
        """A CONFLICT_DETECTED that claims the file for these heads."""
        payload = ConflictDetected(
            conflict_id=self.conflict_of(*heads),
            heads=tuple(sorted(heads)),
            base=None,
            overlaps=(),
            strategy=Strategy.REWORK,
            attempt=attempt,
            deadline=deadline,
            remaining=(Strategy.HUMAN,),
        )
        return event(event_id, payload, path=self.history.path, role="detector")
