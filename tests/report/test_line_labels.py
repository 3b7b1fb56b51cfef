"""Labels beside lines, moved apart as little as possible."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from jaxmnist.report.drawing import apart


@pytest.mark.parametrize("seed", range(8))
def test_places_are_the_nearest_that_fit(seed):
    """As a general optimizer finds them."""
    generator = np.random.default_rng(seed)
    targets = np.sort(generator.random(5) ** generator.integers(1, 6))
    gap = 0.12
    found = np.array(apart(targets.tolist(), gap, 0.0, 1.0))
    assert np.diff(found).min() >= gap - 1e-9
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-9
    best = minimize(
        lambda places: ((places - targets) ** 2).sum(),
        np.linspace(0.05, 0.95, 5),
        bounds=[(0, 1)] * 5,
        constraints={"type": "ineq", "fun": lambda places: np.diff(places) - gap},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found == pytest.approx(best.x, abs=1e-4)


def test_what_is_apart_stays_where_it_is():
    assert apart([0.1, 0.5, 0.9], 0.2, 0.0, 1.0) == [0.1, 0.5, 0.9]


def test_too_many_begin_at_the_lowest_place():
    assert apart([0.5] * 4, 0.5, 0.0, 1.0) == [0.0, 0.5, 1.0, 1.5]
