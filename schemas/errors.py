"""Reads nothing, writes nothing: the one error tree of codeconvoy.

Every error that codeconvoy raises on purpose is a `ConvoyError`. The command line maps them to
exit codes; the engines map them to "stop", "retry" or "dead letter".
"""

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codeconvoy.schemas.events import Usage


class ConvoyError(Exception):
    """Root of every error that codeconvoy raises on purpose."""


class BadInput(ConvoyError):
    """What a user handed in can't be used: names the field, the reason and the remedy."""

    def __init__(self, field: str, reason: str, remedy: str) -> None:
        super().__init__(f"{field}: {reason}. {remedy}")
        self.field, self.reason, self.remedy = field, reason, remedy


class Unavailable(ConvoyError):
    """A service (broker, Redis, model API, git remote) can't be reached or used now."""

    def __init__(self, service: str, reason: str, remedy: str, *, retry_within: float | None = None) -> None:
        super().__init__(f"{service}: {reason}. {remedy}")
        self.service, self.reason, self.remedy = service, reason, remedy
        self.retry_within = retry_within
        """Seconds within which another look is worth it; None: nobody knows."""


class Flaw(StrEnum):
    """Why bytes could not be decoded."""

    NO_MARKER = "no_marker"
    TRUNCATED = "truncated"
    TRAILING_BYTES = "trailing_bytes"
    OVERSIZE = "oversize"
    WRONG_TYPES = "wrong_types"
    UNKNOWN_SCHEMA = "unknown_schema"


class Undecodable(ConvoyError):
    """Bytes that are not one whole record of a schema that this version knows.

    Only `Flaw.UNKNOWN_SCHEMA` may be readable by a newer version: it stops the partition. All
    other flaws are garbage for every version: a dead letter.
    """

    def __init__(self, flaw: Flaw, detail: str) -> None:
        super().__init__(f"{flaw}: {detail}")
        self.flaw, self.detail = flaw, detail

    @property
    def is_garbage(self) -> bool:
        """True where no version of codeconvoy could ever read these bytes."""
        return self.flaw is not Flaw.UNKNOWN_SCHEMA


class PatchRejected(ConvoyError):
    """A patch does not apply to its base, or does not give the bytes it promised."""


class IllegalCommand(ConvoyError):
    """A command that its job or task can't take in its present state."""

    def __init__(self, state: str, command: str) -> None:
        super().__init__(f"{command!r} is not possible in state {state!r}")
        self.state, self.command = state, command


class BusError(ConvoyError):
    """Root of what a bus may raise."""


class Fenced(BusError):
    """Another process owns this transactional id, or this member left the group: stop."""


class Aborted(BusError):
    """The transaction was aborted and nothing of it is visible: the same outputs may be sent again."""


class Refused(Aborted):
    """The transaction was aborted for one of its records, which the broker will never take as it is."""


class PartitionLost(BusError):
    """The stored state of a partition is not this process's own any more: give the partition up."""


class TornState(BusError):
    """The stored fields of a partition do not fit together: somebody else wrote there."""


class AgentError(ConvoyError):
    """An agent could not do its task. `retryable` says whether the same task may be tried again."""

    def __init__(self, reason: str, *, retryable: bool = False, is_answer: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.retryable = reason, retryable
        self.is_answer = is_answer
        """What the agent was asked for was a decision, and this is it: nobody else is asked."""
        self.usage: Usage | None = None
        """What was spent all the same."""


class OverBudget(AgentError):
    """What is left of the job's budget is less than the next model call may cost, and stays so."""


class Unencodable(ConvoyError):
    """A record of our own that no reader would take: it was not written. Never garbage that was read."""


class TooLarge(Unencodable):
    """A record is over its cap, and was not sent."""
