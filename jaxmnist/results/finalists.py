"""The finalists: the first trials of the ranking, trained again, and the choice among them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from jaxmnist.results.corrected import RESAMPLES, Optimism, interval, twice_resampled
from jaxmnist.runs.keys import REFIT, Rerun
from jaxmnist.runs.trial import Trial, unpack_right

NOTHING = Optimism(0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Finalist:
    """A trial and its completed reruns, whose results differ by seed alone.

    trial: as the search trained it; its score is not used here, as it was selected for it.
    reruns: the completed ones, in order.
    failed: number of reruns that failed.
    images: number of validation images.
    added: what being chosen adds to the mean; nothing for those that aren't.
    """

    trial: Trial
    reruns: tuple[Trial, ...]
    failed: int
    images: int
    added: Optimism = NOTHING

    @property
    def tested(self) -> Trial | None:
        """The rerun whose network is tested if this finalist is chosen: the first."""
        return self.reruns[0] if self.reruns else None

    @property
    def scores(self) -> list[float]:
        """The validation accuracy of each completed rerun."""
        return [rerun.score for rerun in self.reruns if rerun.score is not None]

    @cached_property
    def right(self) -> np.ndarray:
        """How many of the reruns have each validation image right: int64[images]."""
        counts = np.zeros(self.images, np.int64)
        for rerun in self.reruns:
            counts += unpack_right(rerun.validation[-1], self.images)
        return counts

    @property
    def mean(self) -> float:
        """The mean accuracy of the reruns; NaN without any."""
        count = len(self.reruns) * self.images
        return int(self.right.sum()) / count if count else math.nan

    @property
    def corrected(self) -> float:
        """The mean, less what being the best of several means has added on average."""
        return max(0.0, self.mean - self.added.size)

    @property
    def deviation(self) -> float:
        """The standard deviation of the accuracy over seeds, that is over reruns; NaN for one."""
        return statistics.stdev(self.scores) if len(self.reruns) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the true mean accuracy, over images: not over seeds.

        Wilson's, of as many images as give the mean of the reruns its variance: an image that all
        reruns have right, or all wrong, varies more than one on which they differ.

        References:
          Wilson, as for `statistics.wilson`; Korn and Graubard, 'Confidence intervals for
          proportions with small expected number of positive counts estimated from survey data',
          1998, for the effective number.
        """
        if not self.reruns:
            return math.nan, math.nan
        variance = float((self.right / len(self.reruns)).var())
        spread = self.mean * (1 - self.mean)
        effective = self.images * (spread / variance if variance else 1.0)
        return interval(self.corrected, effective, self.added.variance)


def rerun_keys(ranked: Sequence[Trial], finalists: int, reruns: int) -> list[Rerun]:
    """The reruns of the first trials: the first of each of them, then the second of each, …."""
    numbers = range(1, reruns + 1)
    return [Rerun(trial.index, number) for number in numbers for trial in ranked[:finalists]]


def choose(
    ranked: Sequence[Trial], records: Mapping[Rerun, Trial], reruns: int, images: int
) -> tuple[Finalist, ...]:
    """Rank finalists by the mean accuracy of their reruns, the chosen one first.

    One with failed reruns comes after those with fewer; equal means rank as the trials did.

    Args:
      ranked: the finalists' trials, as the search ranked them.
      records: of their reruns 1 to `reruns`, all of which have ended.
      reruns: their number for each finalist.
      images: number of validation images.
    """
    found = []
    for trial in ranked:
        ended = [records[Rerun(trial.index, number)] for number in range(1, reruns + 1)]
        done = tuple(rerun for rerun in ended if rerun.status == "completed")
        found.append(Finalist(trial, done, reruns - len(done), images))
    # Whole numbers of images, so that equal means are equal.
    ordered = sorted(found, key=lambda each: (each.failed, -int(each.right.sum())))
    if ordered:
        ordered[0] = replace(ordered[0], added=_added(ordered[0], found))
    return tuple(ordered)


def _added(chosen: Finalist, ranked: Sequence[Finalist]) -> Optimism:
    """What being the best of the means has added to the chosen one: see `Optimism`."""
    rivals = [each for each in ranked if each.failed == chosen.failed]
    if not chosen.reruns:
        return NOTHING
    kinds, counts = np.unique(np.stack([each.right for each in rivals]), axis=1, return_counts=True)

    def judge(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        right = weights @ kinds.T  # whole numbers: equal means are equal
        return right / len(chosen.reruns), right.argmax(1)

    return twice_resampled(judge, counts[None].astype(float), rivals.index(chosen), RESAMPLES)


def table(finalists: Sequence[Finalist]) -> list[tuple[str, ...]]:
    """The table of finalists: its header, then rows, the chosen one first."""
    head = ("trial", "mean", "deviation", "95 % interval", "reruns")
    rows: list[tuple[str, ...]] = [head]
    for each in finalists:
        low, high = each.interval
        scores = [f"{score:.4f}" for score in each.scores] + ["failed"] * each.failed
        known = bool(each.reruns)
        rows.append(
            (
                str(each.trial.index),
                f"{each.mean:.4f}" if known else "–",
                f"{each.deviation:.4f}" if len(each.reruns) > 1 else "–",
                f"{low:.4f} to {high:.4f}" if known else "–",
                " ".join(scores),
            )
        )
    return rows


def describe(finalists: Sequence[Finalist]) -> str:
    """Which finalist is chosen, and what its mean is, in sentences."""
    chosen = finalists[0]
    count, low, high = len(chosen.reruns), *chosen.interval
    spread = f" (standard deviation over seeds {chosen.deviation:.4f})" if count > 1 else ""
    trials = "1 trial was" if len(finalists) == 1 else f"first {len(finalists)} trials were"
    return (
        f"The {trials} trained again, with fresh weights and other orders of images; the choice"
        f" uses these reruns alone. Trial {chosen.trial.index} is chosen: the mean validation"
        f" accuracy of its {count} rerun{'' if count == 1 else 's'} is {chosen.mean:.4f}{spread}."
        f" Being the best of {len(finalists)} means has added about"
        f" {chosen.mean - chosen.corrected:.4f} to it: corrected it is {chosen.corrected:.4f} (95 %"
        f" interval over images {low:.4f} to {high:.4f}). The network that is tested is its rerun"
        f" {chosen.reruns[0].rerun if chosen.reruns else 1}."
    )


def summary(finalists: Sequence[Finalist]) -> str:
    """The table as text, and `describe`."""
    lines = [f"{a:>5}  {b:>6}  {c:>9}  {d:>16}  {e}" for a, b, c, d, e in table(finalists)]
    return "\n".join([*lines, "", describe(finalists)])


def refit_of(trial: Trial) -> Rerun:
    """The key of a trial's refit."""
    return Rerun(trial.index, REFIT)
