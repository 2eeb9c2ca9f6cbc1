"""Reads contexts, writes answers: the rule-based agents behind the provider `codemod`.

What an agent does is in its role's option `rules`: `ruff:UP,I` (rule codes), `libcst:tidy`,
`reviewer` or `tester`. Files that are not Python, or do not parse, are left as they are, and the
answer says so: for a rule set that is no failure.
"""

import ast
from collections.abc import Mapping

from codeconvoy.schemas.errors import AgentError, BadInput
from codeconvoy.schemas.tasks import EditWork, ResolveWork, TestWork
from codeconvoy.schemas.topics import MAX_FILE_BYTES
from codeconvoy.workers.roles.codemod.characterise import characterise
from codeconvoy.workers.roles.codemod.review import Problem, problems
from codeconvoy.workers.roles.codemod.ruff_rules import RuffRules
from codeconvoy.workers.roles.codemod.source import RuleSet, Unparsable, is_python, parse
from codeconvoy.workers.roles.codemod.tidy import TidyRules
from codeconvoy.workers.roles.role import Agent, Answer, Context, Edits, FileEdit, Role, Vote

DEFAULT_TARGET = "py39"


def make_agent(role: Role) -> Agent:
    """The agent that does this role's work.

    Options: `rules` (needed), and `target_version`, the oldest Python that the code is for
    (`py39`).

    Raises:
        BadInput: `rules` names nothing that is known.
    """
    rules = role.options.get("rules", "")
    target = role.options.get("target_version", DEFAULT_TARGET)
    kind, _, names = rules.partition(":")
    if kind == "ruff" and names:
        return RuleAgent(rules, RuffRules(frozenset(names.split(",")), target), target)
    match rules:
        case "libcst:tidy":
            return RuleAgent(rules, TidyRules(), target)
        case "reviewer":
            return ReviewerAgent(target)
        case "tester":
            return TesterAgent()
    raise BadInput(
        f"roles.{role.name}.options.rules",
        f"{rules!r} is not a rule set",
        "Use ruff:CODES (ruff:UP,I), libcst:tidy, reviewer or tester",
    )


class RuleAgent:
    """Edits files by a rule set, and reconciles its own edits with those of others."""

    def __init__(self, name: str, rules: RuleSet, target_version: str) -> None:
        self._name, self._rules, self._target = name, rules, target_version

    async def work(self, context: Context) -> Answer:
        """The edit, or the reconciliation, of the task's file.

        Raises:
            AgentError: not this agent's kind of task; ruff can't be run; or (in a conflict) its
                rules can't reconcile the heads.
        """
        match context.task.work:
            case EditWork(feedback=()):
                return await self._edit(context)
            case EditWork():
                return await self._edit_carefully(context)
            case ResolveWork():
                return await self._reconcile(context)
        raise AgentError(f"{self._name} edits files, and got {type(context.task.work).__name__}")

    async def close(self) -> None:
        """Nothing is held between calls."""

    async def _edit(self, context: Context) -> Edits:
        path, content = context.file.path, context.file.content
        refusal = _why_not(path, content)
        if refusal or content is None:
            return Edits((), summary=refusal)
        rewrite = await self._rules.rewrite(path, content)
        return self._answer(path, content, rewrite.content, rewrite.done)

    async def _edit_carefully(self, context: Context) -> Edits:
        """After a rejection: only the rules that, one by one, break nothing that a reviewer sees."""
        path, content = context.file.path, context.file.content
        refusal = _why_not(path, content)
        if refusal or content is None:
            return Edits((), summary=refusal)
        before = context.base.content if context.base else content
        kept, done = content, dict[str, int]()
        for rule, count in sorted((await self._rules.rewrite(path, content)).done.items()):
            candidate = (await self._rules.rewrite(path, kept, {rule})).content
            if candidate != kept and not blocking(await problems(path, before, candidate, self._target)):
                kept, done[rule] = candidate, count
        return self._answer(path, content, kept, done)

    def _answer(self, path: str, before: bytes, after: bytes, done: Mapping[str, int]) -> Edits:
        """The edit, unless nothing changed; a rewrite that broke the syntax is never an answer."""
        if after == before:
            return Edits((), summary=f"{self._name}: nothing to change")
        if isinstance(parse(after), Unparsable):
            return Edits((), summary=f"{self._name}: the result would not parse")
        counts = ", ".join(f"{rule} x{count}" for rule, count in sorted(done.items()))
        return Edits((FileEdit(path, after),), summary=f"{self._name}: {counts}")

    async def _reconcile(self, context: Context) -> Edits:
        """What the rules make of the other head: rules need no merge, they can be applied anew.

        That is the whole of the agent's own edit only where its own edit is what the rules make of
        the base, so this is checked.
        """
        path, base = context.file.path, context.base.content if context.base else None
        if len(context.heads) != 1:
            raise AgentError(f"{self._name} joins its edit with one other head, not {len(context.heads)}")
        other = context.heads[0].content
        if other is None or base is None or context.file.content is None:
            raise AgentError(f"{self._name} can't join a deletion or two new files")
        for refusal in (_why_not(path, base), _why_not(path, other)):
            if refusal:
                raise AgentError(refusal)
        if (await self._rules.rewrite(path, base)).content != context.file.content:
            raise AgentError("the edit holds more than what the rules make of the common ancestor")
        rewrite = await self._rules.rewrite(path, other)
        known = {_key(problem) for problem in await problems(path, base, other, self._target)}
        found = await problems(path, base, rewrite.content, self._target)
        new = [problem for problem in blocking(found) if _key(problem) not in known]
        if new:
            raise AgentError(f"its rules on the other head: {new[0].comment(path)}")
        counts = ", ".join(f"{rule} x{count}" for rule, count in sorted(rewrite.done.items()))
        return Edits(
            (FileEdit(path, rewrite.content),),
            summary=f"{self._name} applied to the other head: {counts or 'nothing to change'}",
        )


