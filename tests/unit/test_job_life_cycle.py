"""Reads `docs/job-life-cycle.md`: the picture of a task's life is drawn from the table, and up to date.

`python -m tests.unit.test_job_life_cycle` writes the picture anew.
"""

from pathlib import Path

from codeconvoy.schemas.job_state import TRANSITIONS, TaskStatus

PAGE = Path(__file__).parents[2] / "docs" / "job-life-cycle.md"
HEADER = """# The life of a task

Drawn from `TRANSITIONS` in `schemas/job_state.py`; `python -m tests.unit.test_job_life_cycle` draws it anew.
A task that is *reported* has said its word and waits for the verdicts on its events. What is no arrow here
is an `IllegalCommand`.

"""


def page() -> str:
    """The page as it should be."""
    arrows = [f"    [*] --> {TaskStatus.DISPATCHED}: sent"]
    arrows += [f"    {before} --> {after}: {happening}" for (before, happening), after in TRANSITIONS.items()]
    arrows += [f"    {status} --> [*]" for status in TaskStatus if not status.open]
    return HEADER + "```mermaid\nstateDiagram-v2\n" + "\n".join(arrows) + "\n```\n"


def test_the_picture_shows_the_table_as_it_is() -> None:
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    PAGE.write_text(page())
