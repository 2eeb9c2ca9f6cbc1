"""Reads a merged file and the sides it came from, writes nothing: what speaks against the merge.

Only what is new counts: a flaw that a side had already is not the merge's. Each check is bounded
(size, time), for the detector waits for it. `ruff` runs as a process, isolated from any
configuration, with nothing but the file on its standard input.
"""

import io
import json
import re
import subprocess
import time
import tokenize
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from types import MappingProxyType

import yaml
from ruff import find_ruff_bin  # type: ignore[import-untyped]

from codeconvoy.schemas.errors import Unavailable
from codeconvoy.schemas.topics import MAX_FILE_BYTES
from codeconvoy.workers.python_tree import NOT_PYTHON, python_tree

LINT_SECONDS = 10
"""Deadline of all runs of ruff for one candidate; 20 ms is usual for one."""

MAX_YAML_BYTES = 32 * 1024
"""YAML above this is not parsed: a second for every 100 kB."""

_LINT_CODES = "F"
_LINT_IGNORED = "F401,F841"
"""Unused imports and variables: two sides that each drop a use leave them behind. Untidy, harmless."""

_PYTHON = (".py", ".pyi")
_MARKER = re.compile(rb"^(?:<{7,}|>{7,})(?: .*|\r?)$", re.MULTILINE)
_LINE_NUMBER = re.compile(r"\bline \d+")


class _NotLinted(Exception):
    """ruff did not do its work: then the merge is not taken."""


def objections(path: str, candidate: bytes | None, sides: Sequence[bytes]) -> tuple[str, ...]:
    """What speaks against a merge that gave `candidate`: empty if nothing does.

    Args:
        path: the file's path; its ending says how it is read.
        candidate: the merged content, None where the merge deletes the file.
        sides: what the merged heads held, without those that deleted the file.

    Raises:
        Unavailable: ruff is not installed.
    """
    if candidate is None:
        return ()
    if len(candidate) > MAX_FILE_BYTES:
        return (f"the merged file has {len(candidate)} bytes, over the cap of {MAX_FILE_BYTES}",)
    marked = _new_markers(candidate, sides)
    if marked:
        return (f"the merge left a conflict marker: {marked}",)
    suffix = PurePosixPath(path).suffix.lower()
    parse = _PARSERS.get(suffix)
    if parse is _parse_yaml and max(map(len, (candidate, *sides))) > MAX_YAML_BYTES:
        return ()
    if parse is None:
        return ()
    # The candidate first: it is nearly always sound, and parsing every side costs the most.
    flaw = _flaw(parse, candidate)
    found: tuple[str, ...] = ()
    if flaw:
        found = (f"the merged file does not parse, and all sides did: {flaw}",)
    elif suffix in _PYTHON:
        found = _new_findings(suffix, candidate, sides, parse)
    return found if found and not any(_flaw(parse, side) for side in sides) else ()


def _new_markers(candidate: bytes, sides: Sequence[bytes]) -> str:
    """The first conflict marker of the candidate that no side holds, or the empty string."""
    known = {line for side in sides for line in _MARKER.findall(side)}
    return next((ascii(line)[2:-1] for line in _MARKER.findall(candidate) if line not in known), "")


def _new_findings(
    suffix: str, candidate: bytes, sides: Sequence[bytes], parse: Callable[[bytes], None]
) -> tuple[str, ...]:
    """What ruff finds in the candidate and in no side (undefined names, redefinitions, ...)."""
    deadline = time.monotonic() + LINT_SECONDS
    try:
        found = _findings(suffix, candidate, deadline)
        for side in sides:
            if not found or _flaw(parse, side):
                break
            known = _findings(suffix, side, deadline)
            found = {key: text for key, text in found.items() if key not in known}
    except _NotLinted as unknown:
        return (str(unknown),)
    return tuple(sorted(found.values()))


def _findings(suffix: str, content: bytes, deadline: float) -> dict[tuple[str, str], str]:
    """ruff's findings by code and message (without line numbers, which merging moves)."""
    command = (
        *(_ruff(), "check", "--isolated", "--no-cache", "--output-format=json", "--exit-zero"),
        *(f"--select={_LINT_CODES}", f"--ignore={_LINT_IGNORED}", f"--stdin-filename=merged{suffix}", "-"),
    )
    try:
        run = subprocess.run(
            command,
            input=_as_utf8(content),
            capture_output=True,
            timeout=max(0.0, deadline - time.monotonic()),
            env={},
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise _NotLinted(f"ruff did not end in {LINT_SECONDS} s") from late
    if run.returncode:
        raise _NotLinted(f"ruff failed: {run.stderr.decode(errors='replace').strip()[:200]}")
    return {
        (finding["code"] or "", _LINE_NUMBER.sub("line", finding["message"])): (
            f"{finding['code'] or 'syntax'}: {finding['message']}"
        )
        for finding in json.loads(run.stdout)
    }


def _ruff() -> str:
    try:
        return str(find_ruff_bin())
    except FileNotFoundError as missing:
        raise Unavailable("ruff", str(missing), "Reinstall codeconvoy: ruff comes with it") from missing


def _as_utf8(content: bytes) -> bytes:
    """Python source as ruff reads it, whatever its coding cookie says. It parses, so it decodes."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return content.decode(encoding).encode()


def _flaw(parse: Callable[[bytes], None], content: bytes) -> str:
    """Why the content can't be parsed, or the empty string."""
    try:
        parse(content)
    except (*NOT_PYTHON, yaml.YAMLError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _parse_python(content: bytes) -> None:
    python_tree(content)


def _parse_json(content: bytes) -> None:
    json.loads(content, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object, if no name is in it twice: two sides that add one name leave it so."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("an object holds the same name twice")
    return made


def _parse_toml(content: bytes) -> None:
    tomllib.loads(content.decode())


def _parse_yaml(content: bytes) -> None:
    """Only compose: aliases are resolved, nothing is constructed, own tags are no error."""
    for _ in yaml.compose_all(content, Loader=yaml.SafeLoader):
        pass


_PARSERS: Mapping[str, Callable[[bytes], None]] = MappingProxyType(
    {
        ".py": _parse_python,
        ".pyi": _parse_python,
        ".json": _parse_json,
        ".toml": _parse_toml,
        ".yaml": _parse_yaml,
        ".yml": _parse_yaml,
    }
)
