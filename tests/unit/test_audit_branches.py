"""A branch that is held against the histories of its files, without git."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from codeconvoy.orchestrator.audit_branches import BranchAudit, Held
from codeconvoy.orchestrator.audit_jobs import Publication
from codeconvoy.orchestrator.audit_report import Check, Counts, Findings
from codeconvoy.schemas.events import FileImported
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.workers.git import trailers
from codeconvoy.workers.git.plan import plan_commits
from tests.builders import FileLog

PUBLICATION = Publication("j", "w", "/repo", "b", "c0", "c1", imports={"a.txt": "base"}, seen={0: 2})


@dataclass
class FakeBranch:
    messages: dict[str, str] = field(default_factory=dict)
    files: dict[str, Held] = field(default_factory=dict)
    last: Held = (None, False)

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


def found(branch: FakeBranch, *histories: FileHistory) -> list[str]:
    """What an audit says that sees the file in these states, one after the other."""
    audit, findings = BranchAudit(PUBLICATION, branch), Findings()
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
