"""Reads the projection, reads and writes maps in Redis: the repository as a task's model is shown it.

A map is made of what readers see of the files that the job imported. Files are looked into once for
each of their versions in a process: for a task only the headers are read, and what is new.

A task's map is kept, for as long as the reply to its prompt is, so that a task that comes again has the
same prompt, and finds its reply, whatever has moved elsewhere meanwhile. A map is a hint: it is no part
of a read set, or any edit anywhere would make all that runs stale.
"""

import asyncio
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import msgspec
from redis.asyncio import Redis

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.job_facts import ImportedFile
from codeconvoy.schemas.tasks import Task
from codeconvoy.workers.engine.scripts import reached
from codeconvoy.workers.file_states import Content
from codeconvoy.workers.llm.outline import Outline, Outliner
from codeconvoy.workers.llm.repo_map import RepoMap, make, nearest
from codeconvoy.workers.projection import BARRIER_SECONDS, Projection

MAX_FILES = 2_000
"""Files of a workspace that are looked at for a map, those nearest to the task's first."""
MAX_BYTES = 64 * 1024 * 1024
"""Memory for what is known of files, in a process."""
AT_ONCE = 32
"""Files whose contents are read at once: up to 16 MiB."""
LOOK_SECONDS = 0.05
SUFFIXES = (".py", ".pyi")
"""Of files that are looked into. Of others the path is shown."""


class MapStore(Protocol):
    """Where maps are kept. Every call may raise Unavailable."""

    async def get(self, task: Task, tokens: int) -> RepoMap | None:
        """The map that this round of a task was shown."""
        ...

    async def put(self, task: Task, whole: RepoMap) -> None:
        """Keep it."""
        ...


class RedisMaps:
    """Maps in Redis."""

    def __init__(self, redis: Redis, prefix: str, ttl_seconds: int) -> None:
        self._redis, self._prefix, self._ttl = redis, prefix, ttl_seconds

    async def get(self, task: Task, tokens: int) -> RepoMap | None:
        """See `MapStore`."""
        with reached():
            raw = cast("bytes | None", await self._redis.get(self._key(task, tokens)))
        return _MAPS.decode(zlib.decompress(raw)) if raw else None

    async def put(self, task: Task, whole: RepoMap) -> None:
        """See `MapStore`."""
        raw = zlib.compress(msgspec.msgpack.encode(whole), 1)
        with reached():
            await self._redis.set(self._key(task, whole.tokens), raw, ex=self._ttl)

    def _key(self, task: Task, tokens: int) -> str:
        return f"{{{self._prefix}:map:{task.task_id}:{task.round}:{tokens}}}"


class Mapper:
    """Makes the maps for the tasks of one role in one process."""

    def __init__(self, projection: Projection, store: MapStore, tokens: int) -> None:
        """`tokens` is what a map may take of a prompt."""
        self._projection, self._store, self._tokens = projection, store, tokens
        self._outliner, self._known = Outliner(), Known(MAX_BYTES)
        self._looking = asyncio.Lock()

    async def of(self, task: Task, own: Sequence[str]) -> RepoMap:
        """The map for a task that names these files besides its own.

        Raises:
            Unavailable: the projection is too far behind, or away.
        """
        kept = await self._store.get(task, self._tokens)
        if kept is not None:
            return kept
        origins = {file.path: file for file in await self._imported(task.job_id)}
        near = nearest(origins, task.path)
        looked_at, further = near[:MAX_FILES], near[MAX_FILES:]
        visible = await self._projection.visible(task.workspace, looked_at)
        versions = {path: event_id for path, event_id in visible.items() if event_id}
        async with self._looking:  # tasks that start together need the same files
            outlines = await self._outlines(task.workspace, versions, origins)
        # A file further away counts where it was there when it was imported.
        files = len(outlines) + sum(bool(origins[path].event_id) for path in further)
        goal, tokens = task.goal, self._tokens
        whole = await asyncio.to_thread(make, outlines, task.path, own, goal, tokens, files)
        await self._store.put(task, whole)
        return whole

    async def _imported(self, job_id: str) -> Sequence[ImportedFile]:
        """What the job imported: its tasks come after that, and may be ahead of the projection."""
        clock = asyncio.get_running_loop().time
        ends = clock() + BARRIER_SECONDS
        while (files := await self._projection.imported(job_id)) is None:
            if clock() > ends:
                raise Unavailable("projection", f"it does not know of the import of {job_id}", "Wait")
            await asyncio.sleep(LOOK_SECONDS)
        return files

    async def _outlines(
        self, workspace: str, versions: Mapping[str, str], origins: Mapping[str, ImportedFile]
    ) -> Mapping[str, Outline]:
        """What is known of each file; those that have been deleted are not among them."""
        found: dict[str, Outline | None] = {}
        wanted: dict[str, str] = {}
        for path, event_id in versions.items():
            known = self._known.get(path, event_id)
            if known is not None:
                found[path] = known.outline
            elif event_id == origins[path].event_id and not path.endswith(SUFFIXES):
                found[path] = Outline()  # it was there when it was imported, and is so still
            else:
                wanted[path] = event_id
        todo = list(wanted)
        for start in range(0, len(todo), AT_ONCE):
            some = {path: wanted[path] for path in todo[start : start + AT_ONCE]}
            contents = await self._projection.contents(workspace, some)
            outlines = await asyncio.to_thread(self._look_into, contents)
            for path, outline in outlines.items():
                self._known.put(path, some[path], outline)
            # One whose content was forgotten since has changed often: it is there, or soon will be.
            found |= {path: outlines.get(path, Outline()) for path in some}
        return {path: outline for path, outline in sorted(found.items()) if outline is not None}

    def _look_into(self, contents: Mapping[str, Content]) -> Mapping[str, Outline | None]:
        """Outlines of contents; None for a file that was deleted."""
        return {path: self._outline(path, content.edit.content) for path, content in contents.items()}

    def _outline(self, path: str, content: bytes | None) -> Outline | None:
        if content is None:
            return None
        return self._outliner.outline(content) if path.endswith(SUFFIXES) else Outline()


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found in a version of a file."""

    outline: Outline | None
    """None: the file was deleted."""

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return 200 + (self.outline.size if self.outline is not None else 0)


class Known:
    """What was found in versions of files, those that were used last, up to a size."""

    def __init__(self, limit: int) -> None:
        self._limit, self.size = limit, 0
        self._found: OrderedDict[tuple[str, str], Seen] = OrderedDict()

    def get(self, path: str, event_id: str) -> Seen | None:
        """What was found, if it is remembered."""
        seen = self._found.get((path, event_id))
        if seen is not None:
            self._found.move_to_end((path, event_id))
        return seen

    def put(self, path: str, event_id: str, outline: Outline | None) -> None:
        """Remember it, and forget what was not used for longest."""
        seen = Seen(outline)
        if (before := self._found.pop((path, event_id), None)) is not None:
            self.size -= before.size
        self._found[path, event_id] = seen
        self.size += seen.size
        while self.size > self._limit:
            self.size -= self._found.popitem(last=False)[1].size


_MAPS = msgspec.msgpack.Decoder(RepoMap)
