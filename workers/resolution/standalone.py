"""Reads three contents, writes nothing: a merge as the detector would make it, without any server.

`convoy merge BASE OURS THEIRS --path P` is this function; it is also fit for a git merge driver
(`driver = convoy merge %O %A %B --path %P`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from codeconvoy.schemas.events import EventType, Strategy, Tried
from codeconvoy.schemas.file_history import Edit, Entry, FileHistory
from codeconvoy.schemas.job_facts import VerdictKind
from codeconvoy.schemas.job_spec import DEFAULT_STRATEGIES
from codeconvoy.schemas.persistent import PersistentMap
from codeconvoy.workers.resolution.object_store import object_store
from codeconvoy.workers.resolution.strategies import CLAIMS, ClaimNeeded, resolve

_BINARY_PROBE = 8000
"""git takes a file for binary if there is a NUL in its first bytes, this many."""


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What came of a merge."""

    clean: bool
    """True where a strategy had an answer that nothing speaks against."""
    content: bytes
    """The merged file. Not clean: git's merge with conflict markers (of binary files: ours)."""
    strategy: Strategy | None
    """What decided, None where nothing did."""
    tried: tuple[Tried, ...]
    """What had no answer, or one that was refused, and why."""


def merge_files(
    base: bytes | None,
    ours: bytes,
    theirs: bytes,
    path: str,
    strategies: Sequence[Strategy] = DEFAULT_STRATEGIES,
) -> MergeResult:
    """Merge two versions of a file by the strategies that answer at once; slow ones are passed over.

    Args:
        base: what both sides started from; None where each created the file.
        ours: the side that counts as the first writer.
        theirs: the side that counts as the last writer.
        path: says what the merged file must parse as.
        strategies: tried in order.
    """
    immediate = tuple(strategy for strategy in strategies if strategy not in CLAIMS)
    history = _history(path, base, ours, theirs)
    outcome = resolve(history, ("ours", "theirs"), (*immediate, Strategy.HUMAN))
    if isinstance(outcome, ClaimNeeded):
        return MergeResult(False, _marked(base, ours, theirs), None, outcome.tried)
    assert outcome.candidate.content is not None
    return MergeResult(True, outcome.candidate.content, outcome.strategy, outcome.tried)


def _marked(base: bytes | None, ours: bytes, theirs: bytes) -> bytes:
    if any(b"\0" in side[:_BINARY_PROBE] for side in (base or b"", ours, theirs)):
        return ours
    with object_store() as store:
        return store.marked(base, ours, theirs)


def _history(path: str, base: bytes | None, ours: bytes, theirs: bytes) -> FileHistory:
    """A history in which the two sides fork off the base."""
    versions = (
        {"ours": ours, "theirs": theirs} if base is None else {"base": base, "ours": ours, "theirs": theirs}
    )
    entries = {
        name: Entry(
            seq=seq,
            event_id=name,
            event_type=EventType.CODE_MODIFIED,
            job_id="",
            task_id="",
            round=0,
            role="",
            agent_id="",
            timestamp=0,
            verdict=VerdictKind.FORKED,
            edit=Edit(
                parents=() if base is None or name == "base" else ("base",),
                live=True,
                content=content,
                sha256=sha256(content).hexdigest(),
            ),
        )
        for seq, (name, content) in enumerate(versions.items())
    }
    return FileHistory(
        workspace="",
        path=path,
        entries=PersistentMap(entries),
        next_seq=len(entries),
        heads=("ours", "theirs"),
    )
