"""Reads a role and the credentials, writes nothing: the one place where a provider becomes an agent.

Everything that can be known to be wrong with a role is said here, before its first task: an unknown
provider or option, a missing model, a missing key.
"""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.llm import repo_map
from codeconvoy.workers.llm.agent import ModelAgent, uncounted, unmeasured
from codeconvoy.workers.llm.command import CommandAgent
from codeconvoy.workers.llm.edit_format import Problem
from codeconvoy.workers.llm.failover import Choice, FailoverAgent, Switch, unsaid
from codeconvoy.workers.llm.prices import check_prices
from codeconvoy.workers.llm.prompts import Prompt
from codeconvoy.workers.llm.provider import IDLE_SECONDS, Credentials, Knowing, Provider, server_of
from codeconvoy.workers.roles.codemod.agents import make_agent as codemod_agent
from codeconvoy.workers.roles.codemod_check import check_codemod
from codeconvoy.workers.roles.role import Agent, Role
from codeconvoy.workers.roles.validators import Validator

if TYPE_CHECKING:
    from codeconvoy.workers.llm.anthropic_provider import AnthropicProvider
    from codeconvoy.workers.llm.openai_provider import OpenAIProvider

PROVIDERS_GROUP = "codeconvoy.providers"
"""Entry points: each a callable `(role, credentials) -> Agent`."""
VALIDATORS_GROUP = "codeconvoy.validators"
"""Entry points: each a `Validator`, which roles name in their option `validators`."""
MODEL_PROVIDERS = ("openai", "anthropic")
BUILTIN_PROVIDERS = ("codemod", *MODEL_PROVIDERS, "command")

Wrap = Callable[[Role, Provider], Provider]
"""What is put around the provider of a role (recorded replies, budgets, limits): a provider again."""


def bare(role: Role, provider: Provider) -> Provider:
    """The provider with nothing around it."""
    return provider


def make_agent(
    role: Role,
    credentials: Credentials,
    *,
    wrap: Wrap = bare,
    count: Callable[[Problem], None] = uncounted,
    switched: Callable[[Switch], None] = unsaid,
    measure: Callable[[Prompt], None] = unmeasured,
) -> Agent:
    """The agent that does the work of a role, by all of its providers.

    Args:
        role: what to do, and by which provider.
        credentials: keys by name; a model's role takes the one that its option `key` names, or
            its provider's.
        wrap: what is put around a model's provider.
        count: told of each flaw of each answer of a model.
        switched: told each time that the next provider is asked.
        measure: shown the prompt of each task of a model.

    Raises:
        BadInput: the role can't be done as it is declared; names the field and the remedy.
    """
    choices: list[Choice] = []
    for place, one in role.by_provider():
        name = server_of(one)
        if name in (choice.name for choice in choices):
            raise BadInput(place, f"{name} is asked before this already", "Name each provider and model once")
        with _placed(role, place):
            agent = _agent(one, credentials, wrap, count, measure)
        choices.append(Choice(name, one.provider, one.model, agent))
    return FailoverAgent(choices, switched) if len(choices) > 1 else choices[0].agent


def check_declared(role: Role, credentials: Credentials) -> None:
    """See that a role can be done here, as far as that can be told without loading its providers.

    Raises:
        BadInput: it can't.
    """
    for place, one in role.by_provider():
        with _placed(role, place):
            match one.provider:
                case "openai":
                    _key(one, credentials, _OPENAI_OPTIONS)
                case "anthropic":
                    _key(one, credentials, _MODEL_OPTIONS)
                case "command":
                    _check_options(one, _COMMAND_OPTIONS)
                    _argv(one)
                case "codemod":
                    _codemod(one)
                case "":
                    _installed(one, credentials)


def knowing(role: Role, credentials: Credentials) -> Knowing:
    """Who can say whether the first provider of a model's role knows its key and model.

    Raises:
        BadInput: the role can't be done as it is declared.
    """
    return _openai(role, credentials) if role.provider == "openai" else _anthropic(role, credentials)


