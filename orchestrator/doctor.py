"""Reads broker, Redis, programs and settings, writes nothing: what keeps a fleet from working here.

Every finding that is not good has a remedy. Keys are never shown, only whether they are there.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import ruff  # type: ignore[import-untyped]
from redis.exceptions import RedisError

from codeconvoy.orchestrator.broker_admin import BrokerAdmin
from codeconvoy.orchestrator.connection import (
    Connection,
    credentials_of,
    find_connection,
    find_redactor,
    kafka_settings,
    redactor_of,
    roles_of,
)
from codeconvoy.orchestrator.findings import Finding, Grade, bad, good
from codeconvoy.orchestrator.fleet import SERVICE_ROLES, wrong_partitions
from codeconvoy.orchestrator.model_health import look_at_models
from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.orchestrator.settings import Settings
from codeconvoy.schemas.errors import BadInput, BusError, ConvoyError, Unavailable
from codeconvoy.schemas.topics import Topics
from codeconvoy.workers.detector import NAME as DETECTOR
from codeconvoy.workers.engine.kafka_bus import KafkaBus
from codeconvoy.workers.projector import FILES, JOBS
from codeconvoy.workers.roles.agents import make_agent
from codeconvoy.workers.roles.role import Role
from codeconvoy.workers.roles.sandbox import bubblewrap

GIT_AT_LEAST = (2, 31)
LITTLE_DISK = 1024**3
"""Bytes that should be free where repositories are mirrored."""
PROGRAM_SECONDS = 10.0


async def examine(settings: Settings, environment: Mapping[str, str]) -> list[Finding]:
    """Look at everything; one trouble does not hide another. What is said of it holds no secrets."""
    found: list[Finding] = []
    connection = None
    try:
        connection = find_connection(settings)
    except ConvoyError as error:
        found.append(bad("connection", error))
    else:
        found.append(good("connection", f"prefix {connection.prefix}, {connection.partitions} partitions"))
        found += [finding async for finding in _broker(settings, connection)]
        found.append(await _redis(connection.redis))
    found += [finding async for finding in _roles(settings, environment, connection)]
    found += [await asyncio.to_thread(look) for look in (_git, _bubblewrap, _ruff)]
    found.append(_cache(settings.cache))
    redact = find_redactor(environment)
    return [replace(each, says=redact(each.says), remedy=redact(each.remedy)) for each in found]


async def _broker(settings: Settings, connection: Connection) -> AsyncIterator[Finding]:
    topics = Topics(connection.prefix, connection.partitions)
    client = kafka_settings(settings, connection.kafka)
    async with _bus(client, embedded=connection.embedded) as bus:
        wanted = (topics.events, topics.jobs, topics.dead_letters, *map(topics.tasks, SERVICE_ROLES))
        try:
            counts = await bus.partition_counts(wanted)
        except ConvoyError as error:
            yield bad("broker", error)
            return
        kind = ", the embedded one" if connection.embedded else ""
        yield good("broker", f"{connection.kafka} answers{kind}")
        yield _topics(topics, wanted, counts)
        try:
            await (await bus.producer(f"{topics.group('doctor')}.{uuid4().hex}")).close()
        except (BusError, Unavailable) as error:
            yield bad("transactions", error)
        else:
            yield good("transactions", "work")
    if connection.embedded:
        yield Finding(
            "processes", Grade.NOTE, "the embedded broker can't tell who is there", "See `convoy up`"
        )
        return
    yield await asyncio.to_thread(_processes, BrokerAdmin(client), topics)


@asynccontextmanager
async def _bus(client: Mapping[str, str], *, embedded: bool) -> AsyncIterator[KafkaBus]:
    bus = KafkaBus(client, embedded=embedded)
    try:
        yield bus
    finally:
        await bus.close()


def _topics(topics: Topics, wanted: tuple[str, ...], counts: Mapping[str, int]) -> Finding:
    if (wrong := wrong_partitions(topics, counts)) is not None:
        return bad("topics", wrong)
    if missing := [name for name in wanted if name not in counts]:
        remedy = "The first process that starts makes them"
        return Finding("topics", Grade.NOTE, f"not there yet: {', '.join(missing)}", remedy)
    return good("topics", f"all there, {topics.partitions} partitions each")


def _processes(admin: BrokerAdmin, topics: Topics) -> Finding:
    names = {
        "orchestrator": "orchestrator",
        FILES: "projector",
        JOBS: "projector",
        DETECTOR: "detector",
        **{f"worker.{role}": f"worker {role}" for role in SERVICE_ROLES},
    }
    try:
        found = admin.members([topics.group(name) for name in names])
    except Unavailable as error:
        return Finding("processes", Grade.NOTE, error.reason, error.remedy)
    absent = sorted({shown for name, shown in names.items() if not found[topics.group(name)]})
    if absent:
        remedy = f"Start them: {', '.join(f'`convoy {name}`' for name in absent)}, or `convoy up`"
        return Finding("processes", Grade.NOTE, f"not running: {', '.join(absent)}", remedy)
    return good("processes", "orchestrator, projector, detector, git and runner are there")


async def _redis(url: str) -> Finding:
    try:
        client = open_redis(url)
    except BadInput as error:
        return bad("redis", error)
    try:
        info = await client.info()
    except (RedisError, OSError) as error:
        remedy = "Check CONVOY_REDIS and that it runs"
        return Finding("redis", Grade.BAD, str(error) or type(error).__name__, remedy)
    finally:
        await client.aclose()
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction" and int(info.get("maxmemory", 0)):
        says = f"it may evict the projection (maxmemory-policy {policy})"
        return Finding("redis", Grade.BAD, says, "CONFIG SET maxmemory-policy noeviction")
    return good("redis", f"Redis {info.get('redis_version', 'of an unknown version')} answers")


async def _roles(
    settings: Settings, environment: Mapping[str, str], connection: Connection | None
) -> AsyncIterator[Finding]:
    keys = {"openai": settings.openai_api_key, "anthropic": settings.anthropic_api_key}
    there = [name for name, key in keys.items() if key is not None]
    yield good("keys", f"there: {', '.join(there)}" if there else "none; rule-based agents need none")
    try:
        roles = roles_of(settings)
    except BadInput as error:
        yield bad("roles", error)
        return
    answers = ability(roles, settings, environment)
    able = [name for name, why in answers.items() if why is None]
    yield good("roles", f"{len(able)} of {len(roles)} can run: {', '.join(able)}")
    unable = [(name, why) for name, why in answers.items() if why is not None]
    for reason in dict.fromkeys(why.reason for _, why in unable):
        alike = [(name, why.remedy) for name, why in unable if why.reason == reason]
        names = ", ".join(name for name, _ in alike)
        yield Finding("roles", Grade.NOTE, f"{names} can't: {reason}", alike[0][1])
    credentials = credentials_of(settings, roles, environment)
    async for finding in look_at_models([roles[name] for name in able], credentials, connection):
        yield finding


def ability(
    roles: Mapping[str, Role], settings: Settings, environment: Mapping[str, str]
) -> Mapping[str, BadInput | None]:
    """For each role why it can't run here; None where it can."""
    credentials = credentials_of(settings, roles, environment)
    redact = redactor_of(settings, roles, environment, settings.redis)
    found: dict[str, BadInput | None] = {}
    for name, role in sorted(roles.items()):
        try:
            make_agent(role, credentials)
        except BadInput as why:
            found[name] = BadInput(why.field, redact(why.reason), redact(why.remedy))
        else:
            found[name] = None
    return found


