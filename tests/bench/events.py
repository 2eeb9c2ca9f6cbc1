"""Reads nothing, writes nothing: logs of files, made fast: each a chain of real edits.

An event is made by the codec once for each line that an edit may change, with names of fixed length
where events differ; the others are the same bytes with those names replaced. So a million events, each
with the right hashes, take seconds, and any of them decodes and folds like one that a worker wrote.
"""

import random
import re
from collections.abc import Iterator
from hashlib import sha256

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import (
    TYPE_OF,
    CodeModified,
    Event,
    FileImported,
    Hunk,
    Patch,
    Payload,
    Policy,
)
from codeconvoy.schemas.job_spec import DEFAULT_STRATEGIES
from codeconvoy.schemas.topics import file_key
from tests.bench.load import SEED, WORKSPACE, Keyed

JOB = "8c6f2a0e-5f0e-5a43-9a52-0a2c7f6d1b11"
LINES = 24
"""Of each file; the k-th edit changes line k modulo this one."""
_ID, _PARENT, _TASK = ("1" * 36, "2" * 36, "3" * 36)
_BASE, _RESULT = "a" * 64, "b" * 64
_PATH = "src/package_#/module_#####.py"


def path_of(file: int) -> str:
    """The path of a file: all are of one length."""
    return f"src/package_{file % 10}/module_{file:05d}.py"


def event_id(file: int, number: int) -> str:
    """The id of an event of a file, counted from 0."""
    return f"{file:08x}-{number:04x}-4000-8000-000000000000"


def line_of(line: int, number: int) -> bytes:
    """What the event of this number makes of a line: all are of one length."""
    return b"    value_%03d = compute(%07d)  # as of then\n" % (line, number)


def content_at(number: int) -> bytes:
    """A file's content after the event of this number."""
    latest = [number - (number - line) % LINES for line in range(LINES)]
    return b"".join(line_of(line, max(edit, 0)) for line, edit in enumerate(latest))


class Log:
    """Makes the events of many files. Each file's k-th event stands on the one before."""

    def __init__(self, codec: Codec) -> None:
        self._first = _Template(codec, FileImported(patch=_whole(), commit="c0ffee" * 6), parent=False)
        self._edits = [
            _Template(codec, CodeModified(patch=_edit(line), summary="compute anew"), parent=True)
            for line in range(LINES)
        ]
        self._hashes: dict[int, str] = {}

    def event(self, file: int, number: int) -> Keyed:
        """One event, encoded, under its file's key."""
        path = path_of(file)
        template = self._edits[number % LINES] if number else self._first
        value = template.fill(
            path, file, number, self._hash(number - 1) if number else "", self._hash(number)
        )
        return Keyed(file_key(WORKSPACE, path), value)

    def events(self, files: int, first: int, end: int) -> Iterator[Keyed]:
        """The events `first` to `end` (exclusive) of files 0 to `files`, in a fixed shuffle: all files
        are worked on at once, and no file's next event comes before all have their last one."""
        order, shuffle = list(range(files)), random.Random(SEED)
        for number in range(first, end):
            shuffle.shuffle(order)
            for file in order:
                yield self.event(file, number)

    def _hash(self, number: int) -> str:
        """Contents depend on the number alone, so their hashes are computed once."""
        if number not in self._hashes:
            self._hashes[number] = sha256(content_at(number)).hexdigest()
        return self._hashes[number]


class _Template:
    """The bytes of one kind of event, cut where events differ."""

    def __init__(self, codec: Codec, payload: Payload, *, parent: bool) -> None:
        made = Event(
            event_id=_ID,
            event_type=TYPE_OF[type(payload)],
            workspace=WORKSPACE,
            file_path=_PATH,
            job_id=JOB,
            task_id=_TASK,
            round=1,
            agent_id="generator/bench-0",
            role="generator",
            timestamp=1_790_000_000_000,
            parent_event_ids=(_PARENT,) if parent else (),
            policy=Policy(strategies=DEFAULT_STRATEGIES),
            payload=payload,
        )
        self._line = payload.patch.hunks[0].start if isinstance(payload, CodeModified) else -1
        holes = [_ID, _PARENT, _TASK, _BASE, _RESULT, _PATH, line_of(self._line, 0).decode()]
        cut = re.split("|".join(f"({re.escape(hole)})" for hole in holes).encode(), codec.encode(made))
        self._parts = [part for part in cut if part is not None]
        names = {hole.encode(): hole for hole in holes}
        self._slots = [(at, names[part]) for at, part in enumerate(self._parts) if part in names]

    def fill(self, path: str, file: int, number: int, base: str, result: str) -> bytes:
        """The event of this file and number."""
        values = {
            _ID: event_id(file, number),
            _PARENT: event_id(file, number - 1) if number else "",
            _TASK: event_id(file, number)[::-1],
            _BASE: base,
            _RESULT: result,
            _PATH: path,
        }
        parts = self._parts.copy()
        for at, name in self._slots:
            parts[at] = values[name].encode() if name in values else line_of(self._line, number)
        return b"".join(parts)


def _whole() -> Patch:
    return Patch(base_sha256=None, result_sha256=_RESULT, content=content_at(0))


def _edit(line: int) -> Patch:
    return Patch(
        base_sha256=_BASE,
        result_sha256=_RESULT,
        hunks=(Hunk(start=line, removed=1, lines=line_of(line, 0)),),
    )
