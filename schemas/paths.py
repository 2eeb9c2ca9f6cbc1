"""Reads nothing, writes nothing: the one spelling of a path, before it becomes part of a key.

Two spellings of one file would be two histories on two partitions, and a path that git or a file
system takes for something else could write into `.git`. So a path is normalised where it comes
in, and refused where it is not safe on Linux, macOS (HFS+, APFS) and Windows (NTFS) alike: when
it leaves the repository, could be read as `.git` or `.gitmodules` (the rules of git's
`verify_path`, HFS and NTFS variants included), names another file on one of them (trailing dot
or space, colon, backslash, decomposed Unicode), or looks like another path to a person (invisible
and bidi characters).

Windows device names (`aux.c`, `con`) are allowed: they stand for no other file of the
repository, a checkout on Windows says so, and real repositories hold them.
"""

import re
from typing import NoReturn
from unicodedata import ucd_3_2_0

from codeconvoy.schemas.errors import BadInput

MAX_PATH_BYTES = 1024
MAX_COMPONENT_BYTES = 255
"""NAME_MAX of Linux, macOS and Windows file systems."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_INVISIBLE = re.compile(
    # Unicode's Default_Ignorable_Code_Point: bidi marks, zero-width characters, variation
    # selectors, tags; it includes every code point that HFS+ ignores in a name. Spelled out, and
    # not looked up by category, so that every Python gives the same answer.
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_GIT = re.compile(
    # On the case-folded component, up to what NTFS ignores: trailing dots and spaces, streams.
    # `git~1` and the like are the 8.3 short names that NTFS makes (git's path.c).
    r"(?:\.git|git~[0-9]+|\.gitmodules|gitmod~[0-9]+|gi7eb[0-9a-f]~[0-9]+)[. ]*(?::.*)?\Z"
)
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?"
_PLAIN = re.compile(rf"{_NAME}(?:/{_NAME})*\Z")
"""What nearly all paths look like, and what no rule below refuses (but for the lengths)."""
_WORKSPACE = re.compile(r"[A-Za-z0-9._-]{1,100}\Z")


def normalise(path: str, field: str = "path") -> str:
    """The one spelling of a path inside a repository: `./a//b` is `a/b`.

    Args:
        path: relative to the repository's root, with slashes.
        field: what the caller calls it, for the message.

    Raises:
        BadInput: the path can't be used; reason and remedy say why and what to do.
    """
    _check_whole(path, field)
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts:
        _refuse(field, path, "names no file", "Name a file inside the repository")
    for part in parts:
        _check_component(part, path, field)
    return "/".join(parts)


def is_normal(path: str) -> bool:
    """True if `normalise` gives back the very same path."""
    if len(path) <= MAX_COMPONENT_BYTES and _PLAIN.match(path):
        return True
    try:
        return normalise(path) == path
    except BadInput:
        return False


def check_workspace(name: str) -> str:
    """The workspace's name, if it can be part of a file key (so it holds no colon).

    Raises:
        BadInput: it can't.
    """
    if not _WORKSPACE.match(name):
        raise BadInput(
            "workspace",
            f"{name!a} is not a workspace name",
            "Use 1 to 100 letters, digits, dots, dashes and underscores",
        )
    return name


def _refuse(field: str, path: str, reason: str, remedy: str) -> NoReturn:
    raise BadInput(field, f"{path[:200]!a} {reason}", remedy)


def _check_whole(path: str, field: str) -> None:
    """Refuse what is wrong with a path as a whole, or with one of its characters."""
    for found, what in (
        (_SURROGATE.search(path), "is not UTF-8"),
        (_CONTROL.search(path), "holds a control character"),
        (_INVISIBLE.search(path), "holds an invisible character"),
    ):
        if found:
            _refuse(field, path, f"{what} (U+{ord(found[0]):04X})", "Rename the file in git first")
    if len(path.encode()) > MAX_PATH_BYTES:
        _refuse(field, path, f"is over {MAX_PATH_BYTES} bytes long", "Use a shorter path")
    if "\\" in path:
        _refuse(field, path, "holds a backslash", "Separate directories with slashes")
    if path.startswith("/"):
        _refuse(field, path, "is absolute", "Give it relative to the repository's root")
    if path.endswith(("/", "/.")):
        _refuse(field, path, "names a directory", "Name a file")
    # Unicode 3.2 is what HFS+ decomposes by, and the same tables are in every Python.
    if not ucd_3_2_0.is_normalized("NFC", path):
        _refuse(field, path, "is not in Unicode's NFC form", "Rename the file in git to its NFC form")


def _check_component(part: str, path: str, field: str) -> None:
    """Refuse a component that git or a file system could take for something else."""
    if part == "..":
        _refuse(field, path, "leaves its directory (..)", "Name the file by its path from the root")
    if _GIT.match(part.casefold()):
        _refuse(field, path, f"holds {part!a}, which can be read as git's own", "Name another file")
    if part.startswith("-"):
        _refuse(field, path, f"holds {part!a}, which can be read as an option", "Rename it in git first")
    if ":" in part:
        _refuse(field, path, "holds a colon, which names a stream on NTFS", "Rename it in git first")
    if part.endswith((".", " ")):
        _refuse(field, path, f"holds {part!a}, which ends in a dot or space", "Rename it in git first")
    if len(part.encode()) > MAX_COMPONENT_BYTES:
        _refuse(field, path, f"holds a name of over {MAX_COMPONENT_BYTES} bytes", "Use a shorter name")
