"""Reads a seed, writes nothing: what is simulated, all of it drawn from the seed."""

from dataclasses import dataclass
from random import Random

from codeconvoy.schemas.events import Strategy
from codeconvoy.schemas.job_spec import HumanSpec, JobSpec, OnMove, Pipeline, TaskKind, TaskSpec
from tests.simulation.stubs import Moods, Repository
from tests.simulation.world import Storm

WORKSPACE = "w"
EDITORS = ("alpha", "beta", "gamma")
NEW_FILES = ("new.txt", "sub/new.txt")
STRATEGIES = (
    (Strategy.THREE_WAY, Strategy.REWORK, Strategy.HUMAN),
    (Strategy.THREE_WAY, Strategy.REWORK),
    (Strategy.THREE_WAY,),
    (Strategy.LAST_WRITER_WINS,),
    (Strategy.REWORK, Strategy.FIRST_WRITER_WINS),
    (Strategy.HUMAN,),
)


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One job: when it is submitted, and whether somebody cancels it."""

    job_id: str
    spec: JobSpec
    at: float
    cancel_at: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """One simulation. Times are seconds since its start."""

    seed: int
    partitions: int
    editors: tuple[str, ...]
    repository: Repository
    jobs: tuple[JobPlan, ...]
    moods: Moods
    storm: Storm
    twins: bool
    """Two processes of every kind, from the start."""
    merging: bool
    """There is a merger, whom the jobs ask."""


def plan_of(seed: int, *, stormy: bool = False) -> Plan:
    """The plan that a seed stands for; `stormy` has many faults, as some seeds have by themselves."""
    random, moves = Random(f"plan {seed}"), Random(f"on_move {seed}")
    editors = EDITORS[: random.choice((2, 2, 3))]
    paths = [f"f{number}.txt" for number in range(random.choice((1, 2, 3)))]
    first = {path: _content(random) for path in paths}
    repository = {"r0": first}
    for number in (1, 2):
        before = repository[f"r{number - 1}"]
        repository[f"r{number}"] = {
            path: _content(random) if random.random() < 0.2 else content for path, content in before.items()
        }
    merging = Random(f"merger {seed}").random() < 0.2
    count = random.choice((1, 1, 2, 3))
    calm, stormy = random.random() < 0.1 and not stormy, random.random() < 0.2 or stormy
    return Plan(
        seed=seed,
        partitions=random.choice((1, 2, 3)),
        editors=editors,
        repository=repository,
        jobs=tuple(
            _job(random, number, editors, paths, merging, moves.choice(list(OnMove)))
            for number in range(count)
        ),
        moods=Moods(seconds=random.choice((0.3, 3.0))),
        storm=Storm(
            faults=0 if calm else random.randrange(15, 30) if stormy else random.randrange(1, 12),
            calm_seconds=0.8 if stormy else 2.5,
            max_delay=random.choice((0.0, 0.0, 0.5)),
            abort_rate=0.0 if calm else random.choice((0.0, 0.02)),
        ),
        twins=random.random() < 0.4,
        merging=merging,
    )


def _content(random: Random) -> bytes:
    return b"".join(
        b"line %d %d\n" % (number, random.randrange(1000)) for number in range(random.choice((1, 3, 8)))
    )


def _job(
    random: Random, number: int, editors: tuple[str, ...], paths: list[str], merging: bool, on_move: OnMove
) -> JobPlan:
    explicit = random.random() < 0.5
    tested = random.random() < 0.4
    spec = JobSpec(
        repository="sim",
        ref=f"r{number}",
        workspace=WORKSPACE,
        goal="make it better",
        files=("*",) if not explicit or random.random() < 0.3 else (),
        tasks=_tasks(random, editors, paths) if explicit else (),
        pipeline=Pipeline(
            generate=editors,
            review=("reviewer",) if random.random() < 0.6 else (),
            test=("tester",) if tested else (),
        ),
        together=random.random() < 0.6,
        on_move=on_move,
        strategies=_with_merger(random.choice(STRATEGIES), merging),
        human=HumanSpec(
            deadline_seconds=20,
            default=random.choice((Strategy.FIRST_WRITER_WINS, Strategy.LAST_WRITER_WINS)),
        ),
        max_rounds=random.choice((1, 2, 3)),
        task_deadline_seconds=random.choice((20, 60)),
    )
    cancel_at = random.random() * 30 if random.random() < 0.08 else None
    return JobPlan(f"job-{number}", spec, random.random() * 8, cancel_at)


def _with_merger(strategies: tuple[Strategy, ...], merging: bool) -> tuple[Strategy, ...]:
    """A merger comes after git and before all others."""
    if not merging:
        return strategies
    first = tuple(one for one in strategies if one is Strategy.THREE_WAY)
    return (*first, Strategy.SEMANTIC, *strategies[len(first) :])


def _tasks(random: Random, editors: tuple[str, ...], paths: list[str]) -> tuple[TaskSpec, ...]:
    tasks = []
    for _ in range(random.randrange(2, 6)):
        path, *others = random.sample([*paths, *NEW_FILES], 2)
        if random.random() < 0.15:
            tasks.append(TaskSpec(role="tester", path=random.choice(paths), kind=TaskKind.TEST))
            continue
        also = tuple(others) if random.random() < 0.3 else ()
        reads = tuple(others) if not also and random.random() < 0.5 else ()
        tasks.append(TaskSpec(role=random.choice(editors), path=path, also=also, reads=reads))
    return tuple(tasks)
