"""Reads nothing, writes nothing: a record's type and schema, made into functions that write and read it.

fastavro looks into the schema at every value, and goes by way of dicts. Here that is done once: the
schema becomes the source of two Python functions for each record in it, straight from the struct to the
bytes and back (as dataclasses make their `__init__`), which takes about a fifth of the time.

What is made here gives the right answer or raises, whatever the error: the codec then asks fastavro,
which alone says what is wrong. So these functions need not tell garbage from a schema's rarer spellings
(arrays in several blocks, overlong numbers): they refuse both.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import msgspec.inspect as shape

Schema = Any
"""An Avro schema, as fastavro has parsed it: full names, each defined before its first use."""

_SMALL = 1024
"""Numbers below this one are looked up, not computed."""
_PRIMITIVES = {
    "string": shape.StrType,
    "bytes": shape.BytesType,
    "long": shape.IntType,
    "double": shape.FloatType,
    "boolean": shape.BoolType,
    "null": shape.NoneType,
}


class Differs(Exception):
    """The schema does not say exactly what the type says."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """The two functions of a record. Both may raise anything."""

    write: Callable[[bytearray, Any], None]
    """Append the record's bytes."""
    read: Callable[[bytes, int], tuple[Any, int]]
    """The record whose bytes begin there, and where they end. That may be behind the end of the bytes:
    the caller compares."""


def compile_record(kind: type[msgspec.Struct], schema: Schema) -> Compiled | None:
    """The functions of a record type; None where the schema is not just the type's own shape."""
    maker = _Maker()
    try:
        name = maker.record(schema, shape.type_info(kind))
    except Differs:
        return None
    exec("\n".join(maker.source), maker.names)  # made of the names in our own schemas alone
    return Compiled(maker.names[f"write_{name}"], maker.names[f"read_{name}"])


# What the made functions call ---------------------------------------------------------------------


