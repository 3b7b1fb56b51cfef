"""The importance of hyperparameters against SciPy, a polynomial fit and known truths."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from jaxmnist.results.importance import Importance, adjusted, basis, importances, share_interval


def one(values: list, scores: list[float]) -> Importance:
    """The importance of a single hyperparameter; None is no value."""
    configurations = [{} if value is None else {"x": value} for value in values]
    (found,) = importances(["x"], configurations, scores)
    return found


def explained(values: list, scores: list[float]) -> float:
    """R² of the scores' ranks by NumPy's least squares on the basis and a constant."""
    ranks = stats.rankdata(scores)
    columns = np.column_stack([np.ones(len(ranks)), basis(values)])
    rest = ranks - columns @ np.linalg.lstsq(columns, ranks, rcond=None)[0]
    return 1 - rest.var() / ranks.var()


@pytest.mark.parametrize("values", [["relu", "gelu", "tanh"], [1, 2, 3], [True, False, True]])
def test_categories_have_kruskal_and_wallis_statistic(values):
    generator = np.random.default_rng(0)
    drawn = [values[k] for k in generator.integers(3, size=40)]
    scores = generator.integers(90, 100, 40) / 100  # with ties
    groups = [[s for d, s in zip(drawn, scores, strict=True) if d == v] for v in set(drawn)]
    theirs = stats.kruskal(*groups)
    share = theirs.statistic / 39
    found = one(drawn, scores.tolist())
    assert explained(drawn, scores.tolist()) == pytest.approx(share)
    assert found.share == pytest.approx(adjusted(share, 40, len(groups) - 1))
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.03)


def test_numbers_have_a_parabola():
    generator = np.random.default_rng(1)
    drawn = generator.integers(8, size=50)
    scores = -((drawn - 3.0) ** 2) + generator.normal(size=50)
    x, y = stats.rankdata(drawn), stats.rankdata(scores)
    share = 1 - (y - np.polyval(np.polyfit(x, y, 2), x)).var() / y.var()
    found = one(drawn.tolist(), scores.tolist())
    assert found.share == pytest.approx(1 - (1 - share) * 49 / 47)
    assert found.matters
    assert abs(stats.spearmanr(drawn, scores)[0]) < 0.5
    # Ranks don't care for the scale of the values or of the scores.
    again = one((10.0**-drawn).tolist(), np.exp(scores).tolist())
    assert again.share == pytest.approx(found.share)
    assert (again.p_value, again.chance) == pytest.approx((found.p_value, found.chance))


def test_of_several_the_one_that_matters_is_first():
    generator = np.random.default_rng(2)
    drawn = [
        {"noise": int(n), "kind": "abc"[k], **({"units": int(u)} if k else {})}
        for n, k, u in generator.integers([0, 0, 0], [5, 3, 8], (60, 3))
    ]
    scores = [d.get("units", 3.5) + generator.normal() for d in drawn]
    found = importances(["noise", "kind", "units"], drawn, scores)
    assert [item.name for item in found if item.matters] == ["units"]
    assert found[0].name == "units"
    assert found[0].trials == sum("units" in d for d in drawn) < 60
    assert found[0].low < found[0].share < found[0].high
    assert found[0].chance < found[0].low
    assert importances(["noise", "kind", "units"], drawn, scores) == found


@pytest.mark.parametrize(
    ("values", "scores"),
    [([], []), ([1], [0.5]), ([2] * 9, list(range(9))), ([1, 2, 3], [1] * 3), ([1, 2], [1, 2]),
     (list("abcd"), [1, 2, 3, 4]), ([None] * 5, [1, 2, 3, 4, 5])],
)  # fmt: skip
def test_not_estimable(values, scores):
    found = one(values, scores)
    assert not found.estimable
    assert not found.matters
    assert found.p_value == 1


def test_a_value_may_be_none_and_the_fit_perfect():
    configurations = [{"x": None}, {"x": 1}] * 20
    (found,) = importances(["x"], configurations, [0.1, 0.9] * 20)
    assert found.trials == 40
    assert (found.share, found.high) == pytest.approx((1, 1), abs=1e-5)
    assert found.matters


def test_the_interval_of_the_share_covers():
    """Of regressions on two random columns with a true share of 0, 0.2 and 0.6."""
    generator = np.random.default_rng(3)
    for share in (0.0, 0.2, 0.6):
        inside = 0
        for _ in range(400):
            x = generator.normal(size=(40, 3))
            y = np.sqrt(share) * x[:, 0] + np.sqrt(1 - share) * x[:, 2]
            columns = np.linalg.svd(x[:, :2] - x[:, :2].mean(0), full_matrices=False)[0]
            y = y - y.mean()
            low, high = share_interval(float(((y @ columns) ** 2).sum() / (y @ y)), 40, 2)
            inside += low <= share <= high
        assert 0.92 <= inside / 400 <= 0.985