@contextmanager
def _placed(role: Role, place: str) -> Iterator[None]:
    """Name the field of the provider that is meant."""
    own = f"roles.{role.name}"
    try:
        yield
    except BadInput as bad:
        if place == own:
            raise
        remedy = bad.remedy.replace(f"[{own}] or [defaults]", f"[[{own}.next]]")
        raise BadInput(f"{place}{bad.field.removeprefix(own)}", bad.reason, remedy) from bad


def _agent(
    role: Role,
    credentials: Credentials,
    wrap: Wrap,
    count: Callable[[Problem], None],
    measure: Callable[[Prompt], None],
) -> Agent:
    """The agent of a role's one provider."""
    match role.provider:
        case "codemod":
            return _codemod(role)
        case "openai" | "anthropic":
            make = _openai if role.provider == "openai" else _anthropic
            wrapped, validators = wrap(role, make(role, credentials)), _validators(role)
            return ModelAgent(role, wrapped, validators=validators, count=count, measure=measure)
        case "command":
            _check_options(role, _COMMAND_OPTIONS)
            return CommandAgent(role, _argv(role), validators=_validators(role))
    return _installed(role, credentials)


def map_tokens(role: Role) -> int:
    """What the repository's map may take of a role's prompts; 0: none of its models is shown one."""
    models = (one for _, one in role.by_provider() if one.provider in MODEL_PROVIDERS)
    return max((repo_map.budget(one.options) for one in models), default=0)


_TEXT = (r".+", "Give it a value, or leave it out")
_COUNT = (r"[1-9]\d{0,9}", "Give a whole number above 0")
_NUMBER = (r"\d{1,9}(\.\d+)?", "Give a number")
_FLAG = (r"true|false", "Use true or false")
_MODEL_OPTIONS: Mapping[str, tuple[str, str]] = {
    "base_url": (r"https?://[^\s/]+\S*", "Give a URL that starts with http:// or https://"),
    "key": _TEXT,
    "breaker_failures": _COUNT,
    "breaker_seconds": _NUMBER,
    "check_at_start": _FLAG,
    "idle_seconds": (r"(?=.*[1-9])\d{1,9}(\.\d+)?", "Give a number above 0"),
    "keep_definitions": _FLAG,
    "map_tokens": (r"0|[1-9]\d{0,5}", "Give a whole number, or 0 for no map"),
    "max_output_tokens": _COUNT,
    "max_prompt_chars": _COUNT,
    "price_in": _NUMBER,
    "price_cached": _NUMBER,
    "price_out": _NUMBER,
    "reply_ttl_seconds": _COUNT,
    "requests_per_minute": _NUMBER,
    "stream": _FLAG,
    "tokens_per_minute": _NUMBER,
    "validators": _TEXT,
}
"""For each option what its value must match as a whole, and the remedy where it does not."""
_OPENAI_OPTIONS: Mapping[str, tuple[str, str]] = {
    **_MODEL_OPTIONS,
    "api": (r"responses|chat", "Use responses or chat"),
    "temperature": (r"none|\d(\.\d+)?", "Give a number such as 0.2, or none"),
    "seed": (r"none|\d{1,18}", "Give a whole number, or none"),
}
_COMMAND_OPTIONS: Mapping[str, tuple[str, str]] = {
    "argv": _TEXT,
    "keep_definitions": _FLAG,
    "validators": _TEXT,
}
_CODEMOD_OPTIONS: Mapping[str, tuple[str, str]] = {
    "rules": (r".*", ""),  # The agent and ruff know better.
    "target_version": (r"[\w.]+", "Write it as ruff does, such as py39"),
}


def _check_options(role: Role, known: Mapping[str, tuple[str, str]]) -> None:
    for name, value in role.options.items():
        field = f"roles.{role.name}.options.{name}"
        if name not in known:
            options = ", ".join(sorted(known))
            raise BadInput(
                field,
                f"{name!r} is no option of the provider {role.provider!r}",
                f"Its options are: {options}",
            )
        pattern, remedy = known[name]
        if not re.fullmatch(pattern, value, re.DOTALL):
            raise BadInput(field, f"{value!r} can't be used", remedy)


def _codemod(role: Role) -> Agent:
    """The rule-based agent of a role, once its rules and other options are ones that ruff knows."""
    _check_options(role, _CODEMOD_OPTIONS)
    agent = codemod_agent(role)
    check_codemod(role)
    return agent


