"""Reads source text, writes nothing: what a change broke, as far as rules can tell.

Not everything that a linter says is a reason to refuse: an import that became unused is untidy,
not wrong, and is said without refusing.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from codeconvoy.workers.roles.codemod.ruff_rules import Finding, RuffRules, findings
from codeconvoy.workers.roles.codemod.source import Unparsable, is_empty, is_python, parse
from codeconvoy.workers.roles.codemod.surface import Definition, Kind, surface

_LINT = frozenset({"E9", "F"})
_UNTIDY = frozenset({"F401", "F541", "F841", "F842"})
"""Unused imports and variables, f-strings without a placeholder: they change nothing that runs."""
MAX_COMMENTS = 50


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that a change made worse."""

    rule: str
    """A code of ruff's, or one of: unparsable, emptied, deleted, lost, signature."""
    message: str
    line: int
    """1-based, in the new text; in the old one for what is lost. 0: of the whole file."""
    blocking: bool = True

    def comment(self, path: str) -> str:
        """For people: where, what, by which rule."""
        return f"{path}:{self.line}: {self.message} [{self.rule}]"


async def problems(
    path: str, before: bytes | None, after: bytes | None, target_version: str
) -> tuple[Problem, ...]:
    """What the change from one text to the other broke, at most 50 findings.

    Args:
        path: names the file in lint rules; nothing is read from it.
        before: the text before, None: it did not exist.
        after: the text now, None: it was deleted.
        target_version: the oldest Python that the code is for, as ruff writes it.

    Raises:
        AgentError: the linter could not be run.
    """
    if after is None:
        return (Problem("deleted", "the file was deleted", 0),) if before is not None else ()
    if before and before.strip() and not after.strip():
        return (Problem("emptied", "nothing of the file is left", 0),)
    if not is_python(path):
        return ()
    new = parse(after)
    old = parse(before or b"")
    if isinstance(new, Unparsable):
        # What never was Python of ours (Python 2, a template) is not broken by staying so.
        broken = not isinstance(old, Unparsable)
        return (Problem("unparsable", f"does not parse: {new.reason}", new.line),) if broken else ()
    found = await _new_findings(path, before or b"", after, target_version)
    if not isinstance(old, Unparsable):
        if is_empty(new) and not is_empty(old):
            return (Problem("emptied", "no statement of the file is left", 0),)
        found = [*_lost(path, old, new), *found]
    return tuple(found[:MAX_COMMENTS])


async def _new_findings(path: str, before: bytes, after: bytes, target_version: str) -> list[Problem]:
    """Lint findings that the old text did not have as often."""
    # `{"a": 1, u"a": 2}` holds a key twice however it is spelled: ruff sees it without the prefix.
    plain = await RuffRules(frozenset({"UP025"}), target_version).rewrite(path, before)
    had = Counter(_same(finding) for finding in await findings(path, plain.content, _LINT, target_version))
    new = []
    for finding in await findings(path, after, _LINT, target_version):
        if had[_same(finding)] > 0:
            had[_same(finding)] -= 1
        else:
            blocking = finding.rule not in _UNTIDY
            new.append(Problem(finding.rule, finding.message, finding.location.row, blocking))
    return new


def _same(finding: Finding) -> tuple[str, str]:
    """What makes two findings one: lines move, also those that a message names."""
    return finding.rule, finding.message.split(" from line ")[0]


def _lost(path: str, old: ast.Module, new: ast.Module) -> Iterator[Problem]:
    """Public names and signatures that are not there any more."""
    was, now = surface(old), surface(new)
    public = was.public(path)
    yield from _lost_members("", public, now.names)
    if was.exported is not None and now.exported is not None:
        for name in was.exported:
            gone = name in public and name not in now.names  # and said already
            if name not in now.exported and not gone:
                yield Problem("lost", f"{name} is not in __all__ any more", 0)


def _lost_members(
    owner: str, was: Mapping[str, Definition], now: Mapping[str, Definition]
) -> Iterator[Problem]:
    for name, old in was.items():
        new = now.get(name)
        if new is None:
            yield Problem("lost", f"public {old.kind} {owner}{name} is gone", old.line)
        elif old.signature and new.signature and old.signature != new.signature:
            message = f"signature of {owner}{name} was {old.signature}, is {new.signature}"
            yield Problem("signature", message, new.line)
        elif old.kind is Kind.CLASS and new.kind is Kind.CLASS and (old.bases == new.bases):
            yield from _lost_members(f"{owner}{name}.", _methods(old), new.members)


def _methods(definition: Definition) -> Mapping[str, Definition]:
    """The public methods of a class; what its base classes give can't be seen here."""
    return {
        name: member
        for name, member in definition.members.items()
        if (not name.startswith("_") or name == "__init__")
    }
