"""The finalists: the first trials of the ranking, trained again, and the choice among them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from jaxmnist.results.corrected import (
    RESAMPLES,
    Corrected,
    Optimism,
    indistinguishable,
    interval,
    twice_resampled,
)
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
    rivals: of the chosen one, the number of finalists whose means were compared, with it.
    added: what being the best of these means has added to it; nothing for those not chosen.
    """

    trial: Trial
    reruns: tuple[Trial, ...]
    failed: int
    images: int
    rivals: int = 1
    added: Optimism = NOTHING

    @property
    def tested(self) -> Trial | None:
        """The rerun whose network is tested if this one is chosen: the first that completed."""
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

    One with failed reruns comes after those with fewer, whatever its mean; equal means rank as the
    trials did. None if every rerun has failed.

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
    if not ordered or not ordered[0].reruns:
        return ()
    chosen, *others = ordered
    rivals = [each for each in found if each.failed == chosen.failed]
    return replace(chosen, rivals=len(rivals), added=_added(chosen, rivals)), *others


def _added(chosen: Finalist, rivals: Sequence[Finalist]) -> Optimism:
    """What being the best of the means has added to the chosen one: see `Optimism`.

    rivals: those with as many reruns, the chosen one among them, as the trials ranked.
    """
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
    trials = "only trial was" if len(finalists) == 1 else f"first {len(finalists)} trials were"
    reach = f"95 % interval over images {low:.4f} to {high:.4f}"
    luck = f"The {reach}."
    if chosen.rivals > 1:
        luck = (
            f"Being the best of {chosen.rivals} means has added about"
            f" {chosen.mean - chosen.corrected:.4f} to it: corrected it is {chosen.corrected:.4f}"
            f" ({reach})."
        )
    failed = ""
    if any(each.failed for each in finalists):
        failed = " Finalists with failed reruns come after those with fewer, whatever their mean."
    return (
        f"The {trials} trained again, with fresh weights and other orders of images; the choice"
        f" uses these reruns alone.{failed} Trial {chosen.trial.index} is chosen: the mean"
        f" validation accuracy of its {count} rerun{'' if count == 1 else 's'} is"
        f" {chosen.mean:.4f}{spread}. {luck} The network that is tested is its rerun"
        f" {chosen.reruns[0].rerun}."
    )


def corrected_mean(finalists: Sequence[Finalist], ranked: Sequence[Trial]) -> Corrected:
    """The mean of the chosen one's reruns, corrected for the choice; and the trials as good as it.

    Its first rerun, which is tested, is compared with those of the other finalists, and with the
    other trials themselves.

    Args:
      finalists: the chosen one first.
      ranked: all completed trials.
    """
    chosen = finalists[0]
    compared = {trial.index: trial for trial in ranked}
    compared |= {each.trial.index: each.reruns[0] for each in finalists if each.reruns}
    bits = {i: np.frombuffer(each.validation[-1], np.uint8) for i, each in compared.items()}
    tested = bits.pop(chosen.trial.index)
    return Corrected(
        chosen.rivals,
        chosen.images,
        chosen.mean,
        chosen.corrected,
        chosen.interval,
        indistinguishable(tested, bits),
    )


def to_json(finalists: Sequence[Finalist]) -> list[dict[str, Any]]:
    """The field `finalists` of config.json."""
    return [
        {
            "trial": each.trial.index,
            "scores": each.scores,
            "failed": each.failed,
            **({"mean": each.mean, "interval": list(each.interval)} if each.reruns else {}),
            **({"deviation": each.deviation} if len(each.reruns) > 1 else {}),
        }
        for each in finalists
    ]


def table_as_text(finalists: Sequence[Finalist]) -> str:
    """The table, a line for each row."""
    rows = table(finalists)
    return "\n".join(f"{a:>5}  {b:>6}  {c:>9}  {d:>16}  {e}" for a, b, c, d, e in rows)


def refit_of(trial: Trial) -> Rerun:
    """The key of a trial's refit."""
    return Rerun(trial.index, REFIT)
