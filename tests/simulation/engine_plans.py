"""Reads a seed, writes nothing: the tasks of a world of the two engines alone, drawn from the seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from random import Random

from tests.simulation.world import Storm

KEYS = ("a", "b", "c", "d", "e", "f", "g", "h", "i")


class Mood(StrEnum):
    """What a task is like."""

    QUICK = "quick"
    SLOW = "slow"
    AWAY = "away"
    """What it needs is away, a few times."""
    BEHIND = "behind"
    """It has to see the effect of its predecessor of the same key, and waits for it."""
    PATIENT = "patient"
    """What it needs is away until every task of a key without such a task has taken effect."""
    GARBAGE = "garbage"
    """Nobody can read it."""
    UNKNOWN = "unknown"
    """A later version may be able to read it."""
    POISON = "poison"
    """The handler raises."""
    KILLER = "killer"
    """Its process dies of it, always."""
    HUGE = "huge"
    """Its output is over the cap."""
    REFUSED = "refused"
    """Its output is over what the topic takes, as only the broker knows."""


TROUBLE = (Mood.GARBAGE, Mood.UNKNOWN, Mood.POISON, Mood.KILLER, Mood.HUGE, Mood.REFUSED)
GIVEN_UP: Mapping[Mood, str] = {
    Mood.POISON: "poison",
    Mood.KILLER: "poison",
    Mood.HUGE: "too_large",
    Mood.REFUSED: "refused",
}
"""Tasks that end as a dead letter, and the letter's reason."""


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One task. Times are seconds."""

    number: int
    key: str
    mood: Mood
    at: float
    """When it is submitted."""
    seconds: float
    """How long it takes."""
    failures: int = 0
    also: str = ""
    """Another key that it writes to."""

    @property
    def is_readable(self) -> bool:
        """Whether it has an effect on the log, if only the word that it was given up."""
        return self.mood not in (Mood.GARBAGE, Mood.UNKNOWN)


@dataclass(frozen=True)
class EnginePlan:
    """One simulation of the two engines."""

    seed: int
    partitions: int
    tasks: Sequence[TaskPlan]
    foreign: Sequence[TaskPlan]
    """What somebody else writes to the events: garbage, and what a later version may read."""
    workers: int
    counters: int
    slots: Sequence[int]
    """What is drawn from for each worker."""
    look_ahead: Sequence[int]
    retry_seconds: float
    storm: Storm

    @cached_property
    def by_key(self) -> Mapping[str, Sequence[TaskPlan]]:
        """The readable tasks of each key, in their order."""
        return {
            key: [task for task in self.tasks if task.key == key and task.is_readable]
            for key in dict.fromkeys(task.key for task in self.tasks)
        }

    @cached_property
    def unhurried(self) -> frozenset[int]:
        """The tasks that no patient one may hold up: those of all other keys."""
        patient = {task.key for task in self.tasks if task.mood is Mood.PATIENT}
        return frozenset(task.number for task in self.tasks if task.key not in patient and task.is_readable)

    def before(self, task: TaskPlan) -> TaskPlan | None:
        """The readable task of the same key that stands before this one."""
        earlier = [one for one in self.by_key[task.key] if one.number < task.number]
        return earlier[-1] if earlier else None


def engine_plan_of(seed: int, *, stormy: bool = False) -> EnginePlan:
    """The plan that a seed stands for; `stormy` has many faults, as some seeds have by themselves."""
    random = Random(f"engine plan {seed}")
    calm, stormy = random.random() < 0.1 and not stormy, random.random() < 0.2 or stormy
    patient = random.random() < 0.2
    foreign = [
        TaskPlan(
            number, random.choice(KEYS), random.choice((Mood.GARBAGE, Mood.GARBAGE, Mood.UNKNOWN)), at, 0
        )
        for number, at in enumerate(sorted(random.random() * 10 for _ in range(random.choice((0, 1, 2)))))
    ]
    return EnginePlan(
        seed=seed,
        partitions=random.choice((1, 2, 3)),
        tasks=_tasks(random, patient),
        foreign=foreign,
        workers=random.choice((1, 2, 2, 3)),
        counters=random.choice((1, 2)),
        slots=random.choice(((1,), (2,), (1, 4)))
        if patient
        else random.choice(((1,), (2,), (4, 16), (1, 4))),
        # Who reads but two records ahead of a patient one never sees what that waits for.
        look_ahead=(400,) if patient else (2, 400),
        # So long that the others can't be done in time if its slot is theirs only between its retries.
        retry_seconds=40.0 if patient else 0.5,
        storm=Storm(
            faults=0 if calm else random.randrange(12, 20) if stormy else random.randrange(1, 9),
            calm_seconds=0.5 if stormy else 1.5,
            max_delay=random.choice((0.0, 0.0, 0.5)),
            abort_rate=0.0 if calm else random.choice((0.0, 0.03)),
        ),
    )


def _tasks(random: Random, patient: bool) -> Sequence[TaskPlan]:
    keys = KEYS[: random.randrange(2, len(KEYS) + 1)]
    moods = [Mood.QUICK] * 8 + [Mood.SLOW] * 4
    moods += [Mood.PATIENT] * 3 if patient else [Mood.AWAY] * 2 + [Mood.BEHIND] * 3
    # Few kinds of trouble in one seed, but then some of each.
    moods += [mood for mood in TROUBLE if random.random() < 0.25] * 2
    times = sorted(random.random() * 10 for _ in range(random.randrange(8, 31)))
    return [
        TaskPlan(
            number=number,
            key=random.choice(keys),
            mood=random.choice(moods),
            at=at,
            seconds=random.random() * random.choice((0.1, 1.0, 6.0)),
            failures=random.randrange(1, 4),
            also=random.choice(keys) if random.random() < 0.2 else "",
        )
        for number, at in enumerate(times)
    ]


def tiny_plan() -> EnginePlan:
    """Little enough to be run once for each of its points: two workers, two partitions, a task of each
    sort that a crash could harm."""
    moods = (Mood.QUICK, Mood.SLOW, Mood.BEHIND, Mood.QUICK, Mood.AWAY, Mood.GARBAGE, Mood.REFUSED, Mood.SLOW)
    keys = "abacabdb"
    tasks = [
        TaskPlan(number, key, mood, 0.2 * (number // 3), 0.5, 1, also="c" if number == 3 else "")
        for number, (key, mood) in enumerate(zip(keys, moods, strict=True))
    ]
    return EnginePlan(
        seed=0,
        partitions=2,
        tasks=tasks,
        foreign=[TaskPlan(0, "a", Mood.GARBAGE, 0.3, 0)],
        workers=2,
        counters=2,
        slots=(4,),
        look_ahead=(400,),
        retry_seconds=0.5,
        storm=Storm(faults=0, calm_seconds=1.0, max_delay=0.0, abort_rate=0.0),
    )
