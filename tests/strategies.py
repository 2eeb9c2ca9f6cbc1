"""Hypothesis strategies for every record of the logs, derived from their types."""

from typing import Any, TypeVar

import msgspec.inspect as shape
from hypothesis import strategies as st

from codeconvoy.schemas.budget import Amounts
from codeconvoy.schemas.codec import Record
from codeconvoy.schemas.events import TYPE_OF, Event, Hunk, LineRange
from tests.golden import PATH_FIELDS

R = TypeVar("R", bound=Record)

LONG = st.integers(-(2**63), 2**63 - 1)
COUNT = st.integers(0, 2**31)
TEXT = st.text(max_size=12)
PATHS = st.from_regex(r"[a-z_][a-zé0-9_]{0,8}(/[A-Z][a-z0-9_]{0,8}){0,2}\.py", fullmatch=True)
WORKSPACES = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)
SHA256 = st.binary(min_size=32, max_size=32).map(bytes.hex)
COUNTS = {"round", "attempt"}
"""Fields that are never negative."""


@st.composite
def hunk_lists(draw: st.DrawFn) -> tuple[Hunk, ...]:
    """Hunks in order that do not overlap."""
    hunks, start = [], 0
    for lines in draw(st.lists(st.binary(max_size=20), max_size=4)):
        start += draw(st.integers(0, 1000))
        removed = draw(st.integers(0, 100))
        hunks.append(Hunk(start=start, removed=removed, lines=lines))
        start += removed
    return tuple(hunks)


@st.composite
def line_ranges(draw: st.DrawFn) -> LineRange:
    start = draw(COUNT)
    return LineRange(start=start, end=start + draw(COUNT))


def values(of: shape.Type, name: str = "") -> st.SearchStrategy[Any]:
    """Sane values of a type, as the field of this name holds them."""
    if isinstance(of, shape.StructType):
        return _structs(of)
    if isinstance(of, shape.UnionType):
        return st.one_of([values(branch, name) for branch in of.types])
    if isinstance(of, shape.VarTupleType):
        if name == "hunks":
            return hunk_lists()
        return st.lists(values(of.item_type, name), max_size=3).map(tuple)
    if isinstance(of, shape.EnumType):
        return st.sampled_from(list(of.cls))
    if isinstance(of, shape.StrType):
        return _text(name)
    if isinstance(of, shape.IntType):
        return COUNT if name in COUNTS else LONG
    simple: dict[type[shape.Type], st.SearchStrategy[Any]] = {
        shape.BytesType: st.binary(max_size=50),
        shape.FloatType: st.floats(allow_nan=False),
        shape.BoolType: st.booleans(),
        shape.NoneType: st.none(),
    }
    return simple[type(of)]


def _text(name: str) -> st.SearchStrategy[str]:
    if name.endswith("sha256"):
        return SHA256
    if name == "workspace":
        return WORKSPACES
    return PATHS if name in PATH_FIELDS else TEXT


def _structs(of: shape.StructType) -> st.SearchStrategy[Any]:
    if of.cls is LineRange:
        return line_ranges()
    if of.cls is Amounts:
        return st.builds(Amounts, nano_usd=COUNT, tokens=COUNT, ms=COUNT)
    fields = {field.name: values(field.type, field.name) for field in of.fields}
    if of.cls is Event:
        fields.pop("event_type")
        return st.fixed_dictionaries(fields).map(
            lambda given: Event(event_type=TYPE_OF[type(given["payload"])], **given)
        )
    return st.builds(of.cls, **fields)


def records(kind: type[R]) -> st.SearchStrategy[R]:
    """Records that the codec accepts."""
    return values(shape.type_info(kind))
