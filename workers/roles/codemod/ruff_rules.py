"""Reads source text, writes source text: ruff, as a subprocess that sees stdin only."""

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec
import ruff  # type: ignore[import-untyped]

from codeconvoy.schemas.errors import AgentError
from codeconvoy.workers.roles.codemod.source import Rewrite

TIMEOUT_SECONDS = 30.0
"""Deadline of one call; a file of 5,000 lines takes 20 ms."""


class _Fix(msgspec.Struct):
    applicability: str


class _Location(msgspec.Struct):
    row: int


class Finding(msgspec.Struct, frozen=True):
    """One of ruff's findings."""

    code: str | None
    """None: the text can't be parsed."""
    message: str
    location: _Location
    fix: _Fix | None = None

    @property
    def rule(self) -> str:
        """The rule's code."""
        return self.code or "syntax-error"


async def _ruff(arguments: Sequence[str], content: bytes) -> bytes:
    """Ruff's answer to the text on its stdin; ended when the caller is cancelled.

    Raises:
        AgentError: it could not read the text (not retryable), or took too long (retryable).
    """
    process = await asyncio.create_subprocess_exec(
        ruff.find_ruff_bin(),
        "check",
        "--isolated",
        "--no-cache",
        *arguments,
        "-",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            out, err = await process.communicate(content)
    except TimeoutError:
        raise AgentError(f"ruff took more than {TIMEOUT_SECONDS:g} s", retryable=True) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode not in (0, 1):  # 1: findings
        raise AgentError(f"ruff: {err.decode(errors='replace').strip()[-500:]}")
    return out


async def findings(
    path: str, content: bytes, select: Collection[str], target_version: str
) -> tuple[Finding, ...]:
    """What ruff finds in the text by these rules.

    Raises:
        AgentError: ruff could not be run on it.
    """
    arguments = ("--output-format", "json", *_selection(path, select, target_version))
    return msgspec.json.decode(await _ruff(arguments, content), type=tuple[Finding, ...])


def _selection(path: str, select: Collection[str], target_version: str) -> tuple[str, ...]:
    # The file's name matters: an unused import in an __init__.py is a re-export.
    return (
        "--select",
        ",".join(sorted(select)),
        "--target-version",
        target_version,
        f"--stdin-filename={path}",
    )


@dataclass(frozen=True, slots=True)
class RuffRules:
    """The safe fixes of some of ruff's rules."""

    select: frozenset[str]
    """Codes or their beginnings: `UP`, `F401`."""
    target_version: str

    async def rewrite(self, path: str, content: bytes, rules: Collection[str] = ()) -> Rewrite:
        """The text with the safe fixes of these rules (all of them if none is named) applied.

        Raises:
            AgentError: ruff could not be run on it.
        """
        select = rules or self.select
        found = await findings(path, content, select, self.target_version)
        done = Counter(one.rule for one in found if one.fix and one.fix.applicability == "safe")
        if not done:
            return Rewrite(content, {})
        return Rewrite(
            await _ruff(("--fix-only", *_selection(path, select, self.target_version)), content), done
        )
