"""Figures of hyperparameters' values, scores and importance. Each returns a `Figure`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np

from jaxmnist.hyperparameters import text
from jaxmnist.models.distributions import Choice, Distribution, is_number
from jaxmnist.models.questions import ends_or_values
from jaxmnist.report.drawing import (
    COLOURS,
    STRETCHED,
    WIDTH,
    Canvas,
    Figure,
    accuracy_axis,
    draw,
)
from jaxmnist.results.importance import Importance
from jaxmnist.results.layout import shortened
from jaxmnist.results.statistics import bins
from jaxmnist.runs.trial import Trial

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
