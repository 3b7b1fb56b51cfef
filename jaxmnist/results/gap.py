"""The gap between validation and test accuracy: what it shows, and what it can't show."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxmnist.errors import printable
from jaxmnist.results.classes import SENTENCE
from jaxmnist.results.confusion import Evaluation, beside_constant
from jaxmnist.results.corrected import Corrected, interval
from jaxmnist.results.layout import shortened
from jaxmnist.results.run import Run
from jaxmnist.results.statistics import signed

COPIES = 0.1  # of the validation images; with more, intervals from their number are too narrow
MOST_PAIRS = 3  # of renamed classes, that a sentence names


@dataclass(frozen=True)
class Gap:
    """The winner's corrected validation accuracy minus its test accuracy.

    low, high: its 95 % interval.
    """

    size: float
    low: float
    high: float

    @property
    def visible(self) -> float:
        """The smallest gap above 0 that would have been more than chance explains."""
        return self.size - self.low


def gap_between(found: Corrected, test: Evaluation) -> Gap:
    """Compare the corrected score with the accuracy on the test images.

    The interval combines those of the two accuracies, d ± √(δ₁² + δ₂²), where δ is how far each
    reaches towards the other: the corrected score's contains the variance of the correction.

    References:
      Newcombe, 'Interval estimation for the difference between independent proportions: comparison
      of eleven methods', 1998, method 10.
    """
    low, high = found.interval
    test_low, test_high = test.confidence_interval()
    size = found.score - test.accuracy
    below = math.hypot(found.score - low, test_high - test.accuracy)
    above = math.hypot(high - found.score, test.accuracy - test_low)
    return Gap(size, size - below, size + above)


def about_labels(found: Corrected, test: Evaluation) -> list[str]:
    """What is probably wrong with the test part, in a sentence; none where nothing seems to be.

    A renaming of the labels repairs the test accuracy if that is significantly below the corrected
    score, and no longer so, or by no more than a fifth, once each predicted class stands for the
    true one that fits best. An accuracy is below chance if its 95 % interval is below 1/K for K
    classes.

    Args:
      found: the winner's score and what selection has added to it.
      test: the winner on the test images.
    """
    classes, accuracy = len(test.labels), test.accuracy
    gap = gap_between(found, test)
    if gap.low > 0:
        renamed, pairs = _renamed(test)
        left = gap_between(found, renamed)
        # In a class of a few images, and in guesses, other names may happen to fit better.
        better = renamed.confidence_interval()[0] > accuracy and not beside_constant(renamed)
        if better and (left.low <= 0 or left.size <= gap.size / 5):
            more = f" and {len(pairs) - MOST_PAIRS} more" if len(pairs) > MOST_PAIRS else ""
            return [
                f"Renaming the classes raises the test accuracy from {accuracy:.4f} to"
                f" {renamed.accuracy:.4f}: {', '.join(pairs[:MOST_PAIRS])}{more}. The test labels"
                " are probably numbered differently from the training labels: compare both."
            ]
    if test.confidence_interval()[1] < 1 / classes:
        return [
            f"The test accuracy {accuracy:.4f} is below chance, 1/{classes} = {1 / classes:.4f}."
            " The test labels are probably numbered differently from the training labels, or the"
            " test images are prepared differently (inverted, transposed, on another scale):"
            " compare both."
        ]
    return []


def _renamed(test: Evaluation) -> tuple[Evaluation, list[str]]:
    """The evaluation with predicted classes renamed for the highest accuracy, and the renamings.

    References:
      Kuhn, 'The Hungarian method for the assignment problem', 1955.
    """
    from scipy.optimize import linear_sum_assignment  # imported here: most results need none

    matrix, classes = test.confusion_matrix, len(test.labels)
    # Of equally good assignments the one that renames the fewest classes.
    weights = matrix * (classes + 1) + np.eye(classes, dtype=np.int64)
    predicted = linear_sum_assignment(weights, maximize=True)[1]
    hits = matrix[np.arange(classes), predicted]
    names = [printable(shortened(name, SENTENCE)) for name in test.class_names]
    pairs = [
        f"{names[k]} is classified as {names[predicted[k]]} ({hits[k]:,} of {matrix[k].sum():,})"
        for k in np.argsort(-hits, kind="stable")
        if predicted[k] != k and hits[k]
    ]
    return replace(test, confusion_matrix=matrix[:, predicted]), pairs


def describe_gap(found: Corrected, test: Evaluation) -> str:
    """What luck has added to the validation accuracy, and what the gap to the test accuracy says.

    Args:
      found: the winner's score and what selection has added to it.
      test: the winner on the test images.
    """
    gap = gap_between(found, test)
    luck = (
        ""
        if found.trials == 1
        else (
            f"Luck gives the best of {found.trials} about {found.raw - found.score:.4f} on these"
            " validation images. "
        )
    )
    corrected = "Validation" if found.trials == 1 else "Corrected for that, validation"
    line = (
        f"{luck}{corrected} accuracy {found.score:.4f} − test accuracy {test.accuracy:.4f} ="
        f" {signed(gap.size)} (95 % interval {signed(gap.low)} to {signed(gap.high)})"
    )
    if wrong := about_labels(found, test):
        sure = ", more than chance explains" if gap.low > 0 else ""
        return " ".join([f"{line}{sure}.", *wrong])
    if gap.low > 0 and found.trials == 1:
        return f"{line}, more than chance explains: the test images are harder."
    if gap.low > 0:
        return (
            f"{line}, more than chance explains: the search has overfitted the validation images"
            " beyond that luck, or the test images are harder."
        )
    if gap.high < 0:
        return (
            f"{line}, more than chance explains: the test images are easier than the validation"
            " images, which would hide an overfitting."
        )
    return (
        f"{line}. Only a gap above {gap.visible:.4f} would have shown, and validation and test"
        " images may not be equally hard: that none is visible does not rule overfitting out."
    )


def score_of(run: Run, content: dict[str, Any]) -> Corrected:
    """The corrected validation accuracy of the network that best/test.json tells of.

    Args:
      run: with the finalists and the corrected score.
      content: of best/test.json.
    """
    if not run.finals or "refit_images" in content:
        return run.corrected
    score, images = content["validation_accuracy"], content["validation_images"]
    chosen = run.finals[0]
    less = max(0.0, score - chosen.added.size)
    reach = interval(less, images, chosen.added.variance)
    return Corrected(chosen.rivals, images, score, less, reach, ())


def about_gap(run: Run, content: dict[str, Any], test: Evaluation) -> str:
    """What the run's best/test.json says about the gap between validation and test accuracy.

    Args:
      run: with the finalists and the corrected score.
      content: of best/test.json.
      test: its evaluation.
    """
    score = score_of(run, content)
    images = run.validation_images
    different = run.search["data"].get("validation_different", images)
    instead = ""
    if "refit_images" in content:
        instead = (
            f"The network was refitted on {content['refit_images']:,} images; no validation images"
            " are left, so no gap is shown."
        )
    elif different < (1 - COPIES) * images:
        instead = (
            f"Only {different:,} of the {images:,} validation images differ from each other, so the"
            " gap between validation and test accuracy shows little."
        )
    return " ".join([instead, *about_labels(score, test)]) if instead else describe_gap(score, test)
