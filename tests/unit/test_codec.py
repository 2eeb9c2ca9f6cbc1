"""The codec on chosen bytes: golden ones, broken ones, ones of other versions and framings."""

import json
from typing import Any

import avro.schema
import msgspec
import pytest

from codeconvoy.schemas import events
from codeconvoy.schemas.codec import FILES, Codec, Record, SchemaSet
from codeconvoy.schemas.dead_letters import DeadLetter
from codeconvoy.schemas.errors import Flaw, TooLarge, Unavailable, Undecodable, Unencodable
from codeconvoy.schemas.events import Event, EventType, Hunk
from codeconvoy.schemas.registry import ConfluentRegistry
from codeconvoy.schemas.tasks import Task
from codeconvoy.schemas.topics import MAX_RECORD_BYTES, Topics
from tests.golden import CURRENT, FOLDER, examples

CODEC = Codec.create()
RECORDS = dict(examples())
EVENT = RECORDS["Event.CodeModified"]
assert isinstance(EVENT, Event)
replace = msgspec.structs.replace


def _flaw(value: bytes, kind: type[Record] = Event, codec: Codec = CODEC) -> Flaw:
    with pytest.raises(Undecodable) as caught:
        codec.decode(value, kind)
    assert caught.value.detail
    return caught.value.flaw


def test_the_bytes_are_the_golden_ones() -> None:
    golden = json.loads((FOLDER / CURRENT).read_text())
    assert {name: CODEC.encode(record).hex() for name, record in RECORDS.items()} == golden
    for name, record in RECORDS.items():
        assert CODEC.decode(bytes.fromhex(golden[name]), type(record)) == record


def test_golden_bytes_of_every_version_are_readable() -> None:
    kinds: dict[str, type[Record]] = {kind.__name__: kind for kind in FILES}
    for file in FOLDER.glob("*.json"):
        for name, value in json.loads(file.read_text()).items():
            CODEC.decode(bytes.fromhex(value), kinds[name.split(".")[0]])


@pytest.mark.parametrize("kind", list(FILES))
def test_the_marker_is_that_of_the_avro_specification(kind: type[Record]) -> None:
    """Against the fingerprint of Apache's own library."""
    schema: Any = avro.schema.parse(SchemaSet.of_package().current[kind])
    value = CODEC.encode(next(record for record in RECORDS.values() if type(record) is kind))
    assert value[:2] == b"\xc3\x01"
    assert value[2:10] == schema.fingerprint("CRC-64-AVRO")


@pytest.mark.parametrize("name", list(RECORDS))
def test_a_truncated_record_is_refused_at_every_byte(name: str) -> None:
    value = CODEC.encode(RECORDS[name])
    kind = type(RECORDS[name])
    assert _flaw(b"", kind) is Flaw.NO_MARKER
    for end in range(1, len(value)):
        assert _flaw(value[:end], kind) is Flaw.TRUNCATED, end


@pytest.mark.parametrize("name", list(RECORDS))
def test_trailing_bytes_are_refused(name: str) -> None:
    assert _flaw(CODEC.encode(RECORDS[name]) + b"\0", type(RECORDS[name])) is Flaw.TRAILING_BYTES


def test_garbage_is_refused_with_the_reason() -> None:
    value = CODEC.encode(EVENT)
    assert _flaw(b"{}") is Flaw.NO_MARKER
    assert _flaw(b"\0\0\0\0\1" + value[10:]) is Flaw.NO_MARKER
    assert _flaw(value[:2] + b"12345678" + value[10:]) is Flaw.UNKNOWN_SCHEMA
    with pytest.raises(Undecodable, match="holds a Event, where a Task belongs"):
        CODEC.decode(value, Task)
    assert _flaw(value + bytes(MAX_RECORD_BYTES)) is Flaw.OVERSIZE
    assert _flaw(value[:10] + b"\x02\xff" + value[12:]) is Flaw.WRONG_TYPES
    assert [flaw for flaw in Flaw if not Undecodable(flaw, "").is_garbage] == [Flaw.UNKNOWN_SCHEMA]


def _patched(**changes: Any) -> Event:
    assert isinstance(EVENT, Event)
    assert isinstance(EVENT.payload, events.CodeModified)
    return replace(EVENT, payload=replace(EVENT.payload, patch=replace(EVENT.payload.patch, **changes)))


def _of(name: str, field: str, **changes: Any) -> Record:
    """An example with some fields of its payload, work or result changed."""
    record = RECORDS[name]
    return replace(record, **{field: replace(getattr(record, field), **changes)})


