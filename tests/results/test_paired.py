"""Paired comparisons on packed bits, against SciPy and the rules by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from jaxmnist.results.selection import decrease_p_values, difference_p_values, holm, only_first
from jaxmnist.runs.trial import pack_right


@pytest.mark.parametrize("images", [1, 7, 8, 100])
def test_only_first_counts_images_and_no_padding(images):
    first, second = np.random.default_rng(images).random((2, images)) < 0.6
    packed = [np.frombuffer(pack_right(right), np.uint8) for right in (first, second)]
    assert only_first(*packed) == (first & ~second).sum()
    assert only_first(*packed[::-1]) == (second & ~first).sum()


def test_p_values_are_scipys():
    lost, won = np.random.default_rng(0).integers(0, 80, (2, 60))
    lost[:3], won[:3] = (0, 0, 5), (0, 4, 0)
    decreases = decrease_p_values(lost, won)
    differences = difference_p_values(lost, won)
    for a, b, one, two in zip(lost, won, decreases, differences, strict=True):
        wanted = 1.0 if a <= b else binomtest(a, a + b, alternative="greater").pvalue
        assert one == pytest.approx(wanted, rel=1e-9)
        if a + b:
            assert two == pytest.approx(binomtest(a, a + b).pvalue, rel=1e-9)
    assert difference_p_values(np.array(0), np.array(0)) == 1


def test_holm_by_hand():
    found = holm(np.array([[0.012, 0.3, 0.016, 0.001], [0.013, 0.01, 0.6, 0.02]]))
    assert found.tolist() == [[True, False, True, True], [True, True, False, True]]
    # 0.017 ≤ 0.05 / 2, but the one before it, 0.0168, is above 0.05 / 3 in the smaller family.
    assert holm(np.array([0.0168, 0.001, 0.017, 0.9])).tolist() == [False, True, False, False]
    assert holm(np.zeros((3, 0))).shape == (3, 0)
