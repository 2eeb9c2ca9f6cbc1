"""Options of the rule-based agents that can't work are told before the first task."""

from pathlib import Path

import pytest

from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.roles import codemod_check
from codeconvoy.workers.roles.agents import make_agent
from codeconvoy.workers.roles.role import Role, RoleKind


def role(rules: str, kind: RoleKind = RoleKind.EDIT, **options: str) -> Role:
    return Role("own", kind, "", "codemod", options={"rules": rules, **options})


def refusal(of: Role) -> BadInput:
    with pytest.raises(BadInput) as caught:
        make_agent(of, {})
    return caught.value


@pytest.mark.parametrize(
    ("codes", "reason"),
    [
        ("ZZZZ", "Unknown rule selector `ZZZZ`"),
        ("UP,UP999", "Unknown rule selector `UP999`"),
        ("UP027", "was removed"),
        ("up", "Unknown rule selector `up`"),
    ],
)
def test_codes_that_ruff_does_not_know_are_told_with_those_that_it_knows(codes: str, reason: str) -> None:
    bad = refusal(role(f"ruff:{codes}"))
    assert bad.field == "roles.own.options.rules" and reason in bad.reason and repr(codes) in bad.reason
    known = bad.remedy.partition(": ")[2].split(", ")
    assert {"ALL", "UP", "E", "W", "F", "C4", "PL"} <= set(known) and "" not in known
    for one in known:
        make_agent(role(f"ruff:{one}"), {})


@pytest.mark.parametrize("codes", ["UP, I", "UP,", "-h", ",", "UP\0"])
def test_what_is_no_code_is_not_handed_to_ruff(codes: str) -> None:
    bad = refusal(role(f"ruff:{codes}"))
    assert bad.field == "roles.own.options.rules" and "is no rule's code" in bad.reason and bad.remedy


@pytest.mark.parametrize(
    ("rules", "kind"),
    [("ruff:UP", RoleKind.EDIT), ("libcst:tidy", RoleKind.EDIT), ("reviewer", RoleKind.REVIEW)],
)
@pytest.mark.parametrize("target", ["py2", "3.9", "py3.9"])
def test_a_version_that_ruff_does_not_know_is_told_with_those_that_it_knows(
    rules: str, kind: RoleKind, target: str
) -> None:
    bad = refusal(role(rules, kind, target_version=target))
    assert bad.field == "roles.own.options.target_version" and repr(target) in bad.reason
    known = bad.remedy.removeprefix("Use one of: ").split(", ")
    assert {"py39", "py311"} <= set(known)
    for one in known:
        make_agent(role(rules, kind, target_version=one), {})


@pytest.mark.parametrize("target", ["", "-x", "py39\0"])
def test_what_is_no_version_is_not_handed_to_ruff(target: str) -> None:
    bad = refusal(role("ruff:UP", target_version=target))
    assert bad.field == "roles.own.options.target_version" and bad.remedy


def test_an_unknown_option_is_told_with_the_known_ones() -> None:
    bad = refusal(role("ruff:UP", foo="1"))
    assert bad.field == "roles.own.options.foo" and bad.reason.startswith("'foo' is no option")
    assert bad.remedy == "Its options are: rules, target_version"


CAN = {
    "ruff:UP": {RoleKind.EDIT, RoleKind.MERGE},
    "libcst:tidy": {RoleKind.EDIT, RoleKind.MERGE},
    "reviewer": {RoleKind.REVIEW},
    "tester": {RoleKind.TEST},
}


@pytest.mark.parametrize("kind", RoleKind)
@pytest.mark.parametrize("rules", CAN)
def test_a_rule_set_is_for_the_kinds_whose_tasks_it_can_do(rules: str, kind: RoleKind) -> None:
    if kind in CAN[rules]:
        make_agent(role(rules, kind), {})
        return
    bad = refusal(role(rules, kind))
    assert bad.field == "roles.own.options.rules" and f"of kind {kind}" in bad.reason
    fit = [other for other, kinds in CAN.items() if kind in kinds]
    assert all(other.partition(":")[0] in bad.remedy for other in fit)
    assert fit or "another provider" in bad.remedy


def test_a_ruff_that_is_not_there_or_dies_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(codemod_check, "_refusal", codemod_check._refusal.__wrapped__)
    monkeypatch.setattr("ruff.find_ruff_bin", lambda: str(tmp_path / "ruff"))
    away = refusal(role("ruff:UP"))
    (tmp_path / "ruff").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "ruff").chmod(0o755)
    dead = refusal(role("ruff:UP"))
    assert {away.field, dead.field} == {"roles.own.provider"}
    assert "No such file" in away.reason and "SIGKILL" in dead.reason and away.remedy


def test_ruff_is_asked_once_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    make_agent(role("ruff:UP,I"), {})
    monkeypatch.setattr("ruff.find_ruff_bin", lambda: "/no/such/ruff")
    make_agent(role("ruff:UP,I"), {})
