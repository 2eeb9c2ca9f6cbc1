"""Reads the settings and DIR/fleet.json, writes fleet.json: how a command finds its fleet.

`convoy up` writes down where its broker and Redis are; any other command that is run in the same
directory finds them there, unless CONVOY_KAFKA or CONVOY_REDIS says otherwise.
"""

import os
import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from codeconvoy.orchestrator.fleet import SERVICE_ROLES, Fleet, wrong_partitions
from codeconvoy.orchestrator.redis_client import check_redis, open_redis
from codeconvoy.orchestrator.settings import Settings, load_settings
from codeconvoy.orchestrator.telemetry import tracing
from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.errors import BadInput, ConvoyError, Unavailable
from codeconvoy.schemas.registry import ConfluentRegistry
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.engine.bus import Bus
from codeconvoy.workers.engine.kafka_bus import KafkaBus
from codeconvoy.workers.llm.kept import Keep
from codeconvoy.workers.llm.provider import Credentials
from codeconvoy.workers.redact import Redactor, url_secrets
from codeconvoy.workers.roles.registry import load_roles
from codeconvoy.workers.roles.role import NextProvider, Role

FLEET_FILE = "fleet.json"
CLIENT = "client"
"""What a process is that is none of the fleet's: a command."""
_SECRET_OPTION = re.compile(r"password|secret|token|\.key\.pem|oauthbearer\.config|jaas", re.IGNORECASE)
"""Names of librdkafka's options whose value is a secret."""
_SECRET_VARIABLE = re.compile(
    r"(?:API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)\Z", re.IGNORECASE
)

Located = TypeVar("Located", Role, NextProvider)


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """Where a fleet's broker and Redis are: what fleet.json holds."""

    kafka: str
    """Bootstrap servers."""
    redis: str
    """URL."""
    prefix: str
    partitions: int
    embedded: bool = False
    """The broker is librdkafka's mock cluster."""


def write_connection(data: Path, connection: Connection) -> None:
    """Write fleet.json, whole or not at all, for its owner only: a Redis URL may hold a password."""
    data.mkdir(parents=True, exist_ok=True)
    partial = data / f".{FLEET_FILE}.{os.getpid()}"
    partial.touch(mode=0o600)
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(connection), indent=2) + b"\n")
    partial.replace(data / FLEET_FILE)


def forget_connection(data: Path) -> None:
    """Remove fleet.json."""
    with suppress(FileNotFoundError):
        (data / FLEET_FILE).unlink()


def read_connection(data: Path) -> Connection | None:
    """What fleet.json says; None where there is none.

    Raises:
        BadInput: it can't be read.
    """
    path = data / FLEET_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Connection)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(str(path), f"it can't be read: {error}", "Remove it") from error


def find_connection(settings: Settings) -> Connection:
    """Broker and Redis: those of the settings, else those of fleet.json.

    A broker that is not the file's never goes with the file's Redis: the state in Redis names
    offsets of its own broker's log.

    Raises:
        Unavailable: neither says where they are.
        BadInput: fleet.json can't be read.
    """
    given = settings.model_fields_set
    found = read_connection(settings.data)
    if found is not None and settings.kafka in ("", found.kafka):
        return Connection(
            kafka=found.kafka,
            redis=settings.redis or found.redis,
            prefix=settings.prefix if "prefix" in given else found.prefix,
            partitions=settings.partitions if "partitions" in given else found.partitions,
            embedded=found.embedded,
        )
    remedy = "or run `convoy up` in this directory, which finds or starts one"
    if not settings.kafka:
        raise Unavailable("Kafka", "no broker is set", f"Set CONVOY_KAFKA=HOST:PORT, {remedy}")
    if not settings.redis:
        raise Unavailable("Redis", "no Redis is set", f"Set CONVOY_REDIS=redis://HOST:PORT/0, {remedy}")
    return Connection(
        kafka=settings.kafka, redis=settings.redis, prefix=settings.prefix, partitions=settings.partitions
    )


def kafka_settings(settings: Settings, kafka: str) -> Mapping[str, str]:
    """librdkafka's settings of every client."""
    options = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in settings.kafka_options.items()
    }
    return {"group.protocol": settings.group_protocol, **options, "bootstrap.servers": kafka}


