"""Reads a task's context, writes an answer: the providers of a role, asked in their order.

The next one is asked while no call can be made to one before it (its breaker is open, its line too
long), after a call that failed for good, and after answers that could not be used. Each has an equal
share of the time that is left, so that one that hangs leaves some to the next; the task's own deadline
is over all of them. A decision of the model, such as that a conflict can't be reconciled, is an answer,
and a budget that is used up is so for all of them.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from codeconvoy.schemas.errors import AgentError, OverBudget
from codeconvoy.schemas.events import Usage
from codeconvoy.workers.llm.agent import Unusable, total
from codeconvoy.workers.llm.provider import CallFailed, ModelUnavailable
from codeconvoy.workers.roles.role import Agent, Answer, Context

MAX_REASON_CHARS = 1_000
"""Of one provider's reason, in that of the task."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One provider of a role."""

    name: str
    """Provider, server and model."""
    provider: str
    model: str
    agent: Agent


@dataclass(frozen=True, slots=True)
class Switch:
    """One provider could not do a task, and the next one is asked."""

    name: str
    following: str
    why: str
    """The kind of failure: `unavailable`, that of the call, or that of the answers; `error` for others."""
    reason: str


Failed = tuple[Choice, AgentError | ModelUnavailable]


def unsaid(switch: Switch) -> None:
    """The listener of an agent whose switches nobody counts."""


class FailoverAgent:
    """Does a role's work by whichever of its providers can."""

    def __init__(self, choices: Sequence[Choice], switched: Callable[[Switch], None] = unsaid) -> None:
        """Nothing is asked yet.

        Args:
            choices: in the order in which they are asked; closed with this agent.
            switched: told each time that the next one is asked.
        """
        self._choices, self._switched = tuple(choices), switched

    async def work(self, context: Context) -> Answer:
        """See `Agent`.

        Raises:
            ModelUnavailable: no provider can be asked now: the task waits, without using up an attempt.
        """
        seconds = context.task.deadline_seconds
        failed: list[Failed] = []
        try:
            async with asyncio.timeout(seconds):
                return await self._work(context, failed)
        except TimeoutError as error:
            late = AgentError(f"no usable answer within the task's {seconds} s", retryable=True)
            late.usage = spent(failed)
            raise late from error

    async def _work(self, context: Context, failed: list[Failed]) -> Answer:
        clock = asyncio.get_running_loop().time
        ends = clock() + context.task.deadline_seconds
        for i, choice in enumerate(self._choices):
            if failed:
                self._switched(switch(*failed[-1], choice))
            share = (ends - clock()) / (len(self._choices) - i)
            try:
                answer = await choice.agent.work(_within(context, share))
            except (AgentError, ModelUnavailable) as error:
                failed.append((choice, error))
                if isinstance(error, OverBudget) or (isinstance(error, AgentError) and error.is_answer):
                    error.usage = spent(failed)
                    raise
            else:
                return replace(answer, usage=summed(choice, answer.usage, failed))
        raise verdict(failed)

    async def close(self) -> None:
        """See `Agent`."""
        for choice in self._choices:
            await choice.agent.close()


def switch(choice: Choice, error: AgentError | ModelUnavailable, following: Choice) -> Switch:
    """What is told of a change to the next provider."""
    match error:
        case ModelUnavailable():
            why = "unavailable"
        case CallFailed(failure=failure):
            why = str(failure)
        case Unusable(outcome=outcome):
            why = str(outcome)
        case _:
            why = "error"
    return Switch(choice.name, following.name, why, error.reason)


def verdict(failed: Sequence[Failed]) -> AgentError | ModelUnavailable:
    """What it comes to that none of the providers could do the task.

    A task waits for a provider that can't be asked now only if none of the others answered: what an
    answer has cost is not paid again for every look whether a breaker has closed.
    """
    waiting = [error for _, error in failed if isinstance(error, ModelUnavailable)]
    answered = any(isinstance(e, AgentError) and not isinstance(e, CallFailed) for _, e in failed)
    usage = spent(failed)
    if waiting and not answered and usage is None:
        return waiting[0]
    reasons = "; ".join(f"{choice.name}: {error.reason[:MAX_REASON_CHARS]}" for choice, error in failed)
    may_pass = bool(waiting) or any(isinstance(e, AgentError) and e.retryable for _, e in failed)
    last = AgentError(f"none of the role's providers could do it: {reasons}", retryable=may_pass)
    last.usage = usage
    return last


def summed(choice: Choice, usage: Usage | None, failed: Sequence[Failed]) -> Usage | None:
    """What an answer cost with all that came to nothing before, under the provider that gave it."""
    before = spent(failed)
    if before is None:
        return usage
    if usage is None:
        return msgspec.structs.replace(before, provider=choice.provider, model=choice.model, prompt_sha256="")
    return total((usage, before))


def spent(failed: Sequence[Failed]) -> Usage | None:
    """What the providers that failed have cost."""
    return total([error.usage for _, error in failed if error.usage is not None])


def _within(context: Context, seconds: float) -> Context:
    """The task with a part of its time."""
    return replace(context, task=msgspec.structs.replace(context.task, deadline_seconds=max(1, int(seconds))))
