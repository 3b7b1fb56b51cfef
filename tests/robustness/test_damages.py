"""Runs whose files are damaged: see `scripts.py` for their size."""

from __future__ import annotations

import pytest
from scripts import script

pytestmark = pytest.mark.slow


def test_damages(full):
    damages = 1000 if full else 25
    output = script("damage.py", "--damages", damages, "--seed", 0 if full else 7)
    assert f"{damages} damages, 0 broken guarantees" in output
