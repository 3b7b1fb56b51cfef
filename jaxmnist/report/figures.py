"""Figures of hyperparameters, cost, budget, probabilities, features and confusions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import Any

import numpy as np

from jaxmnist.hyperparameters import text
from jaxmnist.models.questions import Choice, Distribution, ends_or_values, is_number
from jaxmnist.report.drawing import (
    COLOURS,
    STRETCHED,
    WIDTH,
    Canvas,
    Figure,
    accuracy_axis,
    draw,
    log_axis,
)
from jaxmnist.results.confusion import Evaluation, confusions, short_names, shortened, widest
from jaxmnist.results.evaluation import Calibration
from jaxmnist.results.importance import Importance, TuningCurve
from jaxmnist.results.selection import Standing, wilson
from jaxmnist.runs.trial import Trial

# --- The confusion matrix as a figure, for any number of classes: its size is bounded ---

MOST_CELLS = 400  # along a side
MOST_TICKS = 12  # class names along a side of the page's figure
NAME = 12  # columns of a class name beside it
RIGHT, WRONG = (63, 107, 148), (214, 94, 0)  # colours of the diagonal and of confusions


def cells_of(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The confusions int64[K, K] in at most `MOST_CELLS` × `MOST_CELLS` cells.

    Returns how many images each cell has that are misclassified, int64[M, M]; the first class of
    each row, int[M]; and how many classes a row stands for.
    """
    wrong = matrix - np.diag(np.diag(matrix))
    block = -(-len(matrix) // MOST_CELLS)
    starts = np.arange(0, len(matrix), block)
    cells = np.add.reduceat(np.add.reduceat(wrong, starts, axis=0), starts, axis=1)
    return cells, starts, block


def ticks(starts: np.ndarray, names: Sequence[str], most: int) -> tuple[list[int], list[str]]:
    """At most `most` places along a side of the figure, and the names of their classes."""
    places = list(range(0, len(starts), -(-len(starts) // most)))
    return places, short_names([names[starts[place]] for place in places], NAME)


def confusion_figure(evaluation: Evaluation, name: str, what: str) -> Figure:
    """The confusion matrix without numbers, for more classes than a table can show.

    name: of the figure; what: the model that was evaluated.
    """
    cells, starts, block = cells_of(evaluation.confusion_matrix)
    side, names = len(cells), evaluation.class_names
    shades = np.zeros((side, side, 4), np.uint8)  # transparent where nothing was confused
    diagonal = np.arange(side)
    shades[diagonal, diagonal] = [*RIGHT, 90]
    row, column = np.nonzero(cells)
    share = cells[row, column] / max(1, cells.max())
    shades[row, column, :3] = WRONG
    shades[row, column, 3] = 255 * (0.5 + 0.5 * share)

    def plot(drawn: Canvas) -> None:
        """Draw the cells, with a few names of classes."""
        axes = drawn.axes
        axes.imshow(shades, interpolation="none")
        places, shown = ticks(starts, names, MOST_TICKS)
        axes.set_xticks(places, shown, rotation=90)
        axes.set_yticks(places, shown)
        axes.set(xlabel="predicted class", ylabel="true class")

    worst = ", ".join(
        f"{names[i]} classified as {names[j]}: {images}"
        for i, j, images in confusions(evaluation, 3)
    )
    return draw(
        name,
        f"Confusion matrix of the {what}: {len(names)} classes",
        "Rows: true classes; columns: predicted classes. The diagonal, in blue, is correct;"
        " elsewhere, the stronger the orange of a cell, the more images."
        + (f" A cell stands for {block}×{block} classes." if block > 1 else ""),
        f"Confusion matrix of the {what}, {len(names)} classes;"
        f" {worst or 'no image is misclassified'}.",
        plot,
        size=(5.2, 5.2),
    )


# --- Figures of hyperparameters' values, scores and importance. Each returns a `Figure` ---

MOST_ROWS = 9  # values of a hyperparameter with a row of their own
MOST_VALUES = 1000  # more values than this are divided into bins
BINS = 8
VALUE = 16  # columns of a value's name
DOTS = "Each dot is a trial, the large orange one the winner"


def rows_of(
    name: str, distributions: Sequence[Distribution], trials: Sequence[Trial]
) -> list[tuple[str, list[Trial]]]:
    """Trials by the value of a hyperparameter: a row for each value or range of values.

    distributions: those of the hyperparameter; their values are rows even without trials.
    """
    drawn = [t.hyperparameters[name] for t in trials if name in t.hyperparameters]
    values = {text(v): v for d in distributions for v in islice(ends_or_values(d), MOST_VALUES)}
    values |= {text(value): value for value in drawn}
    if not all(is_number(value) for value in values.values()):
        shown = list(values)[:MOST_ROWS]
        having = [t for t in trials if name in t.hyperparameters]
        found = [
            (label, [t for t in having if text(t.hyperparameters[name]) == label])
            for label in shown
        ]
        others = [t for t in having if text(t.hyperparameters[name]) not in shown]
        return [*found, ("others", others)] if others else found
    ordered = sorted(values.values())
    endless = any(d.values is None or len(d.values) > MOST_VALUES for d in distributions)
    if endless:
        logarithmic = any(getattr(d, "sampling", "linear") != "linear" for d in distributions)
        ends = [end for d in distributions for end in _ends(d)]
        space = np.geomspace if logarithmic and min(ends) > 0 else np.linspace
        edges = space(min(ends), max(ends), BINS + 1)
        edges[0], edges[-1] = min(*ends, *drawn), max(*ends, *drawn)
        parts = [(f"{a:.3g}–{b:.3g}", a, b) for a, b in pairwise(edges.tolist())]
    elif len(ordered) <= MOST_ROWS:
        parts = [(text(value), value, value) for value in ordered]
    else:
        split = [ordered[part[0] : part[-1] + 1] for part in _parts(len(ordered))]
        spans = [(part[0], part[-1]) for part in split]
        parts = [("–".join(dict.fromkeys((text(a), text(b)))), a, b) for a, b in spans]
    left = [t for t in trials if name in t.hyperparameters]
    groups: list[tuple[str, list[Trial]]] = []
    for label, low, high in parts:
        inside = [t for t in left if low <= t.hyperparameters[name] <= high]
        left = [t for t in left if t not in inside]  # an edge of two bins belongs to the first
        groups.append((label, inside))
    return groups


def _ends(distribution: Distribution) -> tuple[float, float]:
    """The smallest and the largest number of a distribution."""
    if isinstance(distribution, Choice):
        return min(distribution.values), max(distribution.values)
    return distribution.min, distribution.max


def _parts(count: int) -> list[np.ndarray]:
    """The indices of `count` values in `BINS` parts of about the same size."""
    return np.array_split(np.arange(count), BINS)


@dataclass(frozen=True)
class Group:
    """A row of a figure of scores.

    label: its name.
    trials: completed ones.
    winner: the index of the winner, if that is one of them.
    """

    label: str
    trials: Sequence[Trial]
    winner: int | None

    @property
    def scores(self) -> list[float]:
        """The scores of its trials."""
        return [trial.score for trial in self.trials if trial.score is not None]

    @property
    def mean(self) -> float | None:
        """Their mean; None of fewer than two, which has nothing to average."""
        return float(np.mean(self.scores)) if len(self.scores) > 1 else None


def quality(
    name: str,
    distributions: Sequence[Distribution],
    trials: Sequence[Trial],
    winner: int | None,
    images: int,
) -> Figure | None:
    """Scores of completed trials by the value of a hyperparameter; None without scores.

    distributions: those of the hyperparameter. Trials without it have a row of their own.
    """
    found = rows_of(name, distributions, trials)
    without = [t for t in trials if name not in t.hyperparameters]
    if without:
        found.insert(0, ("none", without))
    if not any(t.score is not None for t in trials):
        return None
    groups = [Group(label, members, winner) for label, members in found]
    means = [f"of {each.label}: {each.mean:.4f}" for each in groups if each.mean is not None]
    caption = f"Mean {'; '.join(means)}." if means else "No value has two trials to average."
    return by_row(f"quality-{name.replace('_', '-')}", name, groups, images, caption)


def how_to_read(whose: str) -> str:
    """How to read the figures of `by_row`, of which a page may have several.

    whose: what a row stands for: "a value's".
    """
    return (
        f"Further to the right is better. {DOTS}; the upright stroke is the mean of {whose} trials,"
        f" where there are two or more; their number stands in brackets. {STRETCHED}"
    )


def by_row(name: str, title: str, groups: Sequence[Group], images: int, caption: str) -> Figure:
    """A figure of scores: a row for each group, a dot for each trial, a stroke at the mean.

    Args:
      name, title: see `draw`.
      groups: one of them has a trial.
      images: number of validation images.
      caption: what the figure shows; see `how_to_read` too.
    """
    scores = [score for group in groups for score in group.scores]

    def plot(drawn: Canvas) -> None:
        """Draw the rows."""
        axes = drawn.axes
        accuracy_axis(axes, scores, images, "x")
        for row, group in enumerate(groups):
            if group.mean is not None:
                ends = [row - 0.38, row + 0.38]
                axes.plot([group.mean] * 2, ends, color=COLOURS["muted"], linewidth=2.2)
            for shift, trial in zip(_beside(len(group.trials)), group.trials, strict=True):
                dot(drawn, (trial.score or 0.0, row + shift), trial, group.winner)
        labels = [f"{shortened(group.label, VALUE)}  ({len(group.trials)})" for group in groups]
        axes.set_yticks(range(len(groups)), labels)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(groups) - 0.45, -0.55)
        axes.set_xlabel("validation accuracy")

    parts = [
        f"{group.label}: {len(group.trials)} trials"
        + ("" if group.mean is None else f", mean {group.mean:.4f}")
        for group in groups
    ]
    return draw(
        name,
        title,
        caption,
        "; ".join(parts) + ".",
        plot,
        size=(WIDTH, 1.1 + 0.33 * max(3, len(groups))),
    )


def _beside(count: int) -> np.ndarray:
    """Offsets of the dots in one row, so that they don't cover each other."""
    return np.linspace(-0.22, 0.22, count) if count > 1 else np.zeros(count)


def dot(drawn: Canvas, place: tuple[float, float], trial: Trial, winner: int | None) -> None:
    """Draw a trial as a dot with a tooltip that names the trial and its score."""
    won = trial.index == winner
    x, y = place
    (dot,) = drawn.axes.plot(
        [x],
        [y],
        "o",
        markersize=9 if won else 6,
        color=COLOURS["winner" if won else "trial"],
        markeredgecolor=COLOURS["surface"],
        markeredgewidth=0.8,
        zorder=6 if won else 4,
    )
    place_name = " (winner)" if won else ""
    drawn.mark(dot, f"Trial {trial.index}{place_name}: {trial.hyperparameters}; {trial.score:.4f}")


def histogram(scores: Sequence[float], winner: float) -> Figure:
    """The distribution of the scores, with the winner's."""
    edges = bins(scores)
    counts, _ = np.histogram(scores, edges)

    def plot(drawn: Canvas) -> None:
        """Draw the bars, a tick for each trial, and the winner."""
        axes = drawn.axes
        bars = axes.bar(
            edges[:-1],
            counts,
            np.diff(edges),
            align="edge",
            color=COLOURS["trial"],
            alpha=0.4,
            edgecolor=COLOURS["surface"],
            linewidth=1.5,
        )
        axes.bar_label(bars, padding=2)
        axes.plot(scores, np.full(len(scores), -0.025 * counts.max()), "|", color=COLOURS["trial"])
        axes.axvline(winner, color=COLOURS["winner"], linewidth=2)
        right = winner > (edges[0] + edges[-1]) / 2
        axes.annotate(
            "winner",
            (winner, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if right else 4, -2),
            textcoords="offset points",
            ha="right" if right else "left",
            va="top",
            color=COLOURS["winner"],
        )
        axes.set_ylim(-0.06 * counts.max(), 1.25 * counts.max())
        axes.locator_params(axis="y", integer=True, nbins=4)
        axes.locator_params(axis="x", nbins=5)
        axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= counts.max()])
        axes.set_xlabel("validation accuracy")
        axes.set_ylabel("trials")

    rows = [
        f"{low:.4f} to {high:.4f}: {count}"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return draw(
        "histogram",
        "Trials by validation accuracy",
        "The number on a bar counts its trials; each tick below is a trial; the orange line is the"
        " winner.",
        f"Trials by validation accuracy: {', '.join(rows)}. The winner has {winner:.4f}.",
        plot,
    )


def bins(scores: Sequence[float], most: int = 12) -> np.ndarray:
    """Edges of a histogram's bins: √n bins, rounded up, at most `most`, at least one."""
    low, high = min(scores), max(scores)
    if high - low < 1e-9:
        return np.array([low - 5e-4, high + 5e-4])
    return np.linspace(low, high, min(most, math.ceil(math.sqrt(len(scores)))) + 1)


def importances(found: Sequence[Importance]) -> Figure | None:
    """The share that each hyperparameter explains, with its interval; None if none is estimable."""
    order = [item for item in reversed(found) if item.estimable]
    if not order:
        return None

    def plot(drawn: Canvas) -> None:
        """Draw a dot, an interval and the mark of chance for each hyperparameter."""
        axes = drawn.axes
        for place, item in enumerate(order):
            colour = COLOURS["winner" if item.matters else "trial"]
            axes.plot([item.low, item.high], [place, place], color=colour, linewidth=2.5, alpha=0.6)
            axes.plot([item.share], [place], "o", color=colour, markersize=8)
            axes.plot([item.chance], [place], "|", color=COLOURS["ink"], markersize=16)
        labels = [f"{item.name}\nn = {item.trials}" for item in order]
        axes.set_yticks(range(len(order)), labels)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.5, len(order) - 0.5)
        axes.set_xlim(-0.03, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.grid(axis="x")
        axes.set_xlabel("share of the differences between scores")

    rows = [
        f"{item.name}: {item.share:.2f}, interval {item.low:.2f} to {item.high:.2f}, chance up to"
        f" {item.chance:.2f}"
        for item in reversed(order)
    ]
    return draw(
        "importance",
        "Importance of each hyperparameter",
        "The dot is the share of the variance of the scores' ranks that a hyperparameter explains"
        " by itself, the line its 95 % interval; the upright stroke is what chance alone stays"
        " below in 95 of 100 cases. Significant shares are orange. Numbers may be best at an end or"
        " in the middle; a single good value among many is hardly seen.",
        "; ".join(rows) + ".",
        plot,
    )


# --- Figures of cost, budget, probabilities and features. Each function returns a `Figure` ---

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
