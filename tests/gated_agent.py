"""Reads a task on stdin, writes its answer on stdout: the program behind the `command` roles of tests.

    python gated_agent.py GATES ROLE DOES

It says that it has begun by a file in GATES, and does not answer while the test holds it back, so
that the test, and not chance, decides who is in the middle of what. What it does to a file is a
rule that gives the same on top of anybody else's edit, so it can reconcile its own in a conflict,
and a test can tell whether an edit was lost.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOLD_SECONDS = 100.0


class Gates:
    """The test's side: holds agents back and lets them go."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def hold(self, role: str, path: str = "") -> None:
        """Let the role's tasks (on this path) begin, and not end."""
        (self.directory / _held(role, path)).touch()

    def release(self, role: str, path: str = "") -> None:
        """Let them go on."""
        (self.directory / _held(role, path)).unlink()

    def begun(self, role: str, path: str = "") -> list[str]:
        """What the role has begun: `path round` of each start, a redelivered task's twice."""
        found = [name.read_text() for name in sorted(self.directory.glob(f"begun-{role}-*"))]
        return [name for name in found if not path or name.split()[0] == path]


def _held(role: str, path: str) -> str:
    return f"held-{role}-{path.replace('/', '%')}"


def _wait(gates: Path, role: str, path: str, round_: int) -> None:
    """Say that the task has begun, and wait while it is held back."""
    mark = gates / f".begun-{os.getpid()}-{time.monotonic_ns()}"
    mark.write_text(f"{path} {round_}")
    mark.rename(gates / f"begun-{role}-{os.getpid()}-{time.monotonic_ns()}")
    parent, deadline = os.getppid(), time.monotonic() + HOLD_SECONDS
    while (gates / _held(role, "")).exists() or (gates / _held(role, path)).exists():
        if os.getppid() != parent or time.monotonic() > deadline:
            sys.exit("nobody waits for it any more")
        time.sleep(0.02)


def rename(text: str, role: str) -> str:
    """A better name for the parameter."""
    return re.sub(r"\bitems\b", "lines", text)


def annotate(text: str, role: str) -> str:
    """Types for what has none."""
    return re.sub(r"^def (\w+)\((\w+)\):$", r"def \1(\2: list[int]) -> int:", text, flags=re.MULTILINE)


def document(text: str, role: str) -> str:
    """A docstring for each function that has none."""
    return re.sub(
        r'^(def (\w+)\(.*:\n)(?!    """)', r'\1    """The \2 of them."""\n', text, flags=re.MULTILINE
    )


def log(text: str, role: str) -> str:
    """Each function says what it returns."""
    if "import logging" not in text:
        text = text.replace("\n\n\n", "\n\nimport logging\n\n\n", 1)
    return re.sub(
        r"^    return (.*)$", r"    logging.debug('%s', \1)\n    return \1", text, flags=re.MULTILINE
    )


def sign(text: str, role: str) -> str:
    """The role's name on the last line."""
    line = f"# seen by {role}\n"
    return text if line in text else text + line


RULES: dict[str, Callable[[str, str], str]] = {
    "rename": rename,
    "annotate": annotate,
    "document": document,
    "log": log,
    "sign": sign,
}


def write_test(subject: dict[str, Any]) -> str:
    """Tests that hold for this very version of the file."""
    module = subject["path"].removesuffix(".py").replace("/", ".")
    names = re.findall(r"^def (\w+)\((\w+)", subject["content"], re.MULTILINE)
    return (
        "import inspect\nimport unittest\n\n"
        f"import {module} as subject\n\n\n"
        "class Parameters(unittest.TestCase):\n    def test_their_names(self):\n"
        f"        for name, parameter in {names!r}:\n"
        "            found = inspect.signature(getattr(subject, name)).parameters\n"
        "            self.assertEqual(list(found), [parameter])\n"
    )


def answer(task: dict[str, Any], role: str, does: str) -> dict[str, object]:
    """What is said on stdout."""
    file = task["file"]
    match task["kind"]:
        case "edit":
            edits = [{"path": file["path"], "content": RULES[does](file["content"], role)}]
        case "resolve":
            [other] = task["heads"]
            edits = [{"path": file["path"], "content": RULES[does](other["content"], role)}]
        case "test":
            edits = [{"path": task["task"]["work"]["test_path"], "content": write_test(file)}]
        case kind:
            return {"error": f"no answer to {kind}"}
    return {"edits": edits, "summary": f"{role}: {does}"}


if __name__ == "__main__":
    read = json.load(sys.stdin)
    _wait(Path(sys.argv[1]), sys.argv[2], read["task"]["path"], read["task"]["round"])
    print(json.dumps(answer(read, sys.argv[2], sys.argv[3])))
