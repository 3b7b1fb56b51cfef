"""Figures of hyperparameters and the table of trials, on trials that are made up."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import a_trial, history

from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.questions import Choice, Float, Int
from jaxmnist.report.curves import curves, how_to_read, parallel
from jaxmnist.report.figures import quality
from jaxmnist.results.table import Column, Table

PARAMETERS = {
    "rate": (Float(1e-4, 1e-1, sampling="log"),),
    "activation": (Choice(["relu", "gelu", "$x_1$ <b>"]),),
    "layers": (Int(1, 3),),
    "width": (Int(1, 100),),  # more values than an axis has steps for
    "dropout": (Float(0.0, 0.5),),
}


def trials(count: int) -> list:
    """Completed trials of these hyperparameters; every third one lacks `dropout`."""
    generator = np.random.default_rng(0)
    found = []
    for index in range(count):
        values = {name: each.draw(generator) for name, (each,) in PARAMETERS.items()}
        if index % 3 == 0:
            del values["dropout"]
        epochs = history(*np.sort(generator.integers(50, 100, 3) / 100))
        found.append(a_trial(index, Hyperparameters(values), "completed", epochs, seconds=1.0))
    return sorted(found, key=lambda trial: -trial.score)


def texts(svg: str) -> list[str]:
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_an_axis_for_each_hyperparameter_and_a_line_for_each_trial():
    ranked = trials(10)
    figure = parallel(PARAMETERS, ranked, ranked[0].index, 100)
    shown = texts(figure.svg)
    assert {*PARAMETERS, "accuracy", "none", "relu", "gelu", "$x_1$ &lt;b&gt;"} <= set(shown)
    assert {str(k) for k in range(10)} <= set(shown)
    assert figure.svg.count("<title>Trial ") == 10
    assert figure.svg.count("(winner); ") <= 1
    assert "<b>" not in figure.svg
    assert figure.wide > 25  # rem: it scrolls on a phone


def heights(svg: str, trial: int) -> list[float]:
    """Where a trial's line crosses each axis, from the top."""
    group = re.search(rf"<title>Trial {trial}\b.*?<path d=\"([^\"]*)\"", svg, re.DOTALL)
    return [float(y) for y in re.findall(r"[ML] [\d.-]+ ([\d.-]+)", group[1])]


def test_lines_are_where_the_values_are():
    """The larger a number, the higher the line; the last axis orders them as they rank."""
    ranked = trials(10)
    svg = parallel(PARAMETERS, ranked, ranked[0].index, 100).svg
    lines = {trial.index: heights(svg, trial.index) for trial in ranked}
    for axis, name in ((0, "rate"), (2, "layers"), (3, "width")):
        order = sorted(ranked, key=lambda trial: trial.hyperparameters[name])
        places = [lines[trial.index][axis] for trial in order]
        values = [trial.hyperparameters[name] for trial in order]
        for (a, low), (b, high) in zip(
            zip(places, values, strict=True),
            zip(places[1:], values[1:], strict=False),
            strict=False,
        ):
            assert low == high or b < a
    last = [lines[trial.index][-1] for trial in ranked]
    assert last == sorted(last)
    none = [lines[t.index][4] for t in ranked if "dropout" not in t.hyperparameters]
    some = [lines[t.index][4] for t in ranked if "dropout" in t.hyperparameters]
    assert min(none) > max(some)


def test_too_little_for_parallel_coordinates():
    ranked = trials(2)
    assert parallel(PARAMETERS, ranked[:1], ranked[0].index, 100) is None
    assert parallel({}, ranked, ranked[0].index, 100) is None
    same = [replace(trial, history=ranked[0].history) for trial in ranked]
    assert parallel(PARAMETERS, same, None, 100) is not None  # equal scores


def test_of_many_trials_those_that_rank_first_have_labels():
    ranked = trials(40)
    order = [trial.index for trial in ranked]
    winner = order[5]  # with finalists, say
    figure = curves(ranked, order, "val_accuracy", 100, winner)
    shown = [text for text in texts(figure.svg) if text.isdecimal()]
    labels = [text for text in shown if text not in ("1", "2", "3")]  # but for the epochs
    expected = {str(winner), *map(str, order[:5]), *map(str, order[6:12])}
    assert set(labels) <= expected
    assert len(expected - set(labels)) <= 3
    assert "first 12 of the ranking have a label" in how_to_read(ranked, winner)


def test_means_are_of_two_or_more():
    ranked = trials(10)
    figure = quality("activation", PARAMETERS["activation"], ranked, ranked[0].index, 100)
    for value in ("relu", "gelu"):
        scores = [t.score for t in ranked if t.hyperparameters["activation"] == value]
        assert f"{value}  ({len(scores)})" in texts(figure.svg)
        said = f"of {value}: {np.mean(scores):.4f}" in figure.caption
        assert said == (len(scores) > 1)
    alone = quality("rate", PARAMETERS["rate"], ranked[:1], None, 100)
    assert alone.caption == "No value has two trials to average."


@pytest.mark.parametrize("word", ["=1+1", "+x", "-x", "@x", "\tx"])
def test_a_spreadsheet_finds_no_formula(word):
    table = Table({"a": Column.of([word]), "b": Column.of([-1.5])})
    (line,) = csv.DictReader(io.StringIO(table.as_csv()))
    assert line == {"a": f"'{word}", "b": "-1.5"}
