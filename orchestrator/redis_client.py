"""Reads a Redis URL, writes nothing: the client that every process of a fleet uses."""

import asyncio
from collections.abc import Iterable

from redis.asyncio import (
    BlockingConnectionPool,
    Connection,
    Redis,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from codeconvoy.schemas.errors import BadInput, Unavailable

CONNECT_SECONDS = 3.0
REDIS_SECONDS = 10.0
"""For one command; a slower Redis is as good as none."""
REDIS_CONNECTIONS = 32
"""Of one process."""


class Cancellable(AbstractConnection):
    """A connection on which a task that is cancelled ends.

    redis-py writes within `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that comes
    in the moment in which the write ends (python/cpython issue 86296): a deadline would be missed, and
    whoever waits for the end of what it has cancelled would wait for ever.
    """

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        """Write a command; the cancellation of whoever asks always arrives."""
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        await super().send_packed_command(command, check_health)
        if task is not None and task.cancelling() > before:
            await self.disconnect(nowait=True)  # its reply must not be taken for that of the next command
            raise asyncio.CancelledError


class _Tcp(Cancellable, Connection):
    pass


class _Tls(Cancellable, SSLConnection):
    pass


class _Unix(Cancellable, UnixDomainSocketConnection):
    pass


_CANCELLABLE = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}


def open_redis(url: str) -> Redis:
    """A client that never sends a command twice and never waits for ever.

    Raises:
        BadInput: it is no URL of a Redis.
    """
    try:
        # Whoever finds all connections in use waits for one: hundreds of tasks may ask at once.
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=REDIS_CONNECTIONS,
            timeout=REDIS_SECONDS,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=REDIS_SECONDS,
            # With them, redis-py 8.1 does not look whether a connection that it kept was closed meanwhile:
            # long after a restart of Redis each one that is left would fail somebody's command.
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
    except ValueError as error:
        # The URL may hold a password, and so may the error's text.
        raise BadInput("CONVOY_REDIS", "it is no Redis URL", "Write redis://HOST:PORT/0") from error
    pool.connection_class = _CANCELLABLE[pool.connection_class]
    return Redis.from_pool(pool)


async def check_redis(redis: Redis) -> None:
    """See that Redis answers.

    Raises:
        Unavailable: it does not.
    """
    try:
        await redis.ping()
    except (RedisError, OSError) as error:
        raise redis_unavailable(error) from error


def redis_unavailable(error: Exception) -> Unavailable:
    """What to tell when Redis failed."""
    return Unavailable("Redis", str(error) or type(error).__name__, "Check CONVOY_REDIS and that it runs")
