"""Predictions compared with the true classes: confusion matrix, accuracy, report by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.cells import cell_len, set_cell_size

from jaxmnist.data.arrays import class_names_of
from jaxmnist.errors import printable
from jaxmnist.results.selection import wilson
from jaxmnist.results.table import Laid, aligned
from jaxmnist.runs.records import AVERAGES, Classification


@dataclass(frozen=True)
class Evaluation:
    """The predictions for N images compared with their true labels.

    labels: the K labels, in the order of the matrix's rows and columns.
    confusion_matrix: int64[K, K]; rows: true classes, columns: predicted classes.
    class_names: the K names of the classes; the labels as text where there are none. A class that
      has the name of an average of the report has its label beside it.
    """

    labels: tuple[int, ...]
    confusion_matrix: np.ndarray
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = class_names_of(self.labels, self.class_names, AVERAGES)
        object.__setattr__(self, "class_names", names)

    @property
    def numbered(self) -> bool:
        """Whether the names of the classes are their labels."""
        return self.class_names == tuple(map(str, self.labels))

    @property
    def images(self) -> int:
        """The number of images evaluated, N."""
        return int(self.confusion_matrix.sum())

    @property
    def accuracy(self) -> float:
        """The fraction of images classified correctly."""
        return int(np.trace(self.confusion_matrix)) / self.images

    def confidence_interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy: see `wilson`."""
        return wilson(self.accuracy, self.images)

    def recall_intervals(self) -> list[tuple[float, float] | None]:
        """The 95 % interval of each class's recall: see `wilson`; None for a class without images.

        The recall is the accuracy on the images of the class.
        """
        right, images = np.diag(self.confusion_matrix), self.confusion_matrix.sum(1)
        pairs = zip(right.tolist(), images.tolist(), strict=True)
        return [wilson(hits / count, count) if count else None for hits, count in pairs]

    def classification_report(self) -> dict[str, Any]:
        """scikit-learn's report: precision, recall, f1-score, support by class name; averages."""
        # Imported here: scikit-learn takes a second to import, which would delay the first trial.
        from sklearn.metrics import classification_report

        classes = len(self.labels)
        truth, predictions = np.divmod(
            np.repeat(np.arange(classes * classes), self.confusion_matrix.ravel()), classes
        )
        report: dict[str, Any] = classification_report(
            truth,
            predictions,
            labels=range(classes),
            target_names=self.class_names,
            zero_division=0,
            output_dict=True,
        )
        return report

    def record(self) -> Classification:
        """The evaluation as a part of a report."""
        return Classification(
            accuracy=self.accuracy,
            confidence_interval=self.confidence_interval(),
            labels=self.labels,
            class_names=self.class_names,
            confusion_matrix=tuple(map(tuple, self.confusion_matrix.tolist())),
            classification_report=self.classification_report(),
        )

    @classmethod
    def of(cls, report: Classification) -> Evaluation:
        """The evaluation that a report has."""
        matrix = np.array(report.confusion_matrix, np.int64)
        return cls(report.labels, matrix, report.class_names)


def beside_constant(test: Evaluation, accuracy: float | None = None) -> list[str]:
    """A sentence on the accuracy of a constant answer; none where it is clearly beaten.

    It is if the lower end of an accuracy's 95 % interval lies above the share of the largest class.

    Args:
      test: the evaluation of a model.
      accuracy: of another model on the same images; None for that of `test`.
    """
    accuracy = test.accuracy if accuracy is None else accuracy
    counts = test.confusion_matrix.sum(1)
    largest = int(counts.argmax())
    constant = int(counts[largest]) / test.images
    if wilson(accuracy, test.images)[0] > constant:
        return []
    short = "is below" if accuracy < constant else "is not clearly above"
    return [
        f"{accuracy:.4f} {short} {constant:.4f}, the accuracy of always answering"
        f" {printable(test.class_names[largest])}, the largest class."
    ]


def judge(
    truth: np.ndarray,
    predictions: np.ndarray,
    labels: Sequence[int],
    class_names: Sequence[str] = (),
) -> Evaluation:
    """Evaluate predicted classes int[N], 0 to K − 1, against the true classes int[N]."""
    classes = len(labels)
    pairs = truth.astype(np.int64) * classes + predictions
    matrix = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    return Evaluation(tuple(int(label) for label in labels), matrix, tuple(class_names))


# --- Names in columns of a terminal, where a Chinese character is as wide as two letters ---

ELLIPSIS = "…"


def shortened(text: str, cells: int) -> str:
    """A text, cut off at its end if it is wider than `cells` columns, of which there are 2 or more.

    >>> shortened("Ankle boot", 6), shortened("数字二", 4)
    ('Ankle…', '数…')
    """
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, cells - 1).rstrip() + ELLIPSIS


