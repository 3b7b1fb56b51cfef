"""Searches that are killed: see `scripts.py` for their size."""

from __future__ import annotations

import json

import pytest
from scripts import script

pytestmark = pytest.mark.slow


def test_a_search_that_is_killed_again_and_again(full, tmp_path):
    """At boundaries of what it writes, and at random."""
    path = tmp_path / "kills.json"
    size = ("--boundaries", "all" if full else 4, "--random", 100 if full else 4)
    output = script("kills.py", *size, "--json", path)
    content = json.loads(path.read_text())
    assert content["broken"] == []
    assert content["boundaries"] > 250  # those of the reruns and the refit too
    assert f"killed at {content['boundaries'] if full else 4} of" in output
