"""A branch that is held against the histories of its files, without git."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from codeconvoy.orchestrator import audit_branches
from codeconvoy.orchestrator.audit_branches import BranchAudit, Held
from codeconvoy.orchestrator.audit_files import FilesAudit
from codeconvoy.orchestrator.audit_jobs import Claims, Publication
from codeconvoy.orchestrator.audit_report import Check, Counts, Findings, Unreadable
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import FileImported
from codeconvoy.schemas.file_history import MAX_EDITS, SLACK, FileHistory
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.bus import Record
from codeconvoy.workers.git import trailers
from codeconvoy.workers.git.plan import Commit, plan_commits
from tests.builders import FileLog

PUBLICATION = Publication("j", "w", "/repo", "b", "c0", "c1", imports={"a.txt": "base"}, seen={0: 2})
NOTHING_HEARD = replace(PUBLICATION, seen={}, begun_with={"a.txt": frozenset({"base", "one"})})


@dataclass
class FakeBranch:
    messages: dict[str, str] = field(default_factory=dict)
    files: dict[str, Held] = field(default_factory=dict)
    last: Held = (None, False)
    changing_nothing: frozenset[str] = frozenset()

    def paths(self, event: str) -> frozenset[str]:
        return frozenset({"a.txt"} if event in self.files.keys() - self.changing_nothing else ())

    def file(self, event: str, path: str) -> Held:
        return self.files[event]

    def tip(self, path: str) -> Held:
        return self.last


def log_of_two() -> FileLog:
    log = FileLog()
    log.add(log.make("base", b"base\n", kind=FileImported))
    log.edit("one", b"one\n", "base")
    return log


def branch_of(history: FileHistory, imports: Mapping[str, str] = PUBLICATION.imports) -> FakeBranch:
    """The branch as the publisher writes it."""
    branch = FakeBranch()
    for commit in plan_commits({history.path: history}, imports):
        branch.messages[commit.trailers.event] = trailers.message(commit.subject, commit.trailers)
        branch.files[commit.trailers.event] = branch.last = (commit.content, commit.executable)
    return branch


def found(branch: FakeBranch, *histories: FileHistory, publication: Publication = PUBLICATION) -> list[str]:
    """What an audit says that sees the file in these states, one after the other."""
    audit, findings = BranchAudit(publication, branch), Findings()
    for history in histories:
        audit.try_history(history)
    audit.finish(findings, Counts())
    assert {one.check for one in findings.kept} <= {Check.BRANCH}
    return [one.what for one in findings.kept]


def test_what_was_published_is_on_the_branch() -> None:
    history = log_of_two().history
    assert found(branch_of(history), history) == []


def test_a_history_counts_from_the_point_that_the_publisher_had_to_see() -> None:
    audit = BranchAudit(PUBLICATION, FakeBranch())
    assert [audit.is_due(0, offset) for offset in (2, 3)] == [False, True]
    assert audit.is_due(1, 0), "nothing had to be seen of this partition"


def test_a_file_that_went_on_later() -> None:
    log = log_of_two()
    published = log.history
    log.edit("two", b"two\n", "one")
    assert found(branch_of(published), published, log.history) == []


def test_a_publisher_that_saw_more_than_it_had_to() -> None:
    log = log_of_two()
    before = log.history
    log.edit("two", b"two\n", "one")
    assert found(branch_of(log.history), before, log.history) == []


def states_of(log: FileLog) -> list[FileHistory]:
    """The file in every state that it ever was in, the empty one first."""
    again = FileLog()
    return [again.history, *(again.history for event in log.events if again.add(event))]


def log_of_three() -> FileLog:
    log = log_of_two()
    log.edit("two", b"two\n", "one")
    log.edit("three", b"three\n", "two")
    return log


def test_the_states_before_what_was_published_do_not_end_the_search() -> None:
    log = log_of_three()
    published = log.history
    log.edit("four", b"four\n", "three", job="another")
    assert found(branch_of(published), *states_of(log)) == []


def test_an_import_that_comes_after_edits_of_others() -> None:
    log = FileLog()
    log.edit("theirs", b"theirs\n", job="another")
    log.add(log.make("base", b"base\n", "theirs", kind=FileImported))
    log.edit("one", b"one\n", "base")
    assert found(branch_of(log.history), *states_of(log)) == []


def test_a_difference_is_found_whatever_was_seen_before() -> None:
    log = log_of_three()
    branch = branch_of(log.history)
    branch.files["two"] = (b"dos\n", False)
    assert found(branch, *states_of(log)) == ["b: a.txt: the commit of two holds another content"]


def test_a_history_that_forgot_something_while_nothing_was_shown() -> None:
    new_file = replace(PUBLICATION, imports={"a.txt": ""})
    log = FileLog()
    last = MAX_EDITS + MAX_EDITS // SLACK - 1
    for number in range(last + 1):
        log.edit(f"edit {number}", b"%d\n" % number, *([f"edit {number - 1}"] if number else []))
    shown = log.history.visible
    log.edit("fork", b"fork\n", f"edit {last - 1}")
    assert log.history.visible == shown and log.history.edit("edit 0") is None
    branch = branch_of(log.history, new_file.imports)
    assert found(branch, *states_of(log), publication=new_file) == []


def test_a_commit_that_changes_nothing() -> None:
    log = log_of_three()
    branch = branch_of(log.history)
    branch.changing_nothing = frozenset({"one", "two", "three"})
    assert found(branch, *states_of(log)) == []


def test_a_commit_that_is_missing_between_others() -> None:
    log = log_of_three()
    branch = branch_of(log.history)
    del branch.messages["two"], branch.files["two"]
    assert found(branch, *states_of(log)) == ["b: a.txt: no commit holds two"]


def test_a_commit_whose_event_never_was() -> None:
    log = log_of_three()
    branch = branch_of(log.history)
    branch.messages["forged"] = branch.messages["three"].replace("Event: three", "Event: forged")
    branch.files["forged"] = branch.last = (b"forged\n", False)
    assert found(branch, *states_of(log)) == ["b: a.txt: a commit names forged, which it never had"]


def test_a_history_counts_once_it_holds_what_the_import_had_seen() -> None:
    audit = BranchAudit(NOTHING_HEARD, FakeBranch())
    arrived = [(), ("base",), ("base", "one")]
    assert [audit.has_begun("a.txt", known) for known in arrived] == [False, False, True]
    assert audit.has_begun("new.txt", ()), "nothing of it was imported"


def test_commits_of_earlier_jobs_that_are_missing_though_nothing_was_heard_of_the_file() -> None:
    codec, topics, findings, counts = Codec.create(), Topics(partitions=1), Findings(), Counts()
    audit = BranchAudit(NOTHING_HEARD, FakeBranch())
    files = FilesAudit(
        0,
        topics,
        codec,
        findings,
        counts,
        Claims(),
        unreadable=Unreadable(),
        branches=[audit],
        judged_below=0,
    )
    for offset, event in enumerate(log_of_three().events):
        files.feed(Record(topics.events, 0, offset, "w:a.txt", codec.encode(event)))
    files.finish()
    audit.finish(findings, counts)
    assert [one.what for one in findings.kept] == ["b: a.txt: no commit holds one"]


def test_no_more_plans_are_made_once_the_file_has_gone_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counting(histories: Mapping[str, FileHistory], imports: Mapping[str, str]) -> tuple[Commit, ...]:
        made.append(1)
        return plan_commits(histories, imports)

    log = log_of_three()
    clean = branch_of(log.history)
    wrong = branch_of(log.history)
    wrong.files["three"] = (b"tres\n", False)
    for number in range(4, 100):
        log.edit(f"edit {number}", b"%d\n" % number, f"edit {number - 1}" if number > 4 else "three")
    monkeypatch.setattr(audit_branches, "plan_commits", counting)
    assert found(clean, *states_of(log)) == []
    assert len(made) == 2, "what was published, and the edit after it"
    assert found(wrong, *states_of(log)) != []
    assert len(made) == 4, "and no more where it differs"


def test_a_history_that_has_forgotten_what_the_job_began_with() -> None:
    log = log_of_two()
    for number in range(2 * MAX_EDITS):
        log.edit(f"edit {number}", b"%d\n" % number, f"edit {number - 1}" if number else "one")
    published = log.history
    assert published.edit("base") is None, "it is forgotten"
    log.edit("later", b"later\n", f"edit {number}")
    assert found(branch_of(published), *states_of(log)) == []


def test_a_commit_that_is_missing() -> None:
    log = log_of_two()
    before = log.history
    log.edit("two", b"two\n", "one")
    assert found(branch_of(before), log.history) == ["b: a.txt: no commit holds two"]


def test_a_commit_that_no_plan_has() -> None:
    history = log_of_two().history
    branch = branch_of(history)
    branch.messages["commit 123"] = "wip"
    assert found(branch, history) == ["b has a commit that no plan has: commit 123"]


def test_another_content() -> None:
    history = log_of_two().history
    branch = branch_of(history)
    branch.files["one"] = (b"uno\n", False)
    assert any("another content" in what for what in found(branch, history))


def test_another_mode() -> None:
    history = log_of_two().history
    branch = branch_of(history)
    branch.files["one"] = (b"one\n", True)
    assert any("another content" in what for what in found(branch, history))


def test_another_last_content() -> None:
    history = log_of_two().history
    branch = branch_of(history)
    branch.last = (b"uno\n", False)
    assert any("the last commit holds another content" in what for what in found(branch, history))


def test_other_causes() -> None:
    history = log_of_two().history
    branch = branch_of(history)
    branch.messages["one"] = branch.messages["one"].replace("Convoy-Parents: base", "Convoy-Parents: x")
    assert any("other causes" in what for what in found(branch, history))


def test_commits_in_another_order() -> None:
    log = log_of_two()
    log.edit("two", b"two\n", "one")
    branch = branch_of(log.history)
    branch.messages = dict(reversed(branch.messages.items()))
    assert any("before that of its parent" in what for what in found(branch, log.history))


def test_a_file_that_nobody_ever_wrote() -> None:
    assert found(FakeBranch()) == ["b: a.txt: it was never seen"]
