"""Which trial won: the ranking, the finalists, and the winner's score corrected for selection."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from jaxmnist.errors import UsageError
from jaxmnist.results.selection import (
    Course,
    Ranked,
    Rule,
    Standing,
    difference_p_values,
    holm,
    only_first,
    rule_of,
    wilson,
)
from jaxmnist.runs.records import FinalistRecord
from jaxmnist.runs.trial import DONE, REFIT, Key, Trial, state_of, unpack_right
from jaxmnist.settings import SearchSettings

# --- The winner's score corrected for having been selected ---

RESAMPLES = 400
FEWEST_RESAMPLES = 100
MOST_WORK = 2e10  # multiplications of one level of resampling; beyond that, fewer resamples
COLUMNS = 1024  # of the matrices that are multiplied at a time
# The variance of the correction, as a part of its square where the trials truly differ; chosen by
# the simulation in experiments/corrected_score.py.
UNCERTAINTY = 0.6
MOST_NAMED = 10  # trials that a sentence names
# What each of T candidates has right in R resamples, [R, T], and which one is selected, int[R].
Judged = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Corrected:
    """The winner's validation accuracy, and what is known of it.

    trials: number of trials (with finalists, of means of reruns) that it was selected from.
    images: number of validation images.
    raw: its validation accuracy; with finalists the mean of its reruns.
    score: the same, less what selection has added to it on average.
    interval: 95 % interval of its true accuracy.
    indistinguishable: indices of the trials that are statistically tied with the winner on these
      images.
    """

    trials: int
    images: int
    raw: float
    score: float
    interval: tuple[float, float]
    indistinguishable: tuple[int, ...]


@dataclass(frozen=True)
class Optimism:
    """How much higher selection makes the winner's accuracy on the images than it truly is.

    The images are resampled, and each time the rule selects among all trials again. How far its
    choice lies above its accuracy on the images resampled from is the optimism b₁, on average.
    Resampling each resample once more in the same way gives b₂. Measured accuracies differ more
    than true ones, by sampling error, and still more with each resampling, so that the optimism
    sought, b₀, is larger than b₁. If sampling error (variance σ²) and true accuracies (τ²) are
    normally distributed, λ resamplings give b = c σ² / √(τ² + (1 + λ)σ²). So 1/b² is a straight
    line in λ, which is extended to 0:

    1/b₀² = 2/b₁² − 1/b₂², and b₀ ≤ √2 b₁, its value for τ = 0

    once, twice: b₁ and b₂, accuracies.

    References:
      Efron, 'Estimating the error rate of a prediction rule', 1983, for b₁; Tsamardinos, Greasidou
      and Borboudakis, 'Bootstrapping the out-of-sample predictions for efficient and accurate
      cross-validation', 2018, for resampling the images of all trials together; Cook and Stefanski,
      'Simulation-extrapolation estimation in parametric measurement error models', 1994, for
      extrapolation to less noise.
    """

    once: float
    twice: float

    @property
    def size(self) -> float:
        """The optimism b₀, at least 0."""
        if self.once <= 0:
            return 0.0
        most = math.sqrt(2) * self.once
        inverse = 2 / self.once**2 - (1 / self.twice**2 if self.twice > 0 else math.inf)
        return min(most, 1 / math.sqrt(inverse)) if inverse > 0 else most

    @property
    def variance(self) -> float:
        """The variance of b₀ beyond that of an accuracy: 0.6 b₀² τ²/(τ² + σ²).

        τ²/(τ² + σ²) = 2 − b₀²/b₁². Among equal trials (τ = 0) nothing is added: the winner's
        sampling error varies less than that of one trial, by about as much as b₀ does.
        """
        if self.once <= 0:
            return 0.0
        return UNCERTAINTY * self.size**2 * max(0.0, 2 - (self.size / self.once) ** 2)


def corrected(ranked: Sequence[Ranked], rule: Rule) -> Corrected:
    """Correct the score of the first of at least one ranked trial; see `Optimism`.

    The same trials give the same numbers, in any order of those after the first.
    """
    trials = sorted((entry.trial for entry in ranked), key=lambda trial: trial.index)
    winner, images = ranked[0].trial, rule.images
    packed = np.frombuffer(b"".join(b"".join(trial.validation) for trial in trials), np.uint8)
    bits = packed.reshape(len(trials), len(winner.validation), -1)
    added = resampled(bits, rule, [trial.index for trial in trials].index(winner.index))
    score = max(0.0, ranked[0].score - added.size)
    others = [trial.index for trial in trials if trial is not winner]
    last = {trial.index: bits[place, -1] for place, trial in enumerate(trials)}
    return Corrected(
        len(trials),
        images,
        ranked[0].score,
        score,
        interval(score, images, added.variance),
        indistinguishable(last[winner.index], {index: last[index] for index in others}),
    )


def describe_corrected(found: Corrected) -> str:
    """The corrected score and the trials as good as the winner, in sentences."""
    low, high = found.interval
    if found.trials == 1:
        return (
            f"The 95 % interval of its accuracy is {low:.4f} to {high:.4f}; with one completed"
            " trial, selection has added nothing to it."
        )
    said = (
        f"Selection among {found.trials} trials on the same {found.images:,} images has added about"
        f" {found.raw - found.score:.4f} to it: the corrected score is {found.score:.4f} (95 %"
        f" interval {low:.4f} to {high:.4f})."
    )
    equal = found.indistinguishable
    if not equal:
        return f"{said} These images tell every other trial from the winner (McNemar's test)."
    names = ", ".join(map(str, equal[:MOST_NAMED])) + (", …" if len(equal) > MOST_NAMED else "")
    return (
        f"{said} These images don't tell {len(equal)} of the other {found.trials - 1} trials from"
        f" the winner (McNemar's test): {names}."
    )


def resampled(bits: np.ndarray, rule: Rule, winner: int) -> Optimism:
    """Let the rule select again on resampled images, and on images resampled from these.

    What the original winner gains by a resampling, which is 0 on average, is subtracted as a
    control variate.

    Args:
      bits: uint8[T, E, B], packed bits of T trials, in ascending order of their indices.
      rule: the rule that selects, with the number of images.
      winner: the winner's place in `bits`.
    """
    images, varied = rule.images, changing(bits, rule.images)
    work = varied.shape[0] * bits.shape[0] * (2 * bits.shape[1] - 1)
    resamples = int(min(RESAMPLES, max(FEWEST_RESAMPLES, MOST_WORK / max(1, work))))
    weights = np.ones((1, len(varied) + 1))
    weights[0, -1] = images - len(varied)

    def judge(weights: np.ndarray) -> Judged:
        drawn = course(weights, varied, images)
        return drawn.right, rule.winners(drawn)

    return twice_resampled(judge, weights, winner, resamples)


def twice_resampled(
    judge: Callable[[np.ndarray], Judged], weights: np.ndarray, winner: int, resamples: int
) -> Optimism:
    """Let `judge` select again on resampled images, and on images resampled from these.

    Args:
      judge: of weights float[R, M], how often images of each kind were drawn.
      weights: float[1, M], of the images as they are.
      winner: the candidate that is selected from these.
      resamples: number of resamples.
    """
    generator = np.random.default_rng(0)  # fixed, so that a report made again is the same
    images = round(float(weights.sum()))
    before, rows, found = judge(weights)[0], np.arange(resamples), []
    for _ in range(2):
        chances = np.broadcast_to(weights / images, (resamples, weights.shape[1]))
        weights = generator.multinomial(images, chances).astype(float)
        right, selected = judge(weights)
        gained = right - before  # (resamples, T)
        added = gained[rows, selected] - gained[:, winner]
        found.append(float(added.mean()) / images)
        before = right
    return Optimism(*found)


def interval(score: float, images: float, variance: float = 0.0) -> tuple[float, float]:
    """The 95 % interval of a corrected accuracy.

    Wilson's, of as many images as have the variance p(1 − p)/n + `variance` of the correction.

    References:
      As for `selection.wilson`.
    """
    spread = score * (1 - score)
    number = images / (1 + variance * images / spread) if spread > 0 else images
    return wilson(score, number)


def indistinguishable(winner: np.ndarray, others: dict[int, np.ndarray]) -> tuple[int, ...]:
    """The trials whose difference from the winner is not significant on the same images.

    McNemar's exact two-sided test, at 5 % for all trials together by Holm's method.

    Args:
      winner: uint8[B], the winner's packed bits.
      others: those of the other trials by index.

    References:
      See `difference_p_values` and `holm`.
    """
    if not others:
        return ()
    bits = np.stack(list(others.values()))
    p_values = difference_p_values(only_first(winner, bits), only_first(bits, winner))
    return tuple(index for index, told in zip(others, holm(p_values), strict=True) if not told)


def changing(bits: np.ndarray, images: int) -> np.ndarray:
    """The results of the images that not every trial has right in every epoch: bool[M, T, E]."""
    some_wrong = ~unpack_right(np.bitwise_and.reduce(bits, axis=(0, 1)).tobytes(), images)
    right = np.unpackbits(bits, axis=-1, count=images)[..., some_wrong]
    return np.ascontiguousarray(np.moveaxis(right, -1, 0)).astype(bool)


def course(weights: np.ndarray, varied: np.ndarray, images: int) -> Course:
    """The course of each of T trials in each of R resamples.

    Args:
      weights: float[R, M + 1], how often each varied image, and the others together, were drawn.
      varied: bool[M, T, E], see `changing`.
      images: number of images of a resample.
    """
    before, after = varied[..., :-1], varied[..., 1:]
    right = _sums(weights[:, :-1], varied[..., -1]) + weights[:, -1:].astype(np.int64)
    lost, won = (_sums(weights[:, :-1], each) for each in (before & ~after, after & ~before))
    return Course(images, right, lost, won)


def _sums(weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The sum of the weights of the chosen images: int64[R, ...] for bool[M, ...].

    Products of 0, 1 and whole numbers below 2²⁴ are exact in float32, in any order.
    """
    columns = chosen.reshape(len(chosen), math.prod(chosen.shape[1:]))
    single = weights.astype(np.float32)
    parts = [
        single @ columns[:, first : first + COLUMNS].astype(np.float32)
        for first in range(0, columns.shape[1], COLUMNS)
    ]
    together = np.concatenate(parts, -1) if parts else np.zeros((len(weights), 0))
    return together.reshape(len(weights), *chosen.shape[1:]).astype(np.int64)


