"""Runs whose files are damaged: by default on a small scale.

`python -m pytest tests/robustness --size full` takes an hour and a half;
`python -m pytest -m "not robustness"` leaves these out. Each kind has a file, so that they can run
at the same time.
"""

from __future__ import annotations

import pytest
from scripts import script

pytestmark = pytest.mark.robustness


def test_damages(full):
    damages = 1000 if full else 25
    output = script("damage.py", "--damages", damages, "--seed", 0 if full else 7)
    assert f"{damages} damages, 0 broken guarantees" in output