def _openai(role: Role, credentials: Credentials) -> "OpenAIProvider":
    from codeconvoy.workers.llm.openai_provider import API, OpenAIProvider

    key = _key(role, credentials, _OPENAI_OPTIONS)
    api = role.options.get("api") or ("chat" if "base_url" in role.options else "responses")
    return OpenAIProvider(
        key,
        base_url=role.options.get("base_url", API).rstrip("/"),
        api="chat" if api == "chat" else "responses",
        stream=_streams(role),
        idle_seconds=_idle_seconds(role),
    )


def _anthropic(role: Role, credentials: Credentials) -> "AnthropicProvider":
    from codeconvoy.workers.llm.anthropic_provider import API, AnthropicProvider

    key = _key(role, credentials, _MODEL_OPTIONS)
    return AnthropicProvider(
        key,
        base_url=role.options.get("base_url", API).rstrip("/"),
        stream=_streams(role),
        idle_seconds=_idle_seconds(role),
    )


def _streams(role: Role) -> bool:
    return role.options.get("stream", "true") == "true"


def _idle_seconds(role: Role) -> float:
    return float(role.options.get("idle_seconds", IDLE_SECONDS))


def _key(role: Role, credentials: Credentials, known: Mapping[str, tuple[str, str]]) -> str:
    """The key of a model's role, once its options and model are there. A `base_url` may need none."""
    _check_options(role, known)
    check_prices(role)
    if not role.model:
        remedy = f"Set model under [roles.{role.name}] or [defaults] in the roles file"
        raise BadInput(f"roles.{role.name}.model", f"the provider {role.provider!r} needs a model", remedy)
    name = role.options.get("key", role.provider)
    key = credentials.get(name, "")
    if not key and ("key" in role.options or "base_url" not in role.options):
        remedy = f"Set the key {name!r} where this process starts ({name.upper().replace('-', '_')}_API_KEY)"
        raise BadInput(
            f"roles.{role.name}.provider", f"there is no key {name!r} for {role.provider!r}", remedy
        )
    return key


def _argv(role: Role) -> Sequence[str]:
    """Program and arguments of a command role; the program is there."""
    field = f"roles.{role.name}.options.argv"
    try:
        argv = shlex.split(role.options.get("argv", ""))
    except ValueError as error:
        raise BadInput(field, f"it can't be split: {error}", "Give a list of strings") from error
    if not argv:
        remedy = 'Give the program, such as argv = ["my-agent", "--json"]'
        raise BadInput(field, "a command role needs a program", remedy)
    if shutil.which(argv[0]) is None:
        raise BadInput(field, f"there is no program {argv[0]!r}", "Install it, or give its path")
    return argv


def _validators(role: Role) -> tuple[Validator, ...]:
    """The validators that a role names besides the standard ones, separated by commas."""
    names = [name.strip() for name in role.options.get("validators", "").split(",") if name.strip()]
    return tuple(_load(VALIDATORS_GROUP, name, f"roles.{role.name}.options.validators") for name in names)


def _installed(role: Role, credentials: Credentials) -> Agent:
    """An agent of a provider that an installed package brings."""
    field = f"roles.{role.name}.provider"
    if not role.provider:
        remedy = f"Set provider under [roles.{role.name}] or [defaults] in the roles file"
        raise BadInput(field, "no provider is set", f"{remedy}: {', '.join(BUILTIN_PROVIDERS)}")
    agent: Agent = _load(PROVIDERS_GROUP, role.provider, field)(role, credentials)
    return agent


def _load(group: str, name: str, field: str) -> Callable[..., Any]:
    """What an entry point names; whoever calls it knows its signature from the group."""
    points = entry_points(group=group)
    if name not in points.names:
        known = ", ".join((*(BUILTIN_PROVIDERS if group == PROVIDERS_GROUP else ()), *sorted(points.names)))
        raise BadInput(field, f"{name!r} is not known", f"Known are: {known or 'none'}")
    try:
        loaded: Callable[..., Any] = points[name].load()
    except Exception as error:
        remedy = "Correct or uninstall the package that declares it"
        raise BadInput(field, f"{name!r} can't be loaded: {type(error).__name__}: {error}", remedy) from error
    return loaded
