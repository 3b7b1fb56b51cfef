"""From how many trials on the page can say which hyperparameters matter, by simulation.

Searches are simulated over five hyperparameters, drawn uniformly and independently, with a known
truth: one of them explains a share of the variance of the scores, or none does. `units` exists only
where there are dense layers. For each number of trials and each method the table has the share of
searches in which the true hyperparameter is significant and first, and in which any other one is
significant (a false alarm). All methods test at 5 % for all hyperparameters together, by Holm's
method and shuffles of the scores. For the page's own method, the last column has the share of
searches whose 95 % interval contains the true hyperparameter's true share.

    python experiments/importance.py
    python experiments/importance.py --share 0.3 --searches 500
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxmnist.results.importance import adjusted, basis, share_interval, standard_ranks, widening
from jaxmnist.results.selection import holm

VALUES = {"filters": 7, "conv_layers": 3, "dense_layers": 3, "units": 8, "optimizer": 3}
CATEGORIES = {"optimizer"}
CONDITIONAL, CONDITION = "units", "dense_layers"  # units exist where dense_layers isn't 0
QUANTILE = 0.25  # of the trials, PED-ANOVA's best ones


@dataclass(frozen=True)
class Truth:
    """What is true in a scene.

    name: the hyperparameter that matters; None for none.
    effect: the score, up to a factor, at each of its values.
    skewed: whether the rest of the score is exponential towards the bottom, not normal.
    """

    name: str | None
    effect: np.ndarray
    skewed: bool = False


SCENES = {
    "nothing": Truth(None, np.zeros(7)),
    "monotone": Truth("filters", np.arange(7.0)),
    "inverted U": Truth("filters", -((np.arange(7) - 3.0) ** 2)),
    "one good value": Truth("filters", (np.arange(7) == 3) * 1.0),
    "category": Truth("optimizer", np.array([0.0, 0.0, 1.0])),
    "conditional": Truth("units", np.arange(8.0)),
    "skewed": Truth("filters", np.arange(7.0), skewed=True),
}


def simulate(
    truth: Truth, trials: int, share: float, generator: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A search: int[T] values of each hyperparameter, −1 where a trial has none; float[T] scores.

    share: of the variance of the scores, among the trials that have it, which the truth explains.
    """
    drawn = {name: generator.integers(count, size=trials) for name, count in VALUES.items()}
    drawn[CONDITIONAL][drawn[CONDITION] == 0] = -1
    noise = generator.normal(size=trials)
    if truth.skewed:
        noise = 1 - generator.exponential(size=trials)
    if truth.name is None:
        return drawn, noise
    standard = (truth.effect - truth.effect.mean()) / truth.effect.std()
    values = drawn[truth.name]
    return drawn, noise + math.sqrt(share / (1 - share)) * np.where(
        values < 0, 0.0, standard[values]
    )


