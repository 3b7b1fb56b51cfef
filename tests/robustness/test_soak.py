"""Searches in which all sorts of things go wrong: see `scripts.py` for their size."""

from __future__ import annotations

import json

import pytest
from scripts import script

pytestmark = pytest.mark.slow


def test_a_soaked_search(full, tmp_path):
    path, trials = tmp_path / "soak.json", 1000 if full else 10
    size = ("--trials", trials, "--longest", 40 if full else 20)
    output = script("soak.py", *size, "--json", path)
    if not full:
        assert "1 diverged, 1 raised, 1 raised once" in output
    assert "0 broken guarantees" in output
    watched = json.loads(path.read_text())
    assert max(row["trials"] for row in watched) == trials