INSANE: list[tuple[Record, str]] = [
    (replace(EVENT, event_type=EventType.TEST_WRITTEN), "event_type"),
    (replace(EVENT, file_path="./a.py"), "file_path"),
    (replace(EVENT, file_path="../a.py"), "file_path"),
    (replace(EVENT, workspace="a:b"), "workspace"),
    (replace(EVENT, round=-1), "round"),
    (replace(EVENT, reads=(events.Read(path="a//b", event_id=""),)), "reads"),
    (
        replace(EVENT, changeset=events.Changeset(changeset_id="c", participants=("/a",))),
        "participants",
    ),
    (_patched(base_sha256="A" * 64), "base_sha256"),
    (_patched(result_sha256="0" * 63), "result_sha256"),
    (_patched(result_sha256="0" * 64 + "\n"), "result_sha256"),
    (_patched(hunks=(Hunk(start=-1, removed=0, lines=b""),)), "hunk"),
    (_patched(hunks=(Hunk(start=0, removed=-1, lines=b""),)), "hunk"),
    (
        _patched(hunks=(Hunk(start=2, removed=2, lines=b""), Hunk(start=3, removed=0, lines=b"x"))),
        "overlaps",
    ),
    (_of("Event.TestWritten", "payload", covers=("a/",)), "covers"),
    (_of("Event.ReadNoted", "payload", reader_path=""), "reader_path"),
    (_of("Event.ContextStale", "payload", read_path=".git/x"), "read_path"),
    (_of("Event.ConflictDetected", "payload", attempt=-1), "attempt"),
    (
        _of("Event.ConflictDetected", "payload", overlaps=(events.LineRange(start=2, end=1),)),
        "line range",
    ),
    (_of("Event.RoundVoided", "payload", round=-1), "round"),
    (_of("JobFact.EventJudged", "payload", path="a\\b"), "path"),
    (_of("JobFact.TaskDone", "payload", round=-1), "round"),
    (_of("JobFact.FileForked", "payload", attempt=-1), "attempt"),
    (_of("Task.EditWork", "work", also=("-x",)), "also"),
    (_of("Task.TestWork", "work", test_path=""), "test_path"),
    (replace(RECORDS["Task.EditWork"], round=-1), "round"),
    (replace(RECORDS["Task.EditWork"], path="a/../b"), "path"),
]


@pytest.mark.parametrize(("record", "reason"), INSANE)
def test_an_insane_record_is_neither_written_nor_read(
    record: Record, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unencodable, match=reason):
        CODEC.encode(record)
    with monkeypatch.context() as careless:
        careless.setattr("codeconvoy.schemas.codec.problem", lambda record: "")
        value = CODEC.encode(record)
    with pytest.raises(Undecodable, match=reason):
        CODEC.decode(value, type(record))


@pytest.mark.parametrize(
    "changes",
    [
        {"round": "one"},
        {"round": 2**63},
        {"file_path": None},
        {"file_path": "a\ud800"},
        {"payload": RECORDS["DeadLetter"]},
        {"reads": "no"},
    ],
)
def test_wrong_types_are_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(Unencodable, match="Event"):
        CODEC.encode(replace(EVENT, **changes))


def test_what_we_can_not_write_is_not_taken_for_garbage_that_we_read() -> None:
    assert not issubclass(Unencodable, Undecodable)
    assert issubclass(TooLarge, Unencodable)


def test_rarer_spellings_of_the_same_record_are_read() -> None:
    """Arrays in several blocks, one of them with its size in bytes, and a number with a needless byte."""
    event = replace(EVENT, parent_event_ids=("one", "two"), round=1)
    value = CODEC.encode(event)
    two_blocks = value.replace(b"\x04\x06one\x06two\0", b"\x02\x06one\x01\x08\x06two\0")
    assert len(two_blocks) == len(value) + 2
    assert CODEC.decode(two_blocks, Event) == event
    task_id = event.task_id.encode()
    overlong = value.replace(task_id + b"\x02", task_id + b"\x82\0")
    assert len(overlong) == len(value) + 1
    assert CODEC.decode(overlong, Event) == event


def test_types_that_only_the_record_can_tell_are_refused() -> None:
    """A schema that says less than the record does: any text where the record has an enum."""
    current = SchemaSet.of_package().current
    loose = json.loads(current[Event])
    for field in loose["fields"]:
        if field["name"] == "event_type":
            field["type"] = "string"
    codec = Codec.create(schemas=SchemaSet({**current, Event: json.dumps(loose)}))
    value = codec.encode(EVENT)
    assert codec.decode(value, Event) == EVENT
    assert _flaw(value.replace(b"CODE_MODIFIED", b"CODE_MUTILATE"), Event, codec) is Flaw.WRONG_TYPES


