"""A projection to make maps of: files and what a job imported, in a store of any kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from codeconvoy.schemas.job_facts import Imported, ImportedFile
from codeconvoy.schemas.tasks import EditWork, Task, Work
from codeconvoy.schemas.topics import file_key, partition_of
from codeconvoy.workers import file_states, job_states
from codeconvoy.workers.engine.state import LIVE, StateStore, Write
from codeconvoy.workers.projection import StoredProjection
from tests.builders import WORKSPACE, FileLog

PARTITIONS = 3
JOB = "j"


def task(path: str = "a.py", *, round_: int = 1, goal: str = "", work: Work | None = None) -> Task:
    """A task of the job."""
    return Task(
        task_id=f"t-{path}",
        job_id=JOB,
        workspace=WORKSPACE,
        role="r",
        path=path,
        round=round_,
        goal=goal,
        work=work or EditWork(),
    )


@dataclass(slots=True)
class Workspace:
    """What the projection holds."""

    files: StateStore
    jobs: StateStore
    logs: dict[str, FileLog] = field(default_factory=dict)
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)

    def projection(self) -> StoredProjection:
        return StoredProjection(self.files, self.jobs, PARTITIONS)

    async def has(self, path: str, content: bytes | None) -> str:
        """A file gets this content, by an event whose id is given."""
        log = self.logs.setdefault(path, FileLog(path))
        event_id = f"{path}@{len(log.history.entries)}"
        log.edit(event_id, content, *log.history.heads)
        assert log.history.visible == event_id
        key = file_key(WORKSPACE, path)
        changes = file_states.fields_of(log.history, key)
        await self._write("files", self.files, partition_of(key, PARTITIONS), changes)
        return event_id

    async def imported(self, contents: Mapping[str, bytes], *further: str) -> None:
        """The job has imported these files, and was told of further ones that are not there."""
        files = [
            ImportedFile(path=path, event_id=await self.has(path, content))
            for path, content in contents.items()
        ]
        files += [ImportedFile(path=path, event_id="") for path in further]
        value = msgspec.msgpack.encode(Imported(commit="c", files=tuple(files)))
        changes = {job_states.imported_field(JOB): value}
        await self._write("jobs", self.jobs, partition_of(JOB, PARTITIONS), changes)

    async def _write(
        self, name: str, store: StateStore, partition: int, changes: Mapping[str, bytes]
    ) -> None:
        expected = self.offsets.get((name, partition), 0)
        if not expected:
            await store.take(partition, "o")
        self.offsets[name, partition] = expected + 1
        await store.commit("o", [Write(partition, expected, expected + 1, {LIVE: b"1", **changes})])
