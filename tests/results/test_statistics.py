"""The report's statistics against formulas by hand, brute force and SciPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from jaxmnist.results import statistics as ours

SCORES = [0.981, 0.987, 0.979, 0.987, 0.990, 0.970]


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (595, 600), (9890, 10000)])
def test_wilson(right, count):
    """Against the formula by hand."""
    p, n, z = right / count, count, 1.959963984540054
    middle, reach = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    wanted = [(middle + sign * reach) / (1 + z**2 / n) for sign in (-1, 1)]
    assert ours.wilson(p, n) == pytest.approx(wanted, abs=1e-9)


def test_expected_best_is_the_mean_over_all_choices():
    for k, value in enumerate(ours.expected_best(SCORES), 1):
        best = [max(choice) for choice in itertools.combinations(SCORES, k)]
        assert value == pytest.approx(np.mean(best), abs=1e-12)
    assert ours.expected_best([0.5]).tolist() == [0.5]


def test_expected_best_of_many_is_finite():
    found = ours.expected_best(np.linspace(0, 1, 357))
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()
    assert found[-1] == pytest.approx(1)
    many = ours.expected_best(np.random.default_rng(0).random(3000))
    assert np.isfinite(many).all()
    assert (np.diff(many) > -1e-12).all()


def test_chance_of_a_new_best():
    generator = np.random.default_rng(3)
    draws = generator.random((20_000, 12))
    later = (draws.argmax(1) >= 8).mean()
    assert ours.chance_of_new_best(8, 4) == pytest.approx(later, abs=0.01)


def test_importance_is_spearmans():
    generator = np.random.default_rng(1)
    values = generator.integers(1, 4, 12).tolist()
    scores = generator.random(12).tolist()
    found = ours.importance("x", values, scores)
    rho, p = stats.spearmanr(values, scores)
    assert found.rho == pytest.approx(rho, abs=1e-12)
    assert found.low < found.rho < found.high
    assert found.p_value == pytest.approx(p, abs=0.05)
    assert not found.known
    assert ours.importance("x", values, scores) == found  # the same when it is computed again


def test_importance_that_is_known():
    scores = np.linspace(0.9, 0.99, 10).tolist()
    found = ours.importance("x", list(range(10)), scores)
    assert found.rho == pytest.approx(1)
    assert found.known
    falling = ours.importance("x", list(range(10))[::-1], scores)
    assert falling.high < 0
    assert falling.known


def test_importance_of_few_trials_is_not_known():
    assert not ours.importance("x", [1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5]).known
    for values, scores in (([], []), ([1], [0.5]), ([2] * 9, list(range(9))), ([1, 2, 3], [1] * 3)):
        found = ours.importance("x", values, scores)
        assert math.isnan(found.rho)
        assert not found.known


def test_importance_leaves_out_trials_without_the_hyperparameter():
    found = ours.importance("units", [None, 1, 2, None, 3, 4], [9, 1, 2, 9, 3, 4])
    assert found.trials == 4
    assert found.rho == pytest.approx(1)


def test_chance_is_seldom_called_knowledge():
    """Scores that depend on nothing: of one page in twenty something may be called known."""
    generator = np.random.default_rng(5)
    pages = 0
    for _ in range(60):
        scores = generator.random(10).tolist()
        values = [generator.integers(1, 4, 10).tolist() for _ in range(4)]
        pages += any(ours.importance("x", each, scores, 4).known for each in values)
    assert pages <= 6


def test_distribution():
    found = ours.distribution(SCORES)
    assert found.deviation == pytest.approx(np.std(SCORES, ddof=1))
    assert found.skewness == pytest.approx(stats.skew(SCORES))

    far = [0.970, 0.972, 0.971, 0.974, 0.973, 0.979]
    found, n = ours.distribution(far), len(far)
    # Grubbs' own bound by Student's distribution, which is exact if the highest lies far out.
    t = math.sqrt(found.distance**2 * n * (n - 2) / ((n - 1) ** 2 - n * found.distance**2))
    assert found.p_value == pytest.approx(min(1, n * stats.t.sf(t, n - 2)), abs=0.02)
    outlier = ours.distribution([0.9, 0.901, 0.902, 0.899, 0.9, 0.9005, 0.99])
    assert outlier.p_value < 0.001
    assert ours.distribution([0.9, 0.9, 0.9, 0.9]) is None
    assert ours.distribution([0.9, 0.91]) is None


def test_bins_hold_every_score():
    for scores in (SCORES, [0.5], [0.5, 0.5], list(np.random.default_rng(0).random(400))):
        edges = ours.bins(scores)
        assert np.histogram(scores, edges)[0].sum() == len(scores)
        assert len(edges) <= 13


def test_two_components_are_scikit_learns():
    from sklearn.decomposition import PCA

    features = np.random.default_rng(2).normal(size=(40, 90)) * np.linspace(3, 0.1, 90)
    points, shares = ours.two_components(features)
    pca = PCA(2, svd_solver="full").fit(features)
    theirs = pca.transform(features)
    np.testing.assert_allclose(np.abs(points), np.abs(theirs), atol=1e-8)
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_, atol=1e-10)
    assert (points[np.abs(points).argmax(0), [0, 1]] > 0).all()
    constant, nothing = ours.two_components(np.ones((5, 3)))
    assert not constant.any()
    assert not nothing.any()


def test_mcnemar_by_the_binomial():
    first = np.array([True] * 12 + [False] * 3 + [True] * 50 + [False] * 5)
    second = np.array([False] * 12 + [True] * 3 + [True] * 50 + [False] * 5)
    result = ours.mcnemar(first, second)
    assert (result["only_first"], result["only_second"]) == (12, 3)
    assert np.isclose(result["p_value"], 2 * stats.binom.cdf(3, 15, 0.5))
    assert ours.mcnemar(first, first)["p_value"] == 1
