"""The winner's corrected score, against formulas by hand and resampling image by image."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from conftest import a_trial, history
from scipy.stats import binomtest

from jaxmnist.models.study import configuration
from jaxmnist.results import ranking as module
from jaxmnist.results.ranking import (
    Optimism,
    changing,
    corrected,
    course,
    describe_corrected,
    indistinguishable,
    interval,
    resampled,
)
from jaxmnist.results.selection import Course, rule_of, wilson
from jaxmnist.runs.trial import pack_right

IMAGES = 300


def drawn(trials=4, epochs=3, seed=0, images=IMAGES) -> np.ndarray:
    """Random results with images of different difficulty: bool[T, E, N]."""
    generator = np.random.default_rng(seed)
    return generator.random((trials, epochs, images)) < generator.beta(5, 0.5, images)


def packed(right: np.ndarray) -> np.ndarray:
    return np.packbits(right, axis=-1)


def ranked(right: np.ndarray, rule, indices=None):
    """The ranking of trials with these results."""
    trials = []
    for place, results in enumerate(right):
        accuracies = [int(epoch.sum()) / right.shape[-1] for epoch in results]
        validation = tuple(map(pack_right, results))
        index = place if indices is None else indices[place]
        record = configuration(32, 1, 0)
        epochs = history(*accuracies)
        trials.append(a_trial(index, record, "completed", epochs, validation=validation))
    return rule.rank(trials)


def test_counts_of_a_resample_are_those_of_its_images():
    right, generator = drawn(), np.random.default_rng(1)
    varied = changing(packed(right), IMAGES)
    counts = generator.multinomial(IMAGES, [1 / IMAGES] * IMAGES, 5)
    same = right.all((0, 1))
    assert varied.shape == (int((~same).sum()), 4, 3)
    weights = np.concatenate([counts[:, ~same], counts[:, same].sum(1, keepdims=True)], 1)
    found = course(weights.astype(float), varied, IMAGES)
    for row, count in enumerate(counts):
        images = np.repeat(right, count, axis=-1)
        for place, trial in enumerate(images):
            expected = Course.of(tuple(map(pack_right, trial)), IMAGES)
            assert found.right[row, place] == expected.right
            assert found.lost[row, place].tolist() == expected.lost.tolist()
            assert found.won[row, place].tolist() == expected.won.tolist()


@pytest.mark.parametrize("select", ["best", "steady"])
def test_the_optimism_of_resamples_is_that_of_drawing_images(select):
    """b₁ and b₂ by indices of images and rankings of records, within four standard errors."""
    right, rule = drawn(), rule_of(select, IMAGES)
    winner = ranked(right, rule)[0].trial.index
    generator, found = np.random.default_rng(2), []
    for _ in range(150):
        once = right[..., generator.integers(IMAGES, size=IMAGES)]
        twice = once[..., generator.integers(IMAGES, size=IMAGES)]
        row = []
        for before, after in ((right, once), (once, twice)):
            chosen = ranked(after, rule)[0].trial.index
            gained = after[:, -1].mean(1) - before[:, -1].mean(1)
            row.append(gained[chosen] - gained[winner])
        found.append(row)
    expected, error = np.mean(found, 0), np.std(found, 0) / math.sqrt(150)
    ours = resampled(packed(right), rule, winner)
    ours = np.array([ours.once, ours.twice])
    assert (np.abs(ours - expected) < 4 * error * math.sqrt(1 + 150 / 400)).all()
    assert ours.min() > 0


def test_extrapolation_is_exact_for_normal_distributions():
    for spread in (0.0, 0.5, 1.0, 3.0):
        b = [1.5 / math.sqrt(spread**2 + 1 + resamplings) for resamplings in range(3)]
        found = Optimism(b[1], b[2])
        assert found.size == pytest.approx(b[0], rel=1e-12)
        part = spread**2 / (spread**2 + 1)
        assert found.variance == pytest.approx(module.UNCERTAINTY * b[0] ** 2 * part, abs=1e-12)
    assert Optimism(0.0, 0.1).size == Optimism(-0.1, 0.1).size == Optimism(0.0, 0.1).variance == 0
    for twice in (0.05, 0.0, -0.1):
        assert Optimism(0.1, twice).size == pytest.approx(math.sqrt(2) * 0.1)
    assert Optimism(0.1, 0.2).size < 0.1  # a winner far ahead, whom only more noise endangers


def test_nothing_is_added_where_nothing_was_selected():
    rule = rule_of("best", IMAGES)
    right, none = drawn(), Optimism(0, 0)
    assert resampled(packed(right[:1]), rule, 0) == none
    equal = np.repeat(right[:1], 3, axis=0)
    assert resampled(packed(equal), rule, 0) == none
    right[0] = True
    assert resampled(packed(right), rule, 0) == none
    assert resampled(packed(np.ones((3, 2, IMAGES), bool)), rule, 0) == none


def test_each_resample_runs_the_rule_itself():
    """A trial that fell never wins: by score alone it competes, by the rule it doesn't."""
    right = np.repeat(drawn(1, 1, images=IMAGES), 2, axis=0).repeat(3, axis=1)
    right[1, :2] = True  # the second falls in the last epoch
    right[1, 2, :20] ^= True
    right[1, 2, 20:40] = True
    assert resampled(packed(right), rule_of("best", IMAGES), 0).once > 0
    assert resampled(packed(right), rule_of("steady", IMAGES), 0) == Optimism(0, 0)


