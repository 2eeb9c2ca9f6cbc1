"""Reads a task's context, writes an answer: an agent behind which a model stands.

Ask; where the answer has flaws, ask once more with the reasons and the nearest lines; then, for
edits, ask for whole files; then give up. A refusal is not argued with, and the same wrong answer twice
is not asked for a third time. One deadline, the task's own, is over all of it.
"""

import asyncio
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import TypeVar

import msgspec

from codeconvoy.schemas.errors import AgentError
from codeconvoy.schemas.events import Usage
from codeconvoy.schemas.job_spec import TaskSpec
from codeconvoy.schemas.tasks import PlanWork, ResolveWork, ReviewWork
from codeconvoy.workers.llm.context_limit import prompt_limit
from codeconvoy.workers.llm.edit_format import Mismatch, Problem, blocks_of, propose
from codeconvoy.workers.llm.prompts import Prompt, again, build, opening, whole
from codeconvoy.workers.llm.provider import (
    DEFAULT_MAX_OUTPUT_TOKENS,
    Call,
    CallFailed,
    Failure,
    Message,
    ModelUnavailable,
    Origin,
    Provider,
    Reply,
    Stop,
)
from codeconvoy.workers.llm.region_format import read_regions
from codeconvoy.workers.roles.role import Answer, Context, Edits, FileEdit, Plan, Role, Vote
from codeconvoy.workers.roles.validators import (
    Validator,
    keeps_definitions,
    not_emptied,
    python_parses,
    standard,
    within_task,
    writable,
)

_FENCE = re.compile(r"\A\s*```[a-z]*\n(.*)\n```\s*\Z", re.DOTALL)
_CONFLICT = re.compile(r"^CONFLICT:\s*(.*)$", re.MULTILINE)
_MAX_REASON_CHARS = 500

T = TypeVar("T", bound=msgspec.Struct)


class Step(StrEnum):
    """How a model is asked."""

    FIRST = "first"
    AGAIN = "again"
    WHOLE = "whole"


EDIT_STEPS = (Step.FIRST, Step.AGAIN, Step.WHOLE)
JSON_STEPS = (Step.FIRST, Step.AGAIN, Step.AGAIN)
MERGE_STEPS = (Step.FIRST, Step.AGAIN)


_PROBLEMS: Mapping[Validator, Problem] = {
    within_task: Problem.OUTSIDE_TASK,
    not_emptied: Problem.EMPTIED,
    python_parses: Problem.SYNTAX,
    keeps_definitions: Problem.DROPPED,
}
"""How the objections of a validator are counted; those of the others as invalid."""


class Outcome(StrEnum):
    """Why a model's answers were of no use."""

    FLAWED = "flawed"
    REPEATED = "repeated"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    EMPTY = "empty"


