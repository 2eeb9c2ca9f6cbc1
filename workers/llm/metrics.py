"""Writes Prometheus metrics: model calls of a process. No job id, path or prompt is a label."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from codeconvoy.workers.engine.metrics import CALL_BUCKETS
from codeconvoy.workers.llm.prompts import Prompt
from codeconvoy.workers.llm.spent import MovedCalls


class ModelMetrics:
    """The metrics of all model calls in one process, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        model = ["model"]
        self.calls = Counter(
            "convoy_model_calls",
            "HTTP requests to models, by outcome",
            [*model, "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "convoy_model_call_seconds",
            "Duration of one request",
            model,
            registry=registry,
            buckets=CALL_BUCKETS,
        )
        self.tokens = Counter(
            "convoy_model_tokens", "Tokens in, cached and out", [*model, "kind"], registry=registry
        )
        self.replies = Counter(
            "convoy_recorded_replies",
            "Calls that were answered from a kept reply (hit), by another's call (wait), made (miss), or "
            "made without Redis (away)",
            ["how"],
            registry=registry,
        )
        self.kept = Counter(
            "convoy_kept_calls",
            "Calls whose copy was kept, was kept without a text that is too_large, or was not: dropped with "
            "too many at once, away without Redis",
            ["how"],
            registry=registry,
        )
        self.line_seconds = Histogram(
            "convoy_rate_limit_wait_seconds",
            "Wait for a place in line",
            model,
            registry=registry,
            buckets=CALL_BUCKETS,
        )
        self.flaws = Counter(
            "convoy_answer_flaws",
            "Answers that were not accepted, by their flaw",
            ["flaw"],
            registry=registry,
        )
        self.failovers = Counter(
            "convoy_provider_failovers",
            "Tasks for which the next provider was asked, and why",
            ["provider", "following", "why"],
            registry=registry,
        )
        self.left_out = Counter(
            "convoy_prompt_files_left_out",
            "Files that did not fit into a prompt: that its task names (shown), or of its map (mapped)",
            ["of"],
            registry=registry,
        )
        self.breakers = Gauge(
            "convoy_breaker_state",
            "1 for the state that a model's circuit breaker is in, 0 for the others",
            ["provider", "state"],
            registry=registry,
        )
        self.spent = Counter(
            "convoy_model_spent_usd",
            "Dollars by model: what servers told (told), and the most that a request can have cost of which "
            "nobody knows (assumed)",
            [*model, "how"],
            registry=registry,
        )
        self.budget = Counter(
            "convoy_budget",
            "Calls that waited for others of their job (waited), that a budget had nothing left for "
            "(refused), or that count in full (unsettled); budgets read from the log for a job's first "
            "call (opened) and after they were lost (rebuilt)",
            ["what"],
            registry=registry,
        )
        self.shared = Gauge(
            "convoy_shared_limits",
            "1 while breakers and rates are the fleet's, 0 while they are this process's own",
            registry=registry,
        )
        self.moved = MovedCalls(registry)

    def saw(self, prompt: Prompt) -> None:
        """Count what did not fit into a prompt."""
        self.left_out.labels("shown").inc(prompt.files_left_out)
        self.left_out.labels("mapped").inc(prompt.unmapped)
