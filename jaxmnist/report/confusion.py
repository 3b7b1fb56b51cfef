"""The confusion matrix as a figure, for any number of classes: its size is bounded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxmnist.report.drawing import Canvas, Figure, draw
from jaxmnist.results.classes import confusions
from jaxmnist.results.confusion import Evaluation
from jaxmnist.results.layout import short_names

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
