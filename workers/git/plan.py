"""Reads file histories, writes nothing: which commits a job's branch holds, and what an import
builds on. Pure: the same histories always give the same commits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from codeconvoy.schemas.events import EventType
from codeconvoy.schemas.file_history import Edit, Entry, FileHistory
from codeconvoy.schemas.job_state import GIT_ROLE
from codeconvoy.workers.git.trailers import Trailers


@dataclass(frozen=True, slots=True)
class Commit:
    """One change of what readers see of one file."""

    path: str
    content: bytes | None
    """None deletes the file."""
    executable: bool
    subject: str
    role: str
    timestamp: int
    """Milliseconds since the epoch, as the event says."""
    trailers: Trailers


def plan_commits(histories: Mapping[str, FileHistory], imports: Mapping[str, str]) -> tuple[Commit, ...]:
    """The commits that lead from the job's ref to what readers of the workspace see now.

    A commit for every change of a file's visible content that descends from what the ref holds,
    in causal order: parents before children, and tests after everything that they may cover. No
    order is known between files (they are on different partitions), so the rest goes by path.
    What other jobs did to the file without a merge with this ref is not taken over: it would
    undo what the ref has.

    Each commit names all edits that arrived with it: those that a resolution joined, and later
    ones that came to the same content. Edits that gave the ref's own content make no commit.

    Args:
        histories: the history of each path.
        imports: for each path the event that holds the ref's content; empty where the ref has no
            such file.
    """
    chains = {path: _chain(histories[path], imports[path]) for path in sorted(imports)}
    code = [commit for chain in chains.values() if not _writes_test(chain) for commit, _ in chain]
    tests = [commit for chain in chains.values() if _writes_test(chain) for commit, _ in chain]
    return (*code, *tests)


def _writes_test(chain: list[tuple[Commit, EventType]]) -> bool:
    return any(kind is EventType.TEST_WRITTEN for _, kind in chain)


def _chain(history: FileHistory, imported: str) -> list[tuple[Commit, EventType]]:
    """The commits of one file, oldest first."""
    known = history.ancestors((imported,)) if imported else set()
    start = history.edit(imported)
    now = _seen(start) if start else (None, False)
    chain: list[tuple[Commit, EventType]] = []
    shown = [entry for entry in history.entries.values() if entry.edit and entry.edit.shown]
    for entry in sorted(shown, key=lambda entry: entry.seq):
        edit = entry.edit
        assert edit is not None
        reached = history.ancestors((entry.event_id,))
        if entry.event_id in known or (start is not None and imported not in reached):
            continue
        joins = sorted(reached - known - {entry.event_id}, key=lambda other: history.entries[other].seq)
        known |= reached
        if _seen(edit) != now:
            now = _seen(edit)
            chain.append((_commit(history.path, entry, edit, tuple(joins)), entry.event_type))
        elif chain:
            last, kind = chain[-1]
            more = (*last.trailers.joins, *joins, entry.event_id)
            chain[-1] = (replace(last, trailers=replace(last.trailers, joins=more)), kind)
    return chain


def _seen(edit: Edit) -> tuple[bytes | None, bool]:
    """What git would hold of the file; a deleted one has no mode."""
    return edit.content, edit.executable and edit.content is not None


def _commit(path: str, entry: Entry, edit: Edit, joins: tuple[str, ...]) -> Commit:
    done = "delete" if edit.content is None else "change"
    return Commit(
        path=path,
        content=edit.content,
        executable=edit.executable,
        subject=f"{entry.role}: {entry.summary} ({path})"
        if entry.summary
        else f"{entry.role}: {done} {path}",
        role=entry.role,
        timestamp=entry.timestamp,
        trailers=Trailers(
            event=entry.event_id,
            joins=joins,
            task=entry.task_id,
            agent=entry.agent_id,
            job=entry.job_id,
            parents=edit.parents,
        ),
    )


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """How a file comes in from git."""

    event_id: str
    """The event of the history that holds the ref's content already; empty: it is to be imported
    (or, with `needed` False, the path is absent on both sides)."""
    parent: str = ""
    """The causal parent of the FILE_IMPORTED to write; empty: none."""
    needed: bool = False
    """True where a FILE_IMPORTED is to be written."""


def import_parent(
    history: FileHistory, content: bytes | None, executable: bool, committed_event: str = ""
) -> ImportPlan:
    """What a file's history has to do with what git holds at the job's ref.

    The user's commits build on what the ref had before them: on the edit that codeconvoy
    committed last, or else on the last import. That, not the head, is the parent of an import, so
    that what changed on both sides forks and is merged, and nothing is overwritten.

    Args:
        history: the file as the workspace knows it.
        content: what the ref holds; None where it has no such file.
        executable: the file's mode at the ref.
        committed_event: the newest `Convoy-Event` reachable from the ref that touches the path
            (see `trailers.newest_events`); empty where there is none.
    """
    at_ref = (content, executable and content is not None)
    if _holds(history.edit(history.visible), at_ref):
        return ImportPlan(history.visible)
    committed = history.edit(committed_event)
    parent = committed_event if committed is not None and committed.live else _last_import(history)
    if parent:
        if _holds(history.edit(parent), at_ref):
            return ImportPlan(parent)
    elif content is None:
        return ImportPlan("")
    return ImportPlan("", parent, needed=True)


def _holds(edit: Edit | None, at_ref: tuple[bytes | None, bool]) -> bool:
    return edit is not None and edit.live and _seen(edit) == at_ref


def _last_import(history: FileHistory) -> str:
    """The newest import that counts: of content, or of the file's absence from git."""
    imports = [
        entry
        for entry in history.entries.values()
        if entry.edit is not None
        and entry.edit.live
        and (
            entry.event_type is EventType.FILE_IMPORTED
            or (entry.event_type is EventType.FILE_DELETED and entry.role == GIT_ROLE)
        )
    ]
    return max(imports, key=lambda entry: entry.seq).event_id if imports else ""