def long_bytes(number: int) -> bytes:
    """A number in Avro: zigzag, then seven bits a byte, the lowest first."""
    if not -(1 << 63) <= number < 1 << 63:
        raise OverflowError(f"{number} is not a long")
    rest = (number << 1) ^ (number >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def long_at(raw: bytes, at: int) -> tuple[int, int]:
    """The number whose first byte is the one before `at`, and where it ends."""
    rest, shift, at = 0, 0, at - 1
    while (byte := raw[at]) > 0x7F:
        rest |= (byte & 0x7F) << shift
        shift += 7
        if shift > 63:
            raise OverflowError("a number of more than ten bytes")
        at += 1
    rest |= byte << shift
    if rest >> 64:
        raise OverflowError("a number of more than 64 bits")
    return (rest >> 1) ^ -(rest & 1), at + 1


def size_at(raw: bytes, at: int) -> tuple[int, int]:
    """A length or count, as `long_at` reads it."""
    first, second = raw[at - 1], raw[at]
    if first & 129 == 128 and second < 128:  # as of a hash in hex
        return (first & 127 | second << 7) >> 1, at + 1
    size, at = long_at(raw, at)
    if size < 0:
        raise ValueError("a negative size")
    return size, at


def double_at(raw: bytes, at: int) -> float:
    """The double that begins there."""
    (number,) = struct.unpack_from("<d", raw, at)
    return float(number)


_NAMES = {
    "SMALL": tuple(long_bytes(number) for number in range(_SMALL)),
    "double_bytes": struct.Struct("<d").pack,
    "double_at": double_at,
    "long_bytes": long_bytes,
    "long_at": long_at,
    "size_at": size_at,
}


# How they are made --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Maker:
    """Collects the source of the functions, and the names that it uses."""

    source: list[str] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=_NAMES.copy)
    _known: dict[str, Schema] = field(default_factory=dict)
    """The named types met so far, by full name."""
    _made: dict[str, str] = field(default_factory=dict)
    _count: int = 0

    def record(self, schema: Schema, of: shape.Type) -> str:
        """Make the functions of a record, unless they are there. What their names end in."""
        schema = self._resolved(schema)
        if not isinstance(of, shape.StructType) or _type_of(schema) != "record":
            raise Differs
        if _short(schema["name"]) != _name_of(of):
            raise Differs
        if made := self._made.get(schema["name"]):
            return made
        fields = schema["fields"]
        if [each["name"] for each in fields] != [each.encode_name for each in of.fields]:
            raise Differs
        name = _short(schema["name"])
        write, read = [f"def write_{name}(out, record):"], [f"def read_{name}(raw, at):"]
        made_of = []
        for each, typed in zip(fields, of.fields, strict=True):
            write += self._write(each["type"], typed.type, f"record.{typed.name}", 1)
            read += self._read(each["type"], typed.type, f"f_{typed.name}", 1)
            made_of.append(f"{typed.name}=f_{typed.name}")
        self.names[f"type_{name}"] = of.cls
        read.append(f"    return type_{name}({', '.join(made_of)}), at")
        self.source += [*write, "    return None", *read]
        self._made[schema["name"]] = name
        return name

    def _resolved(self, schema: Schema) -> Schema:
        """A schema itself, where it is only named."""
        if isinstance(schema, str):
            return self._known.get(schema, schema)
        if isinstance(schema, dict) and "name" in schema:
            self._known[schema["name"]] = schema
        return schema

    def _fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def _write(self, schema: Schema, of: shape.Type, value: str, depth: int) -> Iterator[str]:
        """Lines that append a value to `out`."""
        pad = "    " * depth
        schema = self._resolved(schema)
        match _check(schema, of):
            case "string" | "bytes" as primitive:
                encoded = f"{value}.encode()" if primitive == "string" else value
                yield f"{pad}text = {encoded}"
                yield f"{pad}size = len(text)"
                yield f"{pad}out += SMALL[size] if size < {_SMALL} else long_bytes(size)"
                yield f"{pad}out += text"
            case "long":
                yield f"{pad}number = {value}"
                yield f"{pad}out += SMALL[number] if 0 <= number < {_SMALL} else long_bytes(number)"
            case "double":
                yield f"{pad}out += double_bytes({value})"
            case "boolean":
                yield f"{pad}out.append(1 if {value} else 0)"
            case "enum":
                yield f"{pad}out += {self._table('symbols', _symbols(schema, of, write=True))}[{value}]"
            case "record":
                yield f"{pad}write_{self.record(schema, of)}(out, {value})"
            case "array":
                items, item = self._fresh("items"), self._fresh("item")
                assert isinstance(of, shape.VarTupleType), "checked above"
                yield f"{pad}{items} = {value}"
                yield f"{pad}if {items}:"
                yield f"{pad}    size = len({items})"
                yield f"{pad}    out += SMALL[size] if size < {_SMALL} else long_bytes(size)"
                yield f"{pad}    for {item} in {items}:"
                yield from self._write(schema["items"], of.item_type, item, depth + 2)
                yield f"{pad}out.append(0)"
            case "union":
                yield from self._write_union(schema, of, value, depth)

    def _write_union(self, schema: Schema, of: shape.Type, value: str, depth: int) -> Iterator[str]:
        pad, branches = "    " * depth, self._branches(schema, of)
        if _is_optional(branches):
            inner = self._fresh("inner")
            yield f"{pad}{inner} = {value}"
            yield f"{pad}if {inner} is None:"
            yield f"{pad}    out.append(0)"
            yield f"{pad}else:"
            yield f"{pad}    out.append(2)"
            yield from self._write(*branches[1], inner, depth + 1)
            return
        table = self._table("branches", {})
        place, inner = self._fresh("place"), self._fresh("inner")
        yield f"{pad}{inner} = {value}"
        yield f"{pad}{place}, write = {table}[type({inner})]"
        yield f"{pad}out.append({place})"
        yield f"{pad}write(out, {inner})"
        entries = []
        for number, (branch, typed) in enumerate(branches):
            name = self.record(branch, typed)
            entries.append(f"{table}[type_{name}] = ({2 * number}, write_{name})")
        self.source += entries

    def _read(self, schema: Schema, of: shape.Type, target: str, depth: int) -> Iterator[str]:
        """Lines that read a value from `raw`, where `at` says, into a variable."""
        pad = "    " * depth
        schema = self._resolved(schema)
        match _check(schema, of):
            case "string" | "bytes" as primitive:
                yield from _read_size(pad, "end = at + {}")
                yield f"{pad}{target} = raw[at:end]" + (".decode()" if primitive == "string" else "")
                yield f"{pad}at = end"
            case "long":
                yield f"{pad}{target} = raw[at]"
                yield f"{pad}at += 1"
                yield f"{pad}if {target} & 128:"
                yield f"{pad}    {target}, at = long_at(raw, at)"
                yield f"{pad}else:"
                yield f"{pad}    {target} = ({target} >> 1) ^ -({target} & 1)"
            case "double":
                yield f"{pad}{target} = double_at(raw, at)"
                yield f"{pad}at += 8"
            case "boolean":
                yield f"{pad}{target} = {self._table('flags', {0: False, 1: True})}[raw[at]]"
                yield f"{pad}at += 1"
            case "enum":
                yield f"{pad}{target} = {self._table('members', _symbols(schema, of, write=False))}[raw[at]]"
                yield f"{pad}at += 1"
            case "record":
                yield f"{pad}{target}, at = read_{self.record(schema, of)}(raw, at)"
            case "array":
                items, item = self._fresh("items"), self._fresh("item")
                assert isinstance(of, shape.VarTupleType), "checked above"
                yield f"{pad}{target} = ()"
                yield from _read_size(pad, "size = {}")
                yield f"{pad}if size:"
                yield f"{pad}    {items} = []"
                yield f"{pad}    for _ in range(size):"
                yield from self._read(schema["items"], of.item_type, item, depth + 2)
                yield f"{pad}        {items}.append({item})"
                yield f"{pad}    {target} = tuple({items})"
                yield f"{pad}    if raw[at]:"
                yield f"{pad}        raise ValueError('one more block')"
                yield f"{pad}    at += 1"
            case "union":
                yield from self._read_union(schema, of, target, depth)

    def _read_union(self, schema: Schema, of: shape.Type, target: str, depth: int) -> Iterator[str]:
        pad, branches = "    " * depth, self._branches(schema, of)
        if _is_optional(branches):
            yield f"{pad}branch = raw[at]"
            yield f"{pad}at += 1"
            yield f"{pad}if branch == 0:"
            yield f"{pad}    {target} = None"
            yield f"{pad}elif branch == 2:"
            yield from self._read(*branches[1], target, depth + 1)
            yield f"{pad}else:"
            yield f"{pad}    raise ValueError('no such branch')"
            return
        table = self._table("readers", {})
        yield f"{pad}{target}, at = {table}[raw[at]](raw, at + 1)"
        for number, (branch, typed) in enumerate(branches):
            self.source.append(f"{table}[{2 * number}] = read_{self.record(branch, typed)}")

    def _branches(self, schema: Schema, of: shape.Type) -> list[tuple[Schema, shape.Type]]:
        """The branches of a union in the schema's order, each with its type."""
        assert isinstance(of, shape.UnionType), "checked by the caller"
        types = list(of.types)
        found = []
        for branch in map(self._resolved, schema):
            typed = next((each for each in types if _fits(branch, each)), None)
            if typed is None:
                raise Differs
            types.remove(typed)
            found.append((branch, typed))
        if types or len(found) > 64:
            raise Differs
        if not _is_optional(found) and any(_type_of(branch) != "record" for branch, _ in found):
            raise Differs
        return found

    def _table(self, stem: str, table: dict[Any, Any]) -> str:
        name = self._fresh(stem)
        self.names[name] = table
        return name


