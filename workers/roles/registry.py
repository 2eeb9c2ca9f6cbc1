"""Reads a TOML file and Python entry points; writes nothing: which roles there are, and who does them.

Three sources, the later ones over the earlier: what ships, the entry points of installed packages
(group `codeconvoy.roles`: a Role, or a callable that gives Roles), the user's TOML file:

    [defaults]                     # for roles that name no provider or model of their own
    provider = "anthropic"
    model = "the model's name"

    [roles.generator]              # changes what ships
    model = "another model's name"

    [roles.docstrings]             # a role of one's own
    kind = "edit"
    prompt_file = "docstrings.md"  # beside this file
    options = { max_output_tokens = 8000 }

    [[roles.docstrings.next]]      # asked where the provider before it can't; also in [[defaults.next]]
    provider = "openai"
    model = "the model's name"

The models' roles that ship name neither provider nor model: which one is paid for is not ours to
choose, and names of models do not last.
"""

import json
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

import msgspec

from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.job_state import GIT_ROLE, RUNNER_ROLE
from codeconvoy.schemas.topics import check_role
from codeconvoy.workers.conflicts import BY_HAND, DETECTOR
from codeconvoy.workers.llm.prompts import DEFAULT_PROMPTS
from codeconvoy.workers.roles.codemod import roles as codemod
from codeconvoy.workers.roles.role import NextProvider, Role, RoleKind

ROLES_GROUP = "codeconvoy.roles"
MAX_FILE_BYTES = 1024 * 1024
"""Of a roles file, and of a prompt file."""
MAX_CONCURRENCY = 1_000
MAX_NEXT = 8
"""Further providers of one role."""
TAKEN = frozenset({GIT_ROLE, RUNNER_ROLE, "orchestrator", "projector", DETECTOR, BY_HAND})
"""Names that no role can have: queues, logs and events would mix up its work with that of a process of
ours, or of a person."""

Options = dict[str, str | bool | int | float | list[str]]

T = TypeVar("T", bound=msgspec.Struct)


class _NextEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `[[roles.NAME.next]]` table."""

    provider: str
    model: str = ""
    options: Options = {}


class _RoleEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `[roles.NAME]` table. What is not given stays as it is, or takes the default."""

    kind: RoleKind | None = None
    description: str | None = None
    provider: str | None = None
    model: str | None = None
    prompt: str | None = None
    prompt_file: str | None = None
    options: Options = {}
    lens: str | None = None
    concurrency: int | None = None
    next: tuple[_NextEntry, ...] | None = None


class _Defaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    provider: str = ""
    model: str = ""
    next: tuple[_NextEntry, ...] = ()


class _RolesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A roles file, its tables not looked into yet, so that an error can name the role."""

    defaults: dict[str, object] = {}
    roles: dict[str, object] = {}


def builtin_roles() -> tuple[Role, ...]:
    """The roles that ship: five for a model of the user's choice, and the rule-based ones."""
    models = tuple(
        Role(name=name, kind=kind, description=description, provider="", prompt=DEFAULT_PROMPTS[kind])
        for name, kind, description in (
            ("generator", RoleKind.EDIT, "Edits files towards the goal"),
            ("reviewer", RoleKind.REVIEW, "Votes on a version of a file"),
            ("tester", RoleKind.TEST, "Writes unittest files"),
            ("merger", RoleKind.MERGE, "Reconciles conflicting edits"),
            ("planner", RoleKind.PLAN, "Splits the goal into tasks"),
        )
    )
    rules = (
        *codemod.EDITORS,
        replace(codemod.REVIEWER, name="lint-reviewer"),
        replace(codemod.TESTER, name="api-tester"),
    )
    return (*models, *rules)


def load_roles(toml: Path | None = None) -> Mapping[str, Role]:
    """All roles by name, in the order: what ships, entry points, the user's own.

    Args:
        toml: the user's roles file; None: there is none.

    Raises:
        BadInput: the file, an entry point or one of their fields can't be used.
    """
    roles = {role.name: role for role in builtin_roles()}
    for role in _installed_roles():
        roles[role.name] = role
    if toml is None:
        return roles
    content = _read_file(toml, "roles file")
    try:
        document = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(str(toml), f"it is not TOML: {error}", "Correct the file at that place") from error
    file = _table(document, _RolesFile, str(toml))
    entries = {name: _table(entry, _RoleEntry, f"roles.{name}") for name, entry in file.roles.items()}
    for name, entry in entries.items():
        roles[name] = _role(name, entry, roles.get(name), toml.parent)
    defaults = _table(file.defaults, _Defaults, "defaults")
    further = _next(defaults.next, "defaults")
    alone = {name for name, entry in entries.items() if entry.next is not None}
    done = {
        name: _with_defaults(role, defaults, () if name in alone else further) for name, role in roles.items()
    }
    for name, entry in entries.items():
        _check_argv(done[name].provider, entry.options, f"roles.{name}")
    return done


def _table(content: object, shape: type[T], field: str) -> T:
    """A table of the file, checked; an error names the field inside it."""
    try:
        return msgspec.convert(content, shape)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        known = ", ".join(one.name for one in msgspec.structs.fields(shape))
        remedy = (
            f"Use one of: {', '.join(RoleKind)}" if place == ".kind`" else f"The fields here are: {known}"
        )
        raise BadInput(f"{field}{place.rstrip('`')}", reason, remedy) from error


