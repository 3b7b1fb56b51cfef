"""Which trial wins, and why: each selection rule is a class here, and no other module knows it."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxmnist.runs.trial import History, Trial


@dataclass(frozen=True)
class Fall:
    """A decrease of validation accuracy from one epoch to the next.

    epoch: the epoch in which it fell, counted from 1.
    size: accuracy before minus accuracy after, above 0.
    tolerance: the largest size that a steady trial may have.
    """

    epoch: int
    size: float
    tolerance: float

    @property
    def exceeds(self) -> bool:
        """Whether the size is above the tolerance."""
        # Accuracies are ratios of integers; the rounding error of a difference is about 1e-16.
        return self.size > self.tolerance + 1e-12


def falls(accuracies: Sequence[float], images: int, tolerance: float | None = None) -> list[Fall]:
    """Every fall of a trial, in order.

    Args:
      accuracies: validation accuracy after each epoch.
      images: validation images.
      tolerance: of every fall; None for the standard error of the accuracy p before the fall,
        √(p(1 − p)/images), and at least 1/images.
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
    """A completed trial of a ranking, with its falls."""

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


@dataclass(frozen=True)
class Rule(ABC):
    """A rule that ranks completed trials.

    images: number of validation images.
    tolerance: as for `falls`.
    """

    images: int
    tolerance: float | None = None
    name: ClassVar[str]
    column: ClassVar[str] = "largest fall"  # heading of the table column beside the score
    caption: ClassVar[str] = (
        "“Largest fall” is a trial's largest decrease of validation accuracy from one epoch to the"
        " next."
    )

    def falls(self, history: History) -> tuple[Fall, ...]:
        """The falls of a completed trial."""
        accuracies = [epoch.val_accuracy for epoch in history]
        return tuple(falls(accuracies, self.images, self.tolerance))

    @abstractmethod
    def key(self, history: History, index: int) -> tuple[float, ...]:
        """The sort key of a completed trial: the smallest wins; equal scores rank by index."""

    @abstractmethod
    def reason(self, ranked: Sequence[Ranked]) -> str:
        """Why the first of `ranked` won, which better trials were passed over, at what cost."""

    def cell(self, entry: Ranked) -> str:
        """The trial's entry in the table column beside the score."""
        return f"{entry.fall:.4f}"

    def rank(self, trials: Sequence[Trial]) -> list[Ranked]:
        """Completed trials, the winner first; other trials are left out."""
        done = [trial for trial in trials if trial.status == "completed"]
        done.sort(key=lambda trial: self.key(trial.history, trial.index))
        return [Ranked(trial, self.falls(trial.history)) for trial in done]


class Best(Rule):
    """Ranks trials by score alone."""

    name = "best"

    def key(self, history: History, index: int) -> tuple[float, ...]:
        """The score."""
        return (-history[-1].val_accuracy, index)

    def reason(self, ranked: Sequence[Ranked]) -> str:
        """State that the winner's score is the highest."""
        return f"{_winner(ranked)}: the highest of all."


class Steady(Rule):
    """Ranks trials without a fall beyond its tolerance first, by score; then others by fall."""

    name = "steady"
    caption = (
        f"{Rule.caption} × marks a trial with a fall larger than the tolerance (one standard error"
        " of the accuracy before it, or --tolerance), which ranks behind the steady ones."
    )

    def key(self, history: History, index: int) -> tuple[float, ...]:
        """Steady trials come first, by score; the others by largest fall, then score."""
        found, score = self.falls(history), history[-1].val_accuracy
        if any(fall.exceeds for fall in found):
            return (1, max(fall.size for fall in found), -score, index)
        return (0, -score, index)

    def reason(self, ranked: Sequence[Ranked]) -> str:
        """State that the winner is the best steady trial, and which better trials fell."""
        winner, line = ranked[0], _winner(ranked)
        if winner.steady:
            line += ", the highest of the steady ones"
        else:
            line += f": no trial was steady, and none fell less than its {winner.fall:.4f}"
        passed = sorted(
            (entry for entry in ranked if entry.score > winner.score), key=lambda e: -e.score
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

    def cell(self, entry: Ranked) -> str:
        """The largest fall, marked where one exceeds its tolerance."""
        return super().cell(entry) + ("" if entry.steady else " ×")


RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Steady, Best)}


def rule_of(select: str, images: int, tolerance: float | None = None) -> Rule:
    """The rule with this name; ValueError if there is none."""
    if select not in RULES:
        raise ValueError(f"unknown selection rule {select!r}; known rules: {', '.join(RULES)}")
    return RULES[select](images, tolerance)


def _winner(ranked: Sequence[Ranked]) -> str:
    return f"Trial {ranked[0].trial.index} wins with validation accuracy {ranked[0].score:.4f}"
