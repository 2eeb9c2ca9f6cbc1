"""Reads nothing, writes nothing: histories of a file made by hand, for tests of merging."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from codeconvoy.schemas.events import EventType
from codeconvoy.schemas.file_history import Edit, Entry, FileHistory
from codeconvoy.schemas.job_facts import VerdictKind
from codeconvoy.schemas.persistent import PersistentMap


@dataclass(frozen=True, slots=True)
class Version:
    """One edit: what it made of the file, and of which ones."""

    content: bytes | None
    parents: Sequence[str] = ()
    executable: bool = False
    forgotten: bool = False
    """True: the log is so long that only the entry is left."""


def history_of(versions: Mapping[str, Version], path: str = "file.txt") -> FileHistory:
    """The history in which these edits landed in this order."""
    entries = {
        name: Entry(
            seq=seq,
            event_id=name,
            event_type=EventType.CODE_MODIFIED,
            job_id="job",
            task_id="task",
            round=0,
            role="role",
            agent_id="agent",
            timestamp=0,
            verdict=VerdictKind.ACCEPTED,
            edit=None if version.forgotten else _edit(version),
        )
        for seq, (name, version) in enumerate(versions.items())
    }
    joined = {parent for version in versions.values() for parent in version.parents}
    heads = tuple(name for name in versions if name not in joined)
    return FileHistory(
        workspace="w",
        path=path,
        entries=PersistentMap(entries),
        next_seq=len(entries),
        heads=heads,
        visible=heads[0],
    )


def fork_of(
    base: bytes | None, *sides: bytes | None, path: str = "file.txt"
) -> tuple[FileHistory, tuple[str, ...]]:
    """A history in which these sides fork off the base (None: each side creates the file), and the heads."""
    versions = {} if base is None else {"base": Version(base)}
    parents = tuple(versions)
    heads = tuple(f"side{number}" for number in range(len(sides)))
    versions |= {name: Version(side, parents) for name, side in zip(heads, sides, strict=True)}
    return history_of(versions, path), heads


def _edit(version: Version) -> Edit:
    content = version.content
    return Edit(
        parents=tuple(version.parents),
        live=True,
        content=content,
        sha256=None if content is None else sha256(content).hexdigest(),
        executable=version.executable,
    )
