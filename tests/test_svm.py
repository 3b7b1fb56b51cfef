from __future__ import annotations

import numpy as np
from scipy.stats import binom

from jaxmnist.results.statistics import mcnemar


def test_mcnemar_by_the_binomial():
    first = np.array([True] * 12 + [False] * 3 + [True] * 50 + [False] * 5)
    second = np.array([False] * 12 + [True] * 3 + [True] * 50 + [False] * 5)
    result = mcnemar(first, second)
    assert (result["only_first"], result["only_second"]) == (12, 3)
    assert np.isclose(result["p_value"], 2 * binom.cdf(3, 15, 0.5))
    assert mcnemar(first, first)["p_value"] == 1
