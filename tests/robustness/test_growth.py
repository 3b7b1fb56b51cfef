"""Searches whose memory and time are watched: see `scripts.py` for their size."""

from __future__ import annotations

import json

import pytest
from scripts import script

pytestmark = pytest.mark.slow

# MB that a trial may add: 280 trials vary by 100 MB around a line, which is found to about 0.07.
MOST_PER_TRIAL = 0.25


def test_what_each_trial_adds_to_memory(full, tmp_path):
    """At full size that it adds nothing; else only that each trial is measured, and the line fits.

    Three trials can't show growth: memory rises until the first clean-up, after eight programs.
    """
    path, trials, warm_up = tmp_path / "growth.json", 300 if full else 3, 20 if full else 1
    output = script("growth.py", "--trials", trials, "--warm-up", warm_up, "--json", path)
    memory = [row["megabytes"] for row in json.loads(path.read_text())]
    found = dict(line.split(": ") for line in output.splitlines() if ": " in line)
    slope = float(found["megabytes_per_trial"])
    assert len(memory) == trials
    if full:
        assert slope < MOST_PER_TRIAL
    else:  # the line through two points
        assert slope == pytest.approx(memory[2] - memory[1], rel=1e-4, abs=1e-6)