# --- The finalists: the first trials of the ranking, trained again, and the choice among them ---

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
          Wilson, as for `selection.wilson`; Korn and Graubard, 'Confidence intervals for
          proportions with small expected number of positive counts estimated from survey data',
          1998, for the effective number.
        """
        if not self.reruns:
            return math.nan, math.nan
        variance = float((self.right / len(self.reruns)).var())
        spread = self.mean * (1 - self.mean)
        effective = self.images * (spread / variance if variance else 1.0)
        return interval(self.corrected, effective, self.added.variance)


def rerun_keys(ranked: Sequence[Trial], finalists: int, reruns: int) -> list[Key]:
    """The reruns of the first trials: the first of each of them, then the second of each, …."""
    numbers = range(1, reruns + 1)
    return [Key(trial.index, number) for number in numbers for trial in ranked[:finalists]]


def choose_finalist(
    ranked: Sequence[Trial], records: Mapping[Key, Trial], reruns: int, images: int
) -> tuple[Finalist, ...]:
    """Rank finalists by the mean accuracy of their reruns, the chosen one first.

    One with failed reruns comes after those with fewer, whatever its mean; equal means rank as the
    trials did. Empty if every rerun has failed.

    Args:
      ranked: the finalists' trials, as the search ranked them.
      records: of their reruns 1 to `reruns`, all of which have ended.
      reruns: their number for each finalist.
      images: number of validation images.
    """
    found = []
    for trial in ranked:
        ended = [records[Key(trial.index, number)] for number in range(1, reruns + 1)]
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
    """What being the best of the means has added to the chosen one's mean; see `Optimism`.

    rivals: those with as many reruns, the chosen one among them, as the trials ranked.
    """
    kinds, counts = np.unique(np.stack([each.right for each in rivals]), axis=1, return_counts=True)

    def judge(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        right = weights @ kinds.T  # whole numbers: equal means are equal
        return right / len(chosen.reruns), right.argmax(1)

    return twice_resampled(judge, counts[None].astype(float), rivals.index(chosen), RESAMPLES)


def describe_finalists(finalists: Sequence[Finalist]) -> str:
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


def finalist_records(finalists: Sequence[Finalist]) -> tuple[FinalistRecord, ...]:
    """The field `finalists` of config.json."""
    return tuple(
        FinalistRecord(
            each.trial.index,
            tuple(each.scores),
            each.failed,
            each.mean if each.reruns else None,
            each.interval if each.reruns else None,
            each.deviation if len(each.reruns) > 1 else None,
        )
        for each in finalists
    )


# --- Which trial won ---


@dataclass(frozen=True)
class Ranking:
    """Which trial won, and why, according to the records of a run.

    Without finalists the first of `ranked` won; with finalists the first of `finals`.

    trials: the records of all trials, by index.
    reruns: those of all reruns and refits, also of some that the settings don't ask for.
    settings: of the run.
    images: number of validation images.
    place: the run directory, as errors name it.
    unreadable: the error to raise where the result depends on a rerun whose record can't be read.
    """

    trials: Sequence[Trial]
    reruns: Mapping[Key, Trial]
    settings: SearchSettings
    images: int
    place: str
    unreadable: Mapping[Key, str] = field(default_factory=dict)

    @property
    def rule(self) -> Rule:
        """The selection rule of the run's settings."""
        return rule_of(
            self.settings.selection.select, self.images, self.settings.selection.tolerance
        )

    @cached_property
    def ranked(self) -> list[Ranked]:
        """Completed trials as the rule ranks them, before any reruns."""
        return self.rule.rank(self.trials)

    @property
    def standings(self) -> list[Standing]:
        """The standings of the ranked trials, in their order."""
        return self.rule.standings(self.ranked)

    @property
    def rerun_keys(self) -> list[Key]:
        """The reruns that the settings ask for, of the finalists in this ranking."""
        trials = [entry.trial for entry in self.ranked]
        return rerun_keys(
            trials, self.settings.selection.finalists or 0, self.settings.selection.reruns or 0
        )

    @cached_property
    def finals(self) -> tuple[Finalist, ...]:
        """The finalists, the chosen one first; none while reruns are missing, or if all failed."""
        records = {key: trial for key in self.rerun_keys if (trial := self._rerun(key))}
        retries = self.settings.running.max_retries
        if any(state_of(records.get(key), retries) not in DONE for key in self.rerun_keys):
            return ()
        trials = [entry.trial for entry in self.ranked[: self.settings.selection.finalists or 0]]
        return choose_finalist(trials, records, self.settings.selection.reruns or 0, self.images)

    @property
    def best(self) -> list[Trial]:
        """Completed trials, the winner first; of a finalist the rerun that is tested."""
        again = {each.trial.index for each in self.finals}
        others = [entry.trial for entry in self.ranked if entry.trial.index not in again]
        return [each.tested or each.trial for each in self.finals] + others

    @property
    def winner(self) -> Trial:
        """The winner; `UsageError` if no trial has completed.

        With finalists it is the first rerun of the chosen one, whose network is tested.
        """
        self._completed()
        return self.best[0]

    @cached_property
    def final(self) -> Trial | None:
        """The record of the network that best/ is to hold: the winner's, or that of its refit.

        None while it is not trained; `UsageError` if no trial has completed.
        """
        winner = self.winner
        if self.settings.selection.finalists and winner.rerun is None:
            return None
        if not self.settings.selection.refit:
            return winner
        refit = self._rerun(Key(winner.index, REFIT))
        return refit if refit and refit.status == "completed" else None

    @property
    def tested_sha256(self) -> str | None:
        """The SHA-256 of the weights that best/ is to hold; None while they are not trained."""
        final = self.final if self.ranked else None
        return final.weights_sha256 if final else None

    @cached_property
    def corrected(self) -> Corrected:
        """The winner's score corrected for its selection, and the trials as good as it.

        With finalists it is the mean of the chosen one's reruns. Raises `UsageError` if no trial
        has completed.
        """
        if self.finals:
            return corrected_mean(self.finals, [each.trial for each in self.ranked])
        return corrected(self._completed(), self.rule)

    def why(self) -> str:
        """Why the winner won, which better trials the rule passed over, and what that cost.

        With finalists this explains the ranking before the reruns. Raises `UsageError` if no
        trial has completed.
        """
        reason = self.rule.reason(self._completed())
        return f"Before the reruns: {reason}" if self.finals else reason

    def about_score(self) -> str:
        """The winner's score, what selection has added to it, and which trials are as good.

        Raises `UsageError` if no trial has completed.
        """
        return (
            describe_finalists(self.finals) if self.finals else describe_corrected(self.corrected)
        )

    def _completed(self) -> list[Ranked]:
        if not self.ranked:
            raise UsageError(f"{self.place}: has no completed trial")
        return self.ranked

    def _rerun(self, key: Key) -> Trial | None:
        """The record of a rerun or refit; None if it has none."""
        if key in self.unreadable:
            raise UsageError(self.unreadable[key])
        return self.reruns.get(key)
