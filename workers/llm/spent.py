"""Writes Prometheus metrics: what model calls cost whose base has moved. No job id or path is a label.

A cancelled call's usage is never told. its input counts as spent, as far as it can be guessed; what it
did not generate any more counts as saved, as much as the role's finished calls generated on average.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

from codeconvoy.schemas.events import Usage
from codeconvoy.schemas.tasks import Task
from codeconvoy.workers.llm.provider import Call, input_tokens


@dataclass(slots=True, eq=False)
class Spent:
    """Tokens of one go at a task."""

    role: str
    used: int = 0
    """Of its finished calls, in and out, and the input of cancelled ones."""
    cut_short: int = 0
    """Calls that were cancelled."""


@dataclass(slots=True)
class _Finished:
    calls: int = 0
    tokens_out: int = 0


class MovedCalls:
    """Counts what moved files cost the tasks of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "convoy_moved_calls",
            "Calls under which a file moved that they had been shown, by what became of them",
            ["role", "policy"],
            registry=registry,
        )
        self._tokens = Counter(
            "convoy_moved_tokens",
            "Tokens wasted on a base that moved (cancelled calls; edits done again), or saved by cancelling",
            ["role", "what"],
            registry=registry,
        )
        self._goes: dict[tuple[str, int], Spent] = {}
        """By task and round."""
        self._finished: dict[str, _Finished] = {}
        """By role."""

    @contextmanager
    def go(self, task: Task) -> Iterator[Spent]:
        """One go at a task: what its calls use is added up."""
        key, spent = (task.task_id, task.round), Spent(task.role)
        self._goes[key] = spent
        try:
            yield spent
        finally:
            if self._goes.get(key) is spent:
                del self._goes[key]

    def _go_of(self, request: Call) -> Spent | None:
        origin = request.origin
        return self._goes.get((origin.task_id, origin.round)) if origin is not None else None

    def finished(self, request: Call, usage: Usage) -> None:
        """A request was answered."""
        if (spent := self._go_of(request)) is not None:
            spent.used += usage.tokens_in + usage.tokens_out
            finished = self._finished.setdefault(spent.role, _Finished())
            finished.calls += 1
            finished.tokens_out += usage.tokens_out

    def cancelled(self, request: Call) -> None:
        """A request was cancelled before its answer was there."""
        if (spent := self._go_of(request)) is not None:
            spent.used += input_tokens(request)
            spent.cut_short += 1

    def moved(self, role: str, policy: str) -> None:
        """A file moved under a call."""
        self._calls.labels(role, policy).inc()

    def restarted(self, spent: Spent) -> None:
        """A go came to nothing, since it is begun anew."""
        done = self._finished.get(spent.role)
        average = done.tokens_out / done.calls if done is not None else 0.0
        self._tokens.labels(spent.role, "saved").inc(average * spent.cut_short)
        self.wasted(spent.role, spent.used)

    def wasted(self, role: str, tokens: int) -> None:
        """Tokens came to nothing because of a file that moved."""
        self._tokens.labels(role, "wasted").inc(tokens)
