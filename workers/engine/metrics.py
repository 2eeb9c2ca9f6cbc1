"""Writes Prometheus metrics: the figures of an engine. No job id or path is ever a label."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

CALL_BUCKETS = (0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
"""Seconds; model calls last from one to a hundred seconds."""


class EngineMetrics:
    """The metrics of one engine in one process, in the given registry."""

    def __init__(self, registry: CollectorRegistry, service: str) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"convoy_{name}", text, ["service"], registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"convoy_{name}", text, ["service"], registry=registry)

        self.records = counter("records", "Records handled").labels(service)
        self.outputs = counter("outputs", "Records written").labels(service)
        self.transactions = counter("transactions", "Committed transactions").labels(service)
        self.aborts = counter("transaction_aborts", "Aborted transactions").labels(service)
        self.dead_letters = counter("dead_letters", "Records that were given up").labels(service)
        self.rebalances = counter("rebalances", "Assignments and revocations").labels(service)
        self.stopped = gauge("stopped_partitions", "Partitions that can't go on").labels(service)
        self.in_flight = gauge("in_flight", "Tasks being worked on").labels(service)
        self.queued = gauge("queued", "Tasks read and not begun").labels(service)
        self.failures = counter("task_failures", "Tasks that failed").labels(service)
        self.task_seconds = Histogram(
            "convoy_task_seconds",
            "Duration of a task's work",
            ["service"],
            registry=registry,
            buckets=CALL_BUCKETS,
        ).labels(service)
