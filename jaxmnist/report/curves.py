"""Figures of learning curves, and of all configurations with an axis for each hyperparameter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from jaxmnist.hyperparameters import Hyperparameters, text
from jaxmnist.models.questions import Distribution, ends_or_values, is_number
from jaxmnist.report.drawing import (
    COLOURS,
    MOST_LABELS,
    POINTS,
    STRETCHED,
    WIDTH,
    Canvas,
    Figure,
    Label,
    accuracy_axis,
    accuracy_ticks,
    draw,
    end_labels,
    log_axis,
    plain_number,
    stretch,
)
from jaxmnist.results.confusion import short_names, shortened
from jaxmnist.runs.trial import Trial

# --- Figures of learning curves: of the trials of a run, or of the winners of several runs ---

NAMES = {
    "loss": "Training loss",
    "accuracy": "Training accuracy",
    "val_loss": "Validation loss",
    "val_accuracy": "Validation accuracy",
}


@dataclass(frozen=True)
class Line:
    """A trial in a figure of learning curves.

    name: its label at the end of the line.
    tooltip: what names it when it is pointed at.
    colour: the name of its colour in `COLOURS`.
    front: whether it is drawn thick, in front of the others.
    """

    trial: Trial
    name: str
    tooltip: str
    colour: str = "trial"
    front: bool = False


def curves(
    trials: Sequence[Trial], order: Sequence[int], metric: str, images: int, winner: int | None
) -> Figure | None:
    """A metric of every trial by epoch, the winner's in front; None if no epoch is finished.

    Args:
      trials: of the run.
      order: indices of the completed ones, as they rank: which of many trials have labels.
      metric: its name.
      images: number of images that the metric is a mean over.
      winner: the index of the winner.
    """
    shown = [trial for trial in trials if np.isfinite(trial.metric(metric)).any()]
    if not shown:
        return None
    rank = {index: place for place, index in enumerate(order)}
    shown.sort(key=lambda t: (t.index != winner, rank.get(t.index, len(rank)), t.index))
    lines = [_line(trial, winner) for trial in shown]
    title = NAMES[metric]
    values = [v for trial in shown for v in trial.metric(metric) if np.isfinite(v)]
    alternative = f"{title} by epoch of {len(shown)} trials, from {min(values):.4f} to"
    alternative += f" {max(values):.4f}."
    if shown[0].index == winner:
        steps = ", ".join(f"{v:.4f}" for v in shown[0].metric(metric))
        alternative += f" The winner, trial {winner}: {steps}."
    name = f"curves-{metric.replace('_', '-')}"
    return draw_lines(name, title, "", alternative, lines, metric, images)


def how_to_read(trials: Sequence[Trial], winner: int | None) -> str:
    """How to read the figures of `curves`.

    trials, winner: as there.
    """
    shown = [trial for trial in trials if trial.history]
    said = "Each line is a trial, labelled with its number"
    if any(trial.index == winner for trial in shown):
        said += "; the thick orange one is the winner"
    if any(trial.status != "completed" for trial in shown):
        said += "; dotted lines are trials that failed or are still running"
    if len(shown) > MOST_LABELS:
        said += f". Of {len(shown)} trials the first {MOST_LABELS} of the ranking have a label"
    return f"{said}."


def _line(trial: Trial, winner: int | None) -> Line:
    won = trial.index == winner
    place = " (winner)" if won else ""
    tooltip = f"Trial {trial.index}{place}: {trial.hyperparameters}"
    return Line(trial, str(trial.index), tooltip, "winner" if won else "trial", won)


def draw_lines(
    name: str,
    title: str,
    caption: str,
    alternative: str,
    lines: Sequence[Line],
    metric: str,
    images: int,
    head: str = "trial",
) -> Figure:
    """A figure of a metric by epoch; see `draw`.

    lines: at least one; the first `MOST_LABELS` have labels.
    head: what the labels name.
    """
    values = [v for line in lines for v in line.trial.metric(metric) if np.isfinite(v)]
    last = max(len(line.trial.history) for line in lines)

    def plot(drawn: Canvas) -> None:
        """Draw the lines, those in front last, and their labels."""
        axes = drawn.axes
        if metric.endswith("accuracy"):
            accuracy_axis(axes, values, images)
        else:
            log_axis(axes, "y", [max(value, 1e-9) for value in values])
            axes.grid(axis="y")
        for line in sorted(lines, key=lambda line: line.front):
            history = line.trial.metric(metric)
            (artist,) = axes.plot(range(1, len(history) + 1), history, **_style(line))
            ended = f"{history[-1]:.4f}" if np.isfinite(history[-1]) else "not finite"
            drawn.mark(artist, f"{line.tooltip}; {ended}")
        axes.set_xlabel("epoch")
        axes.set_xticks(sorted({round(e) for e in np.linspace(1, last, min(last, 8))}))
        axes.set_xlim(1 - 0.04 * last, last + 0.04 * last)
        end_labels(axes, [_label(line, metric) for line in lines[:MOST_LABELS]], head)

    scale = STRETCHED if metric.endswith("accuracy") else "The axis is logarithmic."
    return draw(name, title, f"{caption} {scale}".strip(), alternative, plot)


def _style(line: Line) -> dict[str, Any]:
    return {
        "linestyle": "-" if line.trial.status == "completed" else ":",
        "marker": "o",
        "markersize": 4.5 if line.front else 2.2,
        "linewidth": 2.4 if line.front else 1.1,
        "color": COLOURS[line.colour],
        "alpha": 1 if line.front or line.colour != "trial" else 0.6,
        "zorder": 5 if line.front else 2,
    }


def _label(line: Line, metric: str) -> Label:
    """The label at the last finite value of the line."""
    history = line.trial.metric(metric)
    epoch = max(place for place, value in enumerate(history, 1) if np.isfinite(value))
    colour = "winner" if line.colour == "winner" else "ink"
    return Label(line.name, (epoch, max(history[epoch - 1], 1e-9)), colour, line.front)


# --- The figure of all configurations: an axis for each hyperparameter, a line for each trial ---

MOST_STEPS = 9  # values that are evenly spaced on an axis, each with its text
MOST_VALUES = 1000
NAME, VALUE = 13, 10  # columns of a name above its axis, and of a value beside it
NONE = -0.16  # the place of trials that don't have a hyperparameter
BOTTOM, TOP = -0.2, 1.12  # what the figure shows; axes reach from 0 to 1
SPREAD = 0.03  # up to how far apart trials of the same value are drawn
INCHES = 1.3  # between two axes


@dataclass(frozen=True)
class Axis:
    """An axis of the figure.

    name: what stands above it.
    ticks: the places of its values, 0 to 1, and their texts.
    places: the place of each trial.
    """

    name: str
    ticks: Sequence[tuple[float, str]]
    places: Sequence[float]


def parallel(
    parameters: Mapping[str, Sequence[Distribution]],
    ranked: Sequence[Trial],
    winner: int | None,
    images: int,
) -> Figure | None:
    """Completed trials in parallel coordinates; None for fewer than two, or if nothing varies.

    Args:
      parameters: the distributions of each hyperparameter that varies.
      ranked: the completed trials, as they rank.
      winner: the index of the winner.
      images: number of validation images.

    References:
      Inselberg, 'The plane with parallel coordinates', 1985.
    """
    if len(ranked) < 2 or not parameters:
        return None
    trials = sorted(ranked, key=lambda trial: trial.index != winner)  # the winner first
    axes = [_axis(name, found, trials) for name, found in parameters.items()]
    axes.append(_score_axis(trials, images))
    names = short_names([axis.name for axis in axes], NAME)

    def plot(drawn: Canvas) -> None:
        """Draw the axes and their values, and a line for each trial, the winner's last."""
        for k, (axis, name) in enumerate(zip(axes, names, strict=True)):
            _draw_axis(drawn, k, axis, name)
        for k in reversed(range(len(trials))):
            won = trials[k].index == winner
            strength = 1.0 if won else 0.2 + 0.65 * (1 - k / len(trials)) ** 2
            (line,) = drawn.axes.plot(
                range(len(axes)),
                [axis.places[k] for axis in axes],
                color=COLOURS["winner" if won else "trial"],
                alpha=strength,
                linewidth=2.6 if won else 1.3,
                zorder=3 if won else 2,
            )
            drawn.mark(line, _described(trials[k], list(parameters), winner))
        drawn.axes.set(xlim=(-0.03, len(axes) - 0.97), ylim=(BOTTOM, TOP))
        drawn.axes.axis("off")
        labels = [_axis_label(axes, trials[k], k, winner) for k in range(len(trials))][:MOST_LABELS]
        end_labels(drawn.axes, labels, highest=(1 - BOTTOM) / (TOP - BOTTOM))

    caption = (
        "Each line is a trial, from the values of its hyperparameters to its validation accuracy,"
        " labelled with its number; the thick orange one is the winner, and of the others those"
        " that rank higher are stronger. Lines of the same value are drawn beside each other."
        " The axis of accuracy is stretched towards 1."
    )
    if len(trials) > MOST_LABELS:
        caption += f" Of {len(trials)} trials the first {MOST_LABELS} have a label."
    alternative = "; ".join(_described(trial, list(parameters), winner) for trial in trials)
    size = (max(WIDTH, 0.9 + INCHES * len(axes)), 3.6)
    title = "Configurations and their scores"
    return draw("parallel", title, caption, f"{alternative}.", plot, size=size)


