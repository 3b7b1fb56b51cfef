"""Calibration against scikit-learn and by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from jaxmnist.files import as_json, from_json
from jaxmnist.results.confusion import judge
from jaxmnist.results.evaluation import (
    Calibration,
    about_probabilities,
    calibration,
    describe_calibration,
)
from jaxmnist.runs.records import ModelReport
from jaxmnist.settings import SearchSettings


def predictions(images: int, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """True classes drawn from probabilities, and these raised to a power: true ones where it is 1.

    The probabilities are float32[N, 4].
    """
    generator = np.random.default_rng(seed)
    true_ones = generator.dirichlet(np.full(4, 0.3), images)
    truth = (generator.random((images, 1)) > true_ones.cumsum(1)).sum(1).clip(0, 3)
    sharp = true_ones**sharpness
    return truth, (sharp / sharp.sum(1, keepdims=True)).astype(np.float32)


def test_the_loss_is_scikit_learns():
    truth, probabilities = predictions(2000, 1.5, 0)
    double = probabilities.astype(float)
    theirs = log_loss(truth, double / double.sum(1, keepdims=True), labels=range(4))
    assert calibration(truth, probabilities).loss == pytest.approx(theirs, rel=1e-6)
    certain = np.eye(4, dtype=np.float32)[[1, 1]]
    assert calibration(np.array([1, 2]), certain).loss == pytest.approx(-np.log(2**-23) / 2)


def test_the_bins_are_scikit_learns():
    truth, probabilities = predictions(2000, 1.5, 1)
    probabilities[:2] = [[0.4, 0.2, 0.2, 0.2], [0.6, 0.2, 0.1, 0.1]]  # at edges of bins
    found = calibration(truth, probabilities)
    right, highest = probabilities.argmax(1) == truth, probabilities.max(1).astype(float)
    rates, means = calibration_curve(right, highest, n_bins=15)
    filled = [part for part in found.bins if part.images]
    assert [part.right / part.images for part in filled] == pytest.approx(rates)
    assert [part.probability / part.images for part in filled] == pytest.approx(means)
    shares = np.array([part.images for part in filled]) / 2000
    assert found.error == pytest.approx(float(shares @ np.abs(rates - means)))
    assert found.excess == pytest.approx(highest.mean() - right.mean())
    assert (found.images, len(found.bins)) == (2000, 15)


def test_chance_explains_true_probabilities_and_no_others():
    """True ones exceed what chance gives in about 5 of 100 cases."""
    cases = [calibration(*predictions(500, 1, seed)) for seed in range(100)]
    assert 0 < sum(found.error > found.error_by_chance() for found in cases) <= 12
    assert "within chance" in describe_calibration(cases[0])
    sharp = describe_calibration(calibration(*predictions(2000, 2, 0)))
    assert "classes are too high by 0.1" in sharp
    low = calibration(*predictions(2000, 0.5, 0))
    assert "classes are too low by 0.1" in describe_calibration(low)
    assert "smoothed" not in describe_calibration(low) + sharp
    assert "Labels were smoothed by 0.2 in training" in describe_calibration(low, 0.2)
    assert describe_calibration(calibration(*predictions(2000, 2, 0)), 0.2) == sharp


def test_the_smoothing_told_is_that_of_the_trial():
    found = calibration(*predictions(2000, 0.5, 0))
    report = SimpleNamespace(loss=found.loss, reliability=found.bins)
    settings = SearchSettings(recipe="study", label_smoothing=0.3)
    for hyperparameters, told in (({}, 0.3), ({"label_smoothing": 0.2}, 0.2)):
        best = SimpleNamespace(hyperparameters=hyperparameters)
        run = SimpleNamespace(settings=settings, best_trial=best)
        assert f"smoothed by {told} in" in about_probabilities(run, report)


def test_it_is_read_back_and_nonsense_is_refused():
    truth, probabilities = predictions(300, 1, 0)
    found = calibration(truth, probabilities)
    judged = judge(truth, probabilities.argmax(1), range(probabilities.shape[1]))
    report = ModelReport(
        **vars(judged.record()),
        model_sha256="",
        loss=found.loss,
        calibration_error=found.error,
        reliability=found.bins,
        probabilities_sha256="",
        looks=(),
        refit_images=0,
    )
    content = json.loads(json.dumps(as_json(report)))
    assert from_json(ModelReport, content) == report
    assert Calibration.of(report) == found
    bins = content["reliability"]
    for changes in (
        {"loss": -0.1},
        {"calibration_error": content["calibration_error"] + 0.01},
        {"reliability": bins[1:]},
        {"reliability": [[0, 0, 0.0]] * 15},
        {"reliability": [[bins[0][0] + 1, *bins[0][1:]], *bins[1:]]},
        {"reliability": [[1, 2, 0.5], *bins[1:]]},
        {"reliability": [[1, 1, 1.5], *bins[1:]]},
    ):
        with pytest.raises(ValueError, match=r"calibration|bins"):
            from_json(ModelReport, {**content, **changes})
