"""The services that `convoy up` and the tests start: they answer, keep what they should, and stop."""

import asyncio
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from redis.exceptions import RedisError

from codeconvoy.orchestrator.broker_admin import BrokerAdmin
from codeconvoy.orchestrator.choosers import Places, choose_broker, choose_redis
from codeconvoy.orchestrator.local_fleet import only_here
from codeconvoy.orchestrator.redis_client import open_redis
from codeconvoy.orchestrator.services import LocalKafka, LocalRedis, kafka_answers, kafka_jars, redis_answers
from codeconvoy.schemas.errors import Unavailable
from codeconvoy.workers.engine.bus import Committed, Outgoing, TopicPartition
from codeconvoy.workers.engine.kafka_bus import KafkaBus
from tests.contract.test_bus import Listener, joined, values
from tests.contract.worlds import read_all
from tests.fleets import until
from tests.services import jar_cache

NOBODY = "127.0.0.1:1"
LEFT_OVER_SECONDS = 90.0
IMPORTS = (
    "import os, sys; from pathlib import Path; "
    "from codeconvoy.orchestrator.choosers import Places, choose_redis; "
    "from codeconvoy.orchestrator.services import LocalKafka; "
    "paths = [Path(path) for path in sys.argv[1:]]"
)


def places(data: Path) -> Places:
    return Places(data, jar_cache(), Path(__file__).parents[2] / "deploy" / "compose.yaml")


def test_the_embedded_broker_commits_offsets_and_outputs(tmp_path: Path) -> None:
    chosen = choose_broker(NOBODY, places(tmp_path), "embedded")
    assert (chosen.kind, chosen.embedded) == ("embedded", True)

    async def test() -> None:
        bus = KafkaBus({"bootstrap.servers": chosen.bootstrap, "group.protocol": "consumer"}, embedded=True)
        await bus.create_topics({"t": {}}, 4)
        assert await bus.partition_counts(["t"]) == {"t": 4}
        producer, at = await bus.producer("p"), TopicPartition("t", 0)
        member = await joined(bus, "g", "t", Listener())
        await producer.transaction([Outgoing("t", "k", b"one", partition=0)])
        assert values(await member.records(1)) == ["one"]
        token = await member.consumer.group_token()
        await producer.transaction(
            [Outgoing("t", "k", b"two", partition=0)], {at: Committed(1, "m")}, "g", token
        )
        await member.consumer.close()
        again = Listener()
        member = await joined(bus, "g", "t", again)
        assert again.committed[at] == Committed(1, "m")
        assert values(await member.records(1)) == ["two"]
        await bus.close()

    asyncio.run(test())
    chosen.stop()
    assert not kafka_answers({"bootstrap.servers": chosen.bootstrap})


def are_told(admin: BrokerAdmin, group: str) -> bool:
    """Whether the broker tells who is in the group."""
    try:
        return bool(admin.members([group]))
    except Unavailable:
        return False


def test_a_real_broker_is_started_and_survives_a_kill(tmp_path: Path) -> None:
    chosen = choose_broker("", places(tmp_path), "kafka")
    settings = {"bootstrap.servers": chosen.bootstrap}
    topic, at = tmp_path.name, TopicPartition(tmp_path.name, 0)

    async def write() -> None:
        bus = KafkaBus(settings)
        await bus.create_topics({topic: {}}, 1)
        await (await bus.producer("p")).transaction([Outgoing(topic, "k", b"kept")])
        # Read back, so that its marker is on the log: see LocalKafka for what a kill before that does.
        assert values(await read_all(bus.reader(), at)) == ["kept"]
        await bus.close()

    async def read() -> list[str]:
        bus = KafkaBus(settings)
        found = values(await read_all(bus.reader(), at))
        await bus.close()
        return found

    try:
        assert chosen.kind in ("docker", "local")
        asyncio.run(write())
        if isinstance(chosen.service, LocalKafka):
            admin = BrokerAdmin(settings, 1.0)
            chosen.service.kill()
            assert not kafka_answers(settings)
            with pytest.raises(Unavailable):
                admin.members(["g"])
            chosen.service.start()
            # A client that had asked about a group meanwhile would now abort this process.
            until(lambda: are_told(admin, "g"), "the group's coordinator is back")
        assert asyncio.run(read()) == ["kept"]
    finally:
        chosen.stop()


def test_an_address_that_was_given_is_never_passed_over(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="CONVOY_KAFKA"):
        choose_broker(NOBODY, places(tmp_path))
    with pytest.raises(Unavailable, match="CONVOY_REDIS"):
        choose_redis(f"redis://{NOBODY}/0", places(tmp_path))