class Unusable(AgentError):
    """A model answered, and after all re-asks nothing of it can be used."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class _VoteReply(msgspec.Struct, forbid_unknown_fields=True):
    approved: bool
    comments: tuple[str, ...] = ()


class _PlanReply(msgspec.Struct, forbid_unknown_fields=True):
    tasks: tuple[TaskSpec, ...]


def uncounted(problem: Problem) -> None:
    """The counter of an agent whose flaws nobody counts."""


def unmeasured(prompt: Prompt) -> None:
    """The measure of an agent whose prompts nobody looks at."""


class ModelAgent:
    """Does a role's work by asking a model."""

    def __init__(
        self,
        role: Role,
        provider: Provider,
        *,
        validators: Sequence[Validator] = (),
        count: Callable[[Problem], None] = uncounted,
        measure: Callable[[Prompt], None] = unmeasured,
    ) -> None:
        """Nothing is asked yet.

        Args:
            role: its prompt, model and options (`max_output_tokens`, `max_prompt_chars`,
                `temperature`, `seed`, `keep_definitions`, all checked by the registry).
            provider: makes the calls; closed with the agent.
            validators: what an answer must pass besides the standard ones.
            count: told of each flaw of each answer.
            measure: shown each task's prompt.
        """
        self._role, self._provider, self._count, self._measure = role, provider, count, measure
        self._validators = (*standard(role.options), *validators)
        self._limit = prompt_limit(role)

    async def work(self, context: Context) -> Answer:
        """See `Agent`.

        Raises:
            ModelUnavailable: no call can be made now.
            CallFailed: a call failed for good.
            Unusable: the model answered, and nothing of it can be used.
        """
        seconds = context.task.deadline_seconds
        usages: list[Usage] = []
        try:
            try:
                async with asyncio.timeout(seconds):
                    answer = await self._work(context, usages)
            except TimeoutError as error:
                raise CallFailed(
                    Failure.TIMEOUT, f"no usable answer within the task's {seconds} s"
                ) from error
        except (AgentError, ModelUnavailable) as error:
            error.usage = total(usages)
            if isinstance(error, Unusable) and context.merge is not None:
                # A merge has its tries in all, not with each provider: the next strategy's turn.
                error.is_answer = True
            raise
        return replace(answer, usage=total(usages))

    async def _work(self, context: Context, usages: list[Usage]) -> Answer:
        """Ask until an answer can be used. `usages` gets what each call has cost."""
        prompt = build(context, self._role, self._limit)
        self._measure(prompt)
        ends = asyncio.get_running_loop().time() + context.task.deadline_seconds
        messages = opening(prompt)
        flaws: tuple[Mismatch, ...] = ()
        wrong: set[Hashable] = set()
        for step in _steps(context, prompt):
            if step is Step.WHOLE and flaws[0].problem is not Problem.TRUNCATED:
                messages = opening(prompt, whole(flaws, writable(context)))
            left = ends - asyncio.get_running_loop().time()
            reply = await self._provider.call(self._request(context, prompt, messages, left))
            usages.append(reply.usage)
            answer, flaws = self._judged(context, reply)
            if answer is not None:
                return answer
            for flaw in flaws:
                self._count(flaw.problem)
            traits = _traits(reply.text, flaws)
            if traits & wrong:
                self._count(Problem.REPEATED)
                raise self._unusable(flaws, len(usages), repeated=True)
            if reply.stop is Stop.REFUSED:
                break
            wrong |= traits
            if reply.text.strip():
                messages = (*messages, Message("assistant", reply.text))
            messages = (*messages, Message("user", again(flaws)))
        raise self._unusable(flaws, len(usages), repeated=False)

    def _unusable(self, flaws: Sequence[Mismatch], tries: int, *, repeated: bool) -> Unusable:
        """What the last answer comes to."""
        reasons = "; ".join(flaw.text for flaw in flaws)[:_MAX_REASON_CHARS]
        match flaws[0].problem:
            case Problem.REFUSED:
                return Unusable(Outcome.REFUSED, f"the model refused: {reasons}")
            case Problem.TRUNCATED:
                limit = self._output_limit
                reason = f"the answer was cut off at the limit of {limit} tokens, in {tries} tries"
                return Unusable(Outcome.TRUNCATED, f"{reason} (the role's option max_output_tokens)")
            case Problem.EMPTY:
                return Unusable(Outcome.EMPTY, f"the model said nothing, in {tries} tries")
        if repeated:
            return Unusable(Outcome.REPEATED, f"the model gave the same wrong answer twice: {reasons}")
        return Unusable(Outcome.FLAWED, f"no usable answer in {tries} tries: {reasons}")

    @property
    def _output_limit(self) -> int:
        return int(self._role.options.get("max_output_tokens", DEFAULT_MAX_OUTPUT_TOKENS))

    def _request(
        self, context: Context, prompt: Prompt, messages: tuple[Message, ...], seconds: float
    ) -> Call:
        options, task = self._role.options, context.task
        temperature, seed = options.get("temperature", "0"), options.get("seed", "0")
        return Call(
            model=self._role.model,
            system=prompt.system,
            messages=messages,
            max_output_tokens=self._output_limit,
            temperature=None if temperature == "none" else float(temperature),
            seed=None if seed == "none" else int(seed),
            json_schema=prompt.json_schema,
            deadline_seconds=max(seconds, 0.001),
            origin=Origin(task.workspace, task.job_id, task.task_id, task.round, task.budget),
        )

    def _judged(self, context: Context, reply: Reply) -> tuple[Answer | None, tuple[Mismatch, ...]]:
        """The answer that a reply holds, or what is wrong with it."""
        match reply.stop:
            case Stop.REFUSED:
                return None, (Mismatch(Problem.REFUSED, "", reply.text.strip() or "no reason"),)
            case Stop.TRUNCATED:
                reason = "The reply was cut off at its limit of tokens. Make it much shorter."
                return None, (Mismatch(Problem.TRUNCATED, "", reason),)
            case Stop.EMPTY:
                return None, (Mismatch(Problem.EMPTY, "", "The reply was empty."),)
        answer, flaws = read_answer(context, reply.text)
        if answer is None:
            return None, flaws
        found = tuple(
            Mismatch(_PROBLEMS.get(validator, Problem.INVALID), "", text)
            for validator in self._validators
            for text in validator(context, answer)
        )
        return (None if found else answer), found

    async def close(self) -> None:
        """See `Agent`."""
        await self._provider.close()


