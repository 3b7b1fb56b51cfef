"""The statistics of results: plain arrays in, numbers out.

Every function can be tested against its formula by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FEWEST_FOR_IMPORTANCE = 8  # trials; with fewer, resampling them shows next to nothing
RESAMPLES = 2000


def _scipy() -> Any:
    """scipy.stats, imported here as its half second would delay the first trial."""
    from scipy import stats

    return stats


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a proportion of `count` cases, a multiple of 1/count.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)

    References:
      Wilson, 'Probable inference, the law of succession, and statistical inference', 1927.
    """
    found = _scipy().binomtest(round(share * count), count).proportion_ci(0.95, "wilson")
    return float(found.low), float(found.high)


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> dict[str, float]:
    """McNemar's exact test that two classifiers err equally often on the same images.

    Args:
      first_right, second_right: bool[N], the images that each classified correctly.

    Returns:
      only_first, only_second: images that only one of them got right; p_value: two-sided,
      binomial. McNemar, 'Note on the sampling error of the difference between correlated
      proportions or percentages', 1947.
    """
    only_first = int((first_right & ~second_right).sum())
    only_second = int((~first_right & second_right).sum())
    different = only_first + only_second
    p_value = float(_scipy().binomtest(only_first, different).pvalue) if different else 1.0
    return {"only_first": only_first, "only_second": only_second, "p_value": p_value}


def standard_error(share: float, count: int) -> float:
    """The standard error of a proportion of `count` cases: √(p(1 − p)/n)."""
    return math.sqrt(share * (1 - share) / count)


def expected_best(scores: Sequence[float]) -> np.ndarray:
    """The mean best score of k of these trials, for k = 1 … n: float64[n].

    Of all C(n, k) choices of k trials, the i-th lowest score x₍ᵢ₎ is the best of C(i − 1, k − 1):

    E[best of k] = Σᵢ x₍ᵢ₎ C(i − 1, k − 1) / C(n, k)

    References:
      Tang et al., 'Showing your work doesn't always work', 2020: this mean over choices without
      replacement is unbiased, where resampling with replacement is not.
    """
    ordered, n = np.sort(np.asarray(scores, float)), len(scores)
    below = np.arange(n)  # i − 1
    weights, best = np.full(n, 1 / n), np.empty(n)
    for k in range(1, n + 1):
        best[k - 1] = weights @ ordered
        # The weights of k + 1 from those of k: the binomials themselves would overflow.
        if k < n:
            weights = weights * (below - k + 1).clip(0) * ((k + 1) / (k * (n - k)))
    return best


def chance_of_new_best(run: int, more: int) -> float:
    """The chance that the best of `run + more` exchangeable trials is among the later ones.

    Each of them is equally likely to be the best, whatever the distribution of scores; equal scores
    make it smaller.
    """
    return more / (run + more)


def correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis; NaN where either array does not vary."""
    x = x - x.mean(-1, keepdims=True)
    y = y - y.mean(-1, keepdims=True)
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    found: np.ndarray = np.divide(
        (x * y).sum(-1), scale, out=np.full(np.shape(scale), np.nan), where=scale > 1e-12
    )
    return found


@dataclass(frozen=True)
class Importance:
    """How strongly scores rise or fall with a hyperparameter.

    name: the hyperparameter's name.
    trials: number of trials that have a value of it.
    rho: Spearman's rank correlation, −1 to 1; NaN where it is not estimable.
    low, high: its 95 % interval; NaN where it is not estimable.
    p_value: the fraction of shuffles of the scores whose correlation is at least as strong.
    tests: number of hyperparameters tested together.
    """

    name: str
    trials: int
    rho: float
    low: float
    high: float
    p_value: float

    tests: int = 1

    @property
    def known(self) -> bool:
        """Whether the correlation is significant at 5 %, and its interval excludes 0.

        Bonferroni's correction: 5 % is the error rate of all `tests` hyperparameters together.
        """
        if self.trials < FEWEST_FOR_IMPORTANCE or not math.isfinite(self.low):
            return False
        return (self.low > 0 or self.high < 0) and self.p_value < 0.05 / self.tests


def importance(
    name: str, values: Sequence[Any], scores: Sequence[float], tests: int = 1
) -> Importance:
    """Spearman's correlation of a hyperparameter with the scores, its interval and p-value.

    Args:
      name: the hyperparameter's name.
      values: its value in each trial; None where the trial has none, and is then left out.
      scores: the score of each trial.
      tests: number of hyperparameters tested together.

    References:
      Spearman, 'The proof and measurement of association between two things', 1904. The interval
      is the percentile interval of Efron, 'Bootstrap methods: another look at the jackknife',
      1979, over trials; the p-value is of Pitman's permutation test, 1937.
    """
    rankdata = _scipy().rankdata
    pairs = [(v, s) for v, s in zip(values, scores, strict=True) if v is not None]
    n = len(pairs)
    x, y = np.array(pairs, float).reshape(n, 2).T
    unknown = math.nan
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Importance(name, n, unknown, unknown, unknown, unknown, tests)
    rho = float(correlation(rankdata(x), rankdata(y)))
    generator = np.random.default_rng(0)  # fixed, so that a report made again is the same
    drawn = generator.integers(n, size=(RESAMPLES, n))
    resampled = correlation(rankdata(x[drawn], axis=-1), rankdata(y[drawn], axis=-1))
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.quantile(resampled, (0.025, 0.975))
    shuffled = generator.permuted(np.tile(y, (RESAMPLES, 1)), axis=1)
    chance = np.abs(correlation(rankdata(x), rankdata(shuffled, axis=-1))) >= abs(rho) - 1e-9
    p_value = (int(chance.sum()) + 1) / (RESAMPLES + 1)
    return Importance(name, n, rho, float(low), float(high), p_value, tests)


@dataclass(frozen=True)
class Distribution:
    """How far the best score is from the others.

    skewness: of the scores, 0 for a symmetric distribution.
    distance: of the best score from the mean, in standard deviations (Grubbs' G).
    p_value: the chance of a distance at least so large in a normal sample of this size.
    """

    count: int
    mean: float
    deviation: float
    skewness: float
    distance: float
    p_value: float


def distribution(scores: Sequence[float]) -> Distribution | None:
    """Grubbs' test whether the best score is an outlier; None for fewer than 4 or equal scores.

    The p-value is the fraction of simulated normal samples whose largest value lies at least as far
    out, so that no table is needed.

    References:
      Grubbs, 'Sample criteria for testing outlying observations', 1950.
    """
    values = np.asarray(scores, float)
    n = len(values)
    if n < 4 or np.ptp(values) == 0:
        return None
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    distance = float(values.max() - mean) / deviation
    generator = np.random.default_rng(0)
    further, parts = 0, 20
    for _ in range(parts):  # with hundreds of trials all samples together would not fit in memory
        samples = generator.standard_normal((20_000 // parts, n))
        simulated = (samples.max(1) - samples.mean(1)) / samples.std(1, ddof=1)
        further += int((simulated >= distance).sum())
    p_value = further / 20_000
    skewness = float(_scipy().skew(values))
    return Distribution(n, mean, deviation, skewness, distance, p_value)


def bins(scores: Sequence[float], most: int = 12) -> np.ndarray:
    """Edges of a histogram's bins: √n bins, rounded up, at most `most`, at least one."""
    low, high = min(scores), max(scores)
    if high - low < 1e-9:
        return np.array([low - 5e-4, high + 5e-4])
    return np.linspace(low, high, min(most, math.ceil(math.sqrt(len(scores)))) + 1)


def two_components(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components of features float[N, D].

    Computed from the N×N matrix of inner products, as there are fewer images than features.

    Returns:
      The coordinates float64[N, 2], with signs such that the largest absolute value of each
      component is positive, and the fractions of the variance float64[2] that the two explain.

    References:
      Pearson, 'On lines and planes of closest fit to systems of points in space', 1901.
    """
    centred = features - features.mean(0, dtype=np.float64).astype(features.dtype)
    products = (centred @ centred.T).astype(np.float64)
    values, vectors = np.linalg.eigh(products)
    values, vectors = values[::-1][:2].clip(0), vectors[:, ::-1][:, :2]
    total = np.trace(products)
    largest = np.abs(vectors).argmax(0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    coordinates = vectors * signs * np.sqrt(values)
    return coordinates, values / total if total > 0 else np.zeros(len(values))