def test_the_work_is_done_in_parts_with_the_same_result(monkeypatch):
    right, rule = drawn(), rule_of("steady", IMAGES)
    whole = resampled(packed(right), rule, 0)
    monkeypatch.setattr(module, "COLUMNS", 3)
    assert resampled(packed(right), rule, 0) == whole
    monkeypatch.setattr(module, "MOST_WORK", 1)
    fewer = resampled(packed(right), rule, 0)
    monkeypatch.setattr(module, "RESAMPLES", module.FEWEST_RESAMPLES)
    assert resampled(packed(right), rule, 0) == fewer != whole


def test_the_interval_is_wilsons_and_wider_by_the_correction():
    assert interval(0.98, 6000) == pytest.approx(wilson(0.98, 6000), abs=1e-12)
    assert interval(1.0, 100) == pytest.approx(wilson(1.0, 100), abs=1e-12)
    assert interval(0.0, 100, 0.2) == pytest.approx(wilson(0.0, 100), abs=1e-12)
    twice = interval(0.98, 6000, 0.98 * 0.02 / 6000)  # the variance of half as many images
    assert twice == pytest.approx(wilson(0.98, 3000), abs=1e-12)


def test_trials_as_good_as_the_winner_by_mcnemar_and_holm():
    right = drawn(6, 1, images=2000)
    for place, wrong in enumerate((0, 5, 24, 40, 52, 90)):
        right[place, 0, :wrong] = False
    last = packed(right[:, 0])
    found = indistinguishable(last[0], {index: last[index] for index in range(1, 6)})
    p_values = {}
    for index in range(1, 6):
        only = (right[0, 0] & ~right[index, 0]).sum(), (right[index, 0] & ~right[0, 0]).sum()
        p_values[index] = binomtest(int(only[0]), int(sum(only))).pvalue
    told, left = set(), sorted(p_values, key=p_values.get)
    for place, index in enumerate(left):
        if p_values[index] > 0.05 / (5 - place):
            break
        told.add(index)
    assert 0 < len(told) < 5
    assert set(found) == set(p_values) - told
    assert indistinguishable(last[0], {}) == ()


def test_of_a_ranking():
    rule = rule_of("steady", IMAGES)
    right, indices = drawn(), [3, 5, 8, 9]
    entries = ranked(right, rule, indices)
    found = corrected(entries, rule)
    winner = entries[0].trial.index
    added = resampled(packed(right), rule, indices.index(winner))
    assert found == corrected([entries[0], *entries[:0:-1]], rule)
    assert (found.raw, found.trials, found.images) == (entries[0].score, 4, IMAGES)
    assert found.score == pytest.approx(found.raw - added.size)
    assert found.interval == interval(found.score, IMAGES, added.variance)
    assert set(found.indistinguishable) <= set(indices) - {winner}
    text = describe_corrected(found)
    assert f"corrected score is {found.score:.4f} (95 % interval {found.interval[0]:.4f}" in text
    alone = corrected(entries[:1], rule)
    assert (alone.score, alone.indistinguishable) == (alone.raw, ())
    assert "one completed trial" in describe_corrected(alone)
    far = ranked(np.stack([np.ones((1, IMAGES), bool), np.zeros((1, IMAGES), bool)]), rule)
    assert "tell every other trial" in describe_corrected(corrected(far, rule))
    many = ranked(np.repeat(right[:1], 15, axis=0), rule)
    assert "14 of the other 14 trials" in describe_corrected(corrected(many, rule))
    assert describe_corrected(corrected(many, rule)).endswith("9, 10, ….")


def test_a_run_says_it(finished):
    found = finished.ranking.corrected
    content = json.loads((finished.store.path / "best" / "config.json").read_text())
    assert content["corrected_score"] == found.score
    assert content["corrected_interval"] == list(found.interval)
    assert content["indistinguishable"] == list(found.indistinguishable)
    assert found.interval[0] < found.score <= found.raw == finished.best_trial.score
    why = f"\n\n{finished.ranking.why()}\n{describe_corrected(found)}"
    assert why in finished.results_summary()
