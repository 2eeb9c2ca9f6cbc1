"""A budget is never overshot, however its workers take turns, die, and lose the state they share.

Each worker makes calls, a step at a time: hold, write to the log, look once more, send, write what it
cost, settle. Between any two steps another worker may take its turn, die for ever, the time may go on, or
the cell may be lost. What was really spent is counted where a request is sent.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from codeconvoy.schemas import budget
from codeconvoy.schemas.budget import Amounts, Ledger, exceeds
from codeconvoy.schemas.job_spec import Budget
from codeconvoy.workers.llm.budget_state import (
    Admission,
    BudgetState,
    begin_reading,
    confirm,
    end_reading,
    reserve,
    settle,
)

R = TypeVar("R")
CAP = Budget(tokens=100)
READING_SECONDS = 20.0
Steps = Generator[None, None, None]


def tokens(number: int) -> Amounts:
    return Amounts(tokens=number, ms=5_000)


@dataclass
class Job:
    """One job: its cell, its log, and what it has really spent."""

    cell: BudgetState | None = None
    log: Ledger = field(default_factory=Ledger)
    now: float = 1_000.0
    spent: Amounts = field(default_factory=Amounts)
    committed: dict[str, Amounts] = field(default_factory=dict)
    """The worst case of each call that may be made, from then on until it has been."""
    admitted: int = 0
    names: Iterator[int] = field(default_factory=count)

    def change(self, change: Callable[[BudgetState | None, float], tuple[BudgetState, R]]) -> R:
        self.cell, answer = change(self.cell, self.now)
        return answer

    def call(self, worst: Amounts, cost: Amounts) -> Steps:
        """A call that costs so much if it is made. Each `yield` is a point where anything may happen."""
        call_id = f"call {next(self.names)}"
        while True:
            admission, epoch, _ = self.change(lambda s, now: reserve(s, now, CAP, call_id, worst))
            if admission is Admission.REFUSED:
                return
            if admission is Admission.HELD:
                break
            yield
            if admission is Admission.LOST:
                yield from self.read()
        yield
        self.log = budget.began(self.log, call_id, worst, int(1000 * self.now))
        yield
        may = self.change(lambda s, now: confirm(s, now, call_id, epoch))
        paid = Amounts()
        if may:
            self.admitted += 1
            self.committed[call_id] = worst
            yield
            del self.committed[call_id]
            self.spent += (paid := cost)
        yield
        self.log = budget.ended(self.log, call_id, paid)
        yield
        self.change(lambda s, now: settle(s, now, call_id, paid))

    def read(self) -> Steps:
        """Read the state from the log."""
        epoch = f"epoch {next(self.names)}"
        if not self.change(lambda s, now: begin_reading(s, now, epoch, READING_SECONDS)):
            return
        yield
        read = self.log
        yield
        self.change(lambda s, now: end_reading(s, now, epoch, read))

    def check(self) -> None:
        most = budget.total(self.spent, self.committed.values())
        assert not exceeds(most, CAP), f"{most} of {CAP}"


calls = st.integers(1, 40).flatmap(lambda worst: st.tuples(st.just(worst), st.integers(0, worst)))
WORLDS = 3_000
WORKERS = 4


def play(seed: int) -> None:
    """One world: workers that take turns by chance, and the misfortunes that chance has for them."""
    random, job = Random(seed), Job()
    misfortune = random.choice([0.0, 0.02, 0.1])

    def work() -> Steps:
        for _ in range(4):
            worst = random.randint(20, 60)
            yield from job.call(tokens(worst), tokens(random.choice([worst, worst, worst // 3])))
            yield

    workers = [work() for _ in range(WORKERS)]
    for _ in range(400):
        if random.random() >= misfortune:
            next(random.choice(workers), None)
        else:
            match random.choice(["lose", "lose", "later", "die"]):
                case "lose":
                    job.cell = None
                case "later":
                    job.now += random.choice([7.0, 50.0])
                case "die":
                    workers[random.randrange(WORKERS)] = work()
        job.check()


def test_no_interleaving_overshoots() -> None:
    for seed in range(WORLDS):
        try:
            play(seed)
        except AssertionError as error:
            raise AssertionError(f"world {seed}: {error}") from error


@given(st.lists(calls, min_size=1, max_size=12))
def test_where_nothing_is_lost_the_whole_budget_can_be_spent(planned: list[tuple[int, int]]) -> None:
    """Every call that fits is made: the state forgets nothing, and holds nothing for ever."""
    job = Job()
    for worst, cost in planned:
        fits = not exceeds(job.spent + tokens(worst), CAP)
        before = job.admitted
        for _ in job.call(tokens(worst), tokens(cost)):
            job.check()
        assert (job.admitted > before) is fits
    assert job.cell is not None and not job.cell.held
    assert job.cell.spent == job.log.total == job.spent


@given(st.lists(calls, min_size=2, max_size=8))
def test_what_the_dead_held_counts_as_spent_after_their_time(planned: list[tuple[int, int]]) -> None:
    job = Job()
    for worst, cost in planned:
        steps = job.call(tokens(worst), tokens(cost))
        for _ in range(6):
            next(steps, None)
    held = dict(job.cell.held) if job.cell else {}
    job.now += 5 + budget.GRACE_SECONDS + 1
    _, (admission, _, spent) = reserve(job.cell, job.now, CAP, "another", tokens(100))
    assert admission is (Admission.REFUSED if held else Admission.HELD) or spent.tokens > 0
    assert spent.tokens >= sum(hold.worst.tokens for hold in held.values())


def test_a_call_is_not_made_for_the_word_of_a_state_before_the_last() -> None:
    """It was held by a state that is lost, written late, and so is in the state after the next one, which
    also has what was admitted in its absence."""
    job = Job()
    first, second = job.call(tokens(60), tokens(60)), job.call(tokens(60), tokens(60))
    next(first)  # lost
    for _ in job.read():
        pass
    next(first)  # held
    job.cell = None
    for _ in range(6):
        next(second)  # reads, is held, on the log, and may be made
    assert list(job.committed) == ["call 1"] or job.admitted == 1
    job.cell = None
    next(first)  # on the log
    for _ in job.read():
        pass
    assert job.cell is not None and set(job.cell.held) >= {"call 0"}
    for steps in (first, second):
        for _ in steps:
            job.check()
    assert job.admitted == 1
