"""Reads nothing, writes nothing: what the globs of a job mean.

They mean what they mean in a `.gitignore`: `*.py` is every Python file, `docs/*.py` those right
in `docs`, `docs/**/*.py` also those below, `docs/` everything in it.
"""

import re
from collections.abc import Sequence

import pathspec

from codeconvoy.schemas.errors import BadInput

_MAGIC = re.compile(r"[*?\[\\]|/\Z")
_REMEDY = "Write it like a line of .gitignore: *.py, docs/**/*.py, docs/"


def compile_glob(glob: str, field: str) -> pathspec.GitIgnoreSpec:
    """A matcher of paths for one glob.

    Raises:
        BadInput: it is no glob, or one that can't match anything.
    """
    if not glob.strip() or re.search(r"[\x00-\x1f\x7f]", glob):
        raise BadInput(field, "the glob is empty or holds control characters", _REMEDY)
    if glob.startswith("!"):
        raise BadInput(field, f"{glob!r} negates", "Put what is not wanted under exclude")
    if ".." in glob.split("/"):
        raise BadInput(field, f"{glob!r} leaves the repository (..)", _REMEDY)
    try:
        spec = pathspec.GitIgnoreSpec.from_lines([glob])
    except (re.error, ValueError) as error:
        raise BadInput(field, f"{glob!r} is not a glob: {error}", _REMEDY) from error
    if not any(pattern.include for pattern in spec.patterns):
        raise BadInput(field, f"{glob!r} can't match any path", _REMEDY)
    return spec


def compile_globs(globs: Sequence[str], field: str) -> tuple[pathspec.GitIgnoreSpec, ...]:
    """A matcher for each of the globs.

    Raises:
        BadInput: one of them is no glob; the field says which.
    """
    return tuple(compile_glob(glob, f"{field}[{i}]") for i, glob in enumerate(globs))


def is_literal(glob: str) -> bool:
    """True where a glob has no wildcard: it names one file (or directory) and means just that."""
    return not _MAGIC.search(glob)
