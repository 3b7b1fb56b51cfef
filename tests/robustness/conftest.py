"""What the tests of searches that are killed, damaged, soaked and watched have in common."""

from __future__ import annotations

import pytest


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the full size was asked for."""
    return request.config.getoption("--size") == "full"
