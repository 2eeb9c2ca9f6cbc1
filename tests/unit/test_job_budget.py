"""What a job has spent, as its log says, and how it ends when its budget is used up."""

import msgspec
import pytest

from codeconvoy.schemas import budget
from codeconvoy.schemas.budget import Amounts, Ledger, OpenCall
from codeconvoy.schemas.events import Strategy
from codeconvoy.schemas.job_facts import CallBegun, CallEnded, JobStatus, VerdictKind
from codeconvoy.schemas.job_fold import fold
from codeconvoy.schemas.job_spec import Budget
from codeconvoy.schemas.job_state import JobState, TaskStatus
from codeconvoy.schemas.tasks import EditWork, PlanWork, PublishWork, ResolveWork, ReviewWork
from tests.job_world import EDITS_ONLY, JobWorld, spec

WORST = Amounts(nano_usd=100, tokens=10, ms=1_000)
LITTLE = Amounts(nano_usd=30, tokens=3, ms=500)
BUDGET = Budget(usd=5.0)
REASON = "the budget is used up: $4.99 of $5.00"


def begun(call_id: str, worst: Amounts = WORST) -> CallBegun:
    return CallBegun(call_id=call_id, task_id="t", round=1, worst=worst)


def running(*paths: str, **fields: object) -> JobWorld:
    world = JobWorld(spec(budget=BUDGET, **fields))
    world.imports(*paths)
    return world


# The ledger ---------------------------------------------------------------------------------------


def test_a_call_counts_in_full_until_it_has_ended() -> None:
    world = running("a.py")
    world.say(begun("one"), begun("two"))
    assert world.state.ledger.total == WORST + WORST
    assert world.state.ledger.open["one"] == OpenCall(
        worst=WORST, until=world.now + 1_000 + 1000 * budget.GRACE_SECONDS
    )
    world.say(CallEnded(call_id="one", spent=LITTLE))
    assert world.state.ledger.spent == LITTLE
    assert world.state.ledger.total == LITTLE + WORST
    assert world.state.ledger.calls == 2


def test_what_is_told_twice_or_of_no_call_counts_once_or_not_at_all() -> None:
    world = running("a.py")
    ended = CallEnded(call_id="one", spent=LITTLE)
    world.say(ended, begun("one"), begun("one"), ended, ended)
    assert world.state.ledger == Ledger(spent=LITTLE, calls=1)


def test_what_a_call_cost_is_heard_after_the_end_too() -> None:
    world = running("a.py")
    world.say(begun("one"))
    world.cancel()
    world.publishes()
    assert world.state.ended
    world.say(CallEnded(call_id="one", spent=LITTLE))
    assert world.state.ledger.total == LITTLE


def test_the_ledger_is_bounded_and_forgets_no_money() -> None:
    ledger = Ledger()
    for number in range(budget.MAX_OPEN_CALLS + 5):
        ledger = budget.began(ledger, str(number), WORST, 0)
    assert len(ledger.open) == budget.MAX_OPEN_CALLS and "4" not in ledger.open
    assert ledger.total.tokens == 10 * (budget.MAX_OPEN_CALLS + 5)
    assert ledger.spent.tokens == 50


def test_a_call_of_a_job_that_nobody_submitted_is_nothing() -> None:
    world = JobWorld()
    world.say(begun("one"))
    assert world.state.ledger == Ledger()


@pytest.mark.parametrize(
    ("amounts", "caps", "over"),
    [
        (Amounts(nano_usd=5_000_000_000), Budget(usd=5.0), False),
        (Amounts(nano_usd=5_000_000_001), Budget(usd=5.0), True),
        (Amounts(tokens=101), Budget(tokens=100), True),
        (Amounts(tokens=100, nano_usd=10**18, ms=10**9), Budget(tokens=100), False),
        (Amounts(ms=10_001), Budget(seconds=10), True),
        (Amounts(nano_usd=2), Budget(usd=1e-12), True),
        (Amounts(nano_usd=10**18, tokens=10**18, ms=10**18), Budget(), False),
    ],
)
def test_each_cap_holds_to_the_last_unit(amounts: Amounts, caps: Budget, over: bool) -> None:
    assert budget.exceeds(amounts, caps) is over
    assert budget.has_cap(caps) is (caps != Budget())


def test_amounts_are_shown_beside_their_caps() -> None:
    spent = Amounts(nano_usd=420_000, tokens=1_234, ms=2_500)
    shown = budget.of_budget(spent, Budget(usd=5.0, tokens=10_000, seconds=60))
    assert shown == "$0.00042 of $5.00, 1,234 of 10,000 tokens, 2.5 of 60 model seconds"


# The end ------------------------------------------------------------------------------------------


def test_the_budget_travels_with_every_task() -> None:
    world = running("a.py")
    assert {task.budget for task in world.queue} == {BUDGET}


