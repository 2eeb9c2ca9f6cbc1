"""Reads job files, writes temporary ones: what is taken, and what is refused in which words."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from codeconvoy.orchestrator.job_file import (
    absolute,
    check,
    job_id_for,
    load,
    problems,
)
from codeconvoy.orchestrator.job_yaml import MAX_BYTES, parse
from codeconvoy.schemas.errors import BadInput
from codeconvoy.schemas.events import Strategy
from codeconvoy.schemas.job_spec import (
    Budget,
    HumanSpec,
    JobSpec,
    Pipeline,
    StrategyOverride,
    TaskKind,
    TaskSpec,
    complete,
    workspace_for,
)
from codeconvoy.workers.roles.role import Role, RoleKind

GOOD = b"repository: .\ngoal: modernise\nfiles: ['*.py']\n"
ROLES = {
    name: Role(name=name, kind=kind, description="", provider="codemod")
    for name, kind in {
        "generator": RoleKind.EDIT,
        "upgrader": RoleKind.EDIT,
        "reviewer": RoleKind.REVIEW,
        "tester": RoleKind.TEST,
        "planner": RoleKind.PLAN,
    }.items()
}
SPEC = parse(GOOD)


def refused(text: bytes) -> BadInput:
    with pytest.raises(BadInput) as caught:
        parse(text)
    return caught.value


def fields_of(spec: JobSpec) -> list[str]:
    return [problem.field for problem in problems(spec, ROLES)]


def changed(**values: object) -> JobSpec:
    return msgspec.structs.replace(SPEC, **values)


def test_a_good_file_has_no_problem() -> None:
    check(SPEC, ROLES)
    assert SPEC.strategies == (Strategy.THREE_WAY, Strategy.REWORK, Strategy.HUMAN)


def test_who_merges_must_be_there_and_have_a_provider() -> None:
    asks = changed(strategies=(Strategy.THREE_WAY, Strategy.SEMANTIC))
    merger = Role("merger", RoleKind.MERGE, "merges", "")
    assert fields_of(asks) == ["pipeline.merge"]
    (problem,) = problems(asks, {**ROLES, "merger": merger})
    assert (problem.field, "no provider" in problem.reason) == ("pipeline.merge", True)
    able = replace(merger, provider="command")
    check(asks, {**ROLES, "merger": able})
    check(SPEC, {**ROLES, "merger": merger})
    by_glob = changed(overrides=(StrategyOverride(glob="*.md", strategies=(Strategy.SEMANTIC,)),))
    assert fields_of(by_glob) == ["pipeline.merge"]
    other = msgspec.structs.replace(asks.pipeline, merge="generator")
    assert fields_of(msgspec.structs.replace(asks, pipeline=other)) == ["pipeline.merge"]
    other = msgspec.structs.replace(asks.pipeline, merge="joiner")
    ours = {**ROLES, "joiner": replace(able, name="joiner")}
    check(msgspec.structs.replace(asks, pipeline=other), ours)


def test_a_relative_repository_starts_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"repository: ../code\ngoal: g\n")
    assert load(tmp_path / "job.yaml").repository == str(tmp_path.parent / "code")


def test_a_url_stays_as_it_is() -> None:
    url = "https://example.org/code.git"
    assert absolute(changed(repository=url), Path("/elsewhere")).repository == url


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.yaml"):
        load(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        (b"", "job", "not a mapping"),
        (b"[1", "job", "not YAML"),
        (b"goal: \xff", "job", "not UTF-8"),
        (b"goal: g", "repository", "missing"),
        (GOOD + b"fles: []", "fles", "no such field"),
        (GOOD + b"pipeline: {generat: []}", "pipeline.generat", "no such field"),
        (GOOD + b"pipeline: {quorum: many}", "pipeline.quorum", "expected `int`"),
        (GOOD + b"pipeline: {review: [a, 1]}", "pipeline.review[1]", "expected `str`"),
        (GOOD + b"strategies: [human, magic]", "strategies[1]", "'magic' does not exist"),
        (GOOD + b"tasks: [{role: r, path: p}, {role: r}]", "tasks[1].path", "missing"),
        (GOOD + b"tasks: [{role: r, path: p, also: [a, {}]}]", "tasks[0].also[1]", "expected `str`"),
        (GOOD + b"overrides: [{glob: a, strategies: [human, x]}]", "overrides[0].strategies[1]", "'x'"),
        (GOOD + b"goal: again", "goal", "twice"),
        (b"1: 2", "job", "no field name"),
        (b"goal: 2020-13-01", "job", "bad value"),
        (b'goal: "\\ud800"', "job", "half a character"),
        (b"a: !!python/object:os.system x", "job", "not YAML"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "job", "deeper"),
        (b"goal: " + b"x" * MAX_BYTES, "job", "over"),
    ],
)
def test_what_is_no_job_is_refused_by_field(text: bytes, field: str, reason: str) -> None:
    problem = refused(text)
    assert problem.field == field
    assert reason in problem.reason
    assert problem.remedy


def test_a_billion_laughs_are_refused_before_they_are_told() -> None:
    rows = [b"a0: &a0 [ha, ha]"]
    rows += [b"a%d: &a%d [%s]" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)]
    assert "alias" in refused(b"\n".join(rows)).reason


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"repository": ""}, "repository"),
        ({"repository": "--upload-pack=x"}, "repository"),
        ({"repository": "ext::sh -c x"}, "repository"),
        ({"repository": "https://me:secret@example.org/x"}, "repository"),
        ({"ref": "--all"}, "ref"),
        ({"workspace": "a:b"}, "workspace"),
        ({"branch": "a..b"}, "branch"),
        ({"branch": "-x"}, "branch"),
        ({"goal": " "}, "goal"),
        ({"files": ()}, "files"),
        ({"files": ("a.py", "../b.py")}, "files[1]"),
        ({"files": ("[z-a]",)}, "files[0]"),
        ({"files": ("!x",)}, "files[0]"),
        ({"exclude": ("",)}, "exclude[0]"),
        ({"tasks": (TaskSpec(role="nobody", path="a"),)}, "tasks[0].role"),
        ({"tasks": (TaskSpec(role="tester", path="a"),)}, "tasks[0].role"),
        ({"tasks": (TaskSpec(role="generator", path="a", kind=TaskKind.TEST),)}, "tasks[0].role"),
        ({"tasks": (TaskSpec(role="generator", path="a/../b"),)}, "tasks[0].path"),
        ({"tasks": (TaskSpec(role="generator", path="./a"),)}, "tasks[0].path"),
        ({"tasks": (TaskSpec(role="generator", path="a", also=("b", ".git/x")),)}, "tasks[0].also[1]"),
        ({"tasks": (TaskSpec(role="generator", path="a", reads=("/b",)),)}, "tasks[0].reads[0]"),
        ({"planner": "planner", "tasks": (TaskSpec(role="generator", path="a"),)}, "planner"),
        ({"planner": "generator"}, "planner"),
        ({"pipeline": Pipeline(generate=())}, "pipeline.generate"),
        ({"pipeline": Pipeline(generate=("generator", "nobody"))}, "pipeline.generate[1]"),
        ({"pipeline": Pipeline(generate=("generator", "generator"))}, "pipeline.generate[1]"),
        ({"pipeline": Pipeline(review=("generator",))}, "pipeline.review[0]"),
        ({"pipeline": Pipeline(test=("reviewer",))}, "pipeline.test[0]"),
        ({"pipeline": Pipeline(quorum=2)}, "pipeline.quorum"),
        ({"pipeline": Pipeline(quorum=0)}, "pipeline.quorum"),
        ({"strategies": ()}, "strategies"),
        ({"strategies": (Strategy.IDENTICAL,)}, "strategies[0]"),
        ({"strategies": (Strategy.HUMAN, Strategy.HUMAN)}, "strategies[1]"),
        ({"overrides": (StrategyOverride(glob="..", strategies=(Strategy.HUMAN,)),)}, "overrides[0].glob"),
        ({"overrides": (StrategyOverride(glob="*", strategies=()),)}, "overrides[0].strategies"),
        ({"human": HumanSpec(default=Strategy.HUMAN)}, "human.default"),
        ({"human": HumanSpec(deadline_seconds=0)}, "human.deadline_seconds"),
        ({"budget": Budget(usd=-1.0)}, "budget.usd"),
        ({"budget": Budget(usd=float("nan"))}, "budget.usd"),
        ({"budget": Budget(tokens=-1)}, "budget.tokens"),
        ({"max_rounds": 0}, "max_rounds"),
        ({"deadline_seconds": -5}, "deadline_seconds"),
        ({"task_deadline_seconds": 2**40}, "task_deadline_seconds"),
        ({"test_directory": "../tests"}, "test_directory"),
        ({"test_command": "run {file}"}, "test_command"),
        ({"test_command": "run {path"}, "test_command"),
        ({"test_command": "run"}, "test_command"),
    ],
)
def test_what_cannot_be_done_is_refused_by_field(values: dict[str, object], field: str) -> None:
    assert fields_of(changed(**values)) == [field]
    with pytest.raises(BadInput) as caught:
        check(changed(**values), ROLES)
    assert caught.value.remedy


def test_a_wrong_name_gets_a_suggestion() -> None:
    [problem] = problems(changed(pipeline=Pipeline(generate=("genrator",))), ROLES)
    assert "Did you mean generator?" in problem.remedy


def test_all_problems_are_found() -> None:
    assert fields_of(changed(ref="", max_rounds=0, strategies=())) == ["ref", "strategies", "max_rounds"]


def test_a_goal_for_each_task_is_goal_enough() -> None:
    assert not fields_of(changed(goal="", files=(), tasks=(TaskSpec(role="generator", path="a", goal="g"),)))


def test_the_workspace_follows_from_repository_and_ref() -> None:
    name = workspace_for("https://example.org/Big Project.git", "HEAD")
    assert name.startswith("big-project-head-")
    assert name == workspace_for("https://example.org/Big Project/", "HEAD")
    assert name != workspace_for("https://example.org/Big Project", "main")
    assert name != workspace_for("https://example.com/Big Project", "HEAD")
    check(complete(changed(repository="/" + "é" * 300, ref="x/" * 100 + "y")), ROLES)
    assert complete(changed(workspace="mine")).workspace == "mine"


def test_a_job_id_is_stable() -> None:
    assert job_id_for(SPEC, "n") == job_id_for(parse(GOOD), "n")
    assert len({job_id_for(SPEC, "n"), job_id_for(SPEC, "m"), job_id_for(changed(goal="x"), "n")}) == 3


def test_a_budget_in_money_needs_the_price_of_every_model() -> None:
    model = Role("generator", RoleKind.EDIT, "", "openai", model="our-model")
    roles = {**ROLES, "generator": model}
    for spec, refused in (
        (changed(budget=Budget(usd=5.0)), True),
        (changed(budget=Budget(tokens=1_000)), False),
        (changed(), False),
    ):
        assert [bad.field for bad in problems(spec, roles)] == ["budget.usd"] * refused
    with pytest.raises(BadInput, match=r"'generator' .*'our-model'.* price_in and price_out"):
        check(changed(budget=Budget(usd=5.0)), roles)
    priced = replace(model, options={"price_in": "1", "price_out": "2"})
    check(changed(budget=Budget(usd=5.0)), {**ROLES, "generator": priced})
    check(changed(budget=Budget(usd=5.0)), ROLES)
