from __future__ import annotations

import itertools
from collections import Counter

import pytest

from jaxmnist.config import Hyperparameters, Range, SearchSettings
from jaxmnist.errors import UsageError
from jaxmnist.space import SearchSpace, fit_to_images, most_conv_layers


def test_size_and_members():
    space = SearchSpace()
    members = list(space.members())
    assert space.size == len(members) == len(set(members)) == 357


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_draws_are_the_whole_space_once(seed):
    assert sorted(map(str, SearchSpace().draws(seed))) == sorted(map(str, SearchSpace().members()))


def test_draws_of_seeds_differ_and_repeat():
    first = [list(itertools.islice(SearchSpace().draws(seed), 10)) for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]


def test_the_first_draw_is_uniform_in_each_hyperparameter():
    draws = [next(SearchSpace().draws(seed)) for seed in range(3000)]
    for name, values in (("filters", 7), ("conv_layers", 3), ("dense_layers", 3)):
        counts = Counter(getattr(draw, name) for draw in draws)
        assert len(counts) == values
        # Chi-squared with at most 6 degrees of freedom exceeds 25 once in 3,000 times.
        expected = len(draws) / values
        assert sum((count - expected) ** 2 / expected for count in counts.values()) < 25


def test_known_draws():
    """The draws of a seed never change: other programs and finished runs rely on them."""
    known = [
        (112, 2, 1, 96),
        (80, 3, 2, 160),
        (128, 1, 0, None),
        (80, 3, 2, 224),
        (80, 3, 1, 64),
        (96, 2, 2, 160),
        (80, 2, 1, 64),
        (112, 1, 0, None),
        (64, 3, 2, 224),
        (48, 2, 0, None),
    ]
    drawn = itertools.islice(SearchSpace().draws(0), 10)
    assert list(drawn) == [Hyperparameters(*values) for values in known]


@pytest.mark.parametrize(
    ("side", "most"), [(5, 0), (6, 1), (7, 1), (8, 2), (11, 2), (12, 3), (13, 3), (28, 4)]
)
def test_most_conv_layers_by_walking(side, most):
    walked, left = 0, side - 4
    while left >= 2:
        left //= 2
        walked += 1
    assert most_conv_layers(side, 100) == most_conv_layers(100, side) == walked == most


def test_default_ranges_narrow():
    space, note = fit_to_images(SearchSettings(), 8, 8)
    assert space.conv_layers == Range(1, 2)
    assert note is not None
    assert "8×8" in note


def test_given_ranges_are_refused():
    with pytest.raises(UsageError, match=r"--conv-layers 1:3 would pool images of 8×8 pixels away"):
        fit_to_images(SearchSettings(conv_layers="1:3"), 8, 8)
    with pytest.raises(UsageError, match="too small"):
        fit_to_images(SearchSettings(), 28, 5)
