"""Reads a file's history and its heads, writes nothing: the strategies that answer at once, and
the order in which they are tried.

`STRATEGIES` is the table: a further immediate strategy is a function and a line there. Those of
`CLAIMS` need an agent or a person: the conflict claims the file, and the answer comes as an event.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.events import TASKED, Strategy, Tried
from codeconvoy.schemas.file_history import Edit, FileHistory
from codeconvoy.schemas.topics import MAX_FILE_BYTES
from codeconvoy.workers.resolution.mirror import merge_heads
from codeconvoy.workers.resolution.object_store import GaveUp
from codeconvoy.workers.resolution.validate import objections

CLAIMS = TASKED | {Strategy.HUMAN}
"""Slow strategies: the file is claimed while somebody works on the conflict."""

WRITER_WINS = frozenset({Strategy.FIRST_WRITER_WINS, Strategy.LAST_WRITER_WINS})
"""Strategies that always have an answer, so that a conflict's default can be one of them."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What would become of the file if these heads were joined so."""

    content: bytes | None
    """None deletes the file."""
    executable: bool
    parents: tuple[str, ...]
    """The heads, sorted by id: also the order in which more than two were merged."""
    losers: tuple[str, ...] = ()
    """Heads whose content was not taken, sorted by id."""
    summary: str = ""


ImmediateStrategy = Callable[[FileHistory, tuple[str, ...]], Candidate | GaveUp]
"""Takes the history and the heads sorted by id, of which there are at least two."""

Validator = Callable[[str, bytes | None, Sequence[bytes]], tuple[str, ...]]
"""As `validate.objections`: path, candidate, what the sides hold -> reasons against it."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The heads can be joined now: nothing speaks against the candidate."""

    strategy: Strategy
    candidate: Candidate
    tried: tuple[Tried, ...]


@dataclass(frozen=True, slots=True)
class ClaimNeeded:
    """A strategy of `CLAIMS` is next, and if it fails `remaining`, in order."""

    strategy: Strategy
    remaining: tuple[Strategy, ...]
    tried: tuple[Tried, ...]


Outcome = Resolved | ClaimNeeded


def identical(history: FileHistory, heads: tuple[str, ...]) -> Candidate | GaveUp:
    """All heads hold the same content and mode: nothing needs to be merged."""
    first, *others = (_edit(history, head) for head in heads)
    if any((first.content, first.executable) != (edit.content, edit.executable) for edit in others):
        return GaveUp("the heads differ")
    return Candidate(first.content, first.executable, heads, summary="all heads hold the same content")


def three_way(history: FileHistory, heads: tuple[str, ...]) -> Candidate | GaveUp:
    """git's own merge."""
    merged = merge_heads(history, heads)
    if isinstance(merged, GaveUp):
        return merged
    return Candidate(merged.content, merged.executable, heads, summary=f"git merged {len(heads)} heads")


def first_writer_wins(history: FileHistory, heads: tuple[str, ...]) -> Candidate | GaveUp:
    """The head that came first on the log, as it is."""
    return _winner(history, heads, min(heads, key=lambda head: history.entries[head].seq))


def last_writer_wins(history: FileHistory, heads: tuple[str, ...]) -> Candidate | GaveUp:
    """The head that came last on the log, as it is."""
    return _winner(history, heads, max(heads, key=lambda head: history.entries[head].seq))


STRATEGIES: Mapping[Strategy, ImmediateStrategy] = MappingProxyType(
    {
        Strategy.IDENTICAL: identical,
        Strategy.THREE_WAY: three_way,
        Strategy.FIRST_WRITER_WINS: first_writer_wins,
        Strategy.LAST_WRITER_WINS: last_writer_wins,
    }
)
"""Strategies that answer at once."""


def resolve(
    history: FileHistory,
    heads: tuple[str, ...],
    strategies: Sequence[Strategy],
    *,
    default: Strategy = Strategy.FIRST_WRITER_WINS,
    tried: tuple[Tried, ...] = (),
    validate: Validator = objections,
) -> Outcome:
    """Try the strategies in order, until one has a candidate that nothing speaks against.

    Heads that hold the same collapse before any strategy is asked. A strategy of `CLAIMS` ends
    the search. When none is left the `default` decides, so there is always an outcome.

    Args:
        history: the file's history; the heads are in it, with their contents.
        heads: two or more heads to join, in any order.
        strategies: what the job chose, or what remains of it.
        default: one of `WRITER_WINS`.
        tried: what was tried on this conflict before, to be continued.
        validate: replaces `validate.objections`.

    Raises:
        BadInput: fewer than two heads, one that the history does not hold, or a bad default.
    """
    heads = tuple(sorted(set(heads)))
    if len(heads) < 2:
        raise BadInput("heads", f"{len(heads)} heads are no conflict", "Name two or more heads of the file")
    if default not in WRITER_WINS:
        raise BadInput("default", f"{default} may have no answer", f"Use one of {sorted(WRITER_WINS)}")
    sides = tuple(edit.content for head in heads if (edit := _edit(history, head)).content is not None)
    order = (Strategy.IDENTICAL, *strategies, default)
    for position, strategy in enumerate(order):
        if strategy in CLAIMS:
            return ClaimNeeded(strategy, order[position + 1 : -1], tried)
        immediate = STRATEGIES.get(strategy)
        if immediate is None:
            tried = (*tried, Tried(strategy=strategy, reason="this version has no such strategy"))
            continue
        candidate = immediate(history, heads)
        reason = _flaw(history.path, candidate, sides, validate)
        if not reason and not isinstance(candidate, GaveUp):
            return Resolved(strategy, candidate, tried)
        if strategy is not Strategy.IDENTICAL:
            tried = (*tried, Tried(strategy=strategy, reason=reason))
    raise AssertionError(f"{default} gave up")


def _flaw(path: str, candidate: Candidate | GaveUp, sides: tuple[bytes, ...], validate: Validator) -> str:
    """Why a candidate can't be taken, or the empty string. What a side holds needs no check."""
    if isinstance(candidate, GaveUp):
        return candidate.reason
    if candidate.content in sides:
        return ""
    if candidate.content is not None and len(candidate.content) > MAX_FILE_BYTES:
        return f"{len(candidate.content)} bytes are more than {MAX_FILE_BYTES}"
    return "; ".join(validate(path, candidate.content, sides))


def _winner(history: FileHistory, heads: tuple[str, ...], winner: str) -> Candidate:
    edit = _edit(history, winner)
    losers = tuple(head for head in heads if head != winner)
    return Candidate(edit.content, edit.executable, heads, losers, f"took {winner}")


def _edit(history: FileHistory, head: str) -> Edit:
    edit = history.edit(head)
    if edit is None or not edit.live:
        raise BadInput("heads", f"{head} is no live edit of {history.path}", "Name heads of the file")
    return edit
