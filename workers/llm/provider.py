"""Reads nothing, writes nothing: what a model call is, whoever answers it.

A provider makes one call: no retry, no cache, no budget. Those are providers too, which wrap one
(so does the telling of a recorded reply by `fingerprint`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from codeconvoy.schemas.budget import Amounts
from codeconvoy.schemas.errors import AgentError, Unavailable
from codeconvoy.schemas.events import Usage
from codeconvoy.schemas.job_spec import Budget
from codeconvoy.workers.llm import tokens
from codeconvoy.workers.roles.role import Role

Credentials = Mapping[str, str]
"""Secrets by name (`openai`, `anthropic`, or what a role's option `key` says), handed in by the
entry point: nothing here reads the environment."""

DEFAULT_MAX_OUTPUT_TOKENS = 16_384
IDLE_SECONDS = 120.0
"""Of silence in a stream. Servers say that they are alive while a model thinks, but not all of them do."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """user or assistant."""
    content: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose call it is: for the account and for the record, never a part of the prompt."""

    workspace: str
    job_id: str
    task_id: str
    round: int
    budget: Budget = field(default_factory=Budget)


class Meter(Protocol):
    """Counts what the requests of one call cost."""

    async def begin(self) -> None:
        """A request is about to be sent.

        Raises:
            Unavailable: it must not be.
        """
        ...

    def count(self, spent: Amounts) -> None:
        """A request has cost so much."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt to one model."""

    model: str
    system: str
    messages: tuple[Message, ...]
    max_output_tokens: int = DEFAULT_MAX_OUTPUT_TOKENS
    temperature: float | None = None
    """Sent where the API takes it; None: the model's own default."""
    seed: int | None = None
    """Sent where the API takes it."""
    json_schema: Mapping[str, object] | None = None
    """The reply must be JSON of this schema: objects closed, every property required."""
    deadline_seconds: float = 120.0
    """For the whole call, not for one read."""
    origin: Origin | None = None
    meter: Meter | None = None
    """Set inside of the chain, where the call is paid for by a budget."""


class Stop(StrEnum):
    """Why a reply ended."""

    FINISHED = "finished"
    TRUNCATED = "truncated"
    """At max_output_tokens, or at the end of the model's context."""
    REFUSED = "refused"
    EMPTY = "empty"
    """The model finished, and said nothing."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    text: str
    usage: Usage
    """`tokens_in` counts all input, with `tokens_cached` among it, whatever the API's own way."""
    stop: Stop
    request_id: str = ""
    usage_estimated: bool = False
    """The server told no usage: `usage` is a guess on the high side."""
    tokens_written: int = 0
    """Of `tokens_in`, what the server put into its cache, at a price of its own."""
    recorded: bool = field(default=False, compare=False)
    """It was given to the same prompt before, and nothing was paid for it now."""


class Failure(StrEnum):
    """Why a call failed, for whoever decides about trying again."""

    KEY = "key"
    """Missing, wrong or without rights: never an outage, and trying again won't help."""
    QUOTA = "quota"
    """The account has nothing left."""
    REJECTED = "rejected"
    """The server does not take this request: unknown model, bad parameter, prompt too long."""
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    SERVER = "server"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    """Refused, cut, or not reachable."""
    GARBLED = "garbled"
    """The server answered what is no reply of its API."""


FINAL = frozenset({Failure.KEY, Failure.QUOTA, Failure.REJECTED})
"""What trying again won't change."""


class CallFailed(AgentError):
    """A call that gave no reply. `retryable` follows from the kind of failure."""

    def __init__(
        self,
        failure: Failure,
        reason: str,
        *,
        status: int = 0,
        code: str = "",
        retry_after: float | None = None,
        is_sent: bool = True,
    ) -> None:
        super().__init__(reason, retryable=failure not in FINAL)
        self.failure = failure
        self.status = status
        """The HTTP status; 0 where there was none."""
        self.code = code
        """The server's own word for the error, where it has one."""
        self.retry_after = retry_after
        """Seconds that the server asked to wait; None where it did not say."""
        self.is_sent = is_sent
        """False where it is certain that no byte of the request reached the server."""


class ModelUnavailable(Unavailable):
    """No call can be made now: a breaker is open, a line too long, the account over its rate.

    The next provider is asked; where there is none the task waits, without using up an attempt.
    """

    def __init__(self, service: str, reason: str, remedy: str) -> None:
        super().__init__(service, reason, remedy)
        self.usage: Usage | None = None
        """What was spent before, for the same task."""


class Knowing(Protocol):
    """A server that can say whether it knows a key and a model, without a call that costs anything."""

    async def look_up(self, model: str, seconds: float) -> None:
        """Ask for the model.

        Raises:
            CallFailed: the key or the model is not known (`KEY`, or status 404), or it can't be told.
        """
        ...

    async def close(self) -> None:
        """Give up the connections."""
        ...


class Provider(Protocol):
    """Makes model calls."""

    name: str

    async def call(self, request: Call) -> Reply:
        """One call. Cancelling it closes its HTTP stream.

        Raises:
            CallFailed: no reply, within the deadline.
        """
        ...

    async def close(self) -> None:
        """Give up the connections."""
        ...


def server_of(role: Role) -> str:
    """What a breaker and a rate belong to: provider, server and model. A URL may hold a password."""
    host = urlsplit(role.options.get("base_url", "")).netloc.rpartition("@")[2]
    return ":".join(part for part in (role.provider, host, role.model) if part)


def fingerprint(provider: str, request: Call) -> str:
    """Hex SHA-256 over provider, model, messages and parameters: equal for equal prompts."""
    said = (provider, replace(request, deadline_seconds=0.0, origin=None, meter=None))
    return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()


def input_tokens(request: Call) -> int:
    """The tokens that a call says, about."""
    return tokens.estimate(request.system, *(message.content for message in request.messages))


def reply_of(
    provider: str,
    request: Call,
    text: str,
    stop: Stop,
    counted: tuple[object, object, object] | None,
    request_id: str | None,
) -> Reply:
    """A reply with its usage in the one convention; what it cost in money is not known here.

    Args:
        provider: named in the usage.
        request: what was asked.
        text: what came back.
        stop: why it ended; `FINISHED` without any text becomes `EMPTY`.
        counted: tokens in (cached ones among them), cached and out, as the server told them. Where
            it told none, or no numbers, they are guessed.
        request_id: the server's own, if any.
    """
    match counted:
        case (int() as into, int() as cached, int() as out):
            estimated = False
        case _:
            into, cached, out = input_tokens(request), 0, tokens.estimate(text)
            estimated = True
    usage = Usage(
        provider=provider,
        model=request.model,
        tokens_in=into,
        tokens_cached=cached,
        tokens_out=out,
        cost_usd=0.0,
        prompt_sha256=fingerprint(provider, request),
    )
    if stop is Stop.FINISHED and not text.strip():
        stop = Stop.EMPTY
    return Reply(text, usage, stop, request_id or "", estimated)
