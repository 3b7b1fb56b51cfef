"""Searches that are killed, damaged, soaked and watched: by default on a small scale.

`python -m pytest tests/robustness --size full` takes an hour and a half;
`python -m pytest -m "not robustness"` leaves these out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.robustness
FOLDER = Path(__file__).parent


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the full size was asked for."""
    return request.config.getoption("--size") == "full"


def script(name: str, *arguments: object) -> str:
    """What a script prints."""
    line = [sys.executable, str(FOLDER / name), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_damages(full):
    damages = 1000 if full else 25
    output = script("damage.py", "--damages", damages, "--seed", 0 if full else 7)
    assert f"{damages} damages, 0 broken guarantees" in output


def test_memory_and_time_do_not_grow(full, tmp_path):
    path, trials = tmp_path / "growth.json", 300 if full else 3
    size = ("--trials", trials, "--warm-up", 20 if full else 1)
    output = script("growth.py", *size, "--json", path)
    rows = json.loads(path.read_text())
    assert len(rows) == trials
    assert all(row["megabytes"] > 50 for row in rows)
    assert "megabytes_per_trial" in output


def test_a_search_that_is_killed_again_and_again(full, tmp_path):
    """At boundaries of what it writes, and at random."""
    path = tmp_path / "kills.json"
    size = ("--boundaries", "all" if full else 4, "--random", 100 if full else 4)
    output = script("kills.py", *size, "--json", path)
    content = json.loads(path.read_text())
    assert content["broken"] == []
    assert content["boundaries"] > 100
    assert f"killed at {content['boundaries'] if full else 4} of" in output


def test_a_soaked_search(full, tmp_path):
    path, trials = tmp_path / "soak.json", 1000 if full else 28
    size = ("--trials", trials, "--longest", 40 if full else 15)
    output = script("soak.py", *size, "--json", path)
    if not full:
        assert "1 diverged, 1 raised, 1 raised once" in output
    assert "0 broken guarantees" in output
    watched = json.loads(path.read_text())
    assert max(row["trials"] for row in watched) == trials
