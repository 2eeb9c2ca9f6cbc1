"""Reads the projection in Redis; writes nothing: what every reader of the fleet's state calls.

The projection is a cache of the log: it is behind by a moment, and it can be lost and rebuilt.
Nobody decides from it what is true; agents read from it what they work on, and the log decides.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.tasks import MustSee


class Projection(Protocol):
    """Files, as the projector last saw them."""

    async def histories(self, workspace: str, paths: Sequence[str]) -> Mapping[str, FileHistory]:
        """The history of each of the paths (an empty one for a path that was never written)."""
        ...

    async def paths(self, workspace: str) -> Sequence[str]:
        """All paths of a workspace that have a history, sorted."""
        ...

    async def passed(self, points: Sequence[MustSee]) -> bool:
        """True when the projector has passed all of these offsets of the events log."""
        ...
