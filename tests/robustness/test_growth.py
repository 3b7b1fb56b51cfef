"""Searches whose memory and time are watched: by default on a small scale.

`python -m pytest tests/robustness --size full` takes an hour and a half;
`python -m pytest -m "not robustness"` leaves these out. Each kind has a file, so that they can run
at the same time.
"""

from __future__ import annotations

import json

import pytest
from scripts import script

pytestmark = pytest.mark.robustness


def test_memory_and_time_do_not_grow(full, tmp_path):
    path, trials = tmp_path / "growth.json", 300 if full else 3
    size = ("--trials", trials, "--warm-up", 20 if full else 1)
    output = script("growth.py", *size, "--json", path)
    rows = json.loads(path.read_text())
    assert len(rows) == trials
    assert all(row["megabytes"] > 50 for row in rows)
    assert "megabytes_per_trial" in output