class ReviewerAgent:
    """Rejects what breaks the file or takes away what others may use; untidiness is only remarked."""

    def __init__(self, target_version: str) -> None:
        self._target = target_version

    async def work(self, context: Context) -> Answer:
        """The vote on the file's version, against its base.

        Raises:
            AgentError: ruff can't be run on it.
        """
        before = context.base.content if context.base else None
        path = context.file.path
        found = await problems(path, before, context.file.content, self._target)
        comments = tuple(problem.comment(path) for problem in (*blocking(found), *_remarks(found)))
        return Vote(approved=not blocking(found), comments=comments)

    async def close(self) -> None:
        """Nothing is held between calls."""


class TesterAgent:
    """Writes characterisation tests of what a module offered before it was worked on."""

    async def work(self, context: Context) -> Answer:
        """The test file, or no edit where the file can't be imported or does not parse.

        Raises:
            AgentError: not a task for a tester.
        """
        if not isinstance(context.task.work, TestWork):
            raise AgentError(f"a tester writes tests, and got {type(context.task.work).__name__}")
        subject = context.base if context.base and context.base.content is not None else context.file
        tree = _tree(subject.path, subject.content)
        if isinstance(tree, str):
            return Edits((), summary=tree)
        test_path = context.task.work.test_path
        content = characterise(subject.path, test_path, tree)
        if content is None:
            return Edits((), summary=f"{subject.path} is not a module to be imported: no tests")
        if len(content) > MAX_FILE_BYTES:
            return Edits((), summary=f"the tests would be over {MAX_FILE_BYTES} bytes")
        return Edits((FileEdit(test_path, content),), summary=f"characterises {subject.path}")

    async def close(self) -> None:
        """Nothing is held between calls."""


def blocking(found: tuple[Problem, ...]) -> tuple[Problem, ...]:
    """Those of the problems that a version is rejected for."""
    return tuple(problem for problem in found if problem.blocking)


def _remarks(found: tuple[Problem, ...]) -> tuple[Problem, ...]:
    return tuple(problem for problem in found if not problem.blocking)


def _key(problem: Problem) -> tuple[str, str]:
    return problem.rule, problem.message


def _tree(path: str, content: bytes | None) -> ast.Module | str:
    """The syntax tree, or why there is none to work on."""
    if content is None:
        return f"{path} does not exist"
    if not is_python(path):
        return f"{path} is not Python"
    tree = parse(content)
    return f"{path} does not parse: {tree.reason}, line {tree.line}" if isinstance(tree, Unparsable) else tree


def _why_not(path: str, content: bytes | None) -> str:
    """Why rules can't be applied to the text; empty where they can."""
    tree = _tree(path, content)
    if isinstance(tree, str):
        return tree
    try:
        (content or b"").decode()
    except UnicodeDecodeError:
        return f"{path} is not UTF-8"
    return ""
