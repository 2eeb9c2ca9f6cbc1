"""Reads the typed records, writes `tests/data/golden/*.json`: one example of each, as bytes in hex.

The bytes are compared on every run: a change of them is a change of the wire format, which needs
a release of the schemas. `python -m tests.golden` writes the file of the current schemas anew; a
file of a released version is only ever read.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import msgspec.inspect as shape

from codeconvoy.schemas.codec import Codec, Record
from codeconvoy.schemas.dead_letters import DeadLetter
from codeconvoy.schemas.events import TYPE_OF, Event, Payload
from codeconvoy.schemas.job_facts import FactPayload, JobFact, Result, TaskDone
from codeconvoy.schemas.tasks import Task, Work

FOLDER = Path(__file__).parent / "data" / "golden"
CURRENT = "v2.json"

PATH_FIELDS = {"file_path", "path", "reader_path", "read_path", "test_path", "covers", "participants"}
PATH_FIELDS |= {"reads", "also", "paths"}
"""Fields that hold paths, where they hold text."""


def example(of: shape.Type, name: str = "") -> Any:
    """A value of the type: always the same, without nulls, one item in each array."""
    if isinstance(of, shape.StructType):
        fields = {field.name: example(field.type, field.name) for field in of.fields}
        if of.cls is Event:
            fields["event_type"] = TYPE_OF[type(fields["payload"])]
        return of.cls(**fields)
    if isinstance(of, shape.UnionType):
        return example(next(branch for branch in of.types if not isinstance(branch, shape.NoneType)), name)
    if isinstance(of, shape.VarTupleType):
        return (example(of.item_type, name),)
    if isinstance(of, shape.EnumType):
        return list(of.cls)[-1]
    if isinstance(of, shape.StrType):
        if name.endswith("sha256"):
            return hashlib.sha256(name.encode()).hexdigest()
        return f"src/é/{name}.py" if name in PATH_FIELDS else name
    simple = {shape.BytesType: b"\x00\xff\r\n", shape.IntType: 7, shape.FloatType: 0.5, shape.BoolType: True}
    return simple[type(of)]


def examples() -> Iterator[tuple[str, Record]]:
    """An example of every payload of every record, with its name."""
    event: Event = example(shape.type_info(Event))
    for payload_type in get_args(Payload):
        payload = example(shape.type_info(payload_type))
        yield (
            f"Event.{payload_type.__name__}",
            msgspec.structs.replace(event, payload=payload, event_type=TYPE_OF[payload_type]),
        )
    fact: JobFact = example(shape.type_info(JobFact))
    for fact_type in get_args(FactPayload):
        yield (
            f"JobFact.{fact_type.__name__}",
            msgspec.structs.replace(fact, payload=example(shape.type_info(fact_type))),
        )
    done: TaskDone = example(shape.type_info(TaskDone))
    for result_type in get_args(Result):
        result = msgspec.structs.replace(done, result=example(shape.type_info(result_type)))
        yield (
            f"JobFact.TaskDone.{result_type.__name__}",
            msgspec.structs.replace(fact, payload=result),
        )
    task: Task = example(shape.type_info(Task))
    for work_type in get_args(Work):
        yield (
            f"Task.{work_type.__name__}",
            msgspec.structs.replace(task, work=example(shape.type_info(work_type))),
        )
    letter: DeadLetter = example(shape.type_info(DeadLetter))
    yield "DeadLetter", letter


def main() -> None:
    """Write the golden bytes of the current schemas anew."""
    codec = Codec.create()
    golden = {name: codec.encode(record).hex() for name, record in examples()}
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / CURRENT).write_text(json.dumps(golden, indent=2) + "\n")


if __name__ == "__main__":
    main()
