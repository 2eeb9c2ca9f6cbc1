"""Reads the status endpoints of a process, writes nothing: its health and figures, as anyone sees them."""

import asyncio
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

PROBE_SECONDS = 2.0
MAX_BYTES = 4 * 1024 * 1024
_FIGURES = {
    "convoy_in_flight": "in_flight",
    "convoy_queued": "queued",
    "convoy_records_total": "records",
    "convoy_dead_letters_total": "dead_letters",
}


@dataclass(frozen=True, slots=True)
class Probe:
    """What a process said of itself."""

    problems: tuple[str, ...] = ()
    in_flight: int = 0
    queued: int = 0
    """Records read and not begun."""
    records: int = 0
    """Handled since it started."""
    dead_letters: int = 0


async def probe(port: int) -> Probe | None:
    """Ask the process at this port of 127.0.0.1; None when it does not answer as one of ours does."""
    return await asyncio.to_thread(_probe, port)


def _probe(port: int) -> Probe | None:
    try:
        health = json.loads(_get(port, "healthz"))
        figures = dict.fromkeys(_FIGURES.values(), 0)
        for family in text_string_to_metric_families(_get(port, "metrics").decode()):
            for sample in family.samples:
                if name := _FIGURES.get(sample.name):
                    figures[name] += int(sample.value)
        return Probe(tuple(str(problem) for problem in health["problems"]), **figures)
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return None


def _get(port: int, path: str) -> bytes:
    """The body, also of a 503, which says that the process is not healthy."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=PROBE_SECONDS) as answer:
            body: bytes = answer.read(MAX_BYTES)
            return body
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return error.read(MAX_BYTES)
