"""Crashes at exact steps, zombies, restarts, and lost services, on real processes, a real Kafka and a real
Redis. After each of them the job ends and nothing is lost, doubled or out of order; see `fault_world`.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from signal import SIGKILL, SIGSTOP

import pytest

from tests.fault_process import Step
from tests.fault_schedule import OTHER, SCALED, schedule
from tests.fault_storm import Storm
from tests.fault_world import HUBS, KEEPER, QUICK, ROLES, SLOTS, World, partition, paths_of, world
from tests.fleets import FOLDS, READY_SECONDS, until

SEED_VARIABLE = "CONVOY_FAULT_SEED"
STEPS = {"scribe": Step.REPLIED, "clerk": Step.PRODUCED, "editor": Step.SENT, "writer": Step.COMMITTED}
"""Each role has its worker stopped at another step."""
UNCOMMITTED = {role for role, step in STEPS.items() if step is not Step.COMMITTED}
"""Their workers have lost at least one reply."""
PROTOCOLS = {ROLES[0]: "classic", KEEPER: "consumer"}
MOVED_SECONDS = 40.0
"""Less than the 45 s after which a client's default settings miss a member."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("faults"), QUICK) as started:
        yield started


@pytest.fixture
def here(shared: World) -> Iterator[World]:
    """With everything as if there had been no test before."""
    shared.calm()
    yield shared
    shared.calm()


