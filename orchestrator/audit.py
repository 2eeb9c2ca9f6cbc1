"""Reads both logs, the projection in Redis and git; writes nothing: is everything as the log says?

Nothing that another process concluded is believed. Every record is folded anew, from the first,
and the outcome is compared:

    projection   every field in Redis is, byte for byte, what the log folds to at the same offset
    branches     the commits of every finished job are those that the histories gave
    edits        every live edit is an ancestor of the heads, takes effect once, after its parents
    verdicts     every verdict is on its job's log, as the fold gives it
    jobs         every job that says it ended has ended

The comparing itself is in `audit_jobs`, `audit_files` and `audit_branches`, which do no IO but for
reading git; here the log is read, partition by partition, so that what is in memory is one
partition of files and a small account of the rest.
"""

import asyncio
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from codeconvoy.orchestrator.audit_branches import BranchAudit, read_branch
from codeconvoy.orchestrator.audit_files import FilesAudit
from codeconvoy.orchestrator.audit_jobs import Claims, JobsAudit, Publication, keys_of
from codeconvoy.orchestrator.audit_report import Check, Counts, Difference, Findings, Report, Unreadable
from codeconvoy.orchestrator.log_reader import LogReader
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import BadInput, Unavailable, Undecodable
from codeconvoy.schemas.topics import Topics, partition_of
from codeconvoy.workers.engine.bus import Bus, Record, TopicPartition
from codeconvoy.workers.engine.dead_letter import HEADER, SKIP, all_letters
from codeconvoy.workers.engine.state import StateStore

WAIT_SECONDS = 10.0
"""How long the projection and the detector may take to reach the end of the log."""
WAIT_STEP_SECONDS = 0.1
COMPARES = 20
"""Comparisons of a partition that the projector goes on from meanwhile."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What an audit reads."""

    bus: Bus
    codec: Codec
    topics: Topics
    files: StateStore
    """The projection of files."""
    jobs: StateStore
    """The projection of jobs."""
    detector: StateStore
    """Only asked how far the detector is."""
    cache: Path
    """Directory for mirrors of repositories."""
    wait_seconds: float = WAIT_SECONDS


class _Refold(Protocol):
    """One partition, folded anew."""

    def feed(self, record: Record) -> None: ...

    def fields(self) -> Iterator[tuple[str, Mapping[str, bytes], bool]]: ...


async def audit(
    sources: Sources, job: str = "", progress: Callable[[int, int], None] = lambda passed, total: None
) -> Report:
    """Audit everything, or one job with its files.

    Args:
        sources: log, projection and git.
        job: a job's id; empty: everything.
        progress: is told how many offsets were passed, of how many.

    Raises:
        BadInput: there is no such job.
        Unavailable: the broker can't be reached, or the projection moves on faster than it can
            be compared.
    """
    run = _Audit(sources, job, progress)
    try:
        return await run.all()
    finally:
        await run.reader.close()


