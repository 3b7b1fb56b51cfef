"""Labels at the ends of lines, moved apart so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxmnist.report.drawing import COLOURS

MOST_LABELS = 12  # beside a figure of the usual height
POINTS = 11.0  # size of a label's text
LINE = 1.12 * POINTS  # height of a line of labels, in points
PART = 0.72  # of a figure's height that its axes have, at least


@dataclass(frozen=True)
class Label:
    """The label of a line.

    text: what it says.
    end: where the line ends, in the units of the axes.
    colour: the name of its colour in `COLOURS`.
    bold: whether it stands out.
    """

    text: str
    end: tuple[float, float]
    colour: str = "ink"
    bold: bool = False


def end_labels(axes: Any, labels: Sequence[Label], head: str = "", highest: float = 1.0) -> None:
    """Put labels to the right of the axes, each at the height of its line's end or near it.

    A thin stroke leads from the end to the label. Call it when the limits of the axes are set.

    Args:
      axes: the figure's matplotlib axes.
      labels: at most `MOST_LABELS`; of those at the same height the first is the highest.
      head: a heading of the column of labels.
      highest: the highest place of a label, as a fraction of the height of the axes.
    """
    to_fraction = axes.transData + axes.transAxes.inverted()
    heights = [float(to_fraction.transform(label.end)[1]) for label in labels]
    order = sorted(range(len(labels)), key=lambda k: (heights[k], -k))
    gap = LINE / (72 * PART * axes.figure.get_figheight())
    places = apart([heights[k] for k in order], gap, 0.0, highest)
    for place, label in zip(places, (labels[k] for k in order), strict=True):
        axes.annotate(
            label.text,
            label.end,
            xytext=(1.035, place),
            textcoords="axes fraction",
            ha="left",
            va="center",
            fontsize=POINTS,
            fontweight="bold" if label.bold else "normal",
            color=COLOURS[label.colour],
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": COLOURS["muted"],
                "alpha": 0.5,
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )
    if head and labels:
        axes.text(
            1.035,
            max(places) + 1.1 * gap,
            head,
            transform=axes.transAxes,
            ha="left",
            va="center",
            fontsize=POINTS,
            color=COLOURS["muted"],
        )


def apart(targets: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places nearest to ascending targets that lie at least `gap` apart, from low to high.

    Nearest by the sum of squares. Where they don't fit between low and high, they begin at low.

    References:
      Ayer et al., 'An empirical distribution function for sampling with incomplete information',
      1955: pooling adjacent violators, for the targets less `gap` for each label below.
    """
    pools: list[tuple[float, int]] = []  # mean and number of what moves together
    for place, target in enumerate(targets):
        mean, size = target - place * gap, 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean = (before * count + mean * size) / (count + size)
            size += count
        pools.append((mean, size))
    means = [mean for mean, size in pools for _ in range(size)]
    highest = max(low, high - (len(targets) - 1) * gap)
    return [min(max(mean, low), highest) + place * gap for place, mean in enumerate(means)]
