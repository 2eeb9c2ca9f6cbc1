"""Reads three files, writes the merged one: `convoy merge`. Needs no broker, no Redis, no settings.

It starts for every file that git merges, so nothing is imported here before it is needed.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

PANEL = "Without a fleet"


def merge(
    base: Annotated[Path, typer.Argument(help="What both sides started from; /dev/null: nothing.")],
    ours: Annotated[Path, typer.Argument(help="The side that counts as the first writer.")],
    theirs: Annotated[Path, typer.Argument(help="The side that counts as the last writer.")],
    path: Annotated[
        str, typer.Option("--path", help="The file's path: its ending says what it must parse as.")
    ] = "",
    output: Annotated[Path | None, typer.Option(help="Write there instead of to stdout.")] = None,
) -> None:
    """Merge a file as the conflict detector would, and refuse what is clean and broken.

    Exit code 0: merged. 1: not merged, with conflict markers. What was tried goes to stderr.

    convoy merge base.py ours.py theirs.py --path src/app.py > app.py

    As git's own merge driver, for Python files:

        git config merge.convoy.driver "convoy merge %O %A %B --path %P --output %A"

        echo "*.py merge=convoy" >> .gitattributes
    """
    from codeconvoy.workers.resolution.standalone import merge_files

    contents = [_content(name, file) for name, file in (("OURS", ours), ("THEIRS", theirs))]
    before = None if str(base) == os.devnull else _content("BASE", base)
    result = merge_files(before, contents[0], contents[1], path or ours.name)
    for tried in result.tried:
        typer.echo(f"{tried.strategy}: {tried.reason}", err=True)
    if output is not None:
        output.write_bytes(result.content)
    else:
        sys.stdout.buffer.write(result.content)
        sys.stdout.buffer.flush()
    raise typer.Exit(0 if result.clean else 1)


def _content(name: str, file: Path) -> bytes:
    from codeconvoy.schemas.errors import BadInput
    from codeconvoy.schemas.topics import MAX_FILE_BYTES

    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = f"{file} can't be read: {error.strerror}"
        raise BadInput(name, reason, "Give three files: BASE OURS THEIRS") from error
    if len(content) > MAX_FILE_BYTES:
        raise BadInput(name, f"{file} is over {MAX_FILE_BYTES} bytes", "Merge it with `git merge-file`")
    return content


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("merge", rich_help_panel=PANEL)(merge)
