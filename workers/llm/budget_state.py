"""Reads nothing, writes nothing: what a job's budget is in a cell, and every change of it.

    spent + mine > cap                    refused, for good
    spent + held by others + mine > cap   mine waits until those are settled
    else                                  mine is held, until it is settled or its time is over

A hold whose time is over counts as spent: its process died, and what it has cost nobody will tell.

The cell may be lost at any moment. Then nothing is admitted until one of the fleet has read the job's
log: it puts a mark into the cell first and the state in the place of its own mark later, so that a state
that was read before the cell was lost once more never comes back. A call is on the log before it is
made, and made only if the state that admitted it is still there then: a later state has it from the log.
"""

from collections.abc import Mapping
from enum import Enum, auto

import msgspec

from codeconvoy.schemas.budget import GRACE_SECONDS, Amounts, Ledger, exceeds, total
from codeconvoy.schemas.job_spec import Budget


class Hold(msgspec.Struct, frozen=True, array_like=True):
    """What one call may cost."""

    worst: Amounts
    until: float
    """Seconds of the cell's clock."""


class BudgetState(msgspec.Struct, frozen=True, array_like=True):
    """A job's budget. Without an epoch it is lost."""

    epoch: str = ""
    """Changes whenever the state is read from the log."""
    reading_until: float = 0.0
    """Above 0 it is being read, by the one who knows the epoch, and until then nobody else begins to."""
    spent: Amounts = Amounts()
    held: Mapping[str, Hold] = {}
    settled: Mapping[str, Amounts] = {}
    """Calls that ended while the state was being read."""


LOST = BudgetState()


class Admission(Enum):
    """What becomes of who asks for money."""

    HELD = auto()
    WAIT = auto()
    """Others hold what is left."""
    REFUSED = auto()
    LOST = auto()
    """It is to be read from the log."""
    READING = auto()
    """Somebody does that."""


def reserve(
    state: BudgetState | None, now: float, budget: Budget, call_id: str, worst: Amounts
) -> tuple[BudgetState, tuple[Admission, str, Amounts]]:
    """Ask for what a call may cost: the new state, and what becomes of it, with the state's epoch and what
    is spent."""
    state = _seen(state, now)
    if not state.epoch:
        return state, (Admission.LOST, "", Amounts())
    if state.reading_until:
        return state, (Admission.READING, "", Amounts())
    held = total(Amounts(), (hold.worst for hold in state.held.values()))
    admission = Admission.HELD
    if exceeds(state.spent + worst, budget):
        admission = Admission.REFUSED
    elif exceeds(state.spent + held + worst, budget):
        admission = Admission.WAIT
    else:
        hold = Hold(worst, now + worst.ms / 1000 + GRACE_SECONDS)
        state = msgspec.structs.replace(state, held={**state.held, call_id: hold})
    return state, (admission, state.epoch, state.spent)


def confirm(state: BudgetState | None, now: float, call_id: str, epoch: str) -> tuple[BudgetState, bool]:
    """Whether a call that is on the log by now may be made: the state that admitted it still holds."""
    state = _seen(state, now)
    return state, not state.reading_until and state.epoch == epoch and call_id in state.held


def settle(state: BudgetState | None, now: float, call_id: str, spent: Amounts) -> tuple[BudgetState, None]:
    """A call has cost so much. Where it is not held it counts already, or the log will tell."""
    state = _seen(state, now)
    if state.reading_until:
        return msgspec.structs.replace(state, settled={**state.settled, call_id: spent}), None
    if call_id not in state.held:
        return state, None
    held = {name: hold for name, hold in state.held.items() if name != call_id}
    return msgspec.structs.replace(state, spent=state.spent + spent, held=held), None


def begin_reading(
    state: BudgetState | None, now: float, epoch: str, seconds: float
) -> tuple[BudgetState, bool]:
    """Take it upon oneself to read a lost state from the log, within so many seconds. False where it is
    not lost (any more), or somebody else does."""
    state = _seen(state, now)
    if state.epoch:
        return state, False
    return BudgetState(epoch=epoch, reading_until=now + seconds), True


def end_reading(
    state: BudgetState | None, now: float, epoch: str, ledger: Ledger | None
) -> tuple[BudgetState, bool]:
    """Put what the log says into the place of one's own mark; None: it could not be read. False where the
    mark is gone."""
    state = _seen(state, now)
    if state.epoch != epoch or not state.reading_until:
        return state, False
    if ledger is None:
        return LOST, False
    spent = ledger.spent
    held = {}
    for call_id, call in ledger.open.items():
        if call_id in state.settled:
            spent += state.settled[call_id]
        else:
            latest = now + call.worst.ms / 1000 + GRACE_SECONDS
            held[call_id] = Hold(call.worst, min(call.until / 1000, latest))
    return _seen(BudgetState(epoch=epoch, spent=spent, held=held), now), True


def _seen(state: BudgetState | None, now: float) -> BudgetState:
    """The state as it is at this time."""
    if state is None or 0 < state.reading_until <= now:
        return LOST
    late = [hold.worst for hold in state.held.values() if hold.until <= now]
    if not late:
        return state
    held = {name: hold for name, hold in state.held.items() if hold.until > now}
    return msgspec.structs.replace(state, spent=total(state.spent, late), held=held)
