"""Reads watermarks, writes nothing: where a partition can be read from at all.

Records may have been deleted, by retention of a task queue or by `convoy forget`. A position below
what is left is moved to it in the open, never by a silent reset of offsets.
"""

import logging
from collections.abc import Mapping

from codeconvoy.workers.engine.bus import Bus, TopicPartition

logger = logging.getLogger(__name__)


async def readable(bus: Bus, starts: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, int]:
    """The offsets to start from, none of them below the first record that is left."""
    reader = bus.reader()
    try:
        lows = {at: (await reader.watermarks(at))[0] for at in starts}
    finally:
        await reader.close()
    for at, start in starts.items():
        if 0 < start < lows[at]:
            logger.warning("%s/%s: offsets %s to %s were deleted", at.topic, at.partition, start, lows[at])
    return {at: max(start, lows[at]) for at, start in starts.items()}
