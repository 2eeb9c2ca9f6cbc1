"""Reads measurements, writes a table and JSON lines: what a figure is, and how it is shown."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


class Wrong(Exception):
    """A measurement saw what may never happen: a lost or doubled output, or one out of order."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value beside its limit: what the same run measured, or computed, as the best there is."""

    name: str
    value: float
    unit: str
    limit_name: str = ""
    limit: float | None = None
    target: float | None = None
    """Of value / limit: at least so much, or at most where `at_most`."""
    at_most: bool = False
    how: str = ""
    """What has to be known to read it: sizes, processes, what the clock includes."""

    @property
    def ratio(self) -> float | None:
        """The value in units of its limit."""
        return self.value / self.limit if self.limit else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.ratio is None or self.target is None:
            return None
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


@dataclass(frozen=True, slots=True)
class Setting:
    """What all figures of a run share."""

    cores: int
    commit: str
    scale: float


def json_line(figure: Figure, setting: Setting) -> str:
    """A figure as one line of JSON."""
    return json.dumps(
        {
            "name": figure.name,
            "value": round(figure.value, 4),
            "unit": figure.unit,
            "limit_name": figure.limit_name,
            "limit": None if figure.limit is None else round(figure.limit, 4),
            "ratio": None if figure.ratio is None else round(figure.ratio, 4),
            "target": figure.target,
            "at_most": figure.at_most,
            "met": figure.met,
            "how": figure.how,
            "cores": setting.cores,
            "commit": setting.commit,
            "scale": setting.scale,
        },
        ensure_ascii=False,
    )


def show(figures: Sequence[Figure], setting: Setting, console: Console) -> None:
    """Print the table."""
    title = f"{setting.cores} cores, commit {setting.commit}"
    if setting.scale != 1:
        title += f", at {setting.scale:g} of the full size: no figure to quote"
    table = Table(title=title)
    for name in ("figure", "value", "limit", "", "ratio", "target", "met"):
        table.add_column(name, justify="left" if name in ("figure", "") else "right")
    for figure in figures:
        table.add_row(*_cells(figure))
    console.print(table)
    for figure in figures:
        if figure.how:
            console.print(f"{figure.name}: {figure.how}", soft_wrap=True, markup=False, highlight=False)


def _cells(figure: Figure) -> Iterable[str]:
    yield figure.name
    yield f"{_number(figure.value)} {figure.unit}"
    yield "" if figure.limit is None else _number(figure.limit)
    yield figure.limit_name
    yield "" if figure.ratio is None else f"{figure.ratio:.3f}"
    yield "" if figure.target is None else f"{'≤' if figure.at_most else '≥'} {figure.target:g}"
    yield "" if figure.met is None else "yes" if figure.met else "[bold]no[/bold]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"
