"""Which trial wins, and why: each selection rule is a class here, and no other module knows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxmnist.results.statistics import LEVEL, decrease_p_values, holm, only_first
from jaxmnist.runs.trial import Trial


@dataclass(frozen=True)
class Course:
    """How results on the validation images changed over the E epochs of trials.

    images: number of validation images.
    right: int[...], images classified correctly after the last epoch.
    lost, won: int[..., E − 1], images that were right only before, and only after, each change of
      epoch.
    """

    images: int
    right: np.ndarray
    lost: np.ndarray
    won: np.ndarray

    @classmethod
    def of(cls, validation: Sequence[bytes], images: int) -> Course:
        """The course of one trial, from the packed bits of each of its epochs."""
        bits = np.frombuffer(b"".join(validation), np.uint8).reshape(len(validation), -1)
        before, after = bits[:-1], bits[1:]
        right = np.bitwise_count(bits[-1]).sum(dtype=np.int64)
        return cls(images, right, only_first(before, after), only_first(after, before))

    @property
    def decreases(self) -> np.ndarray:
        """By how many images the accuracy fell at each change of epoch: int[..., E − 1]."""
        fewer: np.ndarray = self.lost - self.won
        return fewer


@dataclass(frozen=True)
class Fall:
    """A decrease of validation accuracy from one epoch to the next.

    epoch: the epoch in which it fell, counted from 1.
    lost, won: images that were right only before, and only after it.
    size: accuracy before minus accuracy after, above 0.
    counts: whether the rule takes it for a decrease.
    """

    epoch: int
    lost: int
    won: int
    size: float
    counts: bool


@dataclass(frozen=True, order=True)
class Standing:
    """The place of a completed trial among others: the smallest wins.

    key: what the rule compares; equal keys rank by index.
    """

    key: tuple[float, ...]
    index: int
    score: float

    @property
    def group(self) -> tuple[float, ...]:
        """What is compared before the score: trials that agree in it rank by score alone."""
        return self.key[:-1]


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
        """Whether no fall counts."""
        return not any(fall.counts for fall in self.falls)

    @property
    def worst(self) -> Fall | None:
        """The largest fall that counts, or else the largest; None where there is none."""
        return max(self.falls, key=lambda fall: (fall.counts, fall.size), default=None)

    @property
    def fall(self) -> float:
        """The size of the worst fall, 0 where there is none."""
        return self.worst.size if self.worst else 0.0


@dataclass(frozen=True)
class Rule(ABC):
    """A rule that ranks completed trials.

    images: number of validation images.
    tolerance: the largest fall that does not count; None for a test of each fall.
    """

    images: int
    tolerance: float | None = None
    name: ClassVar[str]
    column: ClassVar[str] = "largest fall"  # heading of the table column beside the score

    @abstractmethod
    def counting(self, course: Course) -> np.ndarray:
        """Which changes of epoch are falls that count: bool[..., E − 1]."""

    @abstractmethod
    def keys(self, course: Course) -> list[np.ndarray]:
        """What trials are ranked by: int[...] arrays, the first decides, smaller wins.

        The last one is the score, negated.
        """

    @abstractmethod
    def reason(self, ranked: Sequence[Ranked]) -> str:
        """Why the first of `ranked` won, which better trials were passed over, at what cost."""

    @property
    def caption(self) -> str:
        """What the table column beside the score says."""
        return (
            "“Largest fall” is a trial's largest decrease of validation accuracy from one epoch to"
            " the next."
        )

    def cell(self, entry: Ranked) -> str:
        """The trial's entry in the table column beside the score."""
        return f"{entry.fall:.4f}"

    def falls(self, validation: Sequence[bytes]) -> tuple[Fall, ...]:
        """Every fall of a trial, in order, from the packed bits of each of its epochs."""
        course = Course.of(validation, self.images)
        found = zip(course.lost.tolist(), course.won.tolist(), self.counting(course), strict=True)
        return tuple(
            Fall(epoch, lost, won, (lost - won) / self.images, bool(counts))
            for epoch, (lost, won, counts) in enumerate(found, 2)
            if lost > won
        )

    def standing(self, index: int, validation: Sequence[bytes]) -> Standing:
        """The place of a completed trial, from the packed bits of each of its epochs."""
        course = Course.of(validation, self.images)
        key = tuple(float(part) for part in self.keys(course))
        return Standing(key, index, int(course.right) / self.images)

    def winners(self, course: Course) -> np.ndarray:
        """The winner of T trials, by its place among them: int64[...].

        course: of trials in ascending order of their index, its arrays are int[..., T] and
          int[..., T, E − 1].
        """
        tied: np.ndarray = np.ones(course.right.shape, bool)
        for part in self.keys(course):
            best = np.where(tied, part, np.iinfo(np.int64).max).min(-1, keepdims=True)
            tied = tied & (part == best)
        places: np.ndarray = tied.argmax(-1)
        return places

    def rank(self, trials: Sequence[Trial]) -> list[Ranked]:
        """Completed trials, the winner first; other trials are left out."""
        done = [trial for trial in trials if trial.status == "completed"]
        done.sort(key=lambda trial: self.standing(trial.index, trial.validation))
        return [Ranked(trial, self.falls(trial.validation)) for trial in done]

    def standings(self, ranked: Sequence[Ranked]) -> list[Standing]:
        """The standings of ranked trials, in their order."""
        return [self.standing(each.trial.index, each.trial.validation) for each in ranked]


