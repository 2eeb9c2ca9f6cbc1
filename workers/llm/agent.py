"""Reads a task's context, writes an answer: an agent behind which a model stands.

Ask; where the answer has flaws, ask once more with the reasons and the nearest lines; then, for
edits, ask for whole files; then give up. One deadline, the task's own, is over all of it.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import TypeVar

import msgspec

from codeconvoy.schemas.errors import AgentError
from codeconvoy.schemas.events import Usage
from codeconvoy.schemas.job_spec import TaskSpec
from codeconvoy.schemas.tasks import PlanWork, ResolveWork, ReviewWork
from codeconvoy.workers.llm.edit_format import Mismatch, Problem, propose
from codeconvoy.workers.llm.prompts import MAX_PROMPT_CHARS, Prompt, again, build, opening, whole
from codeconvoy.workers.llm.provider import (
    DEFAULT_MAX_OUTPUT_TOKENS,
    Call,
    Message,
    Origin,
    Provider,
    Reply,
    Stop,
)
from codeconvoy.workers.roles.role import Answer, Context, Edits, FileEdit, Plan, Role, Vote
from codeconvoy.workers.roles.validators import STANDARD, Validator, objections, writable

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


class _VoteReply(msgspec.Struct, forbid_unknown_fields=True):
    approved: bool
    comments: tuple[str, ...] = ()


class _PlanReply(msgspec.Struct, forbid_unknown_fields=True):
    tasks: tuple[TaskSpec, ...]


def uncounted(problem: Problem) -> None:
    """The counter of an agent whose flaws nobody counts."""


class ModelAgent:
    """Does a role's work by asking a model."""

    def __init__(
        self,
        role: Role,
        provider: Provider,
        *,
        validators: Sequence[Validator] = (),
        count: Callable[[Problem], None] = uncounted,
    ) -> None:
        """Nothing is asked yet.

        Args:
            role: its prompt, model and options (`max_output_tokens`, `max_prompt_chars`,
                `temperature`, `seed`, all checked by the registry).
            provider: makes the calls; closed with the agent.
            validators: what an answer must pass besides the standard ones.
            count: told of each flaw of each answer.
        """
        self._role, self._provider, self._count = role, provider, count
        self._validators = (*STANDARD, *validators)

    async def work(self, context: Context) -> Answer:
        """See `Agent`."""
        seconds = context.task.deadline_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._work(context)
        except TimeoutError as error:
            raise AgentError(f"no usable answer within the task's {seconds} s") from error

    async def _work(self, context: Context) -> Answer:
        options = self._role.options
        prompt = build(context, self._role, int(options.get("max_prompt_chars", MAX_PROMPT_CHARS)))
        ends = asyncio.get_running_loop().time() + context.task.deadline_seconds
        usages: list[Usage] = []
        messages = opening(prompt)
        flaws: tuple[Mismatch, ...] = ()
        for step in EDIT_STEPS if prompt.json_schema is None else JSON_STEPS:
            if step is Step.WHOLE:
                messages = opening(prompt, whole(flaws, writable(context)))
            left = ends - asyncio.get_running_loop().time()
            reply = await self._provider.call(self._request(context, prompt, messages, left))
            usages.append(reply.usage)
            answer, flaws = self._judged(context, reply)
            if answer is not None:
                return replace(answer, usage=total(usages))
            for flaw in flaws:
                self._count(flaw.problem)
            if reply.text.strip():
                messages = (*messages, Message("assistant", reply.text))
            messages = (*messages, Message("user", again(flaws)))
        reasons = "; ".join(flaw.text for flaw in flaws)[:_MAX_REASON_CHARS]
        raise AgentError(f"no usable answer in {len(usages)} tries: {reasons}")

    def _request(
        self, context: Context, prompt: Prompt, messages: tuple[Message, ...], seconds: float
    ) -> Call:
        options, task = self._role.options, context.task
        temperature, seed = options.get("temperature", "0"), options.get("seed", "0")
        return Call(
            model=self._role.model,
            system=prompt.system,
            messages=messages,
            max_output_tokens=int(options.get("max_output_tokens", DEFAULT_MAX_OUTPUT_TOKENS)),
            temperature=None if temperature == "none" else float(temperature),
            seed=None if seed == "none" else int(seed),
            json_schema=prompt.json_schema,
            deadline_seconds=max(seconds, 0.001),
            origin=Origin(task.workspace, task.job_id, task.task_id, task.round),
        )

    def _judged(self, context: Context, reply: Reply) -> tuple[Answer | None, tuple[Mismatch, ...]]:
        """The answer that a reply holds, or what is wrong with it."""
        match reply.stop:
            case Stop.REFUSED:
                raise AgentError(
                    f"the model refused: {reply.text.strip()[:_MAX_REASON_CHARS] or 'no reason'}"
                )
            case Stop.TRUNCATED:
                reason = "The reply was cut off at its limit of tokens. Make it much shorter."
                return None, (Mismatch(Problem.TRUNCATED, "", reason),)
            case Stop.EMPTY:
                return None, (Mismatch(Problem.EMPTY, "", "The reply was empty."),)
        answer, flaws = read_answer(context, reply.text)
        if answer is None:
            return None, flaws
        found = objections(context, answer, self._validators)
        return (None if found else answer), tuple(Mismatch(Problem.INVALID, "", text) for text in found)

    async def close(self) -> None:
        """See `Agent`."""
        await self._provider.close()


def read_answer(context: Context, text: str) -> tuple[Answer | None, tuple[Mismatch, ...]]:
    """The answer that a text holds, by the kind of the task's work; or the flaws of the text.

    Raises:
        AgentError: it says that the sides of a conflict can't be reconciled.
    """
    match context.task.work:
        case ReviewWork():
            vote, flaws = _json(text, _VoteReply)
            return (Vote(vote.approved, vote.comments) if vote else None), flaws
        case PlanWork():
            plan, flaws = _json(text, _PlanReply)
            return (Plan(plan.tasks) if plan else None), flaws
        case ResolveWork():
            if found := _CONFLICT.match(text.strip()):
                raise AgentError(f"the sides can't be reconciled: {found[1][:_MAX_REASON_CHARS]}")
    proposal = propose(text, writable(context))
    if proposal.flaws:
        return None, proposal.flaws
    files = proposal.files
    if isinstance(context.task.work, ResolveWork) and not files:
        # Its own edit already is the resolution, which needs a content all the same.
        files = (FileEdit(context.task.path, context.file.content),)
    return Edits(files, proposal.summary), ()


def _json(text: str, shape: type[T]) -> tuple[T | None, tuple[Mismatch, ...]]:
    fenced = _FENCE.match(text)
    try:
        return msgspec.json.decode(fenced[1] if fenced else text, type=shape), ()
    except msgspec.MsgspecError as error:
        return None, (
            Mismatch(Problem.MALFORMED, "", f"The reply is not the JSON that was asked for: {error}."),
        )


def total(usages: Sequence[Usage]) -> Usage:
    """The usage of all calls of one answer, under the first one's prompt."""
    return msgspec.structs.replace(
        usages[0],
        tokens_in=sum(usage.tokens_in for usage in usages),
        tokens_cached=sum(usage.tokens_cached for usage in usages),
        tokens_out=sum(usage.tokens_out for usage in usages),
        cost_usd=sum(usage.cost_usd for usage in usages),
    )
