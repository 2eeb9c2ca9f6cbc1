"""Reads the `.avsc` files of this package once; turns records into bytes and back, in one place.

Two framings. Avro single-object encoding, by default: C3 01, the schema's CRC-64-AVRO
fingerprint (8 bytes, little-endian), the Avro body. Confluent's wire format, where a schema
registry is configured: 00, the schema's id (4 bytes, big-endian), the body. With a registry both
are read. Dead letters are always single-object, for they travel in a header.

Bytes of the current schemas are written and read by functions that are made for them (see
`compiled`); fastavro does it with any other schema, and says what is wrong where that fails.

Schemas are pinned: bytes are only ever decoded with a schema of this package, the current ones
and those under `released/<version>/` (which stay readable for ever), so nobody can send a schema
that explodes. To release, copy `*.avsc` to a new folder under `released/`.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from io import BytesIO
from typing import Any, Protocol, Self, TypeVar

import fastavro
import msgspec
from fastavro.schema import fingerprint, to_parsing_canonical_form

from codeconvoy.schemas.compiled import Compiled, compile_record
from codeconvoy.schemas.dead_letters import DeadLetter
from codeconvoy.schemas.errors import Flaw, TooLarge, Undecodable, Unencodable
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.job_facts import JobFact
from codeconvoy.schemas.sanity import problem
from codeconvoy.schemas.tasks import Task
from codeconvoy.schemas.topics import MAX_RECORD_BYTES, Topics

Record = Event | JobFact | Task | DeadLetter
R = TypeVar("R", bound=Record)

FILES: Mapping[type[Record], str] = {
    Event: "event.avsc",
    JobFact: "job_fact.avsc",
    Task: "task.avsc",
    DeadLetter: "dead_letter.avsc",
}
_UNIONS: Mapping[type[Record], tuple[str, ...]] = {
    Event: ("payload",),
    JobFact: ("payload", "result"),
    Task: ("work",),
    DeadLetter: (),
}
"""Where a record holds a union of records, from the outside in: its branch is named by a tag."""

_TAG = "-type"
"""The tag's field in fastavro and in the structs alike."""

_SINGLE_OBJECT = b"\xc3\x01"
_CONFLUENT = b"\x00"
_MALFORMED = (ValueError, TypeError, AttributeError, LookupError, OverflowError, struct.error)
"""What is raised on types that do not fit (fastavro's and msgspec's own errors are among these)."""

Schema = dict[str, Any]