def short_names(names: Sequence[str], cells: int) -> list[str]:
    """Names of at most `cells` columns: cut off at the end, or before it where that is the same.

    >>> short_names(["class 001", "class 002", "another"], 6)
    ['cl…001', 'cl…002', 'anoth…']
    """
    short = [shortened(name, cells) for name in names]
    counts = Counter(short)
    return [
        cut if counts[cut] == 1 else _with_end(name, cells)
        for name, cut in zip(names, short, strict=True)
    ]


def _with_end(text: str, cells: int) -> str:
    """A text of at most `cells` columns: its start and, of the same width, its end."""
    if cell_len(text) <= cells:
        return text
    start = set_cell_size(text, max(0, cells // 2 - 1)).rstrip()
    end, room = "", cells - cell_len(start) - cell_len(ELLIPSIS)
    for character in reversed(text):
        if cell_len(character + end) > room:
            break
        end = character + end
    return start + ELLIPSIS + end.lstrip()


def right(text: str, cells: int) -> str:
    """A text with spaces before it, so that it fills `cells` columns."""
    return " " * (cells - cell_len(text)) + text


def widest(texts: Sequence[str]) -> int:
    """The width of the widest text, in columns."""
    return max(map(cell_len, texts), default=0)


# --- What an evaluation says of each class, as text for a terminal ---

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


def table(matrix: np.ndarray, names: Sequence[str]) -> Laid:
    """A confusion matrix int64[K, K] as text: rows are true, columns predicted classes.

    The rows have the names of the classes; the names above the columns are shorter where a line of
    them would be too long.
    """
    rows = short_names(names, NAME)
    counts = len(str(matrix.max()))
    first = max(counts, widest(rows))
    width = min(first, max((LINE - first) // len(names) - 1, FEWEST, counts))
    heads = [right(name, width) for name in short_names(names, width)]
    lines = [[name, *map(str, row)] for name, row in zip(rows, matrix.tolist(), strict=True)]
    return aligned([["", *heads], *lines], gap=1)


def report_table(evaluation: Evaluation, shown: Sequence[int]) -> Laid:
    """The classification report of some classes and the averages, laid out as by scikit-learn.

    A last column has the 95 % interval of each class's recall.
    """
    report = evaluation.classification_report()
    intervals = evaluation.recall_intervals()
    names = short_names([evaluation.class_names[k] for k in shown], NAME)

    def numbers(name: str) -> list[str]:
        row = report[name]
        shares = (f"{row[key]:.3f}" for key in ("precision", "recall", "f1-score"))
        return [*shares, f"{row['support']:.0f}"]

    def recall(interval: tuple[float, float] | None) -> list[str]:
        return [f" {interval[0]:.3f}–{interval[1]:.3f}"] if interval else []

    classes = [
        [name, *numbers(evaluation.class_names[k]), *recall(intervals[k])]
        for name, k in zip(names, shown, strict=True)
    ]
    accuracy = ["accuracy", "", "", f"{report['accuracy']:.3f}", str(evaluation.images)]
    averages = [[name, *numbers(name)] for name in ("macro avg", "weighted avg")]
    heads = ["", " precision", "   recall", " f1-score", "  support", " recall, 95 %"]
    return aligned([heads, [], *classes, [], accuracy, *averages], left=(5,), gap=1)


def describe_confusions(evaluation: Evaluation, file: str) -> list[str]:
    """The confusion matrix in lines; with many classes, only the most frequent confusions.

    file: the run's file that has the whole matrix; the text refers to it.
    """
    names = evaluation.class_names
    if len(names) <= MOST_CLASSES:
        head = "Confusion matrix (rows: truth, columns: prediction):"
        return [head, table(evaluation.confusion_matrix, names)]
    found = confusions(evaluation)
    if not found:
        return [f"No image of {len(names)} classes is misclassified."]
    lines = [f"The most frequent confusions of {len(names)} classes ({file} has the whole matrix):"]
    for i, j, count in found:
        images = "1 image" if count == 1 else f"{count} images"
        truth, prediction = (shortened(names[k], SENTENCE) for k in (i, j))
        lines.append(f"  {truth} classified as {prediction}: {images}")
    return lines


def describe_classes(evaluation: Evaluation, file: str) -> list[str]:
    """The classification report in lines; with many classes, only those of the lowest f1-score.

    file: the run's file that has the whole report; the text refers to it.
    """
    classes = len(evaluation.labels)
    if classes <= MOST_CLASSES:
        return ["Classification report:", report_table(evaluation, range(classes))]
    head = f"Classification report of the {MOST_CLASSES} worst of {classes} classes"
    return [f"{head} ({file} has all):", report_table(evaluation, worst_classes(evaluation))]