def test_a_task_of_a_whole_job_has_no_path() -> None:
    task = replace(RECORDS["Task.ImportWork"], path="")
    assert CODEC.decode(CODEC.encode(task), Task) == task


def test_a_record_over_the_cap_is_not_written() -> None:
    room = MAX_RECORD_BYTES - len(CODEC.encode(_patched(content=b"")))
    with pytest.raises(TooLarge, match=str(MAX_RECORD_BYTES)):
        CODEC.encode(_patched(content=bytes(room)))
    largest = CODEC.encode(_patched(content=bytes(room - 3)))
    assert len(largest) == MAX_RECORD_BYTES - 1
    assert CODEC.decode(largest, Event) == _patched(content=bytes(room - 3))


def _without(text: str, *names: str) -> str:
    """A schema as an older version may have had it: without these fields."""
    schema = json.loads(text)
    schema["fields"] = [field for field in schema["fields"] if field["name"] not in names]
    return json.dumps(schema)


def test_records_of_an_older_schema_stay_readable() -> None:
    current = SchemaSet.of_package().current
    older = {**current, Event: _without(current[Event], "reworks", "parent_event_ids")}
    written = Codec.create(schemas=SchemaSet(older)).encode(EVENT)
    both = Codec.create(schemas=SchemaSet(current, tuple(older.items())))
    assert both.decode(written, Event) == replace(EVENT, reworks=None, parent_event_ids=())
    assert both.encode(EVENT) == CODEC.encode(EVENT)
    assert _flaw(written) is Flaw.UNKNOWN_SCHEMA


def test_confluent_framing_with_a_registry() -> None:
    registry = ConfluentRegistry.connect("mock://")
    topics = Topics("p")
    codec = Codec.create(registry, topics, ("generator", "tester"))
    task = RECORDS["Task.EditWork"]
    assert isinstance(task, Task)
    for record, subject in (
        (EVENT, "p.events-value"),
        (RECORDS["JobFact.TaskDone"], "p.jobs-value"),
        (replace(task, role="generator"), "p.tasks.generator-value"),
        (replace(task, role="tester"), "p.tasks.tester-value"),
    ):
        value = codec.encode(record)
        id_ = registry.register(subject, SchemaSet.of_package().current[type(record)])
        assert value[:5] == b"\0" + id_.to_bytes(4, "big")
        assert codec.decode(value, type(record)) == record
        assert codec.decode(CODEC.encode(record), type(record)) == record
        assert value[5:] == CODEC.encode(record)[10:]
        for end in range(1, len(value)):
            assert _flaw(value[:end], type(record), codec) is Flaw.TRUNCATED
        assert _flaw(value + b"\0", type(record), codec) is Flaw.TRAILING_BYTES


def test_what_has_no_subject_is_framed_as_a_single_object() -> None:
    codec = Codec.create(ConfluentRegistry.connect("mock://"), Topics(), ("generator",))
    for record in (RECORDS["DeadLetter"], replace(RECORDS["Task.EditWork"], role="unheard-of")):
        assert codec.encode(record) == CODEC.encode(record)


def test_ids_of_the_registry() -> None:
    """A known schema under another id is read; a foreign schema and an unknown id are not."""
    registry = ConfluentRegistry.connect("mock://")
    codec = Codec.create(registry)
    body = CODEC.encode(EVENT)[10:]
    elsewhere = registry.register("other-value", SchemaSet.of_package().current[Event])
    foreign = registry.register("foreign-value", '"string"')
    assert codec.decode(b"\0" + elsewhere.to_bytes(4, "big") + body, Event) == EVENT
    assert _flaw(b"\0" + foreign.to_bytes(4, "big") + b"\x02a", Event, codec) is Flaw.UNKNOWN_SCHEMA
    assert _flaw(b"\0\0\0\x0f\xff" + body, Event, codec) is Flaw.UNKNOWN_SCHEMA


def test_a_registry_that_does_not_answer_is_unavailable() -> None:
    registry = ConfluentRegistry.connect("http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="schema registry"):
        Codec.create(registry)


def test_dead_letters_fit_a_header() -> None:
    letter = RECORDS["DeadLetter"]
    assert CODEC.decode(CODEC.encode(letter), DeadLetter) == letter
