"""Whether a network's probabilities are as often right as they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 15
SIMULATIONS = 2000
# Fields of a calibration, in test.json; a bin has images, right ones and the sum of probabilities.
CALIBRATION_SHAPE = {
    "loss": float,
    "calibration_error": float,
    "reliability": [(int, int, float)],
}


@dataclass(frozen=True)
class Bin:
    """Images whose predicted class has a probability in one of the 15 equal parts of 0 to 1.

    images, right: their number, and how many of them are classified correctly.
    probability: the sum of the probabilities of their predicted classes.
    """

    images: int
    right: int
    probability: float

    @property
    def gap(self) -> float:
        """By how much the mean probability lies above the accuracy, for all images together."""
        return self.probability - self.right


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities of N images can be trusted.

    loss: the mean of −ln p, p the probability of the true class: the cross-entropy.
    bins: 15, in ascending order of the probability of the predicted class.
    """

    loss: float
    bins: tuple[Bin, ...]

    @property
    def images(self) -> int:
        """The number of images, N."""
        return sum(part.images for part in self.bins)

    @property
    def error(self) -> float:
        """The expected calibration error: Σ |mean probability − accuracy| · images/N over the bins.

        References:
          Guo, Pleiss, Sun and Weinberger, 'On calibration of modern neural networks', 2017: 15
          bins of equal width.
        """
        return sum(abs(part.gap) for part in self.bins) / self.images

    @property
    def excess(self) -> float:
        """The mean probability of the predicted class minus the accuracy."""
        return sum(part.gap for part in self.bins) / self.images

    def error_by_chance(self) -> float:
        """The calibration error that chance stays below in 95 of 100 cases.

        That of a network whose probabilities are true, on as many images with these probabilities:
        the right ones of a bin are binomial.

        References:
          Bröcker and Smith, 'Increasing the reliability of reliability diagrams', 2007.
        """
        generator = np.random.default_rng(0)  # fixed, so that a report made again is the same
        filled = [part for part in self.bins if part.images]
        images = np.array([part.images for part in filled])
        sums = np.array([part.probability for part in filled])
        drawn = generator.binomial(images, (sums / images).clip(0, 1), (SIMULATIONS, len(filled)))
        return float(np.quantile(np.abs(drawn - sums).sum(1) / self.images, 0.95))

    def to_json(self) -> dict[str, Any]:
        """The fields `CALIBRATION_SHAPE` of test.json."""
        bins = [[part.images, part.right, part.probability] for part in self.bins]
        return {"loss": self.loss, "calibration_error": self.error, "reliability": bins}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Calibration:
        """The calibration stored by `to_json`; ValueError if its content is impossible."""
        found = cls(content["loss"], tuple(Bin(*row) for row in content["reliability"]))
        fits = all(
            0 <= part.right <= part.images and 0 <= part.probability <= part.images * (1 + 1e-6)
            for part in found.bins
        )
        if not fits or len(found.bins) != BINS or found.images < 1 or found.loss < 0:
            raise ValueError("invalid calibration")
        if not math.isclose(found.error, content["calibration_error"], abs_tol=1e-9):
            raise ValueError("the calibration error is not that of the bins")
        return found


def calibration(truth: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """The calibration of predicted probabilities.

    One below the spacing of numbers at 1 (1.2e-7 in float32) counts as that, as in scikit-learn's
    `log_loss`, so that the loss stays finite.

    Args:
      truth: int[N], the true classes, 0 to K − 1.
      probabilities: float32[N, K], of each class; rows add up to 1.
    """
    true_ones = probabilities[np.arange(len(truth)), truth]
    least = np.finfo(probabilities.dtype).eps
    loss = float(-np.log(true_ones.clip(least, 1).astype(np.float64)).mean())
    highest = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == truth
    places = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], highest)  # an edge ends its bin

    def sums(weights: np.ndarray | None = None) -> Sequence[Any]:
        """The sum of weights in each bin; without them the number of images."""
        found: list[Any] = np.bincount(places, weights, BINS).tolist()
        return found

    rows = zip(sums(), sums(right), sums(highest), strict=True)
    return Calibration(loss, tuple(Bin(n, int(hits), total) for n, hits, total in rows))


def describe_calibration(found: Calibration, label_smoothing: float = 0.0) -> str:
    """Loss and calibration error, and whether chance explains it, in two or three sentences.

    label_smoothing: the part of the labels that training spread over all classes.
    """
    chance = found.error_by_chance()
    said = f"Test loss {found.loss:.4f}. Expected calibration error {found.error:.4f}"
    if found.error <= chance:
        return f"{said}: within chance, as true probabilities would show up to {chance:.4f}."
    direction = "too high" if found.excess > 0 else "too low"
    said += (
        f", more than chance explains ({chance:.4f}): the probabilities of the predicted"
        f" classes are {direction} by {abs(found.excess):.4f} on average."
    )
    if found.excess < 0 and label_smoothing:
        said += f" Labels were smoothed by {label_smoothing:g} in training, which lowers them."
    return said
