"""The audit's own account of a file: it finds what a fold that is wrong would do."""

import msgspec
import pytest

from codeconvoy.orchestrator import audit_files
from codeconvoy.orchestrator.audit_files import FilesAudit
from codeconvoy.orchestrator.audit_jobs import Claims
from codeconvoy.orchestrator.audit_report import Check, Counts, Findings, Unreadable
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import Event, FileImported
from codeconvoy.schemas.file_fold import Judged, Verdict, fold
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.job_facts import VerdictKind
from codeconvoy.schemas.persistent import PersistentQueue
from codeconvoy.schemas.topics import Topics, file_key
from codeconvoy.workers.engine.bus import Record
from tests.builders import FileLog

CODEC = Codec.create()
Folded = tuple[FileHistory, tuple[Judged, ...]]


def audited(*events: Event) -> dict[Check, int]:
    """What is found on a log of these events, whose verdicts nobody had to report."""
    findings, topics = Findings(), Topics(partitions=1)
    audit = FilesAudit(
        0, topics, CODEC, findings, Counts(), Claims(), unreadable=Unreadable(), judged_below=0
    )
    for offset, event in enumerate(events):
        key = file_key(event.workspace, event.file_path)
        audit.feed(Record(topics.events, 0, offset, key, CODEC.encode(event)))
    audit.finish()
    return dict(findings.by_check)


def forked() -> list[Event]:
    log = FileLog()
    log.add(log.make("base", b"1\n", kind=FileImported))
    log.edit("one", b"2\n", "base")
    log.edit("two", b"3\n", "base")
    return log.events


def test_a_fold_that_is_right() -> None:
    assert audited(*forked(), *forked()) == {}


def test_a_fold_that_lets_the_last_writer_win(monkeypatch: pytest.MonkeyPatch) -> None:
    def last_writer(history: FileHistory, event: Event) -> Folded:
        history, judged = fold(history, event)
        return msgspec.structs.replace(history, heads=history.heads[-1:]), judged

    monkeypatch.setattr(audit_files, "fold", last_writer)
    assert audited(*forked()) == {Check.LOST: 1}


def test_a_fold_that_forgets_what_it_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(history: FileHistory, event: Event) -> Folded:
        entry = history.entries.get(event.event_id)
        if entry is not None:
            history = msgspec.structs.replace(
                history,
                entries=history.entries.updated({event.event_id: None}),
                edits=history.edits - (entry.edit is not None),
                free=PersistentQueue([entry.slot]),
            )
        return fold(history, event)

    monkeypatch.setattr(audit_files, "fold", forgetful)
    assert audited(*forked(), forked()[-1]) == {Check.DOUBLED: 2}, "judged again, and in effect again"


def test_a_fold_that_takes_any_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(history: FileHistory, event: Event) -> Folded:
        history, judged = fold(history, event)
        verdict = Verdict(VerdictKind.ACCEPTED, heads=(event.event_id,))
        return msgspec.structs.replace(history, heads=verdict.heads), ((judged[0][0], verdict),)

    monkeypatch.setattr(audit_files, "fold", trusting)
    log = FileLog()
    log.add(log.make("base", b"1\n", kind=FileImported))
    log.edit("orphan", b"2\n", "nowhere")
    found = audited(*log.events)
    assert found[Check.ORDER] == 2, "its parent is not live, and is in the result"


def test_rounds_in_the_wrong_order() -> None:
    log = FileLog()
    log.add(log.make("base", b"1\n", kind=FileImported))
    log.add(log.make("late", b"2\n", "base", task="t", round_=2))
    log.add(log.make("early", b"3\n", "base", task="t", round_=1))
    assert audited(*log.events) == {Check.ORDER: 1}
