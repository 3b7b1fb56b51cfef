"""Whether the tuning curve's band and the bound for twice the budget hold, by simulation.

Trials are drawn from a known distribution of scores. In some scenes a share of them has a fall that
counts, so that they rank behind the others whatever their score. The table has the share of
searches whose whole true curve lies within the band; the share in which twice the budget raised the
winner's score by no more than the bound; the share in which it found a better trial; the mean gain,
and the mean bound.

    python experiments/tuning_curve.py
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from jaxmnist.results.importance import most_gain, tuning_curve
from jaxmnist.results.selection import Standing


@dataclass(frozen=True)
class Scene:
    """Where trials come from.

    quantile: the score of steady trials by the share that lies below it.
    unsteady: the share of trials with a fall that counts; they score by `fallen`.
    """

    quantile: Callable[[np.ndarray], np.ndarray]
    unsteady: float = 0.0
    fallen: Callable[[np.ndarray], np.ndarray] = lambda share: 0.99 + 0.005 * share


def normal(share: np.ndarray) -> np.ndarray:
    """Scores around 0.985 with the spread of the study's configurations and seeds."""
    found: np.ndarray = stats.norm.ppf(share, 0.985, 0.0028)
    return found


def skewed(share: np.ndarray) -> np.ndarray:
    """Most scores near the highest, 0.99, and a tail below."""
    found: np.ndarray = 0.99 + 0.004 * np.log(np.maximum(share, 1e-300))
    return found


def collapsed(share: np.ndarray) -> np.ndarray:
    """One trial in five learns nothing."""
    return np.where(share < 0.2, 0.1, normal((share - 0.2).clip(1e-9) / 0.8))


def upwards(share: np.ndarray) -> np.ndarray:
    """A long tail above, exponential: the bound's own assumption, at its limit."""
    found: np.ndarray = 0.96 - 0.003 * np.log1p(-share)
    return found


SCENES = {
    "normal": Scene(normal),
    "skewed": Scene(skewed),
    "collapsed": Scene(collapsed),
    "exponential": Scene(upwards),
    "whole images": Scene(lambda share: np.round(normal(share) * 1000) / 1000),
    "a third falls": Scene(normal, 1 / 3),
    "two thirds fall": Scene(normal, 2 / 3),
}


def draw(scene: Scene, trials: int, generator: np.random.Generator) -> list[Standing]:
    """The standings of a search's trials."""
    share = generator.random(trials)
    falls = generator.random(trials) < scene.unsteady
    scores = np.where(falls, scene.fallen(share), scene.quantile(share))
    sizes = np.where(falls, generator.random(trials) + 0.1, 0.0)
    return [
        Standing((float(size), -float(score)), index, float(score))
        for index, (size, score) in enumerate(zip(sizes, scores, strict=True))
    ]


def inside(scene: Scene, found: list[Standing]) -> bool:
    """Whether the band holds the whole true curve.

    Where the curve's trial is one with a fall, which may have any score, it has to be unbounded.
    """
    curve = tuning_curve(found)
    quantiles = 0.5 ** (1 / np.arange(1, len(found) + 1))
    share = (quantiles - scene.unsteady) / (1 - scene.unsteady)
    truth = scene.quantile(share.clip(1e-9))
    held = (curve.low <= truth + 1e-12) & (truth <= curve.high + 1e-12)
    return bool(np.where(share > 0, held, (curve.low == 0) & (curve.high == 1)).all())


def table(scene: str, trials: int, searches: int, seed: int) -> str:
    """The row of a scene and a number of trials."""
    generator = np.random.default_rng(seed)
    covered, kept, better, gains, bounds = 0, [], 0, [], []
    for _ in range(searches):
        both = draw(SCENES[scene], 2 * trials, generator)
        found = both[:trials]
        covered += inside(SCENES[scene], found)
        before, after = min(found), min(both)
        better += after is not before
        bound = most_gain(found, trials, trials)
        if bound is not None:
            gains.append(after.score - before.score)
            bounds.append(bound)
            kept.append(gains[-1] <= bound + 1e-12)
    error = 200 * math.sqrt(0.05 * 0.95 / searches)
    row = f"{scene:16} {trials:6} {100 * covered / searches:7.1f} % ±{error:3.1f}"
    if not kept:
        return f"{row} {'–':>8}"
    return (
        f"{row} {100 * np.mean(kept):6.1f} % {100 * len(kept) / searches:6.0f} %"
        f" {100 * better / searches:6.0f} % {np.mean(gains):8.5f} {np.mean(bounds):8.5f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[4, 10, 30, 100])
    parser.add_argument("--scenes", choices=SCENES, nargs="+", default=list(SCENES))
    parser.add_argument("--searches", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(
        f"{'scene':16} {'trials':>6} {'in the band':>9} {'2 s.e.':>3} {'bounded':>7} {'said in':>8}"
        f" {'better':>8} {'gain':>8} {'bound':>8}"
    )
    for scene in given.scenes:
        for trials in given.trials:
            print(table(scene, trials, given.searches, given.seed), flush=True)


if __name__ == "__main__":
    main()