def _described(trial: Trial, names: Sequence[str], winner: int | None) -> str:
    """A trial in words; of its hyperparameters those that have an axis."""
    place = " (winner)" if trial.index == winner else ""
    given = trial.hyperparameters
    shown = Hyperparameters({name: given[name] for name in names if name in given})
    return f"Trial {trial.index}{place}: {shown}; {trial.score:.4f}"


def _axis_label(axes: Sequence[Axis], trial: Trial, k: int, winner: int | None) -> Label:
    won = trial.index == winner
    end = (len(axes) - 1, axes[-1].places[k])
    return Label(str(trial.index), end, "winner" if won else "ink", won)


def _draw_axis(drawn: Canvas, k: int, axis: Axis, name: str) -> None:
    """Draw the k-th axis with its name and its values."""
    low = min(0.0, *axis.places)
    drawn.axes.plot([k, k], [low, 1], color=COLOURS["muted"], linewidth=0.8, zorder=1)
    drawn.axes.text(k, 1.09, name, ha="center", va="center", fontweight="bold", fontsize=POINTS)
    for place, label in axis.ticks:
        drawn.axes.text(
            k - 0.04,
            place,
            shortened(label, VALUE),
            ha="right",
            va="center",
            fontsize=POINTS,
            zorder=4,
            bbox={"facecolor": COLOURS["surface"], "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
        )


def _score_axis(trials: Sequence[Trial], images: int) -> Axis:
    """The last axis: validation accuracy."""
    forward, _ = stretch(images)
    scores = [trial.score or 0.0 for trial in trials]
    low, high = min(scores), max(scores)
    if low == high:
        return Axis("accuracy", [(0.5, plain_number(low))], [0.5] * len(trials))
    first, length = float(forward(low)), float(forward(high) - forward(low))
    ticks = accuracy_ticks(low, high, images, 0.12)
    return Axis(
        "accuracy",
        [(float(forward(tick) - first) / length, plain_number(tick)) for tick in ticks],
        [float(forward(score) - first) / length for score in scores],
    )


def _axis(name: str, distributions: Sequence[Distribution], trials: Sequence[Trial]) -> Axis:
    """The axis of a hyperparameter: of few values or categories in steps, of others to scale."""
    drawn = [t.hyperparameters[name] for t in trials if name in t.hyperparameters]
    values = {text(v): v for d in distributions for v in islice(ends_or_values(d), MOST_VALUES)}
    values |= {text(value): value for value in drawn}
    numbers = all(is_number(value) for value in values.values())
    endless = any(d.values is None or len(d.values) > MOST_VALUES for d in distributions)
    found: dict[str, float]
    if numbers and (endless or len(values) > MOST_STEPS):
        logarithmic = any(getattr(d, "sampling", "linear") != "linear" for d in distributions)
        ticks, found = _to_scale(values, logarithmic)
    else:
        order = sorted(values, key=values.__getitem__) if numbers else list(values)
        found = {label: k / max(1, len(order) - 1) for k, label in enumerate(order)}
        step = -(-len(order) // MOST_STEPS)
        ticks = [(found[label], label) for label in order[::step]]
    if len(drawn) < len(trials):
        ticks = [*ticks, (NONE, "none")]
    labels = [text(t.hyperparameters[name]) if name in t.hyperparameters else "" for t in trials]
    places = [found[label] if label else NONE for label in labels]
    return Axis(name, ticks, _beside(places))


def _to_scale(
    values: Mapping[str, float], logarithmic: bool
) -> tuple[list[tuple[float, str]], dict[str, float]]:
    """The ticks of an axis of numbers, and the place of each value."""
    low, high = min(values.values()), max(values.values())
    logarithmic = logarithmic and low > 0
    scale = np.log if logarithmic else np.asarray
    first, length = float(scale(low)), float(scale(high) - scale(low)) or 1.0
    found = {label: float(scale(value) - first) / length for label, value in values.items()}
    space = np.geomspace if logarithmic else np.linspace
    shown = dict.fromkeys(float(f"{tick:.3g}") for tick in space(low, high, 5).tolist())
    if all(isinstance(value, int) for value in values.values()):
        shown = dict.fromkeys(float(round(tick)) for tick in shown)
    ticks = [(float(scale(tick) - first) / length, f"{tick:g}") for tick in shown]
    return ticks, found


def _beside(places: Sequence[float]) -> list[float]:
    """The places, those that are the same a little apart."""
    same = defaultdict(list)
    for k, place in enumerate(places):
        same[place].append(k)
    found = list(places)
    for place, members in same.items():
        reach = min(SPREAD, 0.008 * (len(members) - 1))
        for k, shift in zip(members, np.linspace(-reach, reach, len(members)), strict=True):
            found[k] = place + float(shift)
    return found
