"""What commands print is what was written, whatever characters it holds and the terminal knows."""

import os
import subprocess
import sys

import pytest

from codeconvoy.orchestrator.cli.common import stderr, stdout

PROGRAM = """
import sys
from codeconvoy.orchestrator import cli
from codeconvoy.orchestrator.cli.common import stdout
cli.make_app = lambda groups: lambda: stdout().print("\\U0001f199 \\u2502")
cli.main()
"""


def test_colons_are_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    stdout().print("ruff:up: x1 [bold]")
    stderr().print("ruff:up: x1 [bold]")
    out, err = capsys.readouterr()
    assert out == err == "ruff:up: x1 [bold]\n"


def test_a_terminal_that_lacks_a_character_gets_its_number() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    argv = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(argv, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"\\U0001f199 \\u2502\n"), done.stderr
