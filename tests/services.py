"""Reads CONVOY_TEST_KAFKA and CONVOY_TEST_REDIS, starts services: a real Kafka and a real Redis for tests.

The first that is there: the address in the variable, a server on this machine, a container. When there
is none the tests fail, they are never skipped; the message says what to install.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from codeconvoy.orchestrator.services import (
    JAVA_AT_LEAST,
    LocalKafka,
    LocalRedis,
    docker_answers,
    embedded_redis_binary,
    java_version,
    kafka_answers,
    kafka_jars,
    redis_answers,
)
from codeconvoy.schemas.errors import Unavailable


def jar_cache() -> Path:
    """Where the jars of a local Kafka are kept between sessions."""
    return Path(os.environ.get("CONVOY_CACHE") or Path.home() / ".cache" / "codeconvoy")


@contextmanager
def kafka_for_tests(data: Path) -> Iterator[str]:
    """The bootstrap address of a real Kafka."""
    given = os.environ.get("CONVOY_TEST_KAFKA")
    if given:
        if not kafka_answers({"bootstrap.servers": given}, 10.0):
            raise Unavailable("Kafka", f"CONVOY_TEST_KAFKA={given} does not answer", "Start it or unset it")
        yield given
    elif java_version() >= JAVA_AT_LEAST:
        local = LocalKafka(kafka_jars(jar_cache()), data)
        local.start()
        try:
            yield local.bootstrap
        finally:
            local.stop()
    elif docker_answers():
        from testcontainers.community.kafka import KafkaContainer

        # Without with_kraft() this image would start ZooKeeper.
        with KafkaContainer().with_kraft() as container:
            yield container.get_bootstrap_server()
    else:
        remedy = (
            "Set CONVOY_TEST_KAFKA=host:port, or start Docker, or install Maven and a JDK of that version"
        )
        raise Unavailable("Kafka", f"no Java {JAVA_AT_LEAST} or later and no Docker", remedy)


@contextmanager
def redis_for_tests(data: Path) -> Iterator[str]:
    """The URL of a real Redis. One that was given is left as it is but for the test's own prefix."""
    given = os.environ.get("CONVOY_TEST_REDIS")
    binary = shutil.which("redis-server") or embedded_redis_binary()
    if given:
        if not redis_answers(given, 10.0):
            raise Unavailable("Redis", f"CONVOY_TEST_REDIS={given} does not answer", "Start it or unset it")
        yield given
    elif binary:
        local = LocalRedis(binary, data)
        local.start()
        try:
            yield local.url
        finally:
            local.stop()
    elif docker_answers():
        from testcontainers.community.redis import RedisContainer

        with RedisContainer() as container:
            yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"
    else:
        remedy = "Set CONVOY_TEST_REDIS=redis://…, or install redis-server, or start Docker"
        raise Unavailable("Redis", "no redis-server on the PATH and no Docker", remedy)


def erase_prefix(url: str, prefix: str) -> None:
    """Delete the keys of one test, nobody else's."""
    with redis.Redis.from_url(url) as client:
        keys = list(client.scan_iter(match=f"*{prefix}*", count=1_000))
        if keys:
            client.delete(*keys)
