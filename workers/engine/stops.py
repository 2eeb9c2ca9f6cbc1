"""Reads the dead-letters topic, writes health and a metric: the partitions of an engine that can't go on.

A record that this version can't read may be readable for a later one: its partition stops there, visibly,
until somebody upgrades, or skips it for all replicas on the log.
"""

import logging

from codeconvoy.schemas.errors import Undecodable
from codeconvoy.workers.engine.bus import Bus, TopicPartition
from codeconvoy.workers.engine.dead_letter import skipped_points
from codeconvoy.workers.engine.health import Health
from codeconvoy.workers.engine.metrics import EngineMetrics

logger = logging.getLogger(__name__)


class Stops:
    """Where the partitions of one engine are stopped."""

    def __init__(self, bus: Bus, dead_letters: str, health: Health, metrics: EngineMetrics) -> None:
        self._bus, self._dead_letters = bus, dead_letters
        self._health, self._metrics = health, metrics
        self._offsets: dict[TopicPartition, int] = {}

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, at: TopicPartition, offset: int, why: Undecodable) -> None:
        """The partition is stopped at this record; say so."""
        reason = (
            f"offset {offset}: {why}. Upgrade codeconvoy, or skip it everywhere with "
            f"`convoy dlq skip {at.topic} {at.partition} {offset}`"
        )
        self._offsets[at] = offset
        self._health.stopped[at] = reason
        self._metrics.stopped.set(len(self))
        logger.error("partition %s/%s is stopped at %s", at.topic, at.partition, reason)

    def forget(self, at: TopicPartition) -> None:
        """The partition goes on, or is somebody else's."""
        self._offsets.pop(at, None)
        self._health.stopped.pop(at, None)
        self._metrics.stopped.set(len(self))

    async def skipped(self) -> dict[TopicPartition, int]:
        """The stops that an operator has skipped, which are none any more."""
        if not self._offsets:
            return {}
        points = await skipped_points(self._bus, self._dead_letters)
        found = {at: n for at, n in self._offsets.items() if (at.topic, at.partition, n) in points}
        for at in found:
            self.forget(at)
        return found
