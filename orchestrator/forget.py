"""Reads `jobs` and `events`, writes Redis, deletes topics: takes a workspace out of a fleet.

What can be erased follows from what a log is. Records are deleted from the beginning of a partition or
with their topic, never out of the middle; and a fold begins at the beginning, so that a partition
that has lost it could not be rebuilt. So the states of a workspace are erased for themselves, and its
log only as a whole, when no other workspace is on it.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from codeconvoy.orchestrator.broker_admin import BrokerAdmin
from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.orchestrator.log_reader import LogReader
from codeconvoy.orchestrator.orchestrator import NAME as ORCHESTRATOR
from codeconvoy.schemas.errors import BadInput, PartitionLost
from codeconvoy.schemas.job_facts import JobFact, JobFinished, JobSubmitted
from codeconvoy.schemas.topics import file_key, split_file_key
from codeconvoy.workers.detector import NAME as DETECTOR
from codeconvoy.workers.engine.bus import TopicPartition
from codeconvoy.workers.engine.dead_letter import skipped_points
from codeconvoy.workers.engine.state import RedisStore, Write
from codeconvoy.workers.projector import FILES, JOBS

ATTEMPTS = 5
"""To erase fields of a partition that its process takes back meanwhile."""
STORES = (FILES, DETECTOR, JOBS, ORCHESTRATOR)


@dataclass(frozen=True, slots=True)
class Known:
    """What the logs hold of a workspace, and besides it."""

    workspace: str
    jobs: frozenset[str]
    running: tuple[str, ...]
    """Those of its jobs that have not ended, sorted."""
    events: int
    """Records of its files."""
    others: tuple[str, ...]
    """Other workspaces on the same log, sorted."""


async def look(fleet: Fleet, workspace: str) -> Known:
    """Read both logs for a workspace.

    Raises:
        BadInput: the logs hold nothing of it.
        Unavailable: the broker can't be reached.
        Undecodable: a record is of a schema that this version does not know.
    """
    reader = fleet.bus.reader()
    spaces: dict[str, str] = {}
    """The workspace of each job."""
    ended: set[str] = set()
    counts: dict[str, int] = {}
    try:
        skipped = partial(skipped_points, fleet.bus, fleet.topics.dead_letters)
        log = LogReader(reader, fleet.codec, fleet.topics, skipped=skipped)
        for number, end in (await log.ends(fleet.topics.jobs)).items():
            async for record in log.records(TopicPartition(fleet.topics.jobs, number), 0, end):
                fact = await log.value(record, JobFact)
                if fact is not None and isinstance(fact.payload, JobSubmitted):
                    spaces.setdefault(fact.job_id, fact.payload.spec.workspace)
                elif fact is not None and isinstance(fact.payload, JobFinished):
                    ended.add(fact.job_id)
        for number, end in (await log.ends(fleet.topics.events)).items():
            async for record in log.records(TopicPartition(fleet.topics.events, number), 0, end):
                name = split_file_key(record.key)[0]
                counts[name] = counts.get(name, 0) + 1
    finally:
        await reader.close()
    jobs = frozenset(job for job, name in spaces.items() if name == workspace)
    if not jobs and workspace not in counts:
        known = ", ".join(sorted({*spaces.values(), *counts})) or "none"
        raise BadInput("WORKSPACE", f"the log holds nothing of {workspace!r}", f"There are: {known}")
    others = tuple(sorted({*spaces.values(), *counts} - {workspace}))
    return Known(workspace, jobs, tuple(sorted(jobs - ended)), counts.get(workspace, 0), others)


def check_still(known: Known) -> None:
    """See that nobody works in the workspace.

    Raises:
        BadInput: a job of it runs.
    """
    if known.running:
        reason = f"job {known.running[0]} runs in {known.workspace!r}"
        raise BadInput("WORKSPACE", reason, "Wait for its end, or `convoy cancel` it")


async def erase_states(fleet: Fleet, known: Known) -> int:
    """Erase what the folds keep of the workspace and its jobs; answers the number of fields.

    Processes that hold some of it in memory find that their partition was taken, and start anew.

    Raises:
        PartitionLost: a process takes a partition back again and again.
    """
    projection = fleet.projection()
    states = [await projection.job(job) for job in sorted(known.jobs)]
    ids = known.jobs | {task for state in states if state is not None for task in state.tasks}
    erased = 0
    for name in STORES:
        for number in range(fleet.topics.partitions):
            for attempt in range(ATTEMPTS):
                try:
                    erased += await _erase(fleet.store(name), number, known.workspace, ids)
                    break
                except PartitionLost:
                    if attempt + 1 == ATTEMPTS:
                        raise
    return erased


async def _erase(store: RedisStore, partition: int, workspace: str, ids: frozenset[str]) -> int:
    fields = [name async for name, _ in store.scan(partition, "") if belongs(name, workspace, ids)]
    if not fields:
        return 0
    owner = f"forget/{uuid.uuid4().hex[:12]}"
    offset = await store.take(partition, owner)
    await store.commit(owner, [Write(partition, offset, offset, dict.fromkeys(fields))])
    return len(fields)


def belongs(field: str, workspace: str, ids: frozenset[str]) -> bool:
    """Whether a field of a partition's hash is about a file of the workspace, or one of these jobs and tasks.

    A field is KIND:KEY, where the key is a file key or an id, with more behind a separator for some.
    """
    key = field.partition(":")[2].partition("\x1f")[0]
    return key.startswith(file_key(workspace, "")) or key in ids


def check_alone(known: Known) -> None:
    """See that the log can be deleted as a whole.

    Raises:
        BadInput: other workspaces are on it.
    """
    if known.others:
        reason = f"other workspaces are on the same topics: {', '.join(known.others)}"
        remedy = "Leave out --topics; to be able to erase a log alone, give its workspace a CONVOY_PREFIX"
        raise BadInput("--topics", reason, remedy)


def erase_log(fleet: Fleet, admin: BrokerAdmin) -> tuple[Sequence[str], Sequence[str]]:
    """Delete all topics and groups of the fleet; answers their names. Blocks.

    Raises:
        BadInput: processes of the fleet still run.
        Unavailable: the broker does not answer, or refuses.
    """
    groups = admin.groups(f"{fleet.topics.prefix}.")
    if running := [group for group, count in admin.members(groups).items() if count]:
        remedy = "Stop the fleet first"
        raise BadInput("--topics", f"processes are running: {', '.join(running)}", remedy)
    topics = admin.topics(f"{fleet.topics.prefix}.")
    admin.delete(topics, groups)
    return topics, groups


async def erase_redis(fleet: Fleet) -> int:
    """Delete all keys of the fleet in Redis; answers their number."""
    keys: list[bytes] = [
        key async for key in fleet.redis.scan_iter(match=f"{{{fleet.redis_prefix}:*", count=1_000)
    ]
    for key in keys:
        await fleet.redis.unlink(key)
    return len(keys)
