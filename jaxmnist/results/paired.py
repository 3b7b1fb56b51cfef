"""Comparisons on the same images: which images one result has right and another wrong.

Results are packed bits, as `trial.pack_right` makes them: uint8[..., B], one bit per image.
"""

from __future__ import annotations

import numpy as np

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
