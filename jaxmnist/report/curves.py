"""Figures of learning curves: of the trials of a run, or of the winners of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from jaxmnist.report.labels import MOST_LABELS, Label, end_labels
from jaxmnist.runs.trial import Trial

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
