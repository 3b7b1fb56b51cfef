from __future__ import annotations

import math

import pytest
from conftest import a_trial, history

from jaxmnist.models.study.space import configuration
from jaxmnist.results.selection import RULES, falls, rule_of
from jaxmnist.settings import SELECTIONS


def trial(index, *accuracies, status="completed"):
    return a_trial(index, configuration(32, 1, 0), status, history(*accuracies))


def rank(trials, images, select="steady", tolerance=None):
    return rule_of(select, images, tolerance).rank(trials)


def explain(ranked, select):
    return rule_of(select, 6000).reason(ranked)


def order(trials, *args):
    return [entry.trial.index for entry in rank(trials, *args)]


def test_every_rule_that_can_be_asked_for_is_there():
    assert tuple(RULES) == SELECTIONS
    with pytest.raises(ValueError, match="rule 'worst'; known rules: steady, best"):
        rule_of("worst", 100)


def test_a_table_marks_a_trial_that_is_not_steady():
    rule = rule_of("steady", 6000)
    first, second = rule.rank([trial(0, 0.95, 0.96), trial(1, 0.99, 0.97)])
    assert (rule.cell(first), rule.cell(second)) == ("0.0000", "0.0200 ×")


def test_tolerance_is_the_standard_error_before_the_fall():
    (fall,) = falls([0.9, 0.98, 0.97], 6000)
    assert fall.epoch == 3
    assert math.isclose(fall.size, 0.01)
    assert math.isclose(fall.tolerance, math.sqrt(0.98 * 0.02 / 6000))
    assert fall.exceeds


def test_tolerance_is_at_least_one_image():
    (fall,) = falls([1.0, 0.99], 100)
    assert fall.tolerance == 0.01
    assert not fall.exceeds
    (fall,) = falls([1.0, 0.98], 100)
    assert fall.exceeds


def test_given_tolerance():
    assert not falls([0.9, 0.8], 100, 0.1)[0].exceeds
    assert falls([0.9, 0.8], 100, 0.0)[0].exceeds


def test_steady_trials_come_first_then_smaller_falls():
    trials = [
        trial(0, 0.90, 0.99, 0.97),
        trial(1, 0.90, 0.95, 0.96),
        trial(2, 0.90, 0.80, 0.999),
        trial(3, 0.90, 0.95, 0.96),
        trial(4, 0.99, 0.99, 0.99, status="failed"),
        trial(5, status="running"),
    ]
    assert order(trials, 6000) == [1, 3, 0, 2]
    assert order(trials, 6000, "best") == [2, 0, 1, 3]
    assert order(trials, 6000, "steady", 0.05) == [0, 1, 3, 2]


def test_a_small_fall_that_exceeds_counts_though_a_larger_one_is_within():
    """At accuracy 0.5 a fall of 0.006 is noise; at 0.999 one of 0.005 isn't."""
    entry = rank([trial(0, 0.5, 0.494, 0.999, 0.994)], 6000)[0]
    assert not entry.steady
    assert math.isclose(entry.fall, 0.006)
    assert entry.worst().epoch == 4


def test_explanations_name_the_price():
    ranked = rank([trial(0, 0.99, 0.97), trial(1, 0.95, 0.96), trial(2, 0.98, 0.965)], 6000)
    text = explain(ranked, "steady")
    assert "Trial 1 wins" in text
    assert "trial 0" in text
    assert "fell by 0.0200 in epoch 2" in text
    assert "and 1 more" in text
    assert "cost 0.0100" in text
    assert "highest of all" in explain(rank([trial(0, 0.9)], 10, "best"), "best")
    assert "no trial scored higher" in explain(rank([trial(0, 0.9)], 10), "steady")
    text = explain(rank([trial(0, 0.99, 0.90), trial(1, 0.999, 0.901)], 6000), "steady")
    assert "Trial 0 wins" in text
    assert "no trial was steady, and none fell less than its 0.0900" in text
    assert "cost 0.0010" in text
