"""Reads the settings, writes to the terminal: what the commands share.

Results go to stdout, everything else to stderr, so that `-o json` can be piped into a program.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from redis.exceptions import RedisError
from rich.console import Console

from codeconvoy.orchestrator.connection import check_partitions, connect
from codeconvoy.orchestrator.fleet import Fleet
from codeconvoy.orchestrator.redis_client import redis_unavailable
from codeconvoy.orchestrator.settings import load_settings
from codeconvoy.schemas.errors import BadInput, Unavailable

T = TypeVar("T")


class Output(StrEnum):
    """How a command prints its result."""

    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="text for people, json for programs.")]


def stdout() -> Console:
    """The console of results. Text that is not for a terminal is not wrapped."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000
    return console


def stderr() -> Console:
    """The console of everything else."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON value on one line of stdout, at once: a reader may be waiting for it."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


def plain(text: str) -> str:
    """Text from elsewhere (a path, a reason, a model's words) that can't steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def not_empty(field: str, remedy: str) -> Callable[[str | None], str | None]:
    """A callback that refuses an empty text where one that is left out (None) has a default.

    A script whose variable is not set gives an empty one, and does not mean the default: it would cancel
    whichever job is the latest.
    """

    def check(value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise BadInput(field, "it is empty", remedy)
        return value

    return check


def with_fleet(work: Callable[[Fleet], Awaitable[T]], *, prepares: bool = False) -> T:
    """Connect as the settings say, do the work, close.

    Args:
        work: what to do.
        prepares: it sees to the topics itself, as whoever writes a job does.

    Raises:
        ConvoyError: whatever the work raises, BadInput where the topics have another partition count than
            the settings say, and Unavailable where Redis failed meanwhile.
    """

    async def run() -> T:
        async with connect(load_settings(), os.environ) as fleet:
            if not prepares:
                await _check_partitions(fleet)
            return await work(fleet)

    try:
        return asyncio.run(run())
    except RedisError as error:
        raise redis_unavailable(error) from error


async def _check_partitions(fleet: Fleet) -> None:
    """See that keys are looked for where they were written. What is in Redis alone is shown without a
    broker too, with a word on what could not be told."""
    try:
        await check_partitions(fleet.bus, fleet.topics)
    except Unavailable as away:
        said = f"{away.service}: {away.reason}"
        stderr().print(f"Note: whether CONVOY_PARTITIONS is right can't be told: {plain(fleet.redact(said))}")
