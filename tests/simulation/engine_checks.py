"""Reads the engines' world at rest, writes nothing: what must be true of it, whatever struck it.

What has to be true of each single call is looked at as it begins: see `deliveries`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

from codeconvoy.workers.engine.bus import Record, TopicPartition
from codeconvoy.workers.engine.dead_letter import HEADER
from tests.simulation.counting import EFFECTS, NAME
from tests.simulation.engine_plans import GIVEN_UP, Mood, TaskPlan
from tests.simulation.engine_world import DEATHS, WORKER, EngineWorld
from tests.simulation.refold import differences, records_of, refold


def engine_problems(world: EngineWorld) -> list[str]:
    """Everything that is wrong; empty if nothing is."""
    found: list[str] = []
    for part in (_effects, _letters, _bystanders, _states, _counts, _committed):
        found += [f"{part.__name__}: {problem}" for problem in part(world)]
    return found


def _effects(world: EngineWorld) -> Iterator[str]:
    """Every task has taken effect once, in the order of its key, and whatever it wrote is there once."""
    by_key = defaultdict[str, list[str]](list)
    also = Counter[str]()
    for record in records_of(world.broker, world.topics.events):
        word, _, rest = record.value.decode().partition(" ")
        if word in EFFECTS:
            by_key[record.key].append(f"{word} {rest}")
        elif word == "also":
            also[f"{record.key} {rest}"] += 1
    innocent = _convicted(world)
    for key, tasks in world.plan.by_key.items():
        due = [f"{'gave-up' if _is_given_up(task, innocent) else 'done'} {task.number}" for task in tasks]
        if by_key[key] != due:
            yield f"{key}: {by_key[key]}, should be {due}"
    due_also = Counter(
        f"{task.also} {task.number}"
        for tasks in world.plan.by_key.values()
        for task in tasks
        if task.also and not _is_given_up(task, innocent)
    )
    if also != due_also:
        yield f"also: {also - due_also} too much, {due_also - also} missing"


def _is_given_up(task: TaskPlan, convicted: set[int]) -> bool:
    return task.mood in GIVEN_UP or task.number in convicted


def _letters(world: EngineWorld) -> Iterator[str]:
    """What can't be read or done is in the dead letters, once, with its reason; nothing else is."""
    found = Counter(
        tuple(letter.headers[name].decode() for name in ("topic", "partition", "offset", "reason"))
        for letter in _dead_letters(world)
    )
    convicted = _convicted(world)
    due = Counter[tuple[str, ...]]()
    for topic, plans in ((world.tasks, world.plan.tasks), (world.topics.events, world.plan.foreign)):
        for record in records_of(world.broker, topic):
            word, _, number = record.value.decode().partition(" ")
            reason = "no_marker" if word == "garbage" else None
            if word == "task":
                task = plans[int(number)]
                reason = GIVEN_UP.get(task.mood, "poison" if task.number in convicted else None)
            if reason is not None:
                due[topic, str(record.partition), str(record.offset), reason] += 1
    if found != due:
        yield f"{found - due} too much, {due - found} missing"


def _bystanders(world: EngineWorld) -> Iterator[str]:
    """Nothing is given up as a killer but what was in flight alone when its process died, three times."""
    for letter in _dead_letters(world):
        at = int(letter.headers["partition"]), int(letter.headers["offset"])
        task = _task_at(world, *at)
        if letter.headers["reason"] != b"poison" or task is None or task.mood is Mood.POISON:
            continue
        deaths = world.deliveries.deaths_alone[WORKER, *at]
        if deaths < DEATHS:
            yield f"offset {at} ({task.mood}) was given up after {deaths} deaths alone"


def _convicted(world: EngineWorld) -> set[int]:
    """Tasks that were given up since their process was killed three times while they ran alone."""
    found = set[int]()
    for letter in _dead_letters(world):
        at = int(letter.headers["partition"]), int(letter.headers["offset"])
        task = _task_at(world, *at)
        is_poison = letter.headers["reason"] == b"poison"
        if task is not None and is_poison and world.deliveries.deaths_alone[WORKER, *at] >= DEATHS:
            found.add(task.number)
    return found


def _dead_letters(world: EngineWorld) -> Iterator[Record]:
    for letter in records_of(world.broker, world.topics.dead_letters):
        if HEADER in letter.headers:
            yield letter


def _task_at(world: EngineWorld, partition: int, offset: int) -> TaskPlan | None:
    entries = world.broker.logs[TopicPartition(world.tasks, partition)].entries
    record = entries[offset].record if offset < len(entries) else None
    word, _, number = record.value.decode().partition(" ") if record is not None else ("", "", "")
    return world.plan.tasks[int(number)] if word == "task" else None


def _states(world: EngineWorld) -> Iterator[str]:
    """What the fold engines wrote piece by piece is, byte for byte, what one fold gives."""
    folded = refold(world.counting, world.broker)
    yield from differences({NAME: folded}, world.stores)


def _counts(world: EngineWorld) -> Iterator[str]:
    """The fold's outputs are on the logs, each of them once, in the order of its key."""
    found, due = defaultdict[str, list[bytes]](list), defaultdict[str, list[bytes]](list)
    echoes = Counter[tuple[str, bytes]]()
    for output in refold(world.counting, world.broker).outputs:
        if output.topic == world.topics.jobs:
            due[output.key].append(output.value)
        else:
            echoes[output.key, output.value] += 1
    for record in records_of(world.broker, world.topics.jobs):
        found[record.key].append(record.value)
    for key in sorted(found.keys() | due.keys()):
        if found[key] != due[key]:
            yield f"{key}: {found[key]}, should be {due[key]}"
    wrote = Counter(
        (record.key, record.value)
        for record in records_of(world.broker, world.topics.events)
        if record.value.startswith(b"echo ")
    )
    if wrote != echoes:
        yield f"echoes: {wrote - echoes} too much, {echoes - wrote} missing"


def _committed(world: EngineWorld) -> Iterator[str]:
    """In the end nothing is left to do: the workers stand at the ends of their queues."""
    yield from world.behind()
