"""Variables of the page's sections on the test set: results, and how far they can be trusted.

They come from the run's files; the test set is not evaluated.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmnist.report import figures, words
from jaxmnist.report.confusion import confusion_figure
from jaxmnist.report.facts import Facts
from jaxmnist.results import comparisons, members
from jaxmnist.results.calibration import Calibration
from jaxmnist.results.classes import confusions, worst_classes
from jaxmnist.results.confusion import Evaluation, beside_constant
from jaxmnist.results.evaluation import about_probabilities, looks_at_test
from jaxmnist.results.gap import about_gap
from jaxmnist.results.layout import short_names

NAME = 18  # columns of a class name in a table
MOST_CLASSES = 30  # of a confusion matrix as a table, and of a report with all classes


def test_context(facts: Facts) -> dict[str, Any]:
    """Variables of these sections; None where nothing was measured."""
    test = facts.tested
    svm = facts.attempt("test", facts.svm)
    names = ("test", "gap", "about_looks", "svm", "ensemble")
    more = ("confusion", "svm_confusion", "reliability", "about_calibration")
    context: dict[str, Any] = dict.fromkeys((*names, *more))
    context["comparisons"] = []
    if test:
        context["test"] = facts.attempt("test", _tested, test)
        evaluation = Evaluation.from_json(test)
        context["gap"] = facts.attempt("trust", about_gap, facts.run, test, evaluation)
        context["about_looks"] = facts.attempt("test", looks_at_test, facts.run)
        if context["test"] and not context["test"]["matrix"]:
            context["confusion"] = facts.attempt(
                "test", confusion_figure, evaluation, "confusion", "network"
            )
        found = facts.attempt("trust", Calibration.from_json, test)
        if found:
            context["about_calibration"] = facts.attempt(
                "trust", about_probabilities, facts.run, test
            )
            context["reliability"] = facts.attempt("trust", figures.reliability, found)
    if svm:
        context["svm"] = facts.attempt("test", lambda: {**_tested(svm), "of": svm})
        if context["svm"] and not context["svm"]["matrix"]:
            of_svm = Evaluation.from_json(svm)
            context["svm_confusion"] = facts.attempt(
                "test", confusion_figure, of_svm, "svm-confusion", "SVM"
            )
    if test:
        kept = facts.attempt("trust", facts.run.kept_comparisons)
        context["comparisons"] = facts.attempt("trust", comparisons.describe, kept) or []
        ensemble = facts.attempt("trust", facts.run.kept_ensemble)
        context["ensemble"] = members.describe(ensemble) if ensemble else None
    return context


def _tested(content: dict[str, Any]) -> dict[str, Any]:
    """Variables of one evaluation."""
    evaluation = Evaluation.from_json(content)
    matrix = evaluation.confusion_matrix
    wrong = matrix - np.diag(np.diag(matrix))
    low, high = evaluation.confidence_interval()
    names, short = evaluation.class_names, short_names(evaluation.class_names, NAME)
    report, intervals = evaluation.classification_report(), evaluation.recall_intervals()
    few = len(names) <= MOST_CLASSES
    shown = range(len(names)) if few else worst_classes(evaluation)
    return {
        "accuracy": evaluation.accuracy,
        "images": evaluation.images,
        "low": low,
        "high": high,
        "names": short,
        "numbered": evaluation.numbered,
        "matrix": matrix.tolist() if few else None,
        "pairs": [] if few else [(short[i], short[j], n) for i, j, n in confusions(evaluation)],
        "most_wrong": max(1, int(wrong.max())),
        "mistakes": int(wrong.sum()),
        "classes": [(short[k], report[names[k]], intervals[k]) for k in shown],
        "averages": [
            (name, report[name]) for name in ("macro avg", "weighted avg") if name in report
        ],
        "confused": words.most_confused(evaluation),
        "constant": beside_constant(evaluation),
    }
