"""Which trial wins, and why."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxmnist.runs.trial import Trial


@dataclass(frozen=True)
class Fall:
    """A decrease of validation accuracy from one epoch to the next.

    epoch: the one it fell in, counted from 1.
    size: accuracy before minus accuracy after, above 0.
    tolerance: how large it may be for the trial to count as steady.
    """

    epoch: int
    size: float
    tolerance: float

    @property
    def exceeds(self) -> bool:
        """Whether it is more than its tolerance."""
        # Accuracies are ratios of whole numbers; their difference is off by some 1e-16.
        return self.size > self.tolerance + 1e-12


def falls(accuracies: Sequence[float], images: int, tolerance: float | None = None) -> list[Fall]:
    """Every fall of a trial, in order.

    Args:
      accuracies: validation accuracy after each epoch.
      images: validation images.
      tolerance: one for every fall; None for the standard error of the accuracy p before the
        fall, √(p(1 − p)/images), and at least 1/images.
    """
    found = []
    for epoch, (before, after) in enumerate(itertools.pairwise(accuracies), 2):
        if after < before:
            allowed = tolerance
            if allowed is None:
                allowed = max(math.sqrt(before * (1 - before) / images), 1 / images)
            found.append(Fall(epoch, before - after, allowed))
    return found


@dataclass(frozen=True)
class Ranked:
    """A completed trial in its place, with the falls that put it there."""

    trial: Trial
    falls: tuple[Fall, ...]

    @property
    def score(self) -> float:
        """Validation accuracy after the last epoch."""
        assert self.trial.score is not None
        return self.trial.score

    @property
    def steady(self) -> bool:
        """Whether no fall exceeds its tolerance."""
        return not any(fall.exceeds for fall in self.falls)

    @property
    def fall(self) -> float:
        """The largest decrease, 0 where there is none."""
        return max((fall.size for fall in self.falls), default=0.0)

    def worst(self) -> Fall:
        """The fall that exceeds its tolerance by most."""
        return max(self.falls, key=lambda fall: fall.size - fall.tolerance)


def rank(
    trials: Sequence[Trial], images: int, select: str = "steady", tolerance: float | None = None
) -> list[Ranked]:
    """Completed trials, the winner first; the others never win.

    Args:
      trials: of any status.
      images: validation images.
      select: 'best' ranks by score alone; 'steady' ranks steady trials first, by score, then
        the others by smaller fall. Equals rank by index.
      tolerance: as for `falls`.
    """
    ranked = [
        Ranked(trial, tuple(falls(trial.metric("val_accuracy"), images, tolerance)))
        for trial in trials
        if trial.status == "completed"
    ]

    def key(entry: Ranked) -> tuple[float, ...]:
        if select == "best" or entry.steady:
            return (0, -entry.score, entry.trial.index)
        return (1, entry.fall, -entry.score, entry.trial.index)

    return sorted(ranked, key=key)


def explain(ranked: Sequence[Ranked], select: str) -> str:
    """Why the first of `ranked` won, what the rule passed over, and what that cost."""
    winner = ranked[0]
    line = f"Trial {winner.trial.index} wins with validation accuracy {winner.score:.4f}"
    if select == "best":
        return line + ": the highest of all."
    if winner.steady:
        line += ", the highest of the steady ones"
    else:
        line += f": no trial was steady, and none fell less than its {winner.fall:.4f}"
    passed = sorted(
        (entry for entry in ranked if entry.score > winner.score), key=lambda entry: -entry.score
    )
    if not passed:
        return line + "; no trial scored higher."
    best, fall = passed[0], passed[0].worst()
    others = "" if len(passed) == 1 else f", and {len(passed) - 1} more for falls of their own"
    return line + (
        f". Passed over: trial {best.trial.index}, whose"
        f" validation accuracy fell by {fall.size:.4f} in epoch {fall.epoch} (more than"
        f" {fall.tolerance:.4f}){others}. That cost {best.score - winner.score:.4f} of"
        " validation accuracy."
    )
