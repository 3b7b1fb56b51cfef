"""How often the selection rule `steady` calls a trial unsteady, by simulation.

A trial is a chain: each validation image is right or wrong after each epoch, and the errors of
neighbouring epochs correlate. On a plateau the accuracy stays the same, so every trial that is
called unsteady is called so by chance; the other trials have one true fall, at a random epoch.
Beside the rule stands the tolerance that it replaced: one standard error of the accuracy before
the fall, as if the images of two epochs were independent.

    python experiments/steadiness.py
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np

from jaxmnist.results.selection import Course, rule_of


@dataclass(frozen=True)
class Scene:
    """What is simulated.

    images, epochs: validation images, and epochs of a trial.
    accuracy: before any fall.
    correlation: of an image's errors after neighbouring epochs, without a fall.
    fall: by how much the accuracy falls once; 0 for a plateau.
    """

    images: int
    epochs: int
    accuracy: float
    correlation: float
    fall: float = 0.0


def simulate(scene: Scene, trials: int, generator: np.random.Generator) -> Course:
    """The courses of `trials` trials: a right image is lost, a wrong one won, each by a chance.

    With error rates q before and r after a change of epoch, an image is wrong both times with
    probability q r + ρ √(q(1 − q) r(1 − r)), whatever happened before.
    """
    falls_at = generator.integers(1, scene.epochs, trials)
    epochs = np.arange(scene.epochs)
    rates = 1 - scene.accuracy + scene.fall * (epochs >= falls_at[:, None])  # (trials, epochs)
    right = scene.images - generator.binomial(scene.images, rates[:, 0])
    lost, won = [], []
    for epoch in epochs[1:]:
        q, r = rates[:, epoch - 1], rates[:, epoch]
        both = q * r + scene.correlation * np.sqrt(q * (1 - q) * r * (1 - r))
        lost.append(generator.binomial(right, (r - both) / (1 - q)))
        won.append(generator.binomial(scene.images - right, 1 - both / q))
        right = right - lost[-1] + won[-1]
    return Course(scene.images, right, np.stack(lost, -1), np.stack(won, -1))


def before(course: Course) -> np.ndarray:
    """The right images before each change of epoch: int[trials, epochs − 1]."""
    right: np.ndarray = course.right[:, None] + np.cumsum(course.decreases[:, ::-1], 1)[:, ::-1]
    return right


def unsteady(course: Course) -> tuple[float, float]:
    """The shares of trials that the rule calls unsteady, and that one standard error would."""
    steady = rule_of("steady", course.images)
    accuracy = before(course) / course.images
    error = np.sqrt(accuracy * (1 - accuracy) / course.images)
    beyond = course.decreases / course.images > np.maximum(error, 1 / course.images)
    return float(steady.counting(course).any(-1).mean()), float(beyond.any(-1).mean())


def table(images: int, epochs: int, trials: int, fall: float, seed: int) -> str:
    """Both shares for accuracies and correlations, on a plateau and with a fall."""
    generator = np.random.default_rng(seed)
    lines = [
        f"{trials} simulated trials a row, {images} validation images, {epochs} epochs",
        f"{'true fall':>9} {'accuracy':>8} {'correlation':>11} {'called unsteady':>15}"
        f" {'± 2 s.e.':>8} {'former':>6}",
    ]
    for true_fall in (0.0, fall):
        for accuracy in (0.97, 0.98, 0.985, 0.99):
            for correlation in (0.55, 0.77):
                scene = Scene(images, epochs, accuracy, correlation, true_fall)
                now, former = unsteady(simulate(scene, trials, generator))
                error = 2 * math.sqrt(now * (1 - now) / trials)
                lines.append(
                    f"{true_fall:9.3f} {accuracy:8.3f} {correlation:11.2f} {now:15.3f}"
                    f" {error:8.3f} {former:6.2f}"
                )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--fall", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=0)
    print(table(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
