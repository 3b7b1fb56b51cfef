"""Which hyperparameters the scores depend on, and what more trials bring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from jaxmnist.hyperparameters import text
from jaxmnist.models.questions import is_number
from jaxmnist.results.selection import LEVEL, Standing, holm

# --- What more trials bring: the tuning curve of a search, and what twice the budget may add ---

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


# --- Which hyperparameters the scores depend on ---

# Completed trials from which on importance is shown: in experiments/importance.py nine of ten
# searches of so many find a hyperparameter that explains half of the scores' variance, and that all
# trials have.
FEWEST_FOR_IMPORTANCE = 30
SHUFFLES = 1999
MOST_WIDENING = 3.0  # of the variance of a share; few trials estimate it badly
MOST_CATEGORIES = 3  # numbers of more different values have a parabola


@dataclass(frozen=True)
class Importance:
    """How much of the variation of the scores' ranks a hyperparameter explains by itself.

    name: the hyperparameter's name.
    trials: number of trials that have it; the others are left out.
    share: the explained share of the variance, 0 to 1, less what chance explains on average
      (Ezekiel's adjusted R²); NaN where it is not estimable.
    low, high: its 95 % interval; NaN where it is not estimable.
    chance: the share that 95 % of shuffles of the scores stay below.
    p_value: the fraction of shuffles that explain at least as much; 1 where not estimable.
    matters: whether it is significant, at 5 % for all hyperparameters together (Holm).
    """

    name: str
    trials: int
    share: float = math.nan
    low: float = math.nan
    high: float = math.nan
    chance: float = math.nan
    p_value: float = 1.0
    matters: bool = False

    @property
    def estimable(self) -> bool:
        """Whether the trials have different values and different scores."""
        return math.isfinite(self.share)


def importances(
    names: Sequence[str],
    configurations: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    shuffles: int = SHUFFLES,
) -> list[Importance]:
    """The importance of every hyperparameter, the largest share first.

    Scores are replaced by their ranks, so that a trial that failed to learn counts like any last
    one. They are regressed on the hyperparameter: categories, and numbers of up to three values,
    have a mean each (Kruskal and Wallis' statistic); other numbers have a parabola in their ranks,
    which rises, falls, or is best in the middle. The p-value is exact for scores that don't depend
    on the hyperparameter. The interval is approximate.

    Args:
      names: of the hyperparameters.
      configurations: of the T trials; a conditional hyperparameter isn't in all of them.
      scores: float[T], the score of each trial.
      shuffles: number of shuffles of the scores.

    References:
      Kruskal and Wallis, 'Use of ranks in one-criterion variance analysis', 1952; Conover and Iman,
      'Rank transformations as a bridge between parametric and nonparametric statistics', 1981;
      Pitman, 'Significance tests which may be applied to samples from any populations', 1937;
      Ezekiel, 'Methods of correlation analysis', 1930; `share_interval` and `statistics.holm`.
    """
    generator = np.random.default_rng(0)  # fixed, so that a report made again is the same
    found = []
    for name in names:
        having = [(c[name], s) for c, s in zip(configurations, scores, strict=True) if name in c]
        values, own = [value for value, _ in having], [score for _, score in having]
        found.append({"name": name, **_importance(values, own, shuffles, generator)})
    matters = holm(np.array([item["p_value"] for item in found])).tolist()
    complete = [Importance(**item, matters=told) for item, told in zip(found, matters, strict=True)]
    return sorted(complete, key=lambda item: -item.share if item.estimable else 1.0)


def _importance(
    values: Sequence[Any],
    scores: Sequence[float],
    shuffles: int,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """The fields of an `Importance` that don't depend on the other hyperparameters."""
    unknown = {"trials": len(scores), "p_value": 1.0}
    if len(set(scores)) < 2:
        return unknown
    columns = basis(values)
    trials, degrees = columns.shape
    rest = trials - 1 - degrees
    if degrees == 0 or rest < 1:
        return unknown
    ranks = standard_ranks(np.array(scores))
    explained = min(1.0, float(((ranks @ columns) ** 2).sum()))
    shuffled = generator.permuted(np.tile(ranks, (shuffles, 1)), axis=1)
    by_chance = ((shuffled @ columns) ** 2).sum(1)
    as_much = int((by_chance >= explained - 1e-9).sum())
    low, high = share_interval(explained, trials, degrees, widening(columns, ranks))
    return {
        **unknown,
        "share": adjusted(explained, trials, degrees),
        "low": low,
        "high": high,
        "chance": adjusted(float(np.quantile(by_chance, 1 - LEVEL)), trials, degrees),
        "p_value": (as_much + 1) / (shuffles + 1),
    }


def standard_ranks(numbers: np.ndarray) -> np.ndarray:
    """Ranks with mean 0 and sum of squares 1; equal numbers have the mean of their ranks."""
    # Imported here as its half second would delay the first trial.
    from scipy.stats import rankdata

    ranks = rankdata(numbers) - (len(numbers) + 1) / 2
    standard: np.ndarray = ranks / np.linalg.norm(ranks)
    return standard


def basis(values: Sequence[Any]) -> np.ndarray:
    """What a hyperparameter can explain: float[T, d], orthonormal columns with mean 0."""
    different = {text(value) for value in values}
    if len(different) > MOST_CATEGORIES and all(map(is_number, values)):
        ranks = standard_ranks(np.array(values, float))
        columns = np.stack([ranks, ranks**2], 1)
    else:
        labels = [text(value) for value in values]
        columns = np.array([[label == each for each in sorted(different)[1:]] for label in labels])
    columns = columns.reshape(len(values), -1).astype(float)
    left, sizes, _ = np.linalg.svd(columns - columns.mean(0), full_matrices=False)
    orthonormal: np.ndarray = left[:, sizes > 1e-9]
    return orthonormal


def adjusted(explained: float, trials: int, degrees: int) -> float:
    """Ezekiel's adjusted R², at least 0: 1 − (1 − R²)(n − 1)/(n − 1 − d)."""
    return max(0.0, 1 - (1 - explained) * (trials - 1) / (trials - 1 - degrees))


def widening(columns: np.ndarray, ranks: np.ndarray) -> float:
    """How much larger the standard error of R² is than with normally distributed errors: 1 to √3.

    By the influence of each trial on R², (1 − R²) n y² − n e² with its rank y and residual e, whose
    mean square would be 4 R² (1 − R²)². Errors that depend on the hyperparameter make it larger.

    Args:
      columns: float[T, d], see `basis`.
      ranks: float[T], see `standard_ranks`.

    References:
      Jaeckel, 'The infinitesimal jackknife', 1972.
    """
    fitted = ranks @ columns
    explained, rest = float((fitted**2).sum()), ranks - columns @ fitted
    influence = len(ranks) * ((1 - explained) * ranks**2 - rest**2)
    normal = 4 * explained * (1 - explained) ** 2
    if normal < 1e-9:
        return 1.0
    return math.sqrt(min(MOST_WIDENING, max(1.0, float((influence**2).mean()) / normal)))


def share_interval(
    explained: float, trials: int, degrees: int, widened: float = 1.0
) -> tuple[float, float]:
    """The 95 % interval of the explained share ρ² of the variance: where R² is a likely value.

    As trials are drawn at random, R²/(1 − R²) is nearly φ₁/(n − 1 − d) times an F of φ₁²/φ₂ and
    n − 1 − d degrees of freedom, φᵢ = (n − 1)((1 − ρ²)⁻ⁱ − 1) + d.

    Args:
      explained: R², 0 to 1, of d columns and n trials.
      trials, degrees: n and d.
      widened: by how much the interval is wider, for artanh ρ; see `widening`.

    References:
      Lee, 'Some results on the sampling distribution of the multiple correlation coefficient',
      1971; Helland, 'On the interpretation and use of R² in regression analysis', 1987.
    """
    # Imported here as its half second would delay the first trial.
    from scipy.optimize import brentq
    from scipy.special import fdtr

    rest = trials - 1 - degrees
    odds = explained / max(1e-12, 1 - explained)

    def chance(share: float) -> float:
        """The probability of an R² below `explained` where this is the true share."""
        first, second = ((trials - 1) * ((1 - share) ** -i - 1) + degrees for i in (1, 2))
        return float(fdtr(first**2 / second, rest, odds * rest / first))

    def end(quantile: float) -> float:
        """The share for which R² is at this quantile; 0 where it is below it for every share."""
        top = 1 - 1e-6
        if chance(0.0) <= quantile:
            return 0.0
        if chance(top) >= quantile:
            return top
        return float(brentq(lambda share: chance(share) - quantile, 0.0, top, xtol=1e-6))

    middle = _artanh(adjusted(explained, trials, degrees))
    ends = (_artanh(end(1 - LEVEL / 2)), _artanh(end(LEVEL / 2)))
    low, high = (math.tanh(max(0.0, middle + widened * (each - middle))) ** 2 for each in ends)
    return low, high


def _artanh(share: float) -> float:
    """Fisher's transformation of the correlation ρ, from ρ²."""
    return math.atanh(math.sqrt(min(share, 1 - 1e-6)))