class Registry(Protocol):
    """A schema registry, as far as the codec needs it (see `schemas.registry`)."""

    def register(self, subject: str, schema: str) -> int:
        """The id of this schema, which is registered under the subject if it was not yet.

        Raises:
            Unavailable: the registry can't be reached, or refuses.
        """
        ...

    def schema(self, schema_id: int) -> str | None:
        """The schema of this id, None where there is none.

        Raises:
            Unavailable: the registry can't be reached.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Writer:
    """A schema that bytes may have been written with."""

    kind: type[Record]
    schema: Schema
    reader: Schema | None
    """The current schema, where it is another one."""
    compiled: Compiled | None
    """What reads these bytes, where it is the very shape of the record."""


@dataclass(frozen=True, slots=True)
class SchemaSet:
    """The schemas of this version: the current ones, and every one that was ever released."""

    current: Mapping[type[Record], str]
    released: Iterable[tuple[type[Record], str]] = ()

    @classmethod
    def of_package(cls) -> Self:
        """The `.avsc` files that this package ships."""
        folder = resources.files("codeconvoy.schemas")
        released = [
            (kind, version.joinpath(name).read_text("utf-8"))
            for version in _folders(folder.joinpath("released"))
            for kind, name in FILES.items()
        ]
        return cls({kind: folder.joinpath(name).read_text("utf-8") for kind, name in FILES.items()}, released)


def _folders(folder: Traversable) -> list[Traversable]:
    return sorted((each for each in folder.iterdir() if each.is_dir()), key=lambda each: each.name)


@dataclass(frozen=True, slots=True)
class Codec:
    """Encodes and decodes every record. Make it with `Codec.create`, once a process."""

    _current: Mapping[type[Record], "_Writer"]
    _markers: Mapping[type[Record], bytes]
    """What stands before a record's body where no registry is used: marker and fingerprint."""
    _writers: Mapping[bytes, _Writer]
    """By fingerprint."""
    _registry: Registry | None = None
    _ids: Mapping[tuple[type[Record], str], int] = field(default_factory=dict)
    """The registry's ids of the current schemas, by kind and (for tasks) role."""
    _by_id: dict[int, _Writer] = field(default_factory=dict)
    """What the registry's ids stand for, as far as they were met."""

    @classmethod
    def create(
        cls,
        registry: Registry | None = None,
        topics: Topics | None = None,
        roles: Iterable[str] = (),
        schemas: SchemaSet | None = None,
    ) -> Self:
        """A codec; with a registry, one that registers the schemas now and uses Confluent's framing.

        Args:
            registry: where to register, under the subjects `<topic>-value`.
            topics: names the topics (default: the default prefix).
            roles: the roles whose task topics are registered.
            schemas: other schemas than the package's, for tests of compatibility.

        Raises:
            Unavailable: the registry can't be used.
        """
        texts = schemas or SchemaSet.of_package()
        schemas_now = {kind: _parsed(text) for kind, text in texts.current.items()}
        writers = {
            _fingerprint(text): _Writer(kind, _parsed(text), schemas_now[kind], None)
            for kind, text in texts.released
        }
        prints = {kind: _fingerprint(text) for kind, text in texts.current.items()}
        current = {
            kind: _Writer(kind, schema, None, compile_record(kind, schema))
            for kind, schema in schemas_now.items()
        }
        writers |= {prints[kind]: writer for kind, writer in current.items()}
        ids = {} if registry is None else _register(registry, topics or Topics(), roles, texts.current)
        by_id = {id_: current[kind] for (kind, _), id_ in ids.items()}
        markers = {kind: _SINGLE_OBJECT + mark for kind, mark in prints.items()}
        return cls(current, markers, writers, registry, ids, by_id)

    def encode(self, record: Record) -> bytes:
        """The record's bytes, framed.

        Raises:
            TooLarge: they would be over `MAX_RECORD_BYTES`.
            Unencodable: `decode` would refuse them.
        """
        writer = self._current[type(record)]
        value = self._marker(record) + _written(record, writer)
        if found := problem(record):
            raise Unencodable(found)
        if len(value) > MAX_RECORD_BYTES:
            raise TooLarge(
                f"{writer.kind.__name__} of {len(value)} bytes, over the cap of {MAX_RECORD_BYTES}"
            )
        return value

    def decode(self, value: bytes, kind: type[R]) -> R:
        """The record that the bytes hold, all of them.

        Raises:
            Undecodable: they are not one whole, sane record of this kind; the flaw says why.
            Unavailable: the registry was asked about an id and can't be reached.
        """
        if len(value) > MAX_RECORD_BYTES:
            raise Undecodable(Flaw.OVERSIZE, f"{len(value)} bytes, over the cap of {MAX_RECORD_BYTES}")
        writer, start = self._writer(value)
        if writer.kind is not kind:
            raise Undecodable(
                Flaw.WRONG_TYPES, f"it holds a {writer.kind.__name__}, where a {kind.__name__} belongs"
            )
        record = _read(value, start, writer, kind)
        if found := problem(record):
            raise Undecodable(Flaw.WRONG_TYPES, found)
        return record

    def _marker(self, record: Record) -> bytes:
        """What stands before the record's body. A role that was not registered does without."""
        kind = type(record)
        id_ = self._ids.get((kind, record.role if isinstance(record, Task) else "")) if self._ids else None
        return self._markers[kind] if id_ is None else _CONFLUENT + id_.to_bytes(4, "big")

    def _writer(self, value: bytes) -> tuple[_Writer, int]:
        """The schema that the bytes name, and where the body begins."""
        if value.startswith(_SINGLE_OBJECT):
            mark, start = value[2:10], 10
            if len(value) < start:
                raise Undecodable(Flaw.TRUNCATED, "it ends within the fingerprint")
            writer = self._writers.get(mark)
            if writer is None:
                raise Undecodable(Flaw.UNKNOWN_SCHEMA, f"no schema has the fingerprint {mark.hex()}")
            return writer, start
        if self._registry is not None and value.startswith(_CONFLUENT):
            if len(value) < 5:
                raise Undecodable(Flaw.TRUNCATED, "it ends within the schema id")
            return self._by_schema_id(self._registry, int.from_bytes(value[1:5], "big")), 5
        if value == _SINGLE_OBJECT[:1]:
            raise Undecodable(Flaw.TRUNCATED, "it ends within the marker")
        raise Undecodable(Flaw.NO_MARKER, f"it begins with {value[:2].hex() or 'nothing'}")

    def _by_schema_id(self, registry: Registry, id_: int) -> _Writer:
        writer = self._by_id.get(id_)
        if writer is None:
            text = registry.schema(id_)
            writer = self._writers.get(_fingerprint(text)) if text else None
            if writer is None:
                raise Undecodable(Flaw.UNKNOWN_SCHEMA, f"this version does not know the schema of id {id_}")
            self._by_id[id_] = writer
        return writer