def test_services_that_were_given_are_used_and_left_running(
    kafka: str, redis_server: str, tmp_path: Path
) -> None:
    broker, redis = choose_broker(kafka, places(tmp_path)), choose_redis(redis_server, places(tmp_path))
    assert (broker.kind, broker.bootstrap, redis.kind, redis.url) == ("given", kafka, "given", redis_server)
    broker.stop()
    redis.stop()
    assert kafka_answers({"bootstrap.servers": kafka}, 5.0)
    assert redis_answers(redis_server)


def test_redis_starts_without_docker_and_stops(tmp_path: Path) -> None:
    chosen = choose_redis("", places(tmp_path), "embedded")
    assert chosen.kind in ("local", "embedded")
    assert redis_answers(chosen.url)
    chosen.stop()
    assert not redis_answers(chosen.url)


def test_a_client_goes_on_as_soon_as_a_killed_redis_is_back(tmp_path: Path) -> None:
    chosen = choose_redis("", places(tmp_path), "embedded")
    assert isinstance(chosen.service, LocalRedis)
    service = chosen.service

    async def test() -> None:
        client = open_redis(chosen.url)

        async def pings() -> list[bool]:
            return await asyncio.gather(*(client.ping() for _ in range(5)))

        assert all(await pings())
        service.kill()
        with pytest.raises(RedisError):
            await client.ping()
        service.start()
        assert all(await pings())
        await client.aclose()

    asyncio.run(test())
    chosen.stop()


def left_over(start: str, *arguments: str | Path) -> tuple[psutil.Process, str]:
    """What a program started here that was killed, and its address. `start` sets `service` and `address`."""
    program = f"{start}; print(service._daemon.pid, address, flush=True); os.kill(os.getpid(), 9)"
    argv = [sys.executable, "-c", f"{IMPORTS}; {program}", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LEFT_OVER_SECONDS)
    assert done.returncode == -9, done.stderr
    pid, address = done.stdout.split()
    return psutil.Process(int(pid)), address


def ended(process: psutil.Process) -> bool:
    """Whether it has, be it that nobody has waited for it yet."""
    return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)


def test_a_redis_that_was_left_over_is_ended_by_the_next_fleet(tmp_path: Path) -> None:
    start = (
        "chosen = choose_redis('', Places(*paths), 'embedded'); service, address = chosen.service, chosen.url"
    )
    old, url = left_over(start, tmp_path, jar_cache())
    assert redis_answers(url)
    with only_here(tmp_path):
        assert ended(old) and not redis_answers(url)
    old, url = left_over(start, tmp_path, jar_cache())
    assert redis_answers(url)
    chosen = choose_redis("", places(tmp_path), "embedded")
    assert ended(old) and not redis_answers(url) and redis_answers(chosen.url)
    chosen.stop()


def test_a_kafka_that_was_left_over_is_ended_before_the_next_has_its_data(tmp_path: Path) -> None:
    jars, data = kafka_jars(jar_cache()), tmp_path / "kafka"
    start = "service = LocalKafka(*paths); service.start(); address = service.bootstrap"
    old, address = left_over(start, jars, data)
    settings = {"bootstrap.servers": address}
    assert kafka_answers(settings, 5.0)

    async def topics(at: str, *create: str) -> dict[str, int]:
        bus = KafkaBus({"bootstrap.servers": at})
        await bus.create_topics({name: {} for name in create}, 1)
        found = await bus.partition_counts(["kept"])
        await bus.close()
        return dict(found)

    asyncio.run(topics(address, "kept"))
    new = LocalKafka(jars, data)
    new.start()
    try:
        assert ended(old) and not kafka_answers(settings)
        assert asyncio.run(topics(new.bootstrap)) == {"kept": 1}
    finally:
        new.stop()
    old, _ = left_over(start, jars, data)
    with only_here(tmp_path):
        assert ended(old)


def test_no_broker_is_said_with_the_reason() -> None:
    async def test() -> None:
        bus = KafkaBus({"bootstrap.servers": NOBODY})
        with pytest.raises(Unavailable, match="refused"):
            await bus.partition_counts(["t"])
        with pytest.raises(Unavailable, match="refused"):
            await bus.producer("p")
        with pytest.raises(Unavailable, match="refused"):
            await bus.create_topics({"t": {}}, 1)
        with pytest.raises(Unavailable, match="refused"):
            await bus.reader().watermarks(TopicPartition("t", 0))
        await bus.close()

    asyncio.run(test())
