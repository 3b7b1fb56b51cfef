"""The statistics of results: intervals, p-values, paired tests.

Paired results are packed bits, as `trial.pack_right` makes them: uint8[..., B], one bit per image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# --- The statistics of results: plain arrays in, numbers out ---

Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
SMALLEST_P = 1e-300


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % Wilson interval of a proportion of `count` cases, which may be an effective number.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)

    References:
      Wilson, 'Probable inference, the law of succession, and statistical inference', 1927.
    """
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    spread = share * (1 - share) / count + (Z / count) ** 2 / 4
    reach = Z * math.sqrt(spread) / (1 + Z**2 / count)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def standard_error(share: float, count: int) -> float:
    """The standard error of a proportion of `count` cases: √(p(1 − p)/n)."""
    return math.sqrt(share * (1 - share) / count)


def signed(difference: float) -> str:
    """A difference of accuracies as text, with its sign: '+0.0010', or '−0.0070' with a minus."""
    return f"{difference:+.4f}".replace("-", "−")


def p_value(value: float, sign: str = "") -> str:
    """A p-value as text, after `sign` where it has a number: '0.012', or 'below 1e-300'.

    Smaller ones than 1e-300 may be rounded to 0, which no p-value is.
    """
    return f"{sign}{value:.3g}" if value >= SMALLEST_P else f"below {SMALLEST_P}"


def chance_of_new_best(run: int, more: int) -> float:
    """The chance that the best of `run + more` exchangeable trials is among the later ones.

    Each of them is equally likely to be the best, whatever the distribution of scores; equal scores
    make it smaller.
    """
    return more / (run + more)


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


# --- Comparisons on the same images: which images one result has right and another wrong ---

LEVEL = 0.05  # significance level of a family of tests


def only_first(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The number of images that only the first of two results has right: int64[...].

    Args:
      first, second: uint8[..., B], packed bits.
    """
    counts: np.ndarray = np.bitwise_count(first & ~second).sum(-1, dtype=np.int64)
    return counts


def decrease_p_values(lost: np.ndarray, won: np.ndarray) -> np.ndarray:
    """The exact one-sided McNemar test that accuracy decreased, elementwise: float64[...].

    If accuracy did not change, each image that changed was as likely lost as won:

    p = P(X ≥ lost), X binomial of lost + won and 1/2

    Args:
      lost, won: int[...], images that were right before only, and after only.

    Returns:
      The p-values; 1 where no more images were lost than won, for there is no decrease.

    References:
      McNemar, 'Note on the sampling error of the difference between correlated proportions or
      percentages', 1947.
    """
    # Imported here as it takes a tenth of a second.
    from scipy.special import bdtrc

    lost, won = np.broadcast_arrays(lost, won)
    p_values, fell = np.ones(lost.shape), lost > won
    p_values[fell] = bdtrc(lost[fell] - 1, lost[fell] + won[fell], 0.5)
    return p_values


def difference_p_values(only_first: np.ndarray, only_second: np.ndarray) -> np.ndarray:
    """McNemar's exact two-sided test that two results err equally often: float64[...].

    Args:
      only_first, only_second: int[...], images that only one of the two has right.

    References:
      As for `decrease_p_values`.
    """
    more, less = np.maximum(only_first, only_second), np.minimum(only_first, only_second)
    doubled: np.ndarray = np.minimum(1.0, 2 * decrease_p_values(more, less))
    return doubled


def holm(p_values: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Which of m tests reject, so that any is wrong with at most probability `level`.

    In ascending order, the i-th p-value (from 0) and all before it are at most level/(m − i).

    Args:
      p_values: float[..., m].

    Returns:
      bool[..., m]

    References:
      Holm, 'A simple sequentially rejective multiple test procedure', 1979.
    """
    tests = p_values.shape[-1]
    order = np.argsort(p_values, axis=-1, kind="stable")
    ascending = np.take_along_axis(p_values, order, -1)
    passed = np.logical_and.accumulate(ascending <= level / (tests - np.arange(tests)), axis=-1)
    rejected = np.zeros(p_values.shape, bool)
    np.put_along_axis(rejected, order, passed, -1)
    return rejected