def _check_name(name: str, field: str) -> None:
    """See that a role can have this name."""
    check_role(name)
    if name in TAKEN:
        remedy = f"Choose another name than {', '.join(sorted(TAKEN))}"
        raise BadInput(field, f"{name!r} is a name of convoy's own", remedy)


def _role(name: str, entry: _RoleEntry, former: Role | None, directory: Path) -> Role:
    """The role that an entry makes, of nothing or of the role that had this name."""
    field = f"roles.{name}"
    _check_name(name, field)
    if former is None:
        if entry.kind is None:
            kinds = ", ".join(RoleKind)
            raise BadInput(f"{field}.kind", "a new role needs a kind", f"Use one of: {kinds}")
        former = Role(
            name=name,
            kind=entry.kind,
            description=f"A role of kind {entry.kind}",
            provider="",
            prompt=DEFAULT_PROMPTS[entry.kind],
        )
    elif entry.kind not in (None, former.kind):
        remedy = "Leave kind out, or give the role a name of its own"
        raise BadInput(f"{field}.kind", f"{name!r} is of kind {former.kind}", remedy)
    if entry.prompt is not None and entry.prompt_file is not None:
        raise BadInput(f"{field}.prompt_file", "prompt is given too", "Leave one of them out")
    prompt = entry.prompt
    if entry.prompt_file is not None:
        prompt = _read_file(directory / entry.prompt_file, f"{field}.prompt_file")
    if entry.concurrency is not None and not 1 <= entry.concurrency <= MAX_CONCURRENCY:
        reason = f"{entry.concurrency} is not between 1 and {MAX_CONCURRENCY}"
        raise BadInput(f"{field}.concurrency", reason, "Give the tasks in flight in one process")
    moved = entry.provider is not None and entry.provider != former.provider
    given = {
        "description": entry.description,
        "provider": entry.provider,
        # A model and options of the former provider mean nothing to another one.
        "model": "" if moved and entry.model is None else entry.model,
        "prompt": prompt,
        "lens": entry.lens,
        "concurrency": entry.concurrency,
        "next": None if entry.next is None and not moved else _next(entry.next or (), field),
    }
    options = _options(entry.options)
    kept = {} if moved else former.options
    changes = {key: value for key, value in given.items() if value is not None}
    return replace(former, options={**kept, **options}, **changes)  # type: ignore[arg-type]


def _next(entries: tuple[_NextEntry, ...], field: str) -> tuple[NextProvider, ...]:
    """The further providers that a table names."""
    if len(entries) > MAX_NEXT:
        raise BadInput(f"{field}.next", f"{len(entries)} are more than {MAX_NEXT}", "Name fewer")
    for i, entry in enumerate(entries):
        _check_argv(entry.provider, entry.options, f"{field}.next[{i}]")
    return tuple(NextProvider(e.provider, e.model, _options(e.options)) for e in entries)


def _check_argv(provider: str, options: Options, field: str) -> None:
    """See that a program's `argv` is a list: once options are texts, nobody can tell any more.

    A package's provider may have an option of this name that is something else.
    """
    given = options.get("argv", [])
    if provider != "command" or isinstance(given, list):
        return
    try:
        words = shlex.split(given) if isinstance(given, str) else []
    except ValueError:
        words = []
    example = json.dumps(words or ["my-agent", "--json"], ensure_ascii=False)
    raise BadInput(f"{field}.options.argv", f"{given!r} is not a list of strings", f"Write argv = {example}")


def _options(given: Options) -> dict[str, str]:
    """Options as texts."""
    return {key: _option(value) for key, value in given.items()}


def _option(value: str | bool | int | float | list[str]) -> str:
    """An option's value as text; a list as a shell would quote it (for `argv`)."""
    if isinstance(value, list):
        return shlex.join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _with_defaults(role: Role, defaults: _Defaults, further: tuple[NextProvider, ...]) -> Role:
    """The role with the defaults' provider and model where it names none, and with their next ones where
    it has the defaults' provider."""
    if not role.provider:
        role = replace(role, provider=defaults.provider)
    if not role.model and role.provider == defaults.provider:
        role = replace(role, model=defaults.model)
    if not role.next and role.provider == defaults.provider:
        role = replace(role, next=further)
    return role


def _installed_roles() -> Iterable[Role]:
    """The roles of installed packages."""
    for point in entry_points(group=ROLES_GROUP):
        field = f"entry point {point.name!r} of {ROLES_GROUP}"
        try:
            loaded = point.load()
            made = loaded() if callable(loaded) and not isinstance(loaded, Role) else loaded
            found = [made] if isinstance(made, Role) else list(made)
        except Exception as error:
            remedy = "Correct or uninstall the package that declares it"
            raise BadInput(field, f"it fails: {type(error).__name__}: {error}", remedy) from error
        for role in found:
            if not isinstance(role, Role):
                raise BadInput(field, f"it gives {type(role).__name__}, not Role", "Give Role objects")
            _check_name(role.name, field)
            yield role


def _read_file(path: Path, field: str) -> str:
    try:
        content = path.read_bytes()
        if len(content) > MAX_FILE_BYTES:
            raise BadInput(field, f"{path} is over {MAX_FILE_BYTES} bytes", "Use a shorter file")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(field, f"{path} can't be read: {error}", "Name a readable UTF-8 file") from error
