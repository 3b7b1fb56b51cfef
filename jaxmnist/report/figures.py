"""Figures of cost, budget, probabilities and features. Each function returns a `Figure`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from jaxmnist.report.drawing import (
    COLOURS,
    STRETCHED,
    Canvas,
    Figure,
    accuracy_axis,
    draw,
    log_axis,
)
from jaxmnist.report.quality import DOTS, dot
from jaxmnist.results.calibration import Calibration
from jaxmnist.results.layout import short_names, widest
from jaxmnist.results.selection import Standing
from jaxmnist.results.statistics import wilson
from jaxmnist.results.tuning import TuningCurve
from jaxmnist.runs.trial import Trial

MOST_LABELS = 20  # classes with a label in the figure of the features
LABEL = 8  # letters of such a label
ROUND = 3  # letters that fit into a circle


def against(trials: Sequence[Trial], winner: int | None, cost: str, images: int) -> Figure | None:
    """Scores against 'parameters' or 'seconds', with 95 % intervals; None without scores."""
    shown = [t for t in trials if t.score is not None and getattr(t, cost) > 0]
    if not shown:
        return None
    intervals = {t.index: wilson(t.score or 0.0, images) for t in shown}

    def plot(drawn: Canvas) -> None:
        """Draw a dot and an interval for each trial."""
        axes = drawn.axes
        accuracy_axis(axes, [bound for pair in intervals.values() for bound in pair], images)
        log_axis(axes, "x", [getattr(t, cost) for t in shown])
        for trial in shown:
            low, high = intervals[trial.index]
            x = getattr(trial, cost)
            colour = COLOURS["winner" if trial.index == winner else "trial"]
            axes.plot([x, x], [low, high], color=colour, linewidth=1, alpha=0.45)
            dot(drawn, (x, trial.score or 0.0), trial, winner)
        axes.set_xlabel(cost if cost == "parameters" else "seconds of the trial")
        axes.set_ylabel("validation accuracy")

    alternative = "; ".join(
        f"trial {t.index}: {getattr(t, cost):,.0f} {cost}, {t.score:.4f}" for t in shown
    )
    return draw(
        f"against-{cost}",
        f"Accuracy against {cost}",
        f"Up is better, left is cheaper. {DOTS}; its line is the"
        f" 95 % interval on {images:,} validation images (Wilson). As all trials"
        " were measured on the same images, these lines don't tell which ones are equally good: the"
        f" section on the winner does. {STRETCHED}"
        + (
            " A trial's time includes compiling and depends on what ran at the same time; trials"
            " that trained together share their time equally."
            if cost == "seconds"
            else ""
        ),
        alternative + ".",
        plot,
    )


def budget(standings: Sequence[Standing], curve: TuningCurve, images: int) -> Figure:
    """The selected trial's score by number of trials: in this run's order, and the tuning curve.

    standings: of the completed trials.
    """
    drawn_so = sorted(standings, key=lambda standing: standing.index)
    went = [best.score for best in accumulate(drawn_so, min)]
    numbers = np.arange(1, len(standings) + 1)

    def plot(drawn: Canvas) -> None:
        """Draw the band, the run's own steps, and the curve."""
        axes = drawn.axes
        accuracy_axis(axes, [*curve.scores, *went], images)
        axes.fill_between(
            numbers, curve.low, curve.high, color=COLOURS["winner"], alpha=0.15, linewidth=0
        )
        axes.step(numbers, went, where="post", color=COLOURS["trial"], linewidth=1.2)
        axes.plot(numbers, curve.scores, "o-", color=COLOURS["winner"], linewidth=2.2, ms=3.5)
        axes.set_xlabel("completed trials")
        axes.set_ylabel("validation accuracy")
        axes.locator_params(axis="x", integer=True, nbins=8)
        axes.legend(
            frameon=False,
            loc="lower right",
            labels=["95 % band", "in this run's order", "half of all searches reach"],
        )

    rows = zip(numbers, curve.scores, curve.low, curve.high, strict=True)
    steps = ", ".join(f"{k}: {score:.4f} ({low:.4f} to {high:.4f})" for k, score, low, high in rows)
    return draw(
        "budget",
        "The selected trial's score against the budget",
        "The thick line: of all searches of so many trials, half select one that ranks at least as"
        " high as the trial of this validation accuracy. The whole true line lies in the band with"
        " 95 % probability (Lourie, Cho and He, 2024); where it has no edge, these trials don't"
        f" bound it. The steps show the trial selected so far, in this run's order. {STRETCHED}",
        f"Validation accuracy of the selected trial by completed trials, with band: {steps}.",
        plot,
    )


