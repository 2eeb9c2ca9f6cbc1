"""Reads the typed records of `codeconvoy.schemas`, writes `schemas/*.avsc`: the same shapes in Avro.

The .avsc files are what other languages read, so they are files in the repository, with the
docstrings as their docs. `python -m tests.avro_schemas` writes them anew after a record has
changed; a unit test compares, so that records and files can't drift apart. It never touches
`schemas/released/`: a released schema stays as it was.
"""

import ast
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import msgspec.inspect as shape

from codeconvoy.schemas.codec import FILES

FOLDER = Path(__file__).parent.parent / "schemas"
_WIDTH = 110
_PRIMITIVES = {
    shape.StrType: "string",
    shape.BytesType: "bytes",
    shape.IntType: "long",
    shape.FloatType: "double",
    shape.BoolType: "boolean",
    shape.NoneType: "null",
}


def avro_schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The Avro schema of a record: self-contained, each named type inlined at its first use."""
    made = _avro(shape.type_info(kind), set())
    assert isinstance(made, dict)
    return {"namespace": "codeconvoy"} | made


def _avro(of: shape.Type, seen: set[str]) -> Any:
    """The Avro type of a typed field; `seen` holds the names that are defined already."""
    primitive = _PRIMITIVES.get(type(of))
    if primitive:
        return primitive
    if isinstance(of, shape.VarTupleType):
        return {"type": "array", "items": _avro(of.item_type, seen)}
    if isinstance(of, shape.UnionType):
        nulls_first = sorted(of.types, key=lambda branch: not isinstance(branch, shape.NoneType))
        return [_avro(branch, seen) for branch in nulls_first]
    if isinstance(of, shape.EnumType):
        named: dict[str, Any] = {"type": "enum", "name": of.cls.__name__}
        rest: dict[str, Any] = {"symbols": [member.value for member in of.cls]}
    else:
        assert isinstance(of, shape.StructType), of
        named = {"type": "record", "name": (str(of.tag) if of.tag else of.cls.__name__).split(".")[-1]}
        rest = {}
    name = named["name"]
    if name in seen:
        return name
    seen.add(name)
    named["doc"] = _one_line(of.cls.__doc__ or "")
    if isinstance(of, shape.StructType):
        docs = {name: doc for cls in reversed(_own_classes(of.cls)) for name, doc in _field_docs(cls).items()}
        rest["fields"] = [_field(field, docs.get(field.name), seen) for field in of.fields]
    return named | rest


def _field(field: shape.Field, doc: str | None, seen: set[str]) -> dict[str, Any]:
    made = {"name": field.name, "type": _avro(field.type, seen)}
    if not field.required:
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        made["default"] = json.loads(msgspec.json.encode(default))
    return made | ({"doc": doc} if doc else {})


def _own_classes(cls: type) -> list[type]:
    """The class and those of ours that it has fields from, itself first."""
    return [one for one in cls.__mro__ if one.__module__ == cls.__module__]


def _field_docs(cls: type) -> dict[str, str]:
    """The docstrings that stand after the fields in the source of a class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            value = after.value if isinstance(after, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docs[field.target.id] = _one_line(value.value)
    return docs


def _one_line(doc: str) -> str:
    return " ".join(doc.split())


def pretty(value: Any, indent: int = 0) -> str:
    """JSON for people: on one line what fits there."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= _WIDTH or not isinstance(value, dict | list):
        return line
    pad = " " * (indent + 2)
    if isinstance(value, list):
        body = ",\n".join(pad + pretty(item, indent + 2) for item in value)
        return f"[\n{body}\n{' ' * indent}]"
    body = ",\n".join(f"{pad}{json.dumps(key)}: {pretty(item, indent + 2)}" for key, item in value.items())
    return f"{{\n{body}\n{' ' * indent}}}"


def main() -> None:
    """Write every schema file anew."""
    for kind, name in FILES.items():
        (FOLDER / name).write_text(pretty(avro_schema(kind)) + "\n")


if __name__ == "__main__":
    main()
