"""Reads nothing, writes nothing: the topics, their keys and their settings, in one table.

Every process and every other language must agree on these, or a file's history would be split:
the partitioner is Java's default (murmur2), the partition count is fixed at creation.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from codeconvoy.schemas.errors import BadInput

DEFAULT_PREFIX = "convoy"
DEFAULT_PARTITIONS = 12
PARTITIONER = "murmur2_random"

MAX_FILE_BYTES = 512 * 1024
MAX_RECORD_BYTES = 1024 * 1024
"""Cap of an encoded value, before it is decoded and before it is produced."""
MAX_MESSAGE_BYTES = MAX_RECORD_BYTES + 64 * 1024
"""The broker's cap: a value with its key and headers."""
MAX_LETTER_BYTES = MAX_MESSAGE_BYTES + 64 * 1024
"""The broker's cap of a dead letter: any record that there can be, and what is said of it."""
MAX_FILES_PER_JOB = 3_000
MAX_TASKS_PER_JOB = 10_000

_ROLE = re.compile(r"[a-z][a-z0-9-]{0,39}\Z")
_FOREVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
_WEEK = {"cleanup.policy": "delete", "retention.ms": str(7 * 24 * 3600 * 1000)}


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """What a topic is created with, and checked against at start."""

    name: str
    config: dict[str, str]


def check_role(role: str) -> str:
    """The role's name, if it can be part of a topic name.

    Raises:
        BadInput: it can't.
    """
    if not _ROLE.match(role):
        raise BadInput(
            "role",
            f"{role!r} is not a role name",
            "Use 1 to 40 lower-case letters, digits and dashes, a letter first",
        )
    return role


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of the topics under a prefix."""

    prefix: str = DEFAULT_PREFIX
    partitions: int = DEFAULT_PARTITIONS

    @property
    def events(self) -> str:
        """The event store: every fact about a file, kept for ever. Key: file key."""
        return f"{self.prefix}.events"

    @property
    def jobs(self) -> str:
        """Every fact about a job, kept for ever. Key: job id."""
        return f"{self.prefix}.jobs"

    @property
    def dead_letters(self) -> str:
        """The raw bytes that could not be handled. Key: as it was."""
        return f"{self.prefix}.dead-letters"

    def tasks(self, role: str) -> str:
        """The queue of a role. Key: file key."""
        return f"{self.prefix}.tasks.{check_role(role)}"

    def group(self, consumer: str) -> str:
        """The consumer group of a kind of process."""
        return f"{self.prefix}.{consumer}"

    def settings(self, roles: tuple[str, ...]) -> tuple[TopicSettings, ...]:
        """All topics of a fleet with these roles, with their settings."""
        size = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}
        logs = [TopicSettings(name, _FOREVER | size) for name in (self.events, self.jobs)]
        queues = [TopicSettings(self.tasks(role), _WEEK | size) for role in roles]
        letters = TopicSettings(self.dead_letters, _FOREVER | {"max.message.bytes": str(MAX_LETTER_BYTES)})
        return (*logs, *queues, letters)


def file_key(workspace: str, path: str) -> str:
    """The partition key of everything about a file. A workspace name holds no colon."""
    return f"{workspace}:{path}"


def split_file_key(key: str) -> tuple[str, str]:
    """Workspace and path of a file key."""
    workspace, _, path = key.partition(":")
    return workspace, path


def murmur2(data: bytes) -> int:
    """Kafka's murmur2 (org.apache.kafka.common.utils.Utils.murmur2), as a signed 32-bit number."""
    mask, length = 0xFFFFFFFF, len(data)
    h = (0x9747B28C ^ length) & mask
    for i in range(0, length - length % 4, 4):
        k = int.from_bytes(data[i : i + 4], "little")
        k = (k * 0x5BD1E995) & mask
        k ^= k >> 24
        k = (k * 0x5BD1E995) & mask
        h = ((h * 0x5BD1E995) & mask) ^ k
    tail = data[length - length % 4 :]
    if tail:
        h ^= int.from_bytes(tail, "little")
        h = (h * 0x5BD1E995) & mask
    h ^= h >> 13
    h = (h * 0x5BD1E995) & mask
    h ^= h >> 15
    return h - (1 << 32) if h & 0x80000000 else h


@lru_cache(maxsize=16_384)
def partition_of(key: str, partitions: int) -> int:
    """The partition of a key: the same that librdkafka's `murmur2_random` and Java's clients choose."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions
