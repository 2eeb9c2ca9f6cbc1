"""Reads nothing, writes nothing: how files, diffs and reasons stand in a prompt.

Everything from the repository is fenced by marks that its text can't hold, and what is cut says so.
"""

import difflib
from collections.abc import Sequence
from hashlib import sha256

from codeconvoy.workers.llm.text import EMPTY, decode
from codeconvoy.workers.roles.role import Version

MAX_FEEDBACK_ITEMS = 20
MAX_FEEDBACK_CHARS = 4_000
MAX_DIFF_LINES = 4_000


def feedback_parts(title: str, items: Sequence[str]) -> list[str]:
    """Reasons, up to `MAX_FEEDBACK_ITEMS` and each up to `MAX_FEEDBACK_CHARS`; nothing if there are none."""
    kept = [_clipped(item) for item in items[:MAX_FEEDBACK_ITEMS]]
    if len(items) > len(kept):
        kept.append(f"({len(items) - len(kept)} more are left out)")
    return [f"{title}\n" + fenced("Feedback", "\n".join(f"- {item}" for item in kept))] if kept else []


def _clipped(item: str) -> str:
    return item if len(item) <= MAX_FEEDBACK_CHARS else f"{item[:MAX_FEEDBACK_CHARS]} (the rest is left out)"


def file_part(title: str, version: Version) -> str:
    """A file as a whole."""
    if version.content is None:
        return f"{title}: {version.path} (there is no such file)"
    return fenced(f"{title}: {version.path}", decode(version.content).shown)


def diff_part(title: str, base: Version | None, version: Version, limit: int = MAX_DIFF_LINES) -> str:
    """A unified diff, cut at so many lines, which it says."""
    old = base.content if base else None
    before, after = (
        list((EMPTY if content is None else decode(content)).lines) for content in (old, version.content)
    )
    names = (
        "/dev/null" if old is None else version.path,
        "/dev/null" if version.content is None else version.path,
    )
    lines = list(difflib.unified_diff(before, after, *names, lineterm=""))
    if len(lines) > limit:
        lines = [
            *lines[:limit],
            f"({len(lines) - limit} more lines of this diff are left out)",
        ]
    return fenced(title, "\n".join(lines) or "(no difference)")


def intent(version: Version) -> str:
    """Who made a version, and to what end, as far as that is known: goes on in a title."""
    by = f" by {version.role}" if version.role else ""
    return f"{by} ({version.summary})" if version.summary else by


def fenced(title: str, text: str) -> str:
    """Text fenced by a mark that it can't hold: it would have to hold its own hash."""
    mark = sha256(text.encode()).hexdigest()[:16]
    return f"{title}\n<data {mark}>\n{text.removesuffix(chr(10))}\n</data {mark}>"
