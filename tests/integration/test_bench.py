"""A small run of a benchmark: that it measures something, not how much."""

import json
import os
import subprocess
import sys

SECONDS = 120.0


def test_what_is_measured_on_a_projection_is_found_there(kafka: str, redis_server: str) -> None:
    command = (sys.executable, "-m", "tests.bench", "moved", "--scale", "0.1", "-o", "json")
    environment = {**os.environ, "CONVOY_TEST_KAFKA": kafka, "CONVOY_TEST_REDIS": redis_server}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    figures = {figure["name"]: figure["value"] for figure in map(json.loads, done.stdout.splitlines())}
    assert "moved head noticed, p50" in figures
    assert all(value > 0 for value in figures.values())
