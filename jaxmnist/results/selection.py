"""Which trial wins, and why: the tests that decide, and a class for each selection rule.

Paired results are packed bits, as `trial.pack_right` makes them: uint8[..., B], one bit per image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxmnist.runs.trial import Trial

# --- Intervals, p-values and chances: plain arrays in, numbers out ---

Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
SMALLEST_P = 1e-300


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % Wilson interval of a proportion of `count` cases, which may be an effective number.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)

    References:
      Wilson, 'Probable inference, the law of succession, and statistical inference', 1927.
    """
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    spread = share * (1 - share) / count + (Z / count) ** 2 / 4
    reach = Z * math.sqrt(spread) / (1 + Z**2 / count)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def standard_error(share: float, count: int) -> float:
    """The standard error of a proportion of `count` cases: √(p(1 − p)/n)."""
    return math.sqrt(share * (1 - share) / count)


def signed(difference: float) -> str:
    """A difference of accuracies as text, with its sign: '+0.0010', or '−0.0070' with a minus."""
    return f"{difference:+.4f}".replace("-", "−")


def p_value(value: float, sign: str = "") -> str:
    """A p-value as text, after `sign` where it has a number: '0.012', or 'below 1e-300'.

    Smaller ones than 1e-300 may be rounded to 0, which no p-value is.
    """
    return f"{sign}{value:.3g}" if value >= SMALLEST_P else f"below {SMALLEST_P}"


def chance_of_new_best(run: int, more: int) -> float:
    """The chance that the best of `run + more` exchangeable trials is among the later ones.

    Each of them is equally likely to be the best, whatever the distribution of scores; equal scores
    make it smaller.
    """
    return more / (run + more)


# --- Comparisons on the same images: which images one result has right and another wrong ---

LEVEL = 0.05  # significance level of a family of tests


def only_first(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The number of images that only the first of two results has right: int64[...].

    Args:
      first, second: uint8[..., B], packed bits.
    """
    counts: np.ndarray = np.bitwise_count(first & ~second).sum(-1, dtype=np.int64)
    return counts


def decrease_p_values(lost: np.ndarray, won: np.ndarray) -> np.ndarray:
    """The exact one-sided McNemar test that accuracy decreased, elementwise: float64[...].

    If accuracy did not change, each image that changed was as likely lost as won:

    p = P(X ≥ lost), X binomial of lost + won and 1/2

    Args:
      lost, won: int[...], images that were right before only, and after only.

    Returns:
      The p-values; 1 where no more images were lost than won, for there is no decrease.

    References:
      McNemar, 'Note on the sampling error of the difference between correlated proportions or
      percentages', 1947.
    """
    # Imported here as it takes a tenth of a second.
    from scipy.special import bdtrc

    lost, won = np.broadcast_arrays(lost, won)
    p_values, fell = np.ones(lost.shape), lost > won
    p_values[fell] = bdtrc(lost[fell] - 1, lost[fell] + won[fell], 0.5)
    return p_values


def difference_p_values(only_first: np.ndarray, only_second: np.ndarray) -> np.ndarray:
    """McNemar's exact two-sided test that two results err equally often: float64[...].

    Args:
      only_first, only_second: int[...], images that only one of the two has right.

    References:
      As for `decrease_p_values`.
    """
    more, less = np.maximum(only_first, only_second), np.minimum(only_first, only_second)
    doubled: np.ndarray = np.minimum(1.0, 2 * decrease_p_values(more, less))
    return doubled


def holm(p_values: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Which of m tests reject, so that any is wrong with at most probability `level`.

    In ascending order, the i-th p-value (from 0) and all before it are at most level/(m − i).

    Args:
      p_values: float[..., m].

    Returns:
      bool[..., m]

    References:
      Holm, 'A simple sequentially rejective multiple test procedure', 1979.
    """
    tests = p_values.shape[-1]
    order = np.argsort(p_values, axis=-1, kind="stable")
    ascending = np.take_along_axis(p_values, order, -1)
    passed = np.logical_and.accumulate(ascending <= level / (tests - np.arange(tests)), axis=-1)
    rejected = np.zeros(p_values.shape, bool)
    np.put_along_axis(rejected, order, passed, -1)
    return rejected


# --- The selection rules; no other module knows one of them ---


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
