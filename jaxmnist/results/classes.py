"""What an evaluation says of each class, as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxmnist.results.confusion import Evaluation
from jaxmnist.results.layout import right, short_names, shortened, widest

MOST_CLASSES = 20  # reports on the console show all classes up to this many, then the worst ones
LINE = 80  # columns of a terminal, which a confusion matrix stays within where it can
NAME = 24  # columns of a class name at the beginning of a row
FEWEST = 5  # columns of a class name above a column
SENTENCE = 40  # columns of a class name in a sentence


def confusions(evaluation: Evaluation, most: int = MOST_CLASSES) -> list[tuple[int, int, int]]:
    """The most frequent confusions, those that happened: (true class, predicted class, images)."""
    matrix = evaluation.confusion_matrix
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    places = zip(*(places.tolist() for places in np.unravel_index(order, wrong.shape)), strict=True)
    return [(i, j, int(wrong[i, j])) for i, j in places if wrong[i, j]]


def worst_classes(evaluation: Evaluation, most: int = MOST_CLASSES) -> list[int]:
    """The classes of the lowest f1-scores, the lowest first."""
    report = evaluation.classification_report()
    scores = [report[name]["f1-score"] for name in evaluation.class_names]
    return [int(k) for k in np.argsort(scores, kind="stable")[:most]]


def table(matrix: np.ndarray, names: Sequence[str]) -> str:
    """A confusion matrix int64[K, K] as text: rows are true, columns predicted classes.

    The rows have the names of the classes; the names above the columns are shorter where a line of
    them would be too long.
    """
    rows = short_names(names, NAME)
    counts = len(str(matrix.max()))
    first = max(counts, widest(rows))
    width = min(first, max((LINE - first) // len(names) - 1, FEWEST, counts))
    lines = [[" " * first, *(right(name, width) for name in short_names(names, width))]]
    lines += [
        [right(name, first), *(str(count).rjust(width) for count in row)]
        for name, row in zip(rows, matrix.tolist(), strict=True)
    ]
    return "\n".join(map(" ".join, lines))


def report_table(evaluation: Evaluation, shown: Sequence[int]) -> str:
    """The classification report of some classes and the averages, laid out as by scikit-learn.

    A last column has the 95 % interval of each class's recall.
    """
    report = evaluation.classification_report()
    intervals = evaluation.recall_intervals()
    names = short_names([evaluation.class_names[k] for k in shown], NAME)
    averages = ("macro avg", "weighted avg")
    first = widest([*names, *averages])

    def line(name: str, row: dict[str, float], interval: tuple[float, float] | None = None) -> str:
        numbers = "".join(f" {row[key]:>9.3f}" for key in ("precision", "recall", "f1-score"))
        return f"{right(name, first)} {numbers} {row['support']:>9.0f}" + (
            "" if interval is None else f"  {interval[0]:.3f}–{interval[1]:.3f}"
        )

    heads = "".join(f" {head:>9}" for head in ("precision", "recall", "f1-score", "support"))
    heads += "  recall, 95 %"
    accuracy = f"{report['accuracy']:>9.3f} {evaluation.images:>9}"
    rows = [report[evaluation.class_names[k]] for k in shown]
    return "\n".join(
        [
            f"{'':{first}} {heads}",
            "",
            *map(line, names, rows, (intervals[k] for k in shown)),
            "",
            f"{'accuracy':>{first}} {'':20} {accuracy}",
            *(line(name, report[name]) for name in averages),
        ]
    )


def describe_confusions(evaluation: Evaluation, file: str) -> str:
    """The confusion matrix as text; with many classes, only the most frequent confusions.

    file: the run's file that has the whole matrix; the text refers to it.
    """
    names = evaluation.class_names
    if len(names) <= MOST_CLASSES:
        head = "Confusion matrix (rows: truth, columns: prediction):"
        return f"{head}\n{table(evaluation.confusion_matrix, names)}"
    found = confusions(evaluation)
    if not found:
        return f"No image of {len(names)} classes is misclassified."
    lines = [f"The most frequent confusions of {len(names)} classes ({file} has the whole matrix):"]
    for i, j, count in found:
        images = "1 image" if count == 1 else f"{count} images"
        truth, prediction = (shortened(names[k], SENTENCE) for k in (i, j))
        lines.append(f"  {truth} classified as {prediction}: {images}")
    return "\n".join(lines)


def describe_classes(evaluation: Evaluation, file: str) -> str:
    """The classification report as text; with many classes, only those of the lowest f1-score.

    file: the run's file that has the whole report; the text refers to it.
    """
    classes = len(evaluation.labels)
    if classes <= MOST_CLASSES:
        return f"Classification report:\n{report_table(evaluation, range(classes))}"
    head = f"Classification report of the {MOST_CLASSES} worst of {classes} classes"
    rows = report_table(evaluation, worst_classes(evaluation))
    return f"{head} ({file} has all):\n{rows}"