def _traits(text: str, flaws: tuple[Mismatch, ...]) -> set[Hashable]:
    """What makes two wrong answers the same: their text, or their flaws and their edits."""
    edits = tuple((block.path, block.kind, block.body) for block in blocks_of(text))
    return {text.strip(), (flaws, edits)} if edits else {text.strip()}


def read_answer(context: Context, text: str) -> tuple[Answer | None, tuple[Mismatch, ...]]:
    """The answer that a text holds, by the kind of the task's work; or the flaws of the text.

    Raises:
        AgentError: it says that the sides of a conflict can't be reconciled.
    """
    if context.merge is not None:
        return read_regions(context.task.path, context.merge.partial, text)
    match context.task.work:
        case ReviewWork():
            vote, flaws = _json(text, _VoteReply)
            return (Vote(vote.approved, vote.comments) if vote else None), flaws
        case PlanWork():
            plan, flaws = _json(text, _PlanReply)
            return (Plan(plan.tasks) if plan else None), flaws
        case ResolveWork():
            if found := _CONFLICT.match(text.strip()):
                reason = f"the sides can't be reconciled: {found[1][:_MAX_REASON_CHARS]}"
                raise AgentError(reason, is_answer=True)
    proposal = propose(text, writable(context))
    if proposal.flaws:
        return None, proposal.flaws
    files = proposal.files
    if isinstance(context.task.work, ResolveWork) and not files:
        # Its own edit already is the resolution, which needs a content all the same.
        files = (FileEdit(context.task.path, context.file.content),)
    return Edits(files, proposal.summary), ()


def _steps(context: Context, prompt: Prompt) -> Sequence[Step]:
    """How often, and how, a model is asked at most."""
    if context.merge is not None:
        return MERGE_STEPS
    return EDIT_STEPS if prompt.json_schema is None else JSON_STEPS


def _json(text: str, shape: type[T]) -> tuple[T | None, tuple[Mismatch, ...]]:
    fenced = _FENCE.match(text)
    try:
        return msgspec.json.decode(fenced[1] if fenced else text, type=shape), ()
    except msgspec.MsgspecError as error:
        return None, (
            Mismatch(Problem.MALFORMED, "", f"The reply is not the JSON that was asked for: {error}."),
        )


def total(usages: Sequence[Usage]) -> Usage | None:
    """The usage of all calls of one answer, under the first one's provider, model and prompt."""
    if not usages:
        return None
    return msgspec.structs.replace(
        usages[0],
        tokens_in=sum(usage.tokens_in for usage in usages),
        tokens_cached=sum(usage.tokens_cached for usage in usages),
        tokens_out=sum(usage.tokens_out for usage in usages),
        cost_usd=sum(usage.cost_usd for usage in usages),
    )
