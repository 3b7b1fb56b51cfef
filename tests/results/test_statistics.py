"""The report's statistics against formulas by hand, brute force and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from jaxmnist.report.figures import bins
from jaxmnist.report.page import two_components
from jaxmnist.results import selection as ours

SCORES = [0.981, 0.987, 0.979, 0.987, 0.990, 0.970]


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (595, 600), (9890, 10000)])
def test_wilson(right, count):
    found = stats.binomtest(right, count).proportion_ci(0.95, "wilson")
    assert ours.wilson(right / count, count) == pytest.approx((found.low, found.high), abs=1e-12)


def test_chance_of_a_new_best():
    generator = np.random.default_rng(3)
    draws = generator.random((20_000, 12))
    later = (draws.argmax(1) >= 8).mean()
    assert ours.chance_of_new_best(8, 4) == pytest.approx(later, abs=0.01)


def test_bins_hold_every_score():
    for scores in (SCORES, [0.5], [0.5, 0.5], list(np.random.default_rng(0).random(400))):
        edges = bins(scores)
        assert np.histogram(scores, edges)[0].sum() == len(scores)
        assert len(edges) <= 13


def test_two_components_are_scikit_learns():
    from sklearn.decomposition import PCA

    features = np.random.default_rng(2).normal(size=(40, 90)) * np.linspace(3, 0.1, 90)
    points, shares = two_components(features)
    pca = PCA(2, svd_solver="full").fit(features)
    theirs = pca.transform(features)
    np.testing.assert_allclose(np.abs(points), np.abs(theirs), atol=1e-8)
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_, atol=1e-10)
    assert (points[np.abs(points).argmax(0), [0, 1]] > 0).all()
    constant, nothing = two_components(np.ones((5, 3)))
    assert not constant.any()
    assert not nothing.any()
