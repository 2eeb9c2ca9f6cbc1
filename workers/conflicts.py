"""Reads a file's history, writes nothing: what a conflict is about, and who is asked to settle it."""

from codeconvoy.schemas.events import EventType, LineRange, Policy, Strategy, Tried
from codeconvoy.schemas.file_history import Edit, Entry, FileHistory
from codeconvoy.schemas.job_spec import DEFAULT_STRATEGIES
from codeconvoy.schemas.job_state import GIT_ROLE
from codeconvoy.workers.resolution.overlap import overlapping
from codeconvoy.workers.resolution.strategies import WRITER_WINS, ClaimNeeded, Outcome, resolve

DETECTOR = "detector"
"""The detector's name: it signs what it writes, and nobody stands behind that who could rework it."""


def pair_of(history: FileHistory) -> tuple[str, ...]:
    """The two heads to join first, where all at once is too much: agents and people join two at a
    time. One is what readers see, or grew from it; the others join it one by one, in log order, so
    that each agent finds its own edit on its side and nothing else."""
    trunk = next(
        (head for head in history.heads if history.visible in history.ancestors((head,))), history.heads[0]
    )
    others = [head for head in history.heads if head != trunk]
    return trunk, min(others, key=lambda head: history.entries[head].seq)


def reworkable(history: FileHistory, heads: tuple[str, ...]) -> Entry | None:
    """The agent's edit whose author is asked to reconcile: the latest that is a head itself, for
    that is all that its side holds; else the latest that the heads do not share. What came from
    git, or from the detector, has nobody behind it that could."""
    entries = (history.entries[event_id] for event_id in _apart(history, heads))
    return max(
        (entry for entry in entries if entry.role not in (DETECTOR, GIT_ROLE)),
        key=lambda entry: (entry.event_id in heads and _is_plain(entry), entry.seq),
        default=None,
    )


def _is_plain(entry: Entry) -> bool:
    return entry.event_type is not EventType.CONFLICT_RESOLVED


def jobs_at_stake(history: FileHistory, heads: tuple[str, ...]) -> set[str]:
    """The jobs whose work is at stake: of the heads, and of the edits that only some of them hold."""
    return {history.entries[event_id].job_id for event_id in _apart(history, heads)}


def _apart(history: FileHistory, heads: tuple[str, ...]) -> set[str]:
    """The edits that went into some of the heads and not into all of them."""
    lines = [history.ancestors((head,)) for head in heads]
    return set[str]().union(*lines) - lines[0].intersection(*lines[1:])


def head_of(history: FileHistory, heads: tuple[str, ...], entry: Entry) -> str:
    """The head that an edit went into (the latest of them)."""
    found = [head for head in heads if entry.event_id in history.ancestors((head,))]
    return max(found, key=lambda head: history.entries[head].seq)


def policy_of(history: FileHistory, heads: tuple[str, ...]) -> Policy:
    """The policy of the latest head that states one."""
    edits = sorted((history.entries[head] for head in heads), key=lambda entry: entry.seq, reverse=True)
    found = (entry.edit.policy for entry in edits if entry.edit is not None and entry.edit.policy is not None)
    return next(found, Policy(strategies=DEFAULT_STRATEGIES))


def outcome_of(
    history: FileHistory,
    heads: tuple[str, ...],
    strategies: tuple[Strategy, ...],
    default: Strategy,
    tried: tuple[Tried, ...],
) -> Outcome:
    """What these strategies make of the heads; nobody is asked to rework what no agent stands behind."""
    if default not in WRITER_WINS:
        default = Strategy.FIRST_WRITER_WINS
    outcome = resolve(history, heads, strategies, default=default, tried=tried)
    if (
        isinstance(outcome, ClaimNeeded)
        and outcome.strategy is Strategy.REWORK
        and reworkable(history, heads) is None
    ):
        nobody = Tried(strategy=Strategy.REWORK, reason="no agent stands behind these heads")
        return outcome_of(history, heads, outcome.remaining, default, (*outcome.tried, nobody))
    return outcome


def overlaps_of(history: FileHistory, heads: tuple[str, ...], base: str | None) -> tuple[LineRange, ...]:
    """Lines of the base that several of the heads changed; none where there is no common base."""
    found = [history.edit(head) for head in heads]
    sides = [edit.content for edit in found if edit is not None and edit.content is not None]
    origin: Edit | None = history.edit(base) if base else None
    if origin is None or origin.content is None or len(sides) < 2:
        return ()
    return overlapping(origin.content, sides)
