"""What more trials bring: the tuning curve of a search, and what twice the budget may add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxmnist.results.paired import LEVEL
from jaxmnist.results.selection import Ranked, Rule, Standing

SIMULATIONS = 10_000
FEWEST = 4  # comparable trials; with fewer the bound of the gain is too large to say anything


@dataclass(frozen=True)
class TuningCurve:
    """The winner's score by number of trials.

    Half of all searches of k trials select a trial that the rule ranks at least as high as the one
    of this score; k = 1 … n, for n completed trials.

    scores: float64[n], estimated by the choices of k of these trials.
    low, high: float64[n], the 95 % band of the whole curve for the distribution that the trials
      come from; 0 and 1 where the trials don't bound it.
    """

    scores: np.ndarray
    low: np.ndarray
    high: np.ndarray


def standings_of(ranked: Sequence[Ranked], rule: Rule) -> list[Standing]:
    """The standings of ranked trials, the winner's first."""
    return [rule.standing(entry.trial.index, entry.trial.validation) for entry in ranked]


def tuning_curve(standings: Sequence[Standing]) -> TuningCurve:
    """The tuning curve of at least one trial, in the order of the rule.

    The trial selected from k is at the quantile (1/2)^(1/k) of the rule's order, in the median. Its
    band are those order statistics between which all n quantiles lie with 95 % probability, exactly
    for any distribution; the level of each one follows by simulation. Among trials that the rule
    compares by score alone the bounds of the place are bounds of the score; a place below them may
    have any score, so that the band is unbounded there.

    The expectation is not shown, as it has no such band: it depends on scores that were not seen.

    References:
      Lourie, Cho and He, 'Show your work with confidence: confidence bands for tuning curves',
      2024; Tang et al., 'Showing your work doesn't always work', 2020, for choices without
      replacement.
    """
    ordered = sorted(standings, reverse=True)  # the winner last
    scores = np.array([standing.score for standing in ordered])
    trials = len(ordered)
    first = trials - comparable(standings)  # of those that are compared by score alone
    places = np.arange(trials)
    below, above = places_between(trials)
    bounded = below > first  # the trial before the quantile is one of them
    low = np.where(bounded, scores[below - 1], 0.0)
    high = np.where(bounded & (above < trials), scores[np.minimum(above, trials - 1)], 1.0)
    return TuningCurve(scores[places[_medians(trials)]], low, high)


def comparable(standings: Sequence[Standing]) -> int:
    """The number of trials that the rule compares with the winner by score alone, with it."""
    group = min(standings).group
    return sum(standing.group == group for standing in standings)


def _medians(trials: int) -> np.ndarray:
    """The place, 0 to n − 1 from the worst, of the median best of k = 1 … n of n: int[n].

    The best of k is among the first i with probability C(i, k) / C(n, k).
    """
    # Imported here as it takes a tenth of a second.
    from scipy.special import gammaln

    k, i = np.arange(1, trials + 1)[:, None], np.arange(1, trials + 1)
    missing = np.maximum(i - k, 0)
    log = gammaln(i + 1) - gammaln(missing + 1) - gammaln(trials + 1) + gammaln(trials - k + 1)
    places: np.ndarray = ((i >= k) & (np.exp(log) >= 0.5 - 1e-9)).argmax(1)
    return places


@lru_cache
def places_between(trials: int) -> tuple[np.ndarray, np.ndarray]:
    """How many of n trials may lie below the quantile (1/2)^(1/k), k = 1 … n: int[n], int[n].

    The fewest and the most, such that all n numbers lie between them with 95 % probability.
    """
    # Imported here as it takes a tenth of a second.
    from scipy.special import bdtr

    quantiles = 0.5 ** (1 / np.arange(1, trials + 1))
    numbers = np.arange(trials + 1)
    fewer = bdtr(numbers, trials, quantiles[:, None])  # binomial: that number or fewer
    more = 1 - np.concatenate([np.zeros((trials, 1)), fewer[:, :-1]], 1)
    tails = np.minimum(fewer, more)  # (k, number)
    generator = np.random.default_rng(0)  # fixed, so that a report made again is the same
    least = np.empty(SIMULATIONS)
    for place in range(SIMULATIONS):
        drawn = np.sort(generator.random(trials))
        least[place] = tails[numbers[:-1], drawn.searchsorted(quantiles)].min()
    inside = tails >= np.quantile(least, LEVEL, method="lower")
    return inside.argmax(1), trials - inside[:, ::-1].argmax(1)


def most_gain(standings: Sequence[Standing], ended: int, more: int) -> float | None:
    """What `more` trials add to the winner's score at most, with 95 % probability; None if unknown.

    If as many more come as have ended, it is nothing with a probability of at least one half: the
    best of all is among the later ones with probability more/(ended + more), at most.

    Of the m trials that the rule compares with the winner by score alone, the better half shows how
    far scores spread: s, by how much their mean lies above the next lower score. If that half is
    spread like the upper half of a normal distribution, gain/s has a known distribution, whatever
    the mean and the variance, which is simulated. Trials that hardly learned are in the other half.
    The bound is too high where scores crowd below the highest, too low where a few stand out.

    Args:
      standings: of the completed trials.
      ended: number of trials that have ended, failed ones too.
      more: number of trials to come.

    References:
      Hahn, 'Factors for calculating two-sided prediction intervals for samples from a normal
      distribution', 1969, for such pivots; David and Nagaraja, 'Order statistics', 2003, for
      estimates of the spread from one half of a sample.
    """
    number = comparable(standings)
    if number < FEWEST:
        return None
    best = np.array([standing.score for standing in sorted(standings)[:number]])
    upper = number // 2
    excess = float((best[:upper] - best[upper]).mean())
    if excess <= 0:
        return None
    new = max(1, round(more * number / ended))
    ratio = _gain_ratio(number, upper, new)
    return min(excess * ratio, float(1 - best[0]))


@lru_cache
def _gain_ratio(trials: int, upper: int, new: int) -> float:
    """The 95 % quantile of gain/s for normally distributed scores; see `most_gain`."""
    # Imported here as it takes a tenth of a second.
    from scipy.special import ndtri

    generator = np.random.default_rng(0)  # fixed, so that a report made again is the same
    drawn = np.sort(generator.normal(size=(SIMULATIONS, trials)))[:, ::-1]
    spread = drawn[:, :upper].mean(1) - drawn[:, upper]
    # The highest of `new` numbers, by its distribution function Φ(x)ⁿ.
    later = ndtri(generator.random(SIMULATIONS) ** (1 / new))
    return max(0.0, float(np.quantile((later - drawn[:, 0]) / spread, 1 - LEVEL)))
