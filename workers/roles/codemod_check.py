"""Reads a role, asks ruff, writes nothing: whether the provider `codemod` can do the role.

What only ruff knows, its rules and versions of Python, is asked of the ruff that will do the work: a
list of ours would be wrong after its next release. Each question is asked once in a process.
"""

import re
import subprocess
from collections.abc import Mapping
from functools import lru_cache

import msgspec
import ruff  # type: ignore[import-untyped]

from codeconvoy.schemas.errors import BadInput
from codeconvoy.workers.roles.codemod.agents import DEFAULT_TARGET
from codeconvoy.workers.roles.role import Role, RoleKind

TIMEOUT_SECONDS = 30.0
"""Of one question, which takes 5 ms where the machine has nothing else to do."""
REFUSED = 2
"""Ruff's exit status for arguments that it does not take."""
_EDITS = (RoleKind.EDIT, RoleKind.MERGE)
"""What rules can do: edits, and applying themselves to the other side of a conflict."""
_KINDS: Mapping[str, tuple[RoleKind, ...]] = {
    "ruff": _EDITS,
    "libcst": _EDITS,
    "reviewer": (RoleKind.REVIEW,),
    "tester": (RoleKind.TEST,),
}
"""For each family of rule sets the kinds of roles whose tasks it can do."""
_RULE_SETS = {
    RoleKind.EDIT: "ruff:CODES (ruff:UP,I) or libcst:tidy",
    RoleKind.MERGE: "ruff:CODES (ruff:UP,I) or libcst:tidy",
    RoleKind.REVIEW: "reviewer",
    RoleKind.TEST: "tester",
}


class _Category(msgspec.Struct):
    prefix: str


class _Linter(msgspec.Struct):
    """One of `ruff linter`; where its own prefix is empty, its categories have one each."""

    prefix: str
    categories: tuple[_Category, ...] = ()


def check_codemod(role: Role) -> None:
    """See that the role's rule set is for its kind, and that ruff knows its codes and its version.

    Args:
        role: its option `rules` names a rule set.

    Raises:
        BadInput: it is not, ruff does not, or ruff can't be asked.
    """
    field = f"roles.{role.name}.options"
    rules = role.options.get("rules", "")
    family, _, codes = rules.partition(":")
    if role.kind not in _KINDS.get(family, ()):
        known = _RULE_SETS.get(role.kind)
        remedy = (
            f"For this kind use {known}" if known else "Name another provider: no rule set does this kind"
        )
        raise BadInput(
            f"{field}.rules", f"{rules!r} can't do the tasks of a role of kind {role.kind}", remedy
        )
    try:
        target = role.options.get("target_version", DEFAULT_TARGET)
        _check_target(f"{field}.target_version", target)
        if family == "ruff":
            _check_codes(f"{field}.rules", codes, target)
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"ruff can't be asked about its options: {error}"
        remedy = "See that `ruff --version` works in the environment of this process"
        raise BadInput(f"roles.{role.name}.provider", reason, remedy) from error


def _check_target(field: str, target: str) -> None:
    refusal = _refusal("F401", target)
    if refusal:
        known = re.search(r"\[possible values: ([^\]]+)\]", refusal)
        remedy = f"Use one of: {known[1]}" if known else f"Write it as ruff does, such as {DEFAULT_TARGET}"
        raise BadInput(field, f"{target!r} is no version of Python that ruff knows", remedy)


def _check_codes(field: str, codes: str, target: str) -> None:
    # A code that begins with a dash would be an argument of its own.
    odd = [code for code in codes.split(",") if not re.fullmatch(r"\w[\w-]*", code)]
    if odd:
        reason = f"{odd[0]!r} is no rule's code"
        raise BadInput(field, reason, "Separate codes by commas, without spaces: ruff:UP,I")
    refusal = _refusal(codes, target)
    if refusal:
        says = (
            refusal.splitlines()[-1].strip().removeprefix("Cause: ").partition(" in `select`")[0].rstrip(".")
        )
        remedy = f"Use codes of ruff's rules, or what they begin with: {', '.join(('ALL', *_prefixes()))}"
        raise BadInput(field, f"ruff does not take {codes!r}: {says}", remedy)


@lru_cache(maxsize=1_000)
def _refusal(select: str, target: str) -> str:
    """What ruff has against the arguments, on a text that is empty; nothing: it takes them.

    Raises:
        OSError: it can't be started.
        subprocess.SubprocessError: it did not answer, or died.
    """
    options = ("--isolated", "--no-cache", "--select", select, "--target-version", target)
    command = (ruff.find_ruff_bin(), "check", *options, "-")
    done = subprocess.run(command, input=b"", capture_output=True, timeout=TIMEOUT_SECONDS)
    if done.returncode not in (0, 1, REFUSED):  # 1: findings, such as a missing docstring
        done.check_returncode()
    said = done.stderr.decode(errors="replace").strip()
    return (said or "it gives no reason") if done.returncode == REFUSED else ""


def _prefixes() -> list[str]:
    """What codes of ruff's rules begin with, for a remedy; none where a later ruff tells it otherwise."""
    command = (ruff.find_ruff_bin(), "linter", "--output-format", "json")
    said = subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS, check=True).stdout
    try:
        linters = msgspec.json.decode(said, type=tuple[_Linter, ...])
    except msgspec.MsgspecError:
        return []
    found = ((one.prefix,) if one.prefix else (part.prefix for part in one.categories) for one in linters)
    return sorted(prefix for prefixes in found for prefix in prefixes)