def _written(record: Record, writer: _Writer) -> bytes:
    """The record's body.

    Raises:
        Unencodable: its values are not of the types that the schema wants.
    """
    if writer.compiled is not None:
        out = bytearray()
        try:
            writer.compiled.write(out, record)
        except _MALFORMED:
            pass  # what is wrong is said below
        else:
            return bytes(out)
    body = BytesIO()
    try:
        plain = msgspec.to_builtins(record, builtin_types=(bytes,))
        _untag(plain, _UNIONS[writer.kind])
        fastavro.schemaless_writer(body, writer.schema, plain)
    except _MALFORMED as error:
        raise Unencodable(f"{writer.kind.__name__}: {error}") from error
    return body.getvalue()


def _read(value: bytes, start: int, writer: _Writer, kind: type[R]) -> R:
    """The record whose body begins there."""
    if writer.compiled is not None:
        try:
            record, end = writer.compiled.read(value, start)
        except _MALFORMED:
            pass  # a rarer spelling, or garbage: see below
        else:
            if end == len(value):
                assert isinstance(record, kind)
                return record
    plain = _plain(value, start, writer)
    _tag(plain, _UNIONS[writer.kind])
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise Undecodable(Flaw.WRONG_TYPES, str(error)) from error


def _plain(value: bytes, start: int, writer: _Writer) -> dict[str, Any]:
    """The record as builtins; unions of records as (name, fields)."""
    source = BytesIO(value)
    source.seek(start)
    try:
        plain = fastavro.schemaless_reader(
            source,
            writer.schema,
            writer.reader,
            return_record_name=True,
            return_record_name_override=True,
        )
    except (EOFError, *_MALFORMED) as error:
        # Within a number fastavro raises IndexError at the end, as for a branch that does not exist.
        ended = isinstance(error, EOFError | IndexError) and source.tell() == len(value)
        flaw = Flaw.TRUNCATED if ended else Flaw.WRONG_TYPES
        raise Undecodable(flaw, f"{writer.kind.__name__}: {error or 'it ends too early'}") from error
    if source.tell() != len(value):
        raise Undecodable(Flaw.TRAILING_BYTES, f"{len(value) - source.tell()} bytes follow the record")
    assert isinstance(plain, dict)  # every schema of ours is a record
    return plain


def _tag(plain: dict[str, Any], fields: tuple[str, ...]) -> None:
    """Turn fastavro's (name, fields) into fields with a tag, which is how the structs are told apart."""
    for name in fields:
        branch = plain.get(name)
        if not isinstance(branch, tuple):
            return
        tag, inner = branch
        inner[_TAG] = tag
        plain[name] = plain = inner


def _untag(plain: dict[str, Any], fields: tuple[str, ...]) -> None:
    """The reverse: with a tag fastavro would try every branch, with the pair it takes the named one."""
    for name in fields:
        inner = plain.get(name)
        if not isinstance(inner, dict):
            return
        plain[name] = (inner.pop(_TAG), inner)
        plain = inner


def _parsed(text: str) -> Schema:
    parsed = fastavro.parse_schema(json.loads(text))
    assert isinstance(parsed, dict)
    return parsed


def _fingerprint(text: str) -> bytes:
    """CRC-64-AVRO of the schema's canonical form, little-endian as the framing wants it."""
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(json.loads(text)), "CRC-64-AVRO"))


def _register(
    registry: Registry, topics: Topics, roles: Iterable[str], texts: Mapping[type[Record], str]
) -> dict[tuple[type[Record], str], int]:
    """Register the schema of each topic's values; the ids, by kind and (for tasks) role."""
    places: dict[tuple[type[Record], str], str] = {(Event, ""): topics.events, (JobFact, ""): topics.jobs}
    places |= {(Task, role): topics.tasks(role) for role in roles}
    return {place: registry.register(f"{topic}-value", texts[place[0]]) for place, topic in places.items()}