def test_a_worker_killed_at_any_step_has_its_tasks_done_elsewhere(here: World, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    here.have(*HUBS, *ROLES, *(f"{role}/1" for role in ROLES))
    tasks = {role: paths_of(tmp_path.name, role, 2) for role in ROLES}
    for role, step in STEPS.items():
        here.traps.set(role, step, SIGKILL)
    job_id = here.submit(repo, tasks)
    here.wait_sprung(*ROLES)
    # One that left a transaction open is started again, as a supervisor does; the other's has to time out.
    here.start("editor")
    here.wait_end(job_id, repo, tasks)
    here.check()
    here.check_repeated(UNCOMMITTED)


def test_a_worker_stopped_past_its_session_takes_no_effect_when_it_goes_on(
    here: World, tmp_path: Path
) -> None:
    repo, zombie = tmp_path / "repo", "clerk/2"
    # Its transaction outlives its session: nothing but its lost membership is against its commit.
    here.launch(zombie, CONVOY_KAFKA_OPTIONS=json.dumps({**QUICK, "transaction.timeout.ms": 60_000}))
    victims = {name: name.partition("/")[0] for name in ("scribe", zombie, "editor", "writer")}
    here.have(*HUBS, KEEPER, *victims, *(f"{role}/1" for role in ROLES))
    # More than the slots: a zombie that goes on has tasks in its queue that others have done.
    files = {role: paths_of(tmp_path.name, role, 3) for role in ROLES}
    tasks = {**files, KEEPER: ("held.py",)}
    here.gates.hold(KEEPER)
    for name, role in victims.items():
        here.traps.set(name, STEPS[role], SIGSTOP)
    job_id = here.submit(repo, tasks)
    here.wait_sprung(*victims)
    here.wait_taken_over("clerk/1", zombie)
    here.resume(zombie)
    for role, paths in files.items():
        here.wait_done(role, paths)
    for name in victims:
        here.resume(name)
    for role in ROLES:
        here.wait_shared(role)
    here.gates.release(KEEPER)
    here.wait_end(job_id, repo, tasks)
    here.check()
    here.check_repeated(UNCOMMITTED)


def test_folds_killed_or_stopped_in_their_transactions(here: World, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    here.have(*HUBS, *ROLES)
    # All sign the same lines, so that from the second on there is something for each fold to say.
    tasks = dict.fromkeys(ROLES, paths_of(tmp_path.name, "file", 1))
    for role in ROLES:
        here.gates.hold(role)
    job_id = here.submit(repo, tasks)
    # Or the folds would run into their traps over the import, and no call could begin without them.
    for role in ROLES:
        here.wait_called(role, SLOTS)
    first, second, third, last = ROLES
    here.gates.release(first)
    for role, step in ((second, Step.SENT), (third, Step.COMMITTED)):
        for name in FOLDS:
            here.traps.set(name, step, SIGKILL)
        here.gates.release(role)
        here.wait_sprung(*FOLDS, supervised=True)
        here.traps.clear()
    # What has committed to Kafka would write its state when others have gone on from there.
    for name in FOLDS:
        here.traps.set(name, Step.COMMITTED, SIGSTOP)
    here.gates.release(last)
    here.wait_sprung(*FOLDS)
    here.start(*(f"{name}/1" for name in FOLDS))
    here.wait_end(job_id, repo, tasks)
    for name in FOLDS:
        here.resume(name)
    for name in FOLDS:
        here.wait_shared(name)
    here.check()


def test_a_schedule_of_faults_drawn_from_a_seed(here: World, tmp_path: Path) -> None:
    seed = int(os.environ.get(SEED_VARIABLE, "1"))
    faults = schedule(seed)
    print(
        f"replay: {SEED_VARIABLE}={seed} pytest tests/faults/test_faults.py -k schedule",
        *faults,
        sep="\n",
    )
    here.have(*HUBS, SCALED, OTHER)
    storm = Storm(here, tmp_path)
    storm.strike(faults)
    storm.recover()
    here.check()


@pytest.mark.parametrize("lost", [("kafka",), ("redis",), ("kafka", "redis")], ids="+".join)
def test_services_killed_in_the_middle_of_calls(here: World, tmp_path: Path, lost: Sequence[str]) -> None:
    repo = tmp_path / "repo"
    here.have(*HUBS, *ROLES[:2])
    tasks = dict.fromkeys(ROLES[:2], paths_of(tmp_path.name, "file", 1))
    for role in tasks:
        here.gates.hold(role)
    job_id = here.submit(repo, tasks)
    for role in tasks:
        here.wait_called(role, SLOTS)
    here.kill_services(*lost)
    # The replies come while nothing can be committed.
    for role in tasks:
        here.gates.release(role)
    until(lambda: not here.agents(), "all calls have ended")
    here.start_services(*lost)
    here.wait_end(job_id, repo, tasks)
    here.check()


def test_a_broker_killed_in_the_middle_of_everything(here: World, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    here.have(*HUBS, *ROLES[:2])
    tasks = dict.fromkeys(ROLES[:2], paths_of(tmp_path.name, "file", 2))
    job_id = here.submit(repo, tasks)
    # The first conflicts are being settled: everybody has transactions open, of which markers may be lost.
    for role in tasks:
        here.wait_called(role, 2 * SLOTS + 1)
    here.kafka.kill()
    here.kafka.start()
    here.wait_end(job_id, repo, tasks)
    # What hung may have come again, and is found to be done; so this is all that `check` would ask for.
    report = here.fleet.audit()
    assert report.clean, report.as_json()


def test_with_the_settings_that_ship_tasks_of_a_killed_worker_soon_run_elsewhere(
    here: World, tmp_path: Path
) -> None:
    repo = tmp_path / "repo"
    here.have(*HUBS)
    for role, protocol in PROTOCOLS.items():
        here.launch(f"{role}/8", f"{role}/9", CONVOY_KAFKA_OPTIONS="{}", CONVOY_GROUP_PROTOCOL=protocol)
    tasks = {role: paths_of(tmp_path.name, role, 1) for role in PROTOCOLS}
    theirs: dict[str, tuple[str, ...]] = {}
    for role, paths in tasks.items():
        share = here.wait_shared(role)[f"{role}/8"]
        theirs[role] = tuple(path for path in paths if partition(tmp_path.name, path) in share)
        for path in theirs[role]:
            here.gates.hold(role, path)
    job_id = here.submit(repo, tasks)
    for role, paths in theirs.items():
        here.wait_begun(f"{role}/8", paths, len(paths), READY_SECONDS)
        here.kill(f"{role}/8")
    for role, paths in theirs.items():
        here.wait_begun(f"{role}/9", paths, 1, MOVED_SECONDS)
        for path in paths:
            here.gates.release(role, path)
    here.wait_end(job_id, repo, tasks)
    here.check()
