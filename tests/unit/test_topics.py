"""The partitioner: the same as Java's clients and librdkafka, or a file's history would be split."""

import ctypes
from pathlib import Path

import confluent_kafka
import pytest

from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.topics import (
    MAX_MESSAGE_BYTES,
    Topics,
    check_role,
    file_key,
    murmur2,
    partition_of,
    split_file_key,
)


@pytest.mark.parametrize(
    ("data", "hash_"),
    [  # org.apache.kafka.common.utils.UtilsTest.testMurmur2
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_murmur2_is_javas(data: str, hash_: int) -> None:
    assert murmur2(data.encode()) == hash_


def test_partitions_are_librdkafkas() -> None:
    """Calls the partitioner of the library that the Kafka client is built on: no broker needed."""
    (library,) = (Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs").glob("librdkafka*")
    theirs = ctypes.CDLL(str(library)).rd_kafka_msg_partitioner_murmur2_random
    theirs.restype = ctypes.c_int32
    theirs.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    for number in range(500):
        key = file_key("wörk-space"[: number % 11], f"src/é{'x' * (number % 7)}/{number}.py")
        for partitions in (1, 12, 97):
            raw = key.encode()
            assert partition_of(key, partitions) == theirs(None, raw, len(raw), partitions, None, None)


def test_a_file_key_comes_apart_again() -> None:
    assert split_file_key(file_key("main", "src/a.py")) == ("main", "src/a.py")


def test_every_topic_has_its_settings() -> None:
    settings = {each.name: each.config for each in Topics("p").settings(("generator", "own-role"))}
    assert set(settings) == {"p.events", "p.jobs", "p.tasks.generator", "p.tasks.own-role", "p.dead-letters"}
    assert int(settings["p.dead-letters"].pop("max.message.bytes")) > MAX_MESSAGE_BYTES
    for name in settings.keys() - {"p.dead-letters"}:
        assert settings[name]["max.message.bytes"] == str(MAX_MESSAGE_BYTES)
    assert settings["p.events"]["retention.ms"] == settings["p.jobs"]["retention.ms"] == "-1"


@pytest.mark.parametrize("role", ["", "A", "1a", "a.b", "a" * 41, "a\n"])
def test_a_role_that_can_not_name_a_topic_is_refused(role: str) -> None:
    with pytest.raises(BadInput):
        check_role(role)