class Best(Rule):
    """Ranks trials by score alone."""

    name = "best"

    def counting(self, course: Course) -> np.ndarray:
        """No fall counts."""
        return np.zeros(course.lost.shape, bool)

    def keys(self, course: Course) -> list[np.ndarray]:
        """The score."""
        return [-course.right]

    def reason(self, ranked: Sequence[Ranked]) -> str:
        """State that the winner's score is the highest."""
        return f"{_winner(ranked)}: the highest of all."


class Steady(Rule):
    """Ranks trials without a fall that counts first, by score; then others by fall.

    A fall counts if it is larger than the tolerance. Without one it counts if it is significant:
    McNemar's exact one-sided test, at 5 % for all falls of a trial together, by Holm's method.
    """

    name = "steady"

    @property
    def caption(self) -> str:
        """What the table column beside the score says, and its mark."""
        if self.tolerance is None:
            counts = (
                "that chance does not explain (McNemar's test on the images lost and won, at"
                f" {100 * LEVEL:g} % for all epochs of a trial together)"
            )
        else:
            counts = f"above {self.tolerance:g}"
        return (
            f"{super().caption} × marks a trial with a fall {counts}; it ranks behind the steady"
            " ones."
        )

    def counting(self, course: Course) -> np.ndarray:
        """The falls beyond the tolerance, or the significant ones."""
        if self.tolerance is not None:
            # Whole images; the product may be off by rounding.
            beyond: np.ndarray = course.decreases > self.tolerance * self.images + 1e-6
            return beyond
        return holm(decrease_p_values(course.lost, course.won))

    def keys(self, course: Course) -> list[np.ndarray]:
        """The largest fall that counts, 0 for steady trials; then the score."""
        counted = np.where(self.counting(course), course.decreases, 0)
        return [counted.max(-1, initial=0), -course.right]

    def reason(self, ranked: Sequence[Ranked]) -> str:
        """State that the winner is the best steady trial, and which better trials fell."""
        winner, line = ranked[0], _winner(ranked)
        passed = sorted(
            (entry for entry in ranked if entry.score > winner.score), key=lambda e: -e.score
        )
        if winner.steady:
            line += ", the highest of the steady trials" if passed else ": no trial scored higher"
        else:
            line += f": no trial was steady, and none fell less than its {winner.fall:.4f}"
        if not passed:
            return f"{line}."
        best = passed[0]
        others = "" if len(passed) == 1 else f", and {len(passed) - 1} more for falls of their own"
        return line + (
            f". Passed over: trial {best.trial.index}, whose validation accuracy"
            f" {self._fell(best)}{others}. That cost {best.score - winner.score:.4f} of validation"
            " accuracy."
        )

    def _fell(self, entry: Ranked) -> str:
        """A trial's worst fall, and why it counts."""
        fall = entry.worst
        assert fall is not None
        why = f"{fall.lost} images lost, {fall.won} won"
        if self.tolerance is not None:
            why = f"more than {self.tolerance:g}"
        return f"fell by {fall.size:.4f} in epoch {fall.epoch} ({why})"

    def cell(self, entry: Ranked) -> str:
        """The worst fall, marked if it counts."""
        return super().cell(entry) + ("" if entry.steady else " ×")


RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Steady, Best)}


def rule_of(select: str, images: int, tolerance: float | None = None) -> Rule:
    """The rule with this name; ValueError if there is none."""
    if select not in RULES:
        raise ValueError(f"unknown selection rule {select!r}; known rules: {', '.join(RULES)}")
    return RULES[select](images, tolerance)


def _winner(ranked: Sequence[Ranked]) -> str:
    return f"Trial {ranked[0].trial.index} wins with validation accuracy {ranked[0].score:.4f}"
