"""Writes Prometheus metrics: the figures of the engines of a process. No job id or path is a label."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

CALL_BUCKETS = (0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
"""Seconds; model calls last from one to a hundred seconds."""


class Families:
    """The metrics of all engines in one process, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"convoy_{name}", text, ["service"], registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"convoy_{name}", text, ["service"], registry=registry)

        self.records = counter("records", "Records handled")
        self.outputs = counter("outputs", "Records written")
        self.transactions = counter("transactions", "Committed transactions")
        self.aborts = counter("transaction_aborts", "Aborted transactions")
        self.dead_letters = counter("dead_letters", "Records that were given up")
        self.rebalances = counter("rebalances", "Assignments and revocations")
        self.stopped = gauge("stopped_partitions", "Partitions that can't go on")
        self.in_flight = gauge("in_flight", "Tasks being worked on")
        self.queued = gauge("queued", "Tasks read and not begun")
        self.task_seconds = Histogram(
            "convoy_task_seconds",
            "Duration of a task's work",
            ["service"],
            registry=registry,
            buckets=CALL_BUCKETS,
        )


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
        self.task_seconds = families.task_seconds.labels(service)
