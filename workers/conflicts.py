"""Reads a file's history, writes nothing: what a conflict is about, and who is asked to settle it."""

from codeconvoy.schemas.events import TASKED, EventType, LineRange, Policy, Strategy, Tried
from codeconvoy.schemas.file_history import Edit, Entry, FileHistory
from codeconvoy.schemas.job_spec import DEFAULT_STRATEGIES
from codeconvoy.schemas.job_state import GIT_ROLE
from codeconvoy.workers.resolution.object_store import GaveUp
from codeconvoy.workers.resolution.overlap import overlapping
from codeconvoy.workers.resolution.regions import partial_merge
from codeconvoy.workers.resolution.strategies import WRITER_WINS, ClaimNeeded, Outcome, resolve

DETECTOR = "detector"
"""The detector's name: it signs what it writes, and nobody stands behind that who could rework it."""
BY_HAND = "human"
"""The role of what a person resolved."""


def pair_of(history: FileHistory) -> tuple[str, ...]:
    """The two heads to join first, where all at once is too much: agents and people join two at a
    time. One is what readers see, or grew from it; the others join it one by one, in log order, so
    that each agent finds its own edit on its side and nothing else."""
    trunk = next(
        (head for head in history.heads if history.visible in history.ancestors((head,))), history.heads[0]
    )
    others = [head for head in history.heads if head != trunk]
    return trunk, min(others, key=lambda head: history.entries[head].seq)


def loser_of(history: FileHistory, heads: tuple[str, ...], strategy: Strategy) -> Entry | None:
    """The edit whose task's job has the heads reconciled: the latest that is a head itself, for
    that is all that its side holds; else the latest that the heads do not share. For `rework` it
    must be an agent's, who is asked; what came from git has none behind it, but a job that can
    ask a merger. Nobody stands behind what came from the detector or a person."""
    nobody = {DETECTOR, BY_HAND} if strategy is Strategy.SEMANTIC else {DETECTOR, BY_HAND, GIT_ROLE}
    entries = (history.entries[event_id] for event_id in _apart(history, heads))
    return max(
        (entry for entry in entries if entry.role not in nobody),
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
    """What these strategies make of the heads; no agent is asked for what it could not do."""
    if default not in WRITER_WINS:
        default = Strategy.FIRST_WRITER_WINS
    outcome = resolve(history, heads, strategies, default=default, tried=tried)
    if isinstance(outcome, ClaimNeeded) and (flaw := _hopeless(history, heads, outcome.strategy)):
        vain = Tried(strategy=outcome.strategy, reason=flaw)
        return outcome_of(history, heads, outcome.remaining, default, (*outcome.tried, vain))
    return outcome


def _hopeless(history: FileHistory, heads: tuple[str, ...], strategy: Strategy) -> str:
    """Why no agent can carry out a strategy, or the empty string."""
    if strategy not in TASKED:
        return ""
    if loser_of(history, heads, strategy) is None:
        return "no agent stands behind these heads"
    # More than two heads are asked about two at a time.
    if strategy is Strategy.SEMANTIC and len(heads) == 2:
        found = partial_merge(history, heads)
        return found.reason if isinstance(found, GaveUp) else ""
    return ""


def overlaps_of(history: FileHistory, heads: tuple[str, ...], base: str | None) -> tuple[LineRange, ...]:
    """Lines of the base that several of the heads changed; none where there is no common base."""
    found = [history.edit(head) for head in heads]
    sides = [edit.content for edit in found if edit is not None and edit.content is not None]
    origin: Edit | None = history.edit(base) if base else None
    if origin is None or origin.content is None or len(sides) < 2:
        return ()
    return overlapping(origin.content, sides)
