"""Writes Prometheus metrics: the figures of the engines of a process. No job id or path is a label."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

CALL_BUCKETS = (0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
"""Seconds; model calls last from one to a hundred seconds."""
COMMIT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
BATCH_BUCKETS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500)


class Families:
    """The metrics of all engines in one process, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"convoy_{name}", text, ["service"], registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"convoy_{name}", text, ["service"], registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"convoy_{name}", text, ["service"], registry=registry, buckets=buckets)

        self.records = counter("records", "Records handled")
        self.outputs = counter("outputs", "Records written")
        self.transactions = counter("transactions", "Committed transactions")
        self.aborts = counter("transaction_aborts", "Aborted transactions")
        self.dead_letters = counter("dead_letters", "Records that were given up")
        self.rebalances = counter("rebalances", "Assignments and revocations")
        self.stopped = gauge("stopped_partitions", "Partitions that can't go on")
        self.in_flight = gauge("in_flight", "Tasks being worked on")
        self.queued = gauge("queued", "Tasks read and not begun")
        self.blocked = gauge("blocked_keys", "Keys that wait for a retry")
        self.look_ahead = gauge("look_ahead", "Records read and not committed")
        self.lag = gauge("lag", "Records of the topic behind the last one read")
        self.duplicates = counter("duplicates_skipped", "Records that were done already when they were read")
        self.commit_seconds = histogram("commit_seconds", "Duration of a commit", COMMIT_BUCKETS)
        self.batch = histogram("batch_records", "Records done by one transaction", BATCH_BUCKETS)
        self.task_seconds = histogram("task_seconds", "Duration of a task's work", CALL_BUCKETS)


class EngineMetrics:
    """The metrics of one engine: those of the process, under the engine's name."""

    def __init__(self, families: Families, service: str) -> None:
        self.records = families.records.labels(service)
        self.outputs = families.outputs.labels(service)
        self.transactions = families.transactions.labels(service)
        self.aborts = families.aborts.labels(service)
        self.dead_letters = families.dead_letters.labels(service)
        self.rebalances = families.rebalances.labels(service)
        self.stopped = families.stopped.labels(service)
        self.in_flight = families.in_flight.labels(service)
        self.queued = families.queued.labels(service)
        self.blocked = families.blocked.labels(service)
        self.look_ahead = families.look_ahead.labels(service)
        self.lag = families.lag.labels(service)
        self.duplicates = families.duplicates.labels(service)
        self.commit_seconds = families.commit_seconds.labels(service)
        self.batch = families.batch.labels(service)
        self.task_seconds = families.task_seconds.labels(service)
