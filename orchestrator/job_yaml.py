"""Reads YAML text, writes nothing: a `JobSpec`, or a complaint that names the field.

Values are not checked here, only their types.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Any

import msgspec
import yaml
from msgspec import inspect

from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.job_spec import JobSpec
from codeconvoy.schemas.topics import MAX_RECORD_BYTES

MAX_BYTES = MAX_RECORD_BYTES // 2
"""Of a job file. A spec must fit a record, beside what else is in it."""
MAX_DEPTH = 20
_SURROGATE = re.compile("[\ud800-\udfff]")
_FIELD = re.compile(r" - at `\$\.?(.*?)`\Z")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_NO_ENUM = re.compile(r"Invalid enum value (.*)")


def parse(text: bytes) -> JobSpec:
    """The job that YAML text asks for.

    Aliases are refused: a few hundred bytes of them stand for gigabytes.

    Raises:
        BadInput: it is no YAML or no job; the field says where.
    """
    raw = _yaml(text)
    if not isinstance(raw, dict):
        raise BadInput("job", "it is not a mapping of fields to values", "Begin with `repository: …`")
    try:
        return msgspec.convert(raw, JobSpec)
    except msgspec.ValidationError as error:
        raise _explained(raw, error) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy for a name that does not exist."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, 1)
    return f"Did you mean {close[0]}?" if close else f"There are: {', '.join(names)}"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which would take the last of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = _line(key_node)
            if not isinstance(key, str):
                raise BadInput("job", f"{key!r} is no field name (line {line})", "Quote it")
            if key in keys:
                raise BadInput(key, f"it is given twice (line {line})", "Give it once")
            keys.add(key)
        return super().construct_mapping(node, deep)


def _yaml(text: bytes) -> object:
    if len(text) > MAX_BYTES:
        raise BadInput("job", f"it is over {MAX_BYTES:,} bytes", "Use globs instead of long lists")
    try:
        decoded = text.decode("utf-8-sig")
        _check_events(decoded)
        return yaml.load(decoded, _Loader)
    except UnicodeDecodeError as error:
        raise BadInput("job", f"it is not UTF-8 (byte {error.start})", "Save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise BadInput("job", f"it is not YAML: {_one_line(error)}", "Correct it there") from error
    except ValueError as error:
        # Such as a date with a 13th month.
        raise BadInput("job", f"it holds a bad value: {error}", "Quote it") from error


def _check_events(text: str) -> None:
    """Refuse what would grow or recurse when it is built, before anything is built."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise BadInput(
                "job", f"it uses an alias, *{event.anchor} (line {_line(event)})", "Write the value out"
            )
        if isinstance(event, yaml.ScalarEvent) and _SURROGATE.search(event.value):
            raise BadInput("job", f"it holds half a character (line {_line(event)})", "Save it as UTF-8")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise BadInput("job", f"it nests deeper than {MAX_DEPTH} levels", "Use the fields of the README")


def _line(where: yaml.Event | yaml.Node) -> int:
    return where.start_mark.line + 1 if where.start_mark else 0


def _one_line(error: yaml.YAMLError) -> str:
    return re.sub(r"\s+", " ", str(error))[:300]


def _explained(raw: dict[str, Any], error: msgspec.ValidationError) -> BadInput:
    """msgspec's complaint, in the words of the file."""
    text = str(error)
    at = _FIELD.search(text)
    reason = text[: at.start()] if at else text
    field = _indexed(raw, at[1], text) if at else ""
    if unknown := _UNKNOWN.match(reason):
        inside = _type_at(field)
        assert isinstance(inside, inspect.StructType)
        remedy = did_you_mean(unknown[1], (known.name for known in inside.fields))
        return BadInput(f"{field}.{unknown[1]}".lstrip("."), "there is no such field", remedy)
    if missing := _MISSING.match(reason):
        return BadInput(f"{field}.{missing[1]}".lstrip("."), "it is missing", "Add it")
    if wrong := _NO_ENUM.match(reason):
        choices = _type_at(field)
        assert isinstance(choices, inspect.EnumType)
        return BadInput(field, f"{wrong[1]} does not exist", f"Use one of: {', '.join(choices.cls)}")
    return BadInput(field or "job", reason[:1].lower() + reason[1:], "Correct the value")


def _indexed(raw: dict[str, Any], field: str, complaint: str) -> str:
    """msgspec writes `tasks[...].role`: find which element it means, by trying them one at a time."""
    *lists, rest = field.split("[...]")
    holder: Any = raw
    numbered = ""
    for names in lists:
        *above, last = names.lstrip(".").split(".")
        for name in above:
            holder = holder[name]
        index, holder = _blamed(raw, holder, last, complaint)
        numbered += f"{names}[{index}]"
    return numbered + rest


def _blamed(raw: dict[str, Any], holder: dict[str, Any], name: str, complaint: str) -> tuple[int, Any]:
    """Number and value of the element of a list that gives this complaint; the list is cut to it."""
    for i, element in enumerate(holder[name]):
        holder[name] = [element]
        if _complaint(raw) == complaint:
            return i, element
    raise AssertionError(f"no element of {name} gives the complaint {complaint!r}")


def _complaint(raw: dict[str, Any]) -> str:
    try:
        msgspec.convert(raw, JobSpec)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _type_at(field: str) -> inspect.Type:
    """The declared type of a field, by its dotted name."""
    found: inspect.Type = inspect.type_info(JobSpec)
    for name, index in re.findall(r"([a-z_]+)|(\[)", field):
        if index:
            assert isinstance(found, inspect.VarTupleType)
            found = found.item_type
        else:
            assert isinstance(found, inspect.StructType)
            found = next(known.type for known in found.fields if known.name == name)
    return found
