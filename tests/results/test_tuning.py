"""The tuning curve and the bound for twice the budget, by brute force and by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from conftest import a_trial, bits, history

from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.results.importance import (
    comparable,
    most_gain,
    places_between,
    tuning_curve,
)
from jaxmnist.results.selection import Standing, rule_of


def steady(scores: list[float]) -> list[Standing]:
    """Trials that are compared by score alone."""
    return [Standing((0.0, -score), index, score) for index, score in enumerate(scores)]


# The highest score fell most, and ranks last.
MIXED = [*steady([0.97, 0.98, 0.96, 0.985, 0.975]), Standing((0.01, -0.99), 5, 0.99)]


def test_the_curve_is_the_median_choice():
    """Of all choices of k trials: the worst selection that half of them reach by the rule."""
    for standings in (steady([0.981, 0.987, 0.979, 0.987, 0.990, 0.970]), MIXED):
        curve = tuning_curve(standings)
        for k, score in enumerate(curve.scores, 1):
            chosen = sorted(map(min, itertools.combinations(standings, k)), reverse=True)
            assert score == chosen[math.ceil(len(chosen) / 2) - 1].score
        assert curve.scores[-1] == min(standings).score
        assert (curve.low <= curve.scores).all()
        assert (curve.scores <= curve.high).all()
    one = tuning_curve(steady([0.5]))
    assert (one.scores.tolist(), one.low.tolist(), one.high.tolist()) == ([0.5], [0], [1])


def test_the_band_has_no_edge_where_trials_say_nothing():
    curve = tuning_curve(steady(np.linspace(0.9, 0.99, 30).tolist()))
    assert curve.high[0] < 0.99
    assert curve.high[-1] == 1  # no trial tells how much better the best of 30 more may be
    assert 0.9 < curve.low[-1] < 0.99
    falling = [Standing((0.1 + s.index, *s.key[1:]), s.index, s.score) for s in steady([0.9] * 30)]
    both = tuning_curve([*falling, *steady([0.98] * 30)])
    assert (both.low[0], both.high[0]) == (0, 1)  # half of the trials fell
    assert both.low[-1] == 0.98


@pytest.mark.parametrize("trials", [1, 2, 7, 40])
def test_the_places_hold_the_whole_curve(trials):
    """In 95 of 100 samples, or a little more as numbers of trials are whole."""
    below, above = places_between(trials)
    quantiles = 0.5 ** (1 / np.arange(1, trials + 1))
    drawn = np.random.default_rng(9).random((4000, trials))
    counts = (drawn[:, :, None] <= quantiles).sum(1)
    inside = ((below <= counts) & (counts <= above)).all(1).mean()
    assert inside >= 0.94
    assert trials < 7 or inside <= 0.975


def test_a_curve_of_hundreds_is_finite():
    curve = tuning_curve(steady(np.random.default_rng(0).random(700).tolist()))
    assert (np.diff(curve.scores) >= 0).all()
    assert (curve.low <= curve.scores).all()
    assert (curve.scores <= curve.high).all()


def test_standings_are_the_rules():
    """A trial with a fall that counts is compared by its fall."""
    rule, draw = rule_of("steady", 100, 0.0), Hyperparameters({})
    trials = [
        a_trial(index, draw, "completed", history(*rates), validation=bits(*rates))
        for index, rates in enumerate([(0.5, 0.9), (0.95, 0.93), (0.5, 0.8), (0.6, 0.7)])
    ]
    standings = rule.standings(rule.rank(trials))
    assert [s.index for s in standings] == [0, 2, 3, 1]
    assert comparable(standings) == 3
    best = rule_of("best", 100)
    assert comparable(best.standings(best.rank(trials))) == 4


def test_the_bound_of_the_gain():
    scores = [0.97, 0.975, 0.98, 0.981, 0.983, 0.986]
    bound = most_gain(steady(scores), 6, 6)
    assert 0 < bound < 0.014
    scaled = [0.5 + (score - 0.97) for score in scores]
    assert most_gain(steady(scaled), 6, 6) == pytest.approx(bound)
    # Trials that learned nothing, or fell, don't make it larger than their number does.
    assert most_gain(steady([0.1, *scores[1:]]), 6, 6) == pytest.approx(bound)
    assert most_gain(steady(scores), 6, 3) < bound < most_gain(steady(scores), 6, 60)
    assert most_gain(steady(scores), 12, 12) == pytest.approx(bound)  # half of the trials failed
    assert most_gain(steady(scores[:3]), 3, 3) is None
    assert most_gain(steady([0.9] * 9), 9, 9) is None
    assert most_gain(steady([0.5, 0.6, 0.9, 0.999]), 4, 4) == pytest.approx(0.001)


def test_the_bound_holds_in_95_of_100_normal_searches():
    generator = np.random.default_rng(4)
    kept = 0
    for _ in range(400):
        scores = generator.normal(0.5, 0.01, 16)
        gain = max(0.0, scores[8:].max() - scores[:8].max())
        kept += gain <= most_gain(steady(scores[:8].tolist()), 8, 8)
    assert 0.92 <= kept / 400 <= 0.98
