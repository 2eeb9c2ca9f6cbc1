"""Reads nothing, writes nothing: how a model goes on from its own earlier answer, in the same conversation.

The conversation is made anew from events: the prompt as it was, and the answer as the blocks that give its
edit. Neither has to be kept anywhere, every worker makes the same one, and its beginning is what the provider
was sent before, so that what it keeps of prompts is used. Then comes what moved under the answer, as diffs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import msgspec

from codeconvoy.schemas.tasks import EditWork, ResolveWork, TestWork
from codeconvoy.workers.llm.edit_format import propose
from codeconvoy.workers.llm.fences import diff_part, feedback_parts, file_part, intent
from codeconvoy.workers.llm.text import EMPTY, Text, decode
from codeconvoy.workers.roles.role import Context, FileEdit, Former, RoleKind, Version
from codeconvoy.workers.roles.validators import writable

AROUND = 3
"""Lines around a change that go into the search of its block."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """A turn of a conversation that was had before."""

    context: Context
    """What the prompt was made of."""
    answer: str
    """What the agent said, in blocks."""


def earlier(context: Context, kind: RoleKind) -> Earlier | None:
    """The turn that a task goes on from; None where there was none, or it can't be told any more."""
    work, former = context.task.work, context.former
    if isinstance(work, ResolveWork):
        # The author of an edit is asked about it again; a merger has made none.
        return _author(context) if kind is RoleKind.EDIT and context.merge is None else None
    if former is None or not isinstance(work, EditWork | TestWork):
        return None
    path = former.own.path
    first = msgspec.structs.replace(
        context.task, round=1, former=None, work=msgspec.structs.replace(work, feedback=(), reworks=None)
    )
    then = replace(
        context,
        task=first,
        file=former.shown.get(context.file.path, context.file),
        others=tuple(former.shown.get(version.path, version) for version in context.others),
        former=None,
    )
    answer = as_answer(former.shown[path], former.own)
    return Earlier(then, answer) if answer is not None else None


def _author(context: Context) -> Earlier | None:
    path = context.task.path
    base = context.base or Version(path, "", None)
    first = msgspec.structs.replace(context.task, round=1, work=EditWork())
    answer = as_answer(base, context.file)
    then = replace(context, task=first, file=base, base=None, heads=())
    return Earlier(then, answer) if answer is not None else None


def again_parts(context: Context, former: Former, feedback: tuple[str, ...]) -> list[str]:
    """What a task is told after its earlier answer: why that was not enough, and what has moved."""
    now = {version.path: version for version in (context.file, *context.others)}
    may_write = writable(context)
    parts = feedback_parts("This answer was not accepted, because:", feedback)
    for path, version in now.items():
        then = former.own if path == former.own.path and former.is_live else former.shown.get(path)
        parts += _moved(then, version)
        if path == former.own.path or (path in may_write and then is not None and _differ(then, version)):
            parts.append(file_part("As it is now, to which your blocks apply", version))
    return [
        *parts,
        "Reconcile your answer with this: answer with blocks against the files as they are now. What is in "
        "them already needs no block.",
    ]


def _moved(then: Version | None, now: Version) -> list[str]:
    """The diff of a file that was shown before and is another now."""
    if then is None or not _differ(then, now):
        return []
    return [diff_part(f"This moved under you in {now.path}{intent(now)}", then, now)]


def _differ(one: Version, other: Version) -> bool:
    return one.content != other.content


def as_answer(base: Version, own: Version) -> str | None:
    """The answer, in blocks, that makes `own` of `base`; None where blocks can't say it."""
    summary = " ".join(own.summary.split()) or "the edit"
    for body in _bodies(base, own):
        text = f"SUMMARY: {summary}\n{body}"
        if propose(text, {base.path: base.content}).files == _wanted(base, own):
            return text
    return None


def _wanted(base: Version, own: Version) -> tuple[FileEdit, ...]:
    return (FileEdit(base.path, own.content),) if _differ(base, own) else ()


def _bodies(base: Version, own: Version) -> Iterator[str]:
    """Ways to write it down, the shortest first."""
    if not _differ(base, own):
        yield "NO CHANGES\n"
        return
    if own.content is None:
        yield f"{base.path}\n<<<<<<< DELETE\n>>>>>>> DELETE\n"
        return
    old = EMPTY if base.content is None else decode(base.content)
    new = decode(own.content)
    if old.lines:
        yield _searches(base.path, old, new)
    yield f"{base.path}\n<<<<<<< WHOLE\n{new.shown}>>>>>>> WHOLE\n"


def _searches(path: str, old: Text, new: Text) -> str:
    matcher = SequenceMatcher(None, old.lines, new.lines)
    blocks = []
    for group in matcher.get_grouped_opcodes(AROUND):
        search = old.lines[group[0][1] : group[-1][2]]
        replacement = new.lines[group[0][3] : group[-1][4]]
        lines = (path, "<<<<<<< SEARCH", *search, "=======", *replacement, ">>>>>>> REPLACE")
        blocks.append("".join(f"{line}\n" for line in lines))
    return "".join(blocks)
