"""Which hyperparameters the scores depend on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxmnist.hyperparameters import text
from jaxmnist.models.distributions import is_number
from jaxmnist.results.paired import LEVEL, holm

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
      Ezekiel, 'Methods of correlation analysis', 1930; `share_interval` and `paired.holm`.
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
