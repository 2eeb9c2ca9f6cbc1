"""Reads nothing, writes nothing: what `convoy doctor` says of the things that it looks at."""

from dataclasses import dataclass
from enum import StrEnum

from codeconvoy.schemas.errors import BadInput, ConvoyError, Unavailable


@dataclass(frozen=True, slots=True)
class ModelState:
    """What the fleet knows of one model of a provider."""

    provider: str
    """With server and model, as in metrics."""
    breaker: str
    """closed, open or half_open."""
    open_seconds: float
    """For how long it stays open."""
    failures: int
    """In a row."""
    requests_per_minute: float
    """That are let through now; 0: no limit is set."""
    tokens_per_minute: float
    share: float
    """Of the rates that were set, after what rate limits of the server have taken."""
    line_seconds: float
    """Until a call that is made now would be its turn."""


class Grade(StrEnum):
    """How good a finding is."""

    GOOD = "good"
    NOTE = "note"
    """Worth knowing: something can't be done that may not be wanted."""
    BAD = "bad"
    """A fleet can't work so."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    grade: Grade
    says: str
    remedy: str = ""
    models: tuple[ModelState, ...] = ()
    """Of a role's providers, in their order."""


def good(what: str, says: str) -> Finding:
    """All is well."""
    return Finding(what, Grade.GOOD, says)


def bad(what: str, error: ConvoyError) -> Finding:
    """What an error says."""
    match error:
        case BadInput(field=field, reason=reason, remedy=remedy):
            return Finding(what, Grade.BAD, f"{field}: {reason}", remedy)
        case Unavailable(service=service, reason=reason, remedy=remedy):
            return Finding(what, Grade.BAD, f"{service}: {reason}", remedy)
    return Finding(what, Grade.BAD, str(error), "")