def _read_size(pad: str, use: str) -> Iterator[str]:
    """Lines that read a size and use it. Those of several bytes, and negative ones, take a call."""
    yield f"{pad}size = raw[at]"
    yield f"{pad}at += 1"
    yield f"{pad}if size & 129:"
    yield f"{pad}    size, at = size_at(raw, at)"
    yield f"{pad}    {use.format('size')}"
    yield f"{pad}else:"
    yield f"{pad}    {use.format('(size >> 1)')}"


def _type_of(schema: Schema) -> str:
    if isinstance(schema, list):
        return "union"
    found = schema["type"] if isinstance(schema, dict) else schema
    return found if isinstance(found, str) else "?"


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _name_of(of: shape.StructType) -> str:
    return _short(str(of.tag) if of.tag else of.cls.__name__)


def _check(schema: Schema, of: shape.Type) -> str:
    """The schema's type, if the typed field is of the same."""
    if not _fits(schema, of):
        raise Differs
    return _type_of(schema)


def _fits(schema: Schema, of: shape.Type) -> bool:
    """True where both are of one type (what is inside is compared when it is made)."""
    name = _type_of(schema)
    if name in _PRIMITIVES:
        return type(of) is _PRIMITIVES[name]
    match name, of:
        case "enum", shape.EnumType(cls=cls):
            return schema["symbols"] == [member.value for member in cls] and len(schema["symbols"]) <= 64
        case "record", shape.StructType():
            return _short(schema["name"]) == _name_of(of)
        case ("array", shape.VarTupleType()) | ("union", shape.UnionType()):
            return True
    return False


def _symbols(schema: Schema, of: shape.Type, *, write: bool) -> dict[Any, Any]:
    """From a member to its bytes, or from its byte to the member."""
    assert isinstance(of, shape.EnumType), "checked by the caller"
    numbered = [(of.cls(symbol), 2 * number) for number, symbol in enumerate(schema["symbols"])]
    return {member: bytes([at]) for member, at in numbered} if write else {at: m for m, at in numbered}


def _is_optional(branches: list[tuple[Schema, shape.Type]]) -> bool:
    """True for a value that may be missing: null, then one other type."""
    return len(branches) == 2 and _type_of(branches[0][0]) == "null"
