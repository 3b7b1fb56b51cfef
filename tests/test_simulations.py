"""The simulations of experiments/: what they claim, and that they simulate what they say."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import a_trial, history

from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.results.ranking import interval, resampled
from jaxmnist.results.selection import rule_of

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import corrected_score
import honesty
import importance
import steadiness
import tuning_curve


def test_steadiness():
    """Five in a hundred plateaus at most, nine in ten falls at least, and the simulation's own."""
    generator = np.random.default_rng(0)
    plateau = steadiness.Scene(6000, 5, 0.99, 0.55)
    course = steadiness.simulate(plateau, 20_000, generator)
    # P(wrong twice) = q² + ρ q (1 − q).
    twice = 1 - (steadiness.before(course)[:, -1] + course.won[:, -1]).mean() / 6000
    assert twice == pytest.approx(0.01**2 + 0.55 * 0.01 * 0.99, rel=0.02)
    now, before = steadiness.unsteady(course)
    assert now <= 0.05
    assert before > 0.4
    fall = steadiness.Scene(6000, 5, 0.99, 0.55, 0.005)
    course = steadiness.simulate(fall, 20_000, generator)
    lowest, highest = course.right.mean(), steadiness.before(course)[:, 0].mean()
    assert (highest - lowest) / 6000 == pytest.approx(0.005, rel=0.02)
    assert steadiness.unsteady(course)[0] >= 0.9


def test_the_table_of_steadiness():
    assert len(steadiness.table(600, 5, 10, 0.005, 0).splitlines()) == 18


def test_searches_are_simulated_as_they_say():
    """True accuracies, and correlations of errors between trials and between epochs."""
    generator = np.random.default_rng(0)
    accuracies = np.array([0.985, 0.985, 0.97])
    images = 200_000
    search = corrected_score.simulate(accuracies, images, 3, 0.5, generator)
    right = np.unpackbits(search.bits, axis=-1, count=images).astype(bool)
    assert right[:, -1].mean(-1) == pytest.approx(accuracies, abs=0.001)
    between = np.corrcoef(right[0, -1], right[1, -1])[0, 1]
    assert between == pytest.approx(0.5, abs=0.03)
    assert np.corrcoef(right[0, -1], right[0, -2])[0, 1] == pytest.approx(0.65, abs=0.03)
    falling = corrected_score.simulate(accuracies, images, 3, 0.5, generator, fall=0.005)
    last = np.unpackbits(falling.bits, axis=-1, count=images).mean(-1)
    assert last[:, 1] - last[:, 2] == pytest.approx([0, 0.005, 0], abs=0.001)


@pytest.mark.slow
def test_the_corrected_score_is_nearly_unbiased_and_its_interval_covers():
    """Of 200 searches among 10 equal trials, the hardest of the scenes for a plain bootstrap."""
    generator, rule = np.random.default_rng(1), rule_of("best", 6000)
    rows = []
    for _ in range(200):
        search = corrected_score.simulate(np.full(10, 0.985), 6000, 1, 0.5, generator)
        scores = np.bitwise_count(search.bits[:, 0]).sum(-1) / 6000
        winner = int(scores.argmax())
        added = resampled(search.bits, rule, winner)
        score = scores[winner] - added.size
        low, high = interval(score, 6000, added.variance)
        rows.append((scores[winner] - 0.985, score - 0.985, low <= 0.985 <= high, scores.mean()))
    raw, score, covered, luck = np.array(rows, float).T
    luck -= 0.985

    def bias(error: np.ndarray) -> float:
        """The mean error, with the luck that all trials share as a control variate."""
        return float((error - np.cov(error, luck)[0, 1] / np.var(luck, ddof=1) * luck).mean())

    assert bias(raw) > 0.0012
    assert abs(bias(score)) < 0.0003  # the claim's 0.0002, and two standard errors
    assert 0.93 <= covered.mean() <= 0.99


def test_the_table_of_corrected_scores():
    for scene in corrected_score.SCENES:
        lines = corrected_score.table(scene, 3, 2, "steady", 300, 2, 0.5, 0).splitlines()
        assert len(lines) == 7
        assert lines[-1].split("jaxmnist")[0].split()[-1] == "3"


