"""Reads nothing, writes nothing: a file's bytes as the lines that a model is shown, and back.

A model writes "\\n" whatever the file holds. So the encoding, a byte order mark, each untouched
line's own end and a missing final newline are kept here, and only new lines get an end: the one
that most of the file's lines have.
"""

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LINE_END = re.compile(r"(\r\n|\n|\r)")


@dataclass(frozen=True, slots=True)
class Text:
    """A file as lines. `encode(text, text.lines)` gives back the very bytes it was made of."""

    lines: tuple[str, ...]
    """Without their ends."""
    ends: tuple[str, ...]
    """The end of each line; only the last one's may be empty."""
    encoding: str
    """utf-8, utf-8-sig, or latin-1 where the bytes are not UTF-8 (it can hold any bytes)."""

    @property
    def shown(self) -> str:
        """What a model is shown: every line ends with a newline."""
        return "".join(f"{line}\n" for line in self.lines)

    @property
    def usual_end(self) -> str:
        """The end that most lines have."""
        ends = Counter(end for end in self.ends if end)
        return ends.most_common(1)[0][0] if ends else "\n"

    @property
    def closed(self) -> bool:
        """Whether the last line has an end (so has a file without lines)."""
        return not self.ends or self.ends[-1] != ""


EMPTY = Text((), (), "utf-8")


def decode(content: bytes) -> Text:
    """The bytes as lines. Total: what is not UTF-8 is read as Latin-1, which loses nothing."""
    encoding = "utf-8-sig" if content.startswith(codecs.BOM_UTF8) else "utf-8"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        encoding, text = "latin-1", content.decode("latin-1")
    parts = _LINE_END.split(text)
    last = parts.pop()
    lines, ends = parts[0::2], parts[1::2]
    if last:
        lines, ends = [*lines, last], [*ends, ""]
    return Text(tuple(lines), tuple(ends), encoding)


@dataclass(frozen=True, slots=True)
class Region:
    """Lines `start` to `stop` (0-based, end exclusive) become `lines`."""

    start: int
    stop: int
    lines: tuple[str, ...]


def trimmed(text: Text, region: Region) -> Region:
    """The region without the lines that it leaves as they are at its start and end."""
    old, new = text.lines[region.start : region.stop], region.lines
    same = min(len(old), len(new))
    head = next((i for i in range(same) if old[i] != new[i]), same)
    same -= head
    tail = next((i for i in range(same) if old[-1 - i] != new[-1 - i]), same)
    return Region(region.start + head, region.stop - tail, new[head : len(new) - tail])


def encode(text: Text, regions: Iterable[Region]) -> bytes:
    """The file's bytes after the regions (apart, in order, trimmed) were replaced.

    Raises:
        UnicodeEncodeError: a new line holds what the file's encoding can't hold.
    """
    lines: list[tuple[str, str]] = []
    at, end = 0, text.usual_end
    old = tuple(zip(text.lines, text.ends, strict=True))
    for region in regions:
        lines += old[at : region.start]
        lines += ((line, end) for line in region.lines)
        at = region.stop
    lines += old[at:]
    return _joined(lines, end, text.closed).encode(text.encoding)


def _joined(lines: Sequence[tuple[str, str]], usual: str, closed: bool) -> str:
    """All lines with an end, the last one as the file had it."""
    if not lines:
        return ""
    body = "".join(line + (end or usual) for line, end in lines[:-1])
    line, end = lines[-1]
    return body + line + ((end or usual) if closed else "")