class _Audit:
    """One audit at work."""

    def __init__(self, sources: Sources, job: str, progress: Callable[[int, int], None]) -> None:
        self.sources, self.job, self.progress = sources, job, progress
        self.counts, self.findings, self.claims = Counts(), Findings(), Claims()
        self.unreadable = Unreadable()
        self.reader = sources.bus.reader()
        self.log = LogReader(self.reader, sources.codec, sources.topics, self._passed)
        self._done = self._total = 0

    def _passed(self, more: int) -> None:
        self._done += more
        self.progress(self._done, self._total)

    async def all(self) -> Report:
        """Read, compare, report."""
        sources = self.sources
        judged_below = await self.log.ends(sources.topics.events)
        await self._wait(judged_below, sources.files, sources.detector)
        # Taken after the detector was waited for: its reports on everything up to there are on it.
        job_ends = await self.log.ends(sources.topics.jobs)
        await self._wait(job_ends, sources.jobs)
        # Taken last: holds all that the job logs speak of.
        event_ends = await self.log.ends(sources.topics.events)
        await self._read_letters()
        numbers = set(job_ends)
        if self.job:
            numbers = {partition_of(self.job, sources.topics.partitions)}
        self._total = sum(job_ends[number] for number in numbers) + sum(event_ends.values())
        publications: list[Publication] = []
        only: frozenset[str] | None = None
        for number in sorted(numbers):
            jobs = JobsAudit(
                sources.codec,
                self.findings,
                self.counts,
                self.claims,
                unreadable=self.unreadable,
                only=self.job,
            )
            at = TopicPartition(sources.topics.jobs, number)
            await self._refold(at, job_ends[number], jobs, sources.jobs)
            publications += jobs.finish()
            if self.job:
                if self.job not in jobs.states:
                    raise BadInput("job", f"no job {self.job!r} is on the log", "See `convoy jobs`")
                only = keys_of(jobs.states[self.job])
        await self._files(publications, only, judged_below, event_ends)
        return Report(self.counts, self.findings)

    async def _files(
        self,
        publications: list[Publication],
        only: frozenset[str] | None,
        judged_below: Mapping[int, int],
        ends: Mapping[int, int],
    ) -> None:
        sources, branches = self.sources, list[BranchAudit]()
        for publication in publications:
            branch = await asyncio.to_thread(read_branch, publication, sources.cache, self.findings)
            if branch is not None:
                branches.append(BranchAudit(publication, branch))
        for number, end in sorted(ends.items()):
            if only is not None and all(partition_of(key, len(ends)) != number for key in only):
                self._passed(end)
                continue
            files = FilesAudit(
                number,
                sources.topics,
                sources.codec,
                self.findings,
                self.counts,
                self.claims,
                unreadable=self.unreadable,
                branches=branches,
                judged_below=judged_below[number],
                only=only,
                job=self.job,
            )
            at = TopicPartition(sources.topics.events, number)
            await self._refold(at, end, files, sources.files)
            files.finish()
        for branch_audit in branches:
            branch_audit.finish(self.findings, self.counts)
        self._settle(judged_below)

    def _settle(self, judged_below: Mapping[int, int]) -> None:
        """What the job logs say and the events log does not."""
        for (event_id, verdict), told in self.claims.verdicts.items():
            if told.offset < judged_below.get(told.partition, 0):
                what = f"{told.path}: {verdict} was reported, and is not what the log folds to"
                self.findings.add(Check.VERDICT, told.path, what, event_id)
        for event_id, (job_id, key) in self.claims.written.items():
            what = f"job {job_id} was told that it was written, and it is not on the log"
            self.findings.add(Check.LOST, key, what, event_id)

    async def _read_letters(self) -> None:
        lettered, skipped = set(), set()
        for record in await all_letters(self.sources.bus, self.sources.topics.dead_letters):
            if SKIP in record.headers:
                topic, partition, offset = record.headers[SKIP].decode().rsplit("/", 2)
                skipped.add((topic, int(partition), int(offset)))
            elif HEADER in record.headers:
                self.counts.dead_letters += 1
                headers = record.headers
                point = (headers["topic"].decode(), int(headers["partition"]), int(headers["offset"]))
                lettered.add(point)
        self.unreadable = Unreadable(frozenset(lettered), frozenset(skipped))

    async def _wait(self, ends: Mapping[int, int], *stores: StateStore) -> None:
        """Wait a moment for the stores to reach these offsets. Whether they did shows later."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self.sources.wait_seconds
        for store in stores:
            for number, end in ends.items():
                while (await store.load(number, ())).offset < end:
                    if clock() > deadline:
                        return
                    await asyncio.sleep(WAIT_STEP_SECONDS)

    # One partition ----------------------------------------------------------------------------------

    async def _refold(self, at: TopicPartition, end: int, refold: _Refold, store: StateStore) -> None:
        """Fold a partition up to its end, and compare the projection where that stands."""
        where = f"{at.topic}/{at.partition}"
        feeder = _Feeder(self.log, at, refold)
        stored = (await store.load(at.partition, ())).offset
        _, high = await self.reader.watermarks(at)
        if stored > high:
            self.findings.add(Check.PROJECTION, where, f"it is at {stored}, the log ends at {high}")
        elif stored < end:
            what = f"it is at {stored}, the log at {end}: is `convoy projector` running?"
            self.findings.add(Check.PROJECTION, where, what)
        await feeder.up_to(min(stored, high))
        for _ in range(COMPARES):
            differences, now = await self._compare(at.partition, refold, store)
            if now == stored:
                break
            stored = now
            await feeder.up_to(stored)
        else:
            raise Unavailable("projection", f"{where} changes faster than it can be read", "Try again")
        for one in differences:
            self.findings.add(one.check, one.where, one.what, *one.ids)
        await feeder.up_to(end)
        if feeder.stopped:
            self.findings.add(Check.UNREADABLE, where, feeder.stopped)

    async def _compare(
        self, partition: int, refold: _Refold, store: StateStore
    ) -> tuple[list[Difference], int]:
        """What differs, and the offset that the projection is at now."""
        expected = {
            name: (key, _digest(value), optional)
            for key, fields, optional in refold.fields()
            for name, value in fields.items()
        }
        held: Mapping[str, bytes]
        if self.job:
            names = list(expected)
            loaded = await store.load(partition, names)
            found = zip(names, loaded.fields, strict=True)
            held = {name: _digest(value) for name, value in found if value is not None}
            now = loaded.offset
        else:
            held = {name: _digest(value) async for name, value in store.scan(partition, "") if name[0] != "@"}
            now = (await store.load(partition, ())).offset
        self.counts.fields += len(expected)
        verbs: dict[str, str] = {}
        for name in sorted(expected.keys() | held.keys()):
            _, digest, optional = expected.get(name, ("", None, False))
            if name not in held:
                verbs |= {} if optional else {name: "is missing"}
            elif digest is None:
                verbs[name] = "is there, and is not on the log"
            elif held[name] != digest:
                verbs[name] = "differs"
        events = _events_of(refold, verbs)
        return [
            Difference(
                Check.PROJECTION,
                expected[name][0] if name in expected else f"partition {partition}",
                f"the field {name!a} {verb}",
                events.get(name, ()),
            )
            for name, verb in verbs.items()
        ], now


class _Feeder:
    """Hands the records of a partition to a refold, and remembers where it is."""

    def __init__(self, log: LogReader, at: TopicPartition, refold: _Refold) -> None:
        self._log, self._at, self._refold = log, at, refold
        self._position = 0
        self.stopped = ""
        """Why nothing more can be folded; empty: it can."""

    async def up_to(self, end: int) -> None:
        """Feed every record below this offset that was not fed yet."""
        if self._position >= end:
            return
        async for record in self._log.records(self._at, self._position, end):
            if self.stopped:
                continue
            try:
                self._refold.feed(record)
            except Undecodable as undecodable:
                self.stopped = f"offset {record.offset} stops every fold: {undecodable}"
        self._position = end


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _events_of(refold: _Refold, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The events that these fields of a projection are about, where a field is about one."""
    if not names:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for _, fields, _ in refold.fields():
        for name in fields.keys() & names:
            with suppress(msgspec.DecodeError):  # some fields are plain text
                value = msgspec.msgpack.decode(fields[name])
                if isinstance(value, dict) and "event_id" in value:
                    found[name] = (value["event_id"],)
    return found