def test_from_30_trials_on_what_matters_is_found():
    """Of 40 searches, with half of the scores' variance explained; PED-ANOVA sees less."""
    generator = np.random.default_rng(0)
    for scene, fewest in (("inverted U", 32), ("conditional", 20)):
        truth = importance.SCENES[scene]
        first = dict.fromkeys(("jaxmnist", "PED-ANOVA"), 0)
        for _ in range(40):
            drawn, scores = importance.simulate(truth, 30, 0.5, generator)
            for name in first:
                found = importance.told(drawn, scores, importance.METHODS[name], 149, generator)
                first[name] += found[:1] == [truth.name]
        assert first["jaxmnist"] >= fewest
        assert first["jaxmnist"] > first["PED-ANOVA"]


def test_simulated_hyperparameters_explain_their_share():
    assert importance.true_share(importance.SCENES["nothing"], 0.5) < 0.001
    for scene in ("monotone", "category"):
        drawn, scores = importance.simulate(
            importance.SCENES[scene], 50_000, 0.3, np.random.default_rng(0)
        )
        values = drawn[importance.SCENES[scene].name]
        means = np.array([scores[values == value].mean() for value in range(values.max() + 1)])
        assert means[values].var() / scores.var() == pytest.approx(0.3, abs=0.02)


def test_the_table_of_importance():
    for scene in importance.SCENES:
        lines = importance.table(scene, 8, 2, 0.5, 19, 0).splitlines()
        assert [line[22:36].strip() for line in lines] == list(importance.METHODS)


def test_the_tuning_curves_band_covers():
    """Of 150 searches, also where half of the curve's trials rank behind for their falls."""
    generator = np.random.default_rng(0)
    for scene in ("normal", "two thirds fall"):
        drawn = [tuning_curve.draw(tuning_curve.SCENES[scene], 20, generator) for _ in range(150)]
        inside = sum(tuning_curve.inside(tuning_curve.SCENES[scene], found) for found in drawn)
        assert 0.91 <= inside / 150 <= 0.99


def test_the_table_of_tuning_curves():
    for scene in tuning_curve.SCENES:
        assert tuning_curve.table(scene, 5, 2, 0).startswith(scene)


def test_sentences_about_searches_are_judged():
    """Trials of known accuracy: what is true of them is called true, what isn't is not."""
    generator = np.random.default_rng(0)
    images = np.arange(6000)
    parts = validation, test, truth = np.split(images, [500, 1000])
    best = generator.random((4, 3, 6000)) < 0.9
    best[0] = generator.random((3, 6000)) < 0.99
    trials = [
        honesty.Trained(
            a_trial(i, Hyperparameters({"units": i}), "completed", history(0.5, 0.5, 0.5)),
            right,
            right[-1:].repeat(honesty.RERUNS, 0),
        )
        for i, right in enumerate(best)
    ]
    errors = defaultdict(list)
    said = honesty.judged(trials, *parts, errors)
    assert all(said.values())
    assert "the trials told from the winner are worse" in said
    assert max(abs(found[0]) for found in errors.values()) < 0.02
    trials[0].right[:, truth] = False  # the images seen are no sample of the others
    said = honesty.judged(trials, *parts, errors)
    assert not said["interval of the corrected score"]
    assert not said["the trials told from the winner are worse"]
    trials[0].right[:, test] = False
    assert not honesty.judged(trials, *parts, errors)[
        "no gap beyond chance is seen, and there is none"
    ]
    said = honesty.judged_budget(trials, trials, trials * 5, validation)
    assert said["band of the tuning curve"]
    assert said["gain of twice the budget"]
    said = honesty.judged_importance(trials * 8, trials * 20, validation, generator)
    assert "interval of the importance of units" in said
    assert (
        honesty.table("two", [{"a": True}, {"a": False}], errors)
        .splitlines()[1]
        .endswith("1 of 2 (50.0 %)")
    )
