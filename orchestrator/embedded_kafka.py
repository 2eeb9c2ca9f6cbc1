"""Reads its standard input until that closes, writes its address: a process that hosts a mock Kafka.

`python -m codeconvoy.orchestrator.embedded_kafka` starts librdkafka's mock cluster, which is part of
the confluent-kafka wheel, prints `127.0.0.1:PORT` and lives until its standard input closes (its
parent's end closes it too) or SIGTERM. It keeps everything in memory, see `KafkaBus(embedded=True)`
for what it lacks.
"""

import signal
import sys
from types import FrameType

from confluent_kafka import Producer

_READY_SECONDS = 10.0


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> None:
    """Host the cluster."""
    signal.signal(signal.SIGTERM, _end)
    # The client that sets test.mock.num.brokers owns the cluster: it must be kept as long as that.
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 3})
    brokers = owner.list_topics(timeout=_READY_SECONDS).brokers.values()
    address = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    sys.stdout.write(address + "\n")
    sys.stdout.flush()
    while sys.stdin.buffer.read(4096):
        pass


if __name__ == "__main__":
    main()
