"""Reads a task on stdin, writes its answer on stdout: the program behind the `command` roles of tests.

    python gated_agent.py GATES ROLE DOES [SECONDS]

It says that it has begun by a file in GATES, and does not answer while the test holds it back (and
before so many seconds are over), so that the test, and not chance, decides who is in the middle of
what. What it does to a file is a rule that gives the same on top of anybody else's edit, so it can
reconcile its own in a conflict, and a test can tell whether an edit was lost.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HOLD_SECONDS = 280.0
"""As long as a test may take: a held agent that gave up would have its task begun anew."""


@dataclass(frozen=True)
class Call:
    """One start of the program: what stands for a call of a model."""

    role: str
    path: str
    task_id: str
    round: int
    worker: int
    """Process id of who made it."""
    began: int
    """Nanoseconds of the monotonic clock."""


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
        found = [call for call in self.calls() if call.role == role]
        return [f"{call.path} {call.round}" for call in found if not path or call.path == path]

    def calls(self) -> list[Call]:
        """Every start of the program, in order."""
        found = [Call(**json.loads(mark.read_text())) for mark in self.directory.glob("begun-*")]
        return sorted(found, key=lambda call: call.began)


def _held(role: str, path: str) -> str:
    return f"held-{role}-{path.replace('/', '%')}"


def _wait(gates: Path, call: Call, seconds: float) -> None:
    """Say that the task has begun, and wait while it is held back."""
    mark = gates / f".begun-{os.getpid()}-{call.began}"
    mark.write_text(json.dumps(asdict(call)))
    mark.rename(gates / mark.name[1:])
    parent, deadline = os.getppid(), time.monotonic() + HOLD_SECONDS
    held = (gates / _held(call.role, ""), gates / _held(call.role, call.path))
    time.sleep(seconds)
    while any(gate.exists() for gate in held):
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
    directory, own_role, rule, *more = sys.argv[1:]
    read = json.load(sys.stdin)
    its = read["task"]
    this = Call(own_role, its["path"], its["task_id"], its["round"], os.getppid(), time.monotonic_ns())
    _wait(Path(directory), this, float(*more))
    print(json.dumps(answer(read, own_role, rule)))
