"""Reads and writes Redis: many runs of one script in one request."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError, RedisError

from codeconvoy.schemas.errors import Unavailable

_REMEDY = "`convoy doctor` tells more"


@contextmanager
def reached() -> Iterator[None]:
    """Whatever Redis can't do now it may do later: a task that needs it waits, and is not given up."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable("Redis", str(error) or type(error).__name__, _REMEDY) from error


async def run_script(
    redis: Redis, script: AsyncScript, calls: Sequence[tuple[str, Sequence[str | bytes | int]]]
) -> list[Any]:
    """The answers of a script to these calls (key and arguments), which go in one request.

    Raises:
        Unavailable: Redis can't be reached or refused a call; others of the calls may have run.
    """
    with reached():
        async with redis.pipeline(transaction=False) as pipeline:
            for key, args in calls:
                pipeline.evalsha(script.sha, 1, key, *args)
            answers = await pipeline.execute(raise_on_error=False)
        for index, (key, args) in enumerate(calls):
            if isinstance(answers[index], NoScriptError):  # Redis was started anew
                answers[index] = await script(keys=[key], args=args)
            if isinstance(answers[index], RedisError):
                raise answers[index]
    return list(answers)