def _git() -> Finding:
    remedy = f"Install git {'.'.join(map(str, GIT_AT_LEAST))} or later"
    try:
        said = subprocess.run(["git", "--version"], capture_output=True, timeout=PROGRAM_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return Finding("git", Grade.BAD, "it is not there", remedy)
    version = said.stdout.decode(errors="replace").strip().removeprefix("git version ")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return good("git", version) if numbers >= GIT_AT_LEAST else Finding("git", Grade.BAD, version, remedy)


def _bubblewrap() -> Finding:
    program = bubblewrap()
    if program is not None:
        return good("bubblewrap", f"{program} works")
    says = "not there, or not allowed here: tests that agents write are not run"
    return Finding(
        "bubblewrap",
        Grade.NOTE,
        says,
        "Install bubblewrap and allow user namespaces, or say `unsandboxed: true` in the job",
    )


def _ruff() -> Finding:
    try:
        program = ruff.find_ruff_bin()
        said = subprocess.run(
            [program, "--version"], capture_output=True, timeout=PROGRAM_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("ruff", Grade.BAD, f"it can't be run: {error}", "Install codeconvoy again")
    return good("ruff", said.stdout.decode(errors="replace").strip().removeprefix("ruff "))


def _cache(cache: Path) -> Finding:
    there = next(path for path in (cache, *cache.resolve().parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Finding(
            "cache", Grade.BAD, f"{cache} can't be written", "Set CONVOY_CACHE to another directory"
        )
    free = shutil.disk_usage(there).free
    says = f"{free / 1024**3:.1f} GiB free at {cache}"
    if free < LITTLE_DISK:
        return Finding("cache", Grade.BAD, says, "Make room, or set CONVOY_CACHE to another disk")
    return good("cache", says)