def reliability(found: Calibration) -> Figure:
    """The accuracy of the test images by the probability of their predicted class."""
    filled = [part for part in found.bins if part.images]
    middles = [part.probability / part.images for part in filled]
    rates = [part.right / part.images for part in filled]
    intervals = [wilson(rate, part.images) for rate, part in zip(rates, filled, strict=True)]

    def plot(drawn: Canvas) -> None:
        """Draw the diagonal, and a dot with an interval for each bin."""
        axes = drawn.axes
        axes.plot([0, 1], [0, 1], "--", color=COLOURS["muted"], linewidth=1)
        for x, y, (low, high), part in zip(middles, rates, intervals, filled, strict=True):
            axes.plot([x, x], [low, high], color=COLOURS["winner"], linewidth=1.5, alpha=0.6)
            (dot,) = axes.plot([x], [y], "o", color=COLOURS["winner"], markersize=6)
            drawn.mark(dot, f"{part.images} images: probability {x:.4f}, accuracy {y:.4f}")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.grid()
        axes.set_xlabel("mean probability of the predicted class")
        axes.set_ylabel("accuracy")

    rows = [
        f"{part.images} images of mean probability {x:.4f}: accuracy {y:.4f}"
        for x, y, part in zip(middles, rates, filled, strict=True)
    ]
    return draw(
        "reliability",
        "Are the probabilities true?",
        "Each dot stands for the test images whose predicted class has a probability in one of 15"
        " equal parts of 0 to 1 (Guo et al., 2017); its line is the 95 % interval of their accuracy"
        " (Wilson). On the dashed line probabilities are true; below it they are too high.",
        "; ".join(rows) + ".",
        plot,
    )


def scatter(points: np.ndarray, classes: np.ndarray, names: Sequence[str], share: Any) -> Figure:
    """Features in two dimensions, coloured by class, with a label at each class's median.

    Of many classes those of the most points have labels.

    points: float[N, 2]; classes: int[N], 0 to K − 1; names: of the K classes; share: fraction of
    the variance of both dimensions.
    """
    counts = np.bincount(classes, minlength=len(names))
    labelled = sorted(k for k in np.argsort(-counts, kind="stable")[:MOST_LABELS] if counts[k])
    labels, many = short_names([names[k] for k in labelled], LABEL), len(names) > MOST_LABELS

    def plot(drawn: Canvas) -> None:
        """Draw the points, and the labels of the classes."""
        axes = drawn.axes
        for k in range(min(10, len(names))):
            members = points[classes % 10 == k]
            colour = COLOURS[f"class-{k}"]
            axes.plot(*members.T, "o", color=colour, markersize=2.6, alpha=0.75, markeredgewidth=0)
        middles = np.array([np.median(points[classes == k], 0) for k in labelled])
        width = widest(labels)
        places = _apart(middles, np.ptp(points, 0), width)
        for k, label, middle, place in zip(labelled, labels, middles, places, strict=True):
            colour = COLOURS[f"class-{k % 10}"]
            axes.plot(*zip(middle, place, strict=True), color=colour, linewidth=1.5)
            axes.text(
                *place,
                label,
                ha="center",
                va="center",
                fontweight="bold",
                bbox={
                    "boxstyle": "circle,pad=0.25" if width <= ROUND else "round,pad=0.25",
                    "facecolor": COLOURS["surface"],
                    "edgecolor": colour,
                    "linewidth": 1.8,
                },
            )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"first component, {100 * share[0]:.0f} % of the variance")
        axes.set_ylabel(f"second, {100 * share[1]:.0f} %")

    return draw(
        "features",
        "Validation features in two dimensions",
        f"Each dot is one of {len(points):,} validation images, placed by the first two principal"
        " components of the winner's flatten features and coloured by its true class"
        + (" (ten colours, used repeatedly)" if len(names) > 10 else "")
        + "; a circled label stands at, or points to, the median of its class."
        + (f" Only the {MOST_LABELS} classes of the most dots have one." if many else "")
        + " Classes that overlap here may still be separate in the other"
        f" {100 - 100 * float(sum(share)):.0f} % of the variance.",
        f"Two principal components of the features of {len(points)} validation images of"
        f" {len(names)} classes; they explain {100 * float(sum(share)):.0f} % of the variance.",
        plot,
        size=(5.2, 4.2),
    )


def _apart(middles: np.ndarray, extent: np.ndarray, letters: int) -> np.ndarray:
    """Places for labels near the medians of their classes, moved until none covers another.

    letters: the width of the widest label.
    """
    round_ones = letters <= ROUND
    width = 0.075 if round_ones else 0.03 + 0.02 * letters
    scale = np.where(extent > 0, extent, 1) * [width, 0.09]  # a label's width and height
    places = middles / scale
    # Labels at the same point need a direction in which to move apart.
    angles = np.arange(len(places)) * 2.4
    places = places + 1e-3 * np.column_stack([np.cos(angles), np.sin(angles)])
    for _ in range(200):
        offsets = places[:, None] - places[None]
        norm = 2 if round_ones else np.inf  # whether circles overlap, or rectangles
        distances = np.linalg.norm(offsets, norm, axis=-1) + np.eye(len(places))
        push = np.clip(1.05 - distances, 0, None) * (1 - np.eye(len(places)))
        if not push.any():
            break
        places = places + (offsets / distances[..., None] * push[..., None]).sum(1) / 2
    found: np.ndarray = places * scale
    return found
