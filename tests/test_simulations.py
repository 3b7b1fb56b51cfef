"""The simulations of experiments/: what they claim, and that they simulate what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import steadiness


def test_steadiness():
    """Five in a hundred plateaus at most, nine in ten falls at least, and the simulation's own."""
    generator = np.random.default_rng(0)
    plateau = steadiness.Scene(6000, 5, 0.99, 0.55)
    course = steadiness.simulate(plateau, 20_000, generator)
    assert (course.right[:, 1:] == course.right[:, :-1] - course.lost + course.won).all()
    # Both images' errors: P(wrong twice) = q² + ρ q (1 − q).
    twice = 1 - (course.right[:, 0] + course.won[:, 0]).mean() / 6000
    assert twice == pytest.approx(0.01**2 + 0.55 * 0.01 * 0.99, rel=0.02)
    now, before = steadiness.unsteady(course)
    assert now <= 0.05
    assert before > 0.4
    fall = steadiness.Scene(6000, 5, 0.99, 0.55, 0.005)
    course = steadiness.simulate(fall, 20_000, generator)
    lowest, highest = course.right[:, -1].mean(), course.right[:, 0].mean()
    assert (highest - lowest) / 6000 == pytest.approx(0.005, rel=0.02)
    assert steadiness.unsteady(course)[0] >= 0.9


def test_the_table_of_steadiness():
    assert len(steadiness.table(600, 5, 10, 0.005, 0).splitlines()) == 18