def regression(columns: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The explained share R² of standardised scores float[..., T]."""
    explained: np.ndarray = ((scores @ columns) ** 2).sum(-1)
    return explained


def own(values: np.ndarray, category: bool, scores: np.ndarray) -> np.ndarray:
    """The page's method: means of ranks, or a parabola."""
    shown = [f"v{value}" for value in values] if category else values.tolist()
    return regression(basis(shown), scores)


def kruskal(values: np.ndarray, category: bool, scores: np.ndarray) -> np.ndarray:
    """Kruskal and Wallis' statistic, a mean for each value."""
    return regression(basis([f"v{value}" for value in values]), scores)


def spearman(values: np.ndarray, category: bool, scores: np.ndarray) -> np.ndarray:
    """The square of Spearman's rank correlation, of categories too, which have no order."""
    if np.ptp(values) == 0:
        return np.zeros(scores.shape[:-1])
    return regression(standard_ranks(values)[:, None], scores)


def ped_anova(values: np.ndarray, category: bool, scores: np.ndarray) -> np.ndarray:
    """PED-ANOVA: the Pearson divergence of the best quarter's density from that of all trials.

    Numbers have Gaussian kernels on the grid of values, with Scott's bandwidth as in Optuna, and at
    least half a step; categories have counts with a prior of one.

    Watanabe, Bansal and Hutter, 'PED-ANOVA: efficiently quantifying hyperparameter importance in
    arbitrary subspaces', 2023.
    """
    grid = np.arange(values.max() + 1)
    one_hot = (values[:, None] == grid).astype(float)
    best = scores >= np.quantile(scores, 1 - QUANTILE, axis=-1, keepdims=True)

    def density(counts: np.ndarray) -> np.ndarray:
        """The smoothed shares of the values: float[..., V]."""
        if category:
            smooth = counts + 1.0
        else:
            number = counts.sum(-1, keepdims=True)
            mean = (counts * grid).sum(-1, keepdims=True) / number
            spread = np.sqrt((counts * (grid - mean) ** 2).sum(-1, keepdims=True) / number)
            width = np.maximum(1.059 * spread * number ** (-1 / 5), 0.5)[..., None]
            kernel = np.exp(-(((grid[:, None] - grid) / width) ** 2) / 2)
            kernel = kernel / kernel.sum(-2, keepdims=True)  # [..., to, from]
            smooth = (kernel @ counts[..., None])[..., 0]
        return smooth / smooth.sum(-1, keepdims=True)

    base = density(one_hot.sum(0))
    found: np.ndarray = (base * (density(best @ one_hot) / base - 1) ** 2).sum(-1)
    return found


METHODS: dict[str, Callable[[np.ndarray, bool, np.ndarray], np.ndarray]] = {
    "jaxmnist": own,
    "Kruskal-Wallis": kruskal,
    "PED-ANOVA": ped_anova,
    "Spearman": spearman,
}


def told(
    drawn: dict[str, np.ndarray],
    scores: np.ndarray,
    method: Callable[[np.ndarray, bool, np.ndarray], np.ndarray],
    shuffles: int,
    generator: np.random.Generator,
) -> list[str]:
    """The significant hyperparameters, that of the smallest p-value first."""
    p_values = []
    for name, values in drawn.items():
        having = values >= 0
        if having.sum() < 4 or np.ptp(values[having]) == 0:
            p_values.append(1.0)
            continue
        ranks = standard_ranks(scores[having])
        shuffled = generator.permuted(np.tile(ranks, (shuffles, 1)), axis=1)
        category = name in CATEGORIES
        found = method(values[having], category, np.concatenate([ranks[None], shuffled]))
        p_values.append(float((found >= found[0] - 1e-9).mean()))
    rejected = holm(np.array(p_values))
    order = np.argsort(p_values, kind="stable")
    return [list(drawn)[place] for place in order if rejected[place]]


def true_share(truth: Truth, share: float) -> float:
    """The share of the variance of the scores' ranks that the truth explains, by its parabola."""
    drawn, scores = simulate(truth, 30_000, share, np.random.default_rng(0))
    values = drawn[truth.name or "filters"]
    having = values >= 0
    category = truth.name in CATEGORIES
    return float(own(values[having], category, standard_ranks(scores[having])))


def covers(
    truth: Truth, drawn: dict[str, np.ndarray], scores: np.ndarray, whole: float
) -> tuple[bool, float]:
    """Whether the page's interval of the true hyperparameter contains `whole`; its estimate."""
    values = drawn[truth.name or "filters"]
    having = values >= 0
    category = (truth.name or "filters") in CATEGORIES
    shown = [f"v{v}" for v in values[having]] if category else values[having].tolist()
    columns = basis(shown)
    trials, degrees = columns.shape
    if degrees == 0 or trials - 1 - degrees < 1:
        return True, 0.0
    ranks = standard_ranks(scores[having])
    explained = float(regression(columns, ranks))
    low, high = share_interval(explained, trials, degrees, widening(columns, ranks))
    return low <= whole <= high, adjusted(explained, trials, degrees)


def table(scene: str, trials: int, searches: int, share: float, shuffles: int, seed: int) -> str:
    """A line for each method: named first, false alarms, coverage and mean estimate."""
    truth, generator = SCENES[scene], np.random.default_rng(seed)
    whole = true_share(truth, share)
    first = dict.fromkeys(METHODS, 0)
    alarms = dict.fromkeys(METHODS, 0)
    covered, estimates = 0, []
    for _ in range(searches):
        drawn, scores = simulate(truth, trials, share, generator)
        for name, method in METHODS.items():
            found = told(drawn, scores, method, shuffles, generator)
            first[name] += bool(found) and found[0] == truth.name
            alarms[name] += any(each != truth.name for each in found)
        inside, estimate = covers(truth, drawn, scores, whole)
        covered += inside
        estimates.append(estimate)
    lines = []
    for name in METHODS:
        named = "–" if truth.name is None else f"{100 * first[name] / searches:.0f} %"
        line = (
            f"{scene:14} {trials:6} {name:14} {named:>11} {100 * alarms[name] / searches:10.1f} %"
        )
        if name == "jaxmnist":
            line += f" {whole:10.2f} {np.mean(estimates):8.2f} {100 * covered / searches:8.1f} %"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[8, 15, 30, 60, 120])
    parser.add_argument("--scenes", choices=SCENES, nargs="+", default=list(SCENES))
    parser.add_argument("--searches", type=int, default=500)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--shuffles", type=int, default=499)
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    print(
        f"{'scene':14} {'trials':>6} {'method':14} {'named first':>11} {'false alarm':>12}"
        f" {'true share':>10} {'estimate':>8} {'coverage':>10}"
    )
    for scene in given.pop("scenes"):
        for trials in given["trials"]:
            rest = {name: value for name, value in given.items() if name != "trials"}
            print(table(scene, trials, **rest), flush=True)


if __name__ == "__main__":
    main()