def test_at_the_cap_what_is_in_flight_is_finished_and_nothing_more_is_dispatched() -> None:
    world = running("a.py", "b.py", "c.py")
    world.fail(world.one(EditWork, "a.py")[0], REASON, over_budget=True)
    assert world.state.status is JobStatus.RUNNING
    world.writes(world.one(EditWork, "b.py"))
    assert world.doing() == ["EditWork"], "nobody is asked for a review any more"
    world.writes(world.one(EditWork, "c.py"))
    assert world.doing() == ["PublishWork"]
    _, work = world.one(PublishWork)
    assert work.paths == ("a.py", "b.py", "c.py")
    world.publishes()
    world.ended(JobStatus.BUDGET_EXHAUSTED, REASON)


def test_the_others_that_are_refused_end_without_another_round() -> None:
    world = running("a.py", "b.py")
    for path in ("a.py", "b.py"):
        world.fail(world.one(EditWork, path)[0], REASON, over_budget=True, retryable=True)
    assert world.doing() == ["PublishWork"]
    assert [state.task.round for state in world.state.tasks.values()] == [1] * 4
    world.publishes()
    world.ended(JobStatus.BUDGET_EXHAUSTED, REASON)


def test_an_edit_that_is_refused_at_the_end_is_not_done_again() -> None:
    world = running("a.py", "b.py")
    world.fail(world.one(EditWork, "a.py")[0], REASON, over_budget=True)
    world.writes(world.one(EditWork, "b.py"), kind=VerdictKind.STALE)
    assert world.doing() == ["PublishWork"]
    assert [s.status for s in world.state.tasks.values() if s.task.path == "b.py"] == [TaskStatus.FAILED]


def test_work_in_flight_that_forks_is_joined_before_the_end() -> None:
    world = running("a.py", "b.py", pipeline=EDITS_ONLY)
    world.fail(world.one(EditWork, "b.py")[0], REASON, over_budget=True)
    task, _ = world.one(EditWork, "a.py")
    world.writes((task, task.work), kind=VerdictKind.FORKED, heads=("other", "mine"))
    assert world.doing() == []
    world.forks("a.py", task.task_id, strategy=Strategy.THREE_WAY)
    assert world.doing() == []
    world.settles("a.py", "joined")
    assert world.doing() == ["PublishWork"]


def test_the_end_waits_for_no_person_and_for_no_rework() -> None:
    world = running("a.py", "b.py", pipeline=EDITS_ONLY)
    world.fail(world.one(EditWork, "b.py")[0], REASON, over_budget=True)
    task, _ = world.one(EditWork, "a.py")
    world.writes((task, task.work), kind=VerdictKind.FORKED, heads=("other", "mine"))
    world.forks("a.py", task.task_id)
    assert world.open(ResolveWork) == []
    assert world.doing() == [], "it is given back, and its next strategy is to come"
    world.forks("a.py", task.task_id, strategy=Strategy.HUMAN, attempt=2)
    assert world.doing() == ["PublishWork"]


def test_a_planner_that_is_refused_ends_the_job_by_its_budget() -> None:
    world = running("a.py", planner="planner")
    world.fail(world.one(PlanWork)[0], REASON, over_budget=True)
    world.publishes()
    world.ended(JobStatus.BUDGET_EXHAUSTED, REASON)


def test_a_review_that_is_refused_leaves_what_was_accepted() -> None:
    world = running("a.py")
    world.writes(world.one(EditWork))
    world.fail(world.one(ReviewWork)[0], REASON, over_budget=True)
    assert world.doing() == ["PublishWork"]


@pytest.mark.parametrize("how", ["cancelled", "timed out", "no answer"])
def test_who_does_not_want_to_wait_for_what_is_in_flight_need_not(how: str) -> None:
    world = running("a.py", "b.py")
    world.fail(world.one(EditWork, "a.py")[0], REASON, over_budget=True)
    if how == "cancelled":
        world.cancel()
    elif how == "timed out":
        world.now = world.state.deadline
        world.deadline()
    else:
        while world.open(EditWork):
            assert world.deadline()
    assert world.doing() == ["PublishWork"]
    world.publishes()
    world.ended(JobStatus.BUDGET_EXHAUSTED, REASON)


def test_git_may_still_be_asked_again_at_the_end() -> None:
    world = running("a.py")
    world.fail(world.one(EditWork)[0], REASON, over_budget=True)
    world.fail(world.one(PublishWork)[0], "busy", retryable=True)
    assert world.one(PublishWork)[0].round == 2


def test_every_replica_comes_to_the_same_end() -> None:
    world = running("a.py", "b.py")
    world.say(begun("one"))
    world.fail(world.one(EditWork, "a.py")[0], REASON, over_budget=True)
    world.writes(world.one(EditWork, "b.py"))
    world.publishes()
    state = JobState(job_id=world.state.job_id)
    for fact in world.log:
        state, _ = fold(state, fact)
    assert msgspec.msgpack.encode(state.ledger) == msgspec.msgpack.encode(world.state.ledger)
    assert (state.status, state.reason) == (world.state.status, world.state.reason)