def credentials_of(
    settings: Settings, roles: Mapping[str, Role], environment: Mapping[str, str]
) -> Credentials:
    """The keys that the roles may use, by name.

    Those of OpenAI and Anthropic are settings; one that a role's option `key` names is
    NAME_API_KEY in the environment.
    """
    keys = {"openai": settings.openai_api_key, "anthropic": settings.anthropic_api_key}
    found = {name: key.get_secret_value() for name, key in keys.items() if key is not None}
    options = [one.options for role in roles.values() for _, one in role.by_provider()]
    for name in {given["key"] for given in options if "key" in given} - found.keys():
        if value := environment.get(f"{name.upper().replace('-', '_')}_API_KEY"):
            found[name] = value
    return found


def redactor_of(
    settings: Settings, roles: Mapping[str, Role], environment: Mapping[str, str], redis: str
) -> Redactor:
    """What strikes out every secret that a process with these settings holds. `redis` is its URL."""
    urls = [redis, settings.schema_registry, *environment.values()]
    urls += (one.options.get("base_url", "") for role in roles.values() for _, one in role.by_provider())
    held = [
        *credentials_of(settings, roles, environment).values(),
        *(str(value) for name, value in settings.kafka_options.items() if _SECRET_OPTION.search(name)),
        *(value for name, value in environment.items() if _SECRET_VARIABLE.search(name)),
        *(secret for url in urls if "://" in url for secret in url_secrets(url)),
    ]
    return Redactor(frozenset(filter(None, held)))


def find_redactor(environment: Mapping[str, str]) -> Redactor:
    """The same for whoever has no fleet, or has not read its settings yet."""
    settings, roles, redis = Settings.model_construct(), dict[str, Role](), ""
    try:
        settings = load_settings()
        roles |= roles_of(settings)
        redis = find_connection(settings).redis
    except ConvoyError:
        pass  # Whoever asked meets the same error, and tells it. What could be read is known all the same.
    return redactor_of(settings, roles, environment, redis)


def roles_of(settings: Settings) -> Mapping[str, Role]:
    """The roles of this fleet; those of a model at the URL that the settings give, if they give one.

    Raises:
        BadInput: the roles file or one of its fields can't be used.
    """
    urls = {"openai": settings.openai_base_url, "anthropic": settings.anthropic_base_url}

    def located(one: Located) -> Located:
        url = urls.get(one.provider)
        return replace(one, options={"base_url": url, **one.options}) if url else one

    return {
        name: replace(located(role), next=tuple(map(located, role.next)))
        for name, role in load_roles(settings.roles).items()
    }


async def check_partitions(bus: Bus, topics: Topics) -> None:
    """See that the logs have as many partitions as the settings say: with another count a file or a job is
    looked for where it is not, and found to be absent. Topics that do not exist yet are no fault.

    Raises:
        BadInput: a topic has another count.
        Unavailable: the broker can't be reached.
    """
    counts = await bus.partition_counts((topics.events, topics.jobs, topics.dead_letters))
    if (wrong := wrong_partitions(topics, counts)) is not None:
        raise wrong


@asynccontextmanager
async def connect(
    settings: Settings, environment: Mapping[str, str], process: str = CLIENT, instance: str = ""
) -> AsyncIterator[Fleet]:
    """The fleet that the settings mean, for a process of this kind and name; its clients are closed at the
    end.

    Raises:
        BadInput: a setting or a role can't be used.
        Unavailable: the broker, Redis or the schema registry does not answer, or none is set.
    """
    found = find_connection(settings)
    topics = Topics(found.prefix, found.partitions)
    roles = roles_of(settings)
    registry = ConfluentRegistry.connect(settings.schema_registry) if settings.schema_registry else None
    codec = Codec.create(registry, topics, (*roles, *SERVICE_ROLES))
    bus = KafkaBus(kafka_settings(settings, found.kafka), embedded=found.embedded, topics=topics)
    redis = open_redis(found.redis)
    fleet = Fleet(
        bus=bus,
        redis=redis,
        redis_prefix=found.prefix,
        codec=codec,
        topics=topics,
        roles=roles,
        credentials=credentials_of(settings, roles, environment),
        cache=settings.cache,
        redact=redactor_of(settings, roles, environment, found.redis),
        keep=Keep(settings.keep_prompts_seconds, settings.keep_prompts_megabytes),
    )
    try:
        await check_redis(redis)
        with tracing(settings, process, instance or f"{socket.gethostname()}-{os.getpid()}") as told:
            yield replace(fleet, tracing=told)
    finally:
        await bus.close()
        await redis.aclose()
