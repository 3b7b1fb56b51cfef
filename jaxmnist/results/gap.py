"""The gap between validation and test accuracy: what it shows, and what it can't show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jaxmnist.results.confusion import Evaluation
from jaxmnist.results.corrected import Corrected, interval
from jaxmnist.results.run import Run
from jaxmnist.results.statistics import signed


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


def about_gap(run: Run, content: dict[str, Any], test: Evaluation) -> str:
    """What the run's best/test.json says about the gap between validation and test accuracy.

    Args:
      run: with the finalists and the corrected score.
      content: of best/test.json.
      test: its evaluation.
    """
    if "refit_images" in content:
        return (
            f"The network was refitted on {content['refit_images']:,} images; no validation images"
            " are left, so no gap is shown."
        )
    if not run.finals:
        return describe_gap(run.corrected, test)
    score, images = content["validation_accuracy"], content["validation_images"]
    chosen = run.finals[0]
    less = max(0.0, score - chosen.added.size)
    reach = interval(less, images, chosen.added.variance)
    return describe_gap(Corrected(chosen.rivals, images, score, less, reach, ()), test)
