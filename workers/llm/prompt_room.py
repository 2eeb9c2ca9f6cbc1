"""Reads nothing, writes nothing: what else goes into a prompt where there is room, and what is said of
the rest.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from codeconvoy.schemas.errors import AgentError
from codeconvoy.workers.llm import tokens
from codeconvoy.workers.llm.fences import fenced, file_part
from codeconvoy.workers.llm.repo_map import RepoMap, Shown, show
from codeconvoy.workers.roles.role import Context, Version
from codeconvoy.workers.roles.validators import writable

MAX_NAMED = 50
"""Files that are named as left out, before the others are counted."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """A part of a prompt that fits."""

    text: str = ""
    left_out: int = 0
    """How many files are not in it."""
    shown: frozenset[str] = frozenset()
    """The files that it shows as a whole."""


def others_part(context: Context, room: int) -> Fitting:
    """The files that are there to be read only, as far as there is room."""
    shown = {context.task.path, *writable(context)}
    parts = {
        version.path: (version, "\n\n" + file_part("Another file, to know of and not to be changed", version))
        for version in context.others
        if version.path not in shown
    }
    if sum(len(part) for _, part in parts.values()) > room:
        room -= len(_left_out([version for version, _ in parts.values()]))
    text, left_out = "", list[Version]()
    for version, part in parts.values():
        if len(text) + len(part) <= room:
            text += part
            shown.add(version.path)
        else:
            left_out.append(version)
    return Fitting(text + _left_out(left_out), len(left_out), frozenset(shown))


def _left_out(versions: Sequence[Version]) -> str:
    """Says which files are not shown, if there are any."""
    if not versions:
        return ""
    named = [f"{v.path} ({len(v.content or b''):,} bytes)" for v in versions[:MAX_NAMED]]
    more = [f"{len(versions) - MAX_NAMED:,} more"] if len(versions) > MAX_NAMED else []
    return f"\n\nLeft out for their size, do not guess what is in them: {', '.join(named + more)}."


def map_part(whole: RepoMap, in_full: Collection[str], room: int) -> Fitting:
    """The map of the repository, as far as there is room for it."""
    longest = Shown(text="", defined=0, listed=whole.files, files=whole.files)
    shown = show(whole, max(0, min(room, tokens.room(whole.tokens)) - len(_drawn(longest))), in_full)
    return Fitting(_drawn(shown) if shown.text else "", shown.left_out)


def _drawn(shown: Shown) -> str:
    seen = shown.defined + shown.listed
    return "\n\n" + "\n".join(
        (
            fenced(
                "A map of other files: what they define, without bodies; of some the path only", shown.text
            ),
            f"The map shows {seen:,} of {shown.files:,} other files, of {shown.listed:,} the path only.",
        )
    )


def too_long(context: Context, size: int, limit: int) -> AgentError:
    """What a task needs does not fit: which files are how large, and what can be done."""
    files = {version.path: version for version in (context.file, *context.heads)}
    files |= {version.path: version for version in context.others if version.path in writable(context)}
    sizes = ", ".join(f"{path} has {len(v.content or b''):,} bytes" for path, v in files.items() if path)
    return AgentError(
        f"the prompt would have {size:,} characters, the role's limit is {limit:,}{sizes and f' ({sizes})'}. "
        "Split the file, let the task write fewer files, or take a model with more context; "
        "the role's option max_prompt_chars sets the limit"
    )
