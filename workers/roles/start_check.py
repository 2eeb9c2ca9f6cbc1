"""Reads the model endpoints of providers, writes nothing: whether a role's keys and models are known there.

Asked once, at start, so that a wrong key or a model that does not exist is said before the first task. An
outage is none of the two, and neither is a server that has no such endpoint: those are only noted.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.llm.provider import CallFailed, Credentials, Failure, server_of
from codeconvoy.workers.roles.agents import MODEL_PROVIDERS, knowing
from codeconvoy.workers.roles.role import Role

SECONDS = 5.0
"""For the answer of one server."""
_NO_SUCH_MODEL = "model_not_found"
_NOT_FOUND = "not_found_error"


@dataclass(frozen=True, slots=True)
class Checked:
    """What a server said of one provider of a role."""

    server: str
    bad: BadInput | None = None
    """The key or the model is not known."""
    note: str = ""
    """Why it could not be told."""


async def check_models(
    roles: Sequence[Role], credentials: Credentials, seconds: float = SECONDS
) -> Mapping[str, tuple[Checked, ...]]:
    """Ask the servers of all providers of these roles, each once for a key and a model.

    Args:
        roles: each can be done as it is declared (`make_agent`).
        credentials: keys by name.
        seconds: for each answer; all are asked at once.
    """
    asked: dict[tuple[str, str], asyncio.Task[CallFailed | None]] = {}
    async with asyncio.TaskGroup() as group:
        for _, one in (pair for role in roles for pair in _to_ask(role)):
            if _question(one) not in asked:
                asked[_question(one)] = group.create_task(_ask(one, credentials, seconds))
    return {
        role.name: tuple(_checked(place, one, asked[_question(one)].result()) for place, one in _to_ask(role))
        for role in roles
    }


def _to_ask(role: Role) -> list[tuple[str, Role]]:
    """The role by each of its providers that is a model's, but for those that shall not be asked."""
    return [
        (place, one)
        for place, one in role.by_provider()
        if one.provider in MODEL_PROVIDERS and one.options.get("check_at_start", "true") == "true"
    ]


def _question(role: Role) -> tuple[str, str]:
    return server_of(role), role.options.get("key", "")


async def _ask(role: Role, credentials: Credentials, seconds: float) -> CallFailed | None:
    server = knowing(role, credentials)
    try:
        await server.look_up(role.model, seconds)
    except CallFailed as failed:
        return failed
    finally:
        await server.close()
    return None


def _checked(place: str, role: Role, failed: CallFailed | None) -> Checked:
    """What the answer to the question means for a role."""
    server = server_of(role)
    if failed is None:
        return Checked(server)
    skip = "check_at_start = false leaves this check out"
    if failed.failure is Failure.KEY:
        key = role.options.get("key", role.provider)
        remedy = f"Correct the key {key!r}, or give it the right to read models ({skip})"
        return Checked(server, BadInput(f"{place}.provider", failed.reason, remedy))
    if _is_unknown_model(role, failed):
        reason = f"the server of {role.provider!r} has no model {role.model!r}"
        return Checked(server, BadInput(f"{place}.model", reason, f"Name one that it has ({skip})"))
    return Checked(server, note=failed.reason)


def _is_unknown_model(role: Role, failed: CallFailed) -> bool:
    """Whether a server says so. Another one than the vendor's own may only lack the endpoint."""
    if failed.status != 404:
        return False
    if "base_url" not in role.options or failed.code == _NO_SUCH_MODEL:
        return True
    return failed.code == _NOT_FOUND and role.model in failed.reason
