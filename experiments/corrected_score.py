"""What the winner's corrected score is worth, by simulation with known true accuracies.

Searches are simulated: each validation image has a difficulty, drawn from a Beta distribution,
which all trials share, and each trial has a true accuracy. The rule selects a winner by the images.
For each method the table has the mean of the score less the winner's true accuracy (the bias), the
standard deviation of that difference, and the share of searches whose 95 % interval contains the
winner's true accuracy.

    python experiments/corrected_score.py
    python experiments/corrected_score.py --trials 10 --searches 1000 --select best
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from jaxmnist.results.ranking import changing, course, interval, resampled
from jaxmnist.results.selection import Rule, Z, rule_of
from jaxmnist.settings import SELECTIONS

# By how much accuracy grows in the last epochs of a trial: the last value is that of the score.
GROWTH = np.array([-0.006, -0.002, 0.0, 0.0, 0.0])
SCENES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "equal": lambda generator, trials: np.full(trials, 0.985),
    "spread 0.0015": lambda generator, trials: generator.normal(0.985, 0.0015, trials),
    "spread 0.003": lambda generator, trials: generator.normal(0.985, 0.003, trials),
    "skewed": lambda generator, trials: 0.988 - generator.exponential(0.004, trials),
    "half fall": lambda generator, trials: generator.normal(0.985, 0.0015, trials),
}
FALL = 0.005  # of the accuracy of every second trial, in the last epoch, in the last scene
Estimate = tuple[float, tuple[float, float]]


@dataclass(frozen=True)
class Search:
    """A simulated search.

    accuracies: float[T], the trials' true accuracies after the last epoch.
    bits: uint8[T, E, B], packed: which images each has right.
    """

    accuracies: np.ndarray
    bits: np.ndarray


def exponents(accuracies: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """The k with E[pᵏ] = accuracy for p from Beta(α, β): Γ(α+k)Γ(α+β) / Γ(α)Γ(α+β+k)."""
    low, high = np.full(accuracies.shape, 1e-4), np.full(accuracies.shape, 1e3)
    for _ in range(60):
        k = np.sqrt(low * high)
        mean = gammaln(alpha + k) - gammaln(alpha) + gammaln(alpha + beta)
        above = np.exp(mean - gammaln(alpha + beta + k)) > accuracies
        low, high = np.where(above, k, low), np.where(above, high, k)
    return k


def simulate(
    accuracies: np.ndarray,
    images: int,
    epochs: int,
    correlation: float,
    generator: np.random.Generator,
    fall: float = 0.0,
    kept: float = 0.3,
) -> Search:
    """Simulate a search: a trial has an image of difficulty p right with probability pᵏ.

    Args:
      accuracies: float[T], true accuracies after the last epoch, below 1.
      images, epochs: validation images, and epochs of a trial, at most 5.
      correlation: of the errors of two trials with accuracy 0.985.
      fall: by how much every second trial truly falls in the last epoch.
      kept: chance that an image's luck stays the same from one epoch to the next: errors of
        neighbouring epochs correlate by about `correlation + kept (1 − correlation)`.
    """
    accuracies = np.clip(accuracies, 0.5, 0.9985)
    total = 1 / correlation - 1  # α + β
    alpha, beta = 0.985 * total, 0.015 * total
    ease = generator.beta(alpha, beta, images)
    hard = np.flatnonzero(ease < 1 - 1e-8)  # no trial errs on the others
    right = np.ones((len(accuracies), epochs, images), bool)
    luck = generator.random((len(accuracies), len(hard)), np.float32)
    for epoch, growth in enumerate(GROWTH[-epochs:]):
        if epoch:
            again = generator.random(luck.shape, np.float32) >= kept
            luck[again] = generator.random(int(again.sum()), np.float32)
        falling = np.arange(len(accuracies)) % 2 * (epoch < epochs - 1)
        power = exponents(np.minimum(accuracies + growth + fall * falling, 0.9995), alpha, beta)
        right[:, epoch, hard] = luck < ease[hard] ** power[:, None]
    return Search(accuracies, np.packbits(right, axis=-1))


def out_of_bag(search: Search, rule: Rule, winner: int, raw: float) -> Estimate:
    """BBC: select on each resample, average on the images not in it; percentile interval.

    Tsamardinos, Greasidou and Borboudakis, 2018.
    """
    generator, images = np.random.default_rng(0), rule.images
    varied = changing(search.bits, images)
    counts = generator.multinomial(images, [1 / images] * images, 200)
    weights = with_rest(counts, len(varied))
    left = with_rest((counts == 0).astype(int), len(varied))
    chosen = rule.winners(course(weights, varied, images))
    right = course(left, varied, images).right[np.arange(len(chosen)), chosen]
    found = right / left.sum(1)
    low, high = np.quantile(found, (0.025, 0.975))
    return float(found.mean()), (float(low), float(high))


def splitting(search: Search, rule: Rule, winner: int, raw: float) -> Estimate:
    """Repeated splitting: select on two thirds of the images, average on the third."""
    generator, images = np.random.default_rng(0), rule.images
    varied = changing(search.bits, images)
    parts = np.stack([generator.permutation(images) % 3 for _ in range(100)])
    left = with_rest((parts[:, None] == np.arange(3)[:, None]).reshape(-1, images), len(varied))
    whole = np.append(np.ones(len(varied)), images - len(varied))
    chosen = rule.winners(course(whole - left, varied, images))
    right = course(left, varied, images).right[np.arange(len(chosen)), chosen]
    score = float(right.sum() / left.sum())
    return score, interval(score, images)


def with_rest(counts: np.ndarray, varied: int) -> np.ndarray:
    """Counts of images as weights of the first `varied` ones and of all others: float[R, M + 1]."""
    rest = counts[:, varied:].sum(1, keepdims=True)
    return np.concatenate([counts[:, :varied], rest], 1).astype(float)


def empirical_bayes(search: Search, rule: Rule, winner: int, raw: float) -> Estimate:
    """The posterior mean of a normal distribution of accuracies, whose spread has a flat prior.

    Sampling errors have the covariance between trials that the images show.
    """
    right = np.unpackbits(search.bits[:, -1], axis=-1, count=rule.images).astype(np.float32)
    trials, images = right.shape
    scores = right.mean(1, dtype=float)
    covariance = (right @ right.T / images - np.outer(scores, scores)) / images
    common = (covariance.sum() - covariance.trace()) / (trials * (trials - 1))
    own = covariance.trace() / trials - common
    spread = np.linspace(0, 6 * max(math.sqrt(own), 2 * scores.std()), 400)
    variance = spread**2 + own
    squares = ((scores - scores.mean()) ** 2).sum()
    log = -(trials - 1) / 2 * np.log(variance) - squares / 2 / variance
    chance = np.exp(log - log.max())
    chance /= chance.sum()
    kept = spread**2 / variance
    means = scores.mean() + kept * (raw - scores.mean())
    within = kept * own + (1 - kept) ** 2 * variance / trials + max(0.0, common)
    mean = float(chance @ means)
    reach = Z * math.sqrt(float(chance @ (within + means**2)) - mean**2)
    return mean, (mean - reach, mean + reach)


def estimates(search: Search, rule: Rule, winner: int, raw: float) -> dict[str, Estimate]:
    """What each method says of the winner, the trial at this place, whose score is `raw`."""
    ours = resampled(search.bits, rule, winner)
    corrections = {
        "uncorrected": 0.0,
        "bootstrap": ours.once,
        "double bootstrap": 2 * ours.once - ours.twice,
    }
    return {
        **{n: (raw - b, interval(raw - b, rule.images)) for n, b in corrections.items()},
        "out of bag (BBC)": out_of_bag(search, rule, winner, raw),
        "repeated splitting": splitting(search, rule, winner, raw),
        "empirical Bayes": empirical_bayes(search, rule, winner, raw),
        "jaxmnist": (raw - ours.size, interval(raw - ours.size, rule.images, ours.variance)),
    }


def table(
    scene: str,
    trials: int,
    searches: int,
    select: str,
    images: int,
    epochs: int,
    correlation: float,
    seed: int,
) -> str:
    """Bias, coverage and width of each method, as lines."""
    generator = np.random.default_rng(seed)
    rule = rule_of(select, images)
    errors: dict[str, list[tuple[float, float, float]]] = {}
    luck = []
    for _ in range(searches):
        truths, fall = SCENES[scene](generator, trials), FALL if scene == "half fall" else 0.0
        search = simulate(truths, images, epochs, correlation, generator, fall)
        varied = changing(search.bits, images)
        weights = np.append(np.ones(len(varied)), images - len(varied))[None]
        whole = course(weights, varied, images)
        winner = int(rule.winners(whole)[0])
        raw, truth = int(whole.right[0, winner]) / images, search.accuracies[winner]
        luck.append(float((whole.right[0] / images - search.accuracies).mean()))
        for name, (score, (low, high)) in estimates(search, rule, winner, raw).items():
            row = (score - truth, float(low <= truth <= high), high - low)
            errors.setdefault(name, []).append(row)
    lines = []
    for name, rows in errors.items():
        error, covered, width = np.array(rows).T
        # The mean luck of all trials, 0 on average, is a control variate: it halves the error.
        slope = np.cov(error, luck)[0, 1] / np.var(luck, ddof=1)
        bias = error - slope * np.array(luck)
        covers, uncertain = covered.mean(), 2 / math.sqrt(searches)
        lines.append(
            f"{scene:14} {trials:6} {name:19} {bias.mean():+8.5f} ±{bias.std() * uncertain:7.5f}"
            f" {error.std():8.5f} {100 * covers:6.1f} %"
            f" ±{100 * math.sqrt(covers * (1 - covers)) * uncertain:4.1f} {width.mean():8.5f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 50, 357])
    parser.add_argument("--scenes", choices=SCENES, nargs="+", default=list(SCENES))
    parser.add_argument("--searches", type=int, default=500)
    parser.add_argument("--select", choices=SELECTIONS, default="steady")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, choices=range(1, len(GROWTH) + 1), default=5)
    parser.add_argument("--correlation", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    head = f"{'scene':14} {'trials':>6} {'method':19} {'bias':>8} {'2 s.e.':>8} {'s.d.':>8}"
    print(f"{head} {'coverage':>8} {'2 s.e.':>5} {'width':>8}")
    for trials in given.pop("trials"):
        for scene in given["scenes"]:
            rest = {name: value for name, value in given.items() if name != "scenes"}
            print(table(scene, trials, **rest), flush=True)


if __name__ == "__main__":
    main()
