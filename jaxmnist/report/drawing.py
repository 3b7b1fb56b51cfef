"""Figures of the page: matplotlib's SVG with the page's own colours and fonts.

A figure is drawn once, with placeholder colours that are replaced by the page's CSS variables, so
that the same drawing suits light mode, dark mode and print. Labels at the ends of lines are moved
apart so that none covers another.
"""

from __future__ import annotations

import html
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from warnings import catch_warnings, filterwarnings

import numpy as np

# Placeholders; no figure has these colours by chance.
COLOURS = {
    name: f"#0a0b{number:02x}"
    for number, name in enumerate(
        ("ink", "muted", "grid", "surface", "trial", "winner", *(f"class-{k}" for k in range(10)))
    )
}
SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: smaller, and searchable
    "font.size": 11.7,  # on a phone, where a point is about a pixel, text can be read
    "axes.labelsize": 11.7,
    "axes.edgecolor": COLOURS["grid"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["grid"],
    "ytick.color": COLOURS["grid"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.6,
}
WIDTH = 4.7  # inches of a usual figure
WIDEST = 6.0  # inches that a phone shows whole
STRETCHED = "The accuracy axis is stretched towards 1: equal steps are equal ratios of errors."
FINE = tuple(digit / 10 for digit in range(10, 100, 2))
TICKS = (0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    name: unique in the page; prefix of the ids in its SVG.
    title: its heading.
    svg: an SVG element.
    caption: how to read it.
    wide: its least width in rem, where it is wider than a phone's screen.
    """

    name: str
    title: str
    svg: str
    caption: str
    wide: float | None = None


@dataclass
class Canvas:
    """A figure being drawn: its axes, and the tooltips of its marks by SVG id."""

    figure: Any
    axes: Any
    titles: dict[str, str] = field(default_factory=dict)

    def mark(self, artist: Any, title: str) -> Any:
        """Give a mark of the figure a tooltip, and return it."""
        artist.set_gid(f"mark-{len(self.titles)}")
        self.titles[artist.get_gid()] = title
        return artist


def plotting() -> Any:
    """matplotlib with its modules `figure` and `ticker`.

    Imported here as its half second would delay the first trial. What it logs on import about its
    font cache and its folder is hidden.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib.figure
    import matplotlib.ticker

    return matplotlib


@contextmanager
def any_text() -> Iterator[None]:
    """A context for text of a stranger: dollars are no formula, no character warns."""
    with plotting().rc_context({"text.parse_math": False}), catch_warnings():
        filterwarnings("ignore", "Glyph .* missing from font")
        yield


def drawable(text: str) -> bool:
    """Whether matplotlib's font has all characters of a text."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return all(font.get_char_index(ord(character)) for character in text)


@contextmanager
def canvas(width: float, height: float) -> Iterator[Canvas]:
    """An empty figure with axes; width and height in inches, small enough for a phone."""
    matplotlib = plotting()
    with matplotlib.rc_context(SETTINGS), any_text():
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        yield Canvas(figure, figure.add_subplot())


def inline_svg(drawn: Canvas, name: str, alternative: str) -> str:
    """The figure as an SVG element of an HTML page; call it within the `canvas` context.

    alternative: describes the figure to readers who can't see it.
    """
    buffer = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with plotting().rc_context({"svg.hashsalt": name}):  # the same ids each time it is drawn
        drawn.figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, value in COLOURS.items():
        svg = svg.replace(value, f"var(--{colour})")
    # Two decimals of a coordinate are enough; numbers in text stay unchanged.
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for mark, title in drawn.titles.items():
        group = f'<g id="{name}-{mark}">'
        svg = svg.replace(group, f"{group}<title>{html.escape(title)}</title>")
    size = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg {size[0] if size else ""} role="img" aria-label="{html.escape(alternative)}">'
    return head + re.sub(r"\n\s*", "\n", svg[svg.index(">") + 1 :]).strip()


def draw(
    name: str,
    title: str,
    caption: str,
    alternative: str,
    plot: Callable[[Canvas], None],
    size: tuple[float, float] = (WIDTH, 3.2),
) -> Figure:
    """A figure that `plot` draws on a canvas of this width and height, in inches.

    alternative: describes the figure to readers who can't see it.
    """
    with canvas(*size) as drawn:
        plot(drawn)
        svg = inline_svg(drawn, name, alternative)
    # Its points are pixels there, a rem is 16 of them.
    wide = round(size[0] * 72 / 16, 1) if size[0] > WIDEST else None
    return Figure(name, title, svg, caption, wide)


def stretch(images: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """The scale of an accuracy axis, and its inverse: equal steps are equal ratios of errors.

    images: number of images that accuracies are measured on; sets how far up 1 itself is.
    """
    least = 0.5 / max(images, 1)

    def forward(accuracy: Any) -> Any:
        return -np.log10(np.clip(1 - np.asarray(accuracy, float), 0, None) + least)

    def backward(value: Any) -> Any:
        return 1 + least - 10.0 ** -np.asarray(value, float)

    return forward, backward


def accuracy_axis(axes: Any, accuracies: Sequence[float], images: int, which: str = "y") -> None:
    """Stretch the axis 'x' or 'y' towards 1: equal steps are equal ratios of errors.

    Args:
      axes: the figure's matplotlib axes.
      accuracies: all accuracies that will be drawn.
      images: number of images they were measured on; see `stretch`.
      which: the axis.
    """
    forward, backward = stretch(images)
    first, last = forward(min(accuracies)), forward(max(accuracies))
    room = max(0.08 * (last - first), 0.01)
    low, high = backward(first - room), backward(last + room)
    getattr(axes, f"set_{which}scale")("function", functions=(forward, backward))
    axes.set(**{f"{which}lim": (low, high)})
    ticks = accuracy_ticks(low, high, images, 0.1 if which == "y" else 0.2)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks, [plain_number(tick) for tick in ticks])
    axis.set_ticks([], minor=True)
    axes.grid(axis=which)


def accuracy_ticks(low: float, high: float, images: int, apart: float) -> list[float]:
    """Ticks of an accuracy axis from low to high, at least this fraction of its length apart."""
    forward, _ = stretch(images)
    nice = plotting().ticker.MaxNLocator(6).tick_values(low, min(high, 1.0))
    ticks: list[float] = []
    for candidates in (TICKS, nice):
        inside = [tick for tick in candidates if low <= tick <= min(high, 1.0)]
        ticks = _spread(inside, forward, apart * float(forward(high) - forward(low)))
        if len(ticks) >= 3:
            break
    return ticks


def plain_number(number: float) -> str:
    """A number of at most six decimals, without zeros at its end."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def log_axis(axes: Any, which: str, values: Sequence[float]) -> None:
    """Make the axis 'x' or 'y' logarithmic, with plain numbers as ticks: 0.5, 10, 20k, 1M."""
    low, high = min(values) / 1.2, max(values) * 1.2
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), FINE):
        steps = [digit * 10.0**power for power in range(-9, 12) for digit in digits]
        ticks = [step for step in steps if low <= step <= high]
        if len(ticks) >= 3:
            break
    else:
        ticks = [float(f"{value:.3g}") for value in np.geomspace(min(values), max(values), 3)]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis.set_minor_locator(plotting().ticker.NullLocator())
    axis.set_ticks(sorted(set(ticks)), [_short(tick) for tick in sorted(set(ticks))])


def _short(number: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def _spread(ticks: Sequence[float], forward: Callable[[Any], Any], apart: float) -> list[float]:
    """The ticks that are at least so far apart on the scale, chosen from the top down."""
    kept: list[float] = []
    for tick in sorted(ticks, reverse=True):
        if not kept or float(forward(kept[-1])) - float(forward(tick)) >= apart:
            kept.append(tick)
    return kept[::-1]


# --- Labels at the ends of lines ---

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
