"""The .avsc files: the same shapes as the typed records, bounded, readable, released ones kept."""

import json
from typing import Any

import avro.compatibility
import avro.schema
import pytest

from codeconvoy.schemas.codec import FILES, Record, SchemaSet
from tests.avro_schemas import FOLDER, avro_schema, pretty

KINDS = pytest.mark.parametrize("kind", list(FILES))


@KINDS
def test_the_file_is_what_the_record_is(kind: type[Record]) -> None:
    text = (FOLDER / FILES[kind]).read_text()
    assert json.loads(text) == avro_schema(kind), "run python -m tests.avro_schemas, and look at the diff"
    assert text == pretty(avro_schema(kind)) + "\n"


def _smallest(schema: Any, named: dict[str, Any], inside: tuple[str, ...] = ()) -> int:
    """The least bytes that a value takes. Fails on an array of items that may take none, and on a
    type that contains itself."""
    if isinstance(schema, list):
        return 1 + min(_smallest(branch, named, inside) for branch in schema)
    if isinstance(schema, str) and schema in named:
        schema = named[schema]
    if isinstance(schema, str):
        return {"null": 0, "double": 8}.get(schema, 1)
    if schema["type"] == "array":
        assert _smallest(schema["items"], named, inside) > 0, f"items of {schema} may take no bytes"
        return 1
    named[schema["name"]] = schema
    if schema["type"] == "enum":
        return 1
    assert schema["name"] not in inside, f"{schema['name']} contains itself"
    assert schema["type"] == "record"
    return sum(_smallest(field["type"], named, (*inside, schema["name"])) for field in schema["fields"])


@KINDS
def test_no_array_item_takes_no_bytes_and_nothing_is_recursive(kind: type[Record]) -> None:
    assert _smallest(json.loads((FOLDER / FILES[kind]).read_text()), {}) > 0


def test_the_check_above_can_fail() -> None:
    empty = {"type": "record", "name": "Nothing", "fields": []}
    with pytest.raises(AssertionError, match="no bytes"):
        _smallest({"type": "array", "items": empty}, {})
    field = {"name": "next", "type": ["null", "Node"]}
    with pytest.raises(AssertionError, match="itself"):
        _smallest({"type": "record", "name": "Node", "fields": [field]}, {})


def test_every_record_has_a_released_schema() -> None:
    assert {kind for kind, _ in SchemaSet.of_package().released} == set(FILES)


def _readable(reader: str, writer: str) -> bool:
    checker = avro.compatibility.ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]
    found = checker.get_compatibility(avro.schema.parse(reader), avro.schema.parse(writer))
    return bool(found.compatibility is avro.compatibility.SchemaCompatibilityType.compatible)


def test_the_current_schemas_read_every_released_one() -> None:
    schemas = SchemaSet.of_package()
    for kind, released in schemas.released:
        assert _readable(schemas.current[kind], released), f"{FILES[kind]}: give new fields a default"


@KINDS
def test_a_new_field_without_a_default_would_be_noticed(kind: type[Record]) -> None:
    text = SchemaSet.of_package().current[kind]
    newer = json.loads(text)
    newer["fields"].append({"name": "extra", "type": "string"})
    assert not _readable(json.dumps(newer), text)
