"""The test set: accuracy with its interval, confusion matrix, classification report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from jaxmnist.data.dataset import Dataset
from jaxmnist.errors import UsageError
from jaxmnist.results.run import Run
from jaxmnist.results.statistics import wilson
from jaxmnist.runs.ledger import MOST_LOOKS
from jaxmnist.whole_files import (
    DamagedFile,
    array_bytes,
    read_array,
    read_json,
    sha256,
)

MOST_IMAGES = 10**7  # the most images that a report read from disk may count
MOST_CLASSES = 20  # reports on the console show all classes up to this many, then the worst ones
# Fields of a test report, in test.json and in svm.json.
REPORT_SHAPE = {
    "accuracy": float,
    "confidence_interval": (float, float),
    "labels": [int],
    "confusion_matrix": [[int]],
    "classification_report": dict,
}
TEST_SHAPE = {
    **REPORT_SHAPE,
    "model_sha256": str,
    "validation_accuracy": float,
    "validation_images": int,
    "probabilities_sha256": str,
    "evaluations": int,
}


@dataclass(frozen=True)
class Evaluation:
    """The predictions for N images compared with their true labels.

    labels: the K labels, in the order of the matrix's rows and columns.
    confusion_matrix: int64[K, K]; rows: true classes, columns: predicted classes.
    """

    labels: tuple[int, ...]
    confusion_matrix: np.ndarray

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

    def classification_report(self) -> dict[str, Any]:
        """scikit-learn's report: precision, recall, f1-score and support by label, and averages."""
        report: dict[str, Any] = self._report(output_dict=True)
        return report

    def classification_table(self) -> str:
        """The report as a text table with three decimals."""
        return str(self._report(digits=3))

    def _report(self, **form: Any) -> Any:
        # Imported here: scikit-learn takes a second to import, which would delay the first trial.
        from sklearn.metrics import classification_report

        classes = len(self.labels)
        truth, predictions = np.divmod(
            np.repeat(np.arange(classes * classes), self.confusion_matrix.ravel()), classes
        )
        return classification_report(
            truth,
            predictions,
            labels=range(classes),
            target_names=[str(label) for label in self.labels],
            zero_division=0,
            **form,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields `REPORT_SHAPE` of test.json and svm.json."""
        return {
            "accuracy": self.accuracy,
            "confidence_interval": list(self.confidence_interval()),
            "labels": list(self.labels),
            "confusion_matrix": self.confusion_matrix.tolist(),
            "classification_report": self.classification_report(),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Evaluation:
        """The evaluation stored by `to_json`; ValueError if its confusion matrix is impossible."""
        labels = tuple(content["labels"])
        matrix = np.asarray(content["confusion_matrix"], np.int64)
        square = matrix.shape == (len(labels), len(labels))
        if not square or matrix.min() < 0 or not 0 < matrix.sum() <= MOST_IMAGES:
            raise ValueError("invalid confusion matrix")
        return cls(labels, matrix)


def times(count: int) -> str:
    """'once', '2 times'."""
    return "once" if count == 1 else f"{count} times"


def prepare() -> None:
    """Import in advance the modules that evaluation needs, which takes about a second."""
    for name in ("scipy.stats", "sklearn.metrics"):
        import_module(name)


def judge(truth: np.ndarray, predictions: np.ndarray, labels: Sequence[int]) -> Evaluation:
    """Evaluate predicted classes int[N], 0 to K − 1, against the true classes int[N]."""
    classes = len(labels)
    pairs = truth.astype(np.int64) * classes + predictions
    matrix = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    return Evaluation(tuple(int(label) for label in labels), matrix)


def table(matrix: np.ndarray, labels: Sequence[int]) -> str:
    """A confusion matrix as text, with its labels: rows are true, columns predicted classes."""
    cells = [["", *map(str, labels)]]
    cells += [
        [str(label), *map(str, row)] for label, row in zip(labels, matrix.tolist(), strict=True)
    ]
    width = max(len(cell) for row in cells for cell in row)
    return "\n".join(" ".join(cell.rjust(width) for cell in row) for row in cells)


def describe_confusions(evaluation: Evaluation, file: str) -> str:
    """The confusion matrix as text; with many classes, only the most frequent confusions.

    file: the run's file that has the whole matrix; the text refers to it.
    """
    labels, matrix = evaluation.labels, evaluation.confusion_matrix
    if len(labels) <= MOST_CLASSES:
        head = "Confusion matrix (rows: truth, columns: prediction):"
        return f"{head}\n{table(matrix, labels)}"
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CLASSES]
    lines = [
        f"The most frequent confusions of {len(labels)} classes ({file} has the whole matrix):"
    ]
    for truth, prediction in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if count := wrong[truth, prediction]:
            images = "1 image" if count == 1 else f"{count} images"
            lines.append(f"  {labels[truth]} classified as {labels[prediction]}: {images}")
    return (
        "\n".join(lines)
        if len(lines) > 1
        else f"No image of {len(labels)} classes is misclassified."
    )


def describe_classes(evaluation: Evaluation, file: str) -> str:
    """The classification report as text; with many classes, only those of the lowest f1-score.

    file: the run's file that has the whole report; the text refers to it.
    """
    rows = evaluation.classification_table().rstrip()
    classes = len(evaluation.labels)
    if classes <= MOST_CLASSES:
        return f"Classification report:\n{rows}"
    lines = rows.splitlines()  # header, empty line, one line per class, empty line, averages
    report = evaluation.classification_report()
    scores = [report[str(label)]["f1-score"] for label in evaluation.labels]
    worst = np.argsort(scores, kind="stable")[:MOST_CLASSES]
    shown = [*lines[:2], *(lines[2 + k] for k in worst), *lines[2 + classes :]]
    head = f"Classification report of the {MOST_CLASSES} worst of {classes} classes"
    return "\n".join([f"{head} ({file} has all):", *shown])


def describe_gap(validation: float, validation_images: int, test: Evaluation) -> str:
    """The gap between validation and test accuracy, and what it means, in a sentence or two.

    The standard error is the pooled one of the difference of two independent proportions.
    """
    gap = validation - test.accuracy
    right = validation * validation_images + test.accuracy * test.images
    pooled = right / (validation_images + test.images)
    error = math.sqrt(pooled * (1 - pooled) * (1 / validation_images + 1 / test.images))
    line = f"Validation accuracy {validation:.4f} − test accuracy {test.accuracy:.4f} = {gap:+.4f}"
    if gap > 2 * error:
        return line + (
            f", more than chance explains (two standard errors are {2 * error:.4f}): selecting"
            " among trials has overfitted the validation images, or the test images are harder."
        )
    if gap < -2 * error:
        return line + (
            f", more than chance explains (two standard errors are {2 * error:.4f}): the test"
            " images are easier than the validation images."
        )
    return line + (
        f", within chance: only a gap above {2 * error:.4f} (two standard errors) would have shown"
        " that selecting among trials has overfitted the validation images."
    )


def look(run: Run, dataset: Dataset, purpose: str) -> dict[str, Any]:
    """Evaluate the winner on the test set once, and save the results under best/.

    The ledger records the evaluation before it happens. Returns the content of best/test.json.
    """
    config = run.winner()
    model_sha256, data = config["model_sha256"], run.search["identity"]["data"]
    run.files.write_look(purpose, model_sha256, data)
    probabilities = run.best_model.predict_proba(dataset.x_test)
    predictions = array_bytes(probabilities)
    evaluation = judge(dataset.y_test, probabilities.argmax(1), dataset.labels)
    content = {
        "model_sha256": model_sha256,
        **evaluation.to_json(),
        "validation_accuracy": config["score"],
        "validation_images": len(dataset.y_validation),
        "probabilities_sha256": sha256(predictions),
        "evaluations": run.directory.looks_at(data),
    }
    run.files.write_file(run.directory.probabilities_path, predictions)
    run.files.write_json(run.directory.test_path, content)
    return content


def kept_look(run: Run) -> dict[str, Any] | None:
    """The content of best/test.json; None if it belongs to another winner.

    Raises `DamagedFile` if the file, or that of its predictions, is damaged.
    """
    return _kept(run)[0]


def _kept(run: Run) -> tuple[dict[str, Any] | None, np.ndarray]:
    """The content of best/test.json, or None, and the probabilities float32[N, K] beside it."""
    path, beside = run.directory.test_path, run.directory.probabilities_path
    content = read_json(path, TEST_SHAPE)
    try:
        evaluation = Evaluation.from_json(content)
    except ValueError:
        raise DamagedFile(path, "is not a report on test images") from None
    validated = content["validation_images"] >= 1 and 0 <= content["validation_accuracy"] <= 1
    if not validated or content["evaluations"] not in range(MOST_LOOKS):
        raise DamagedFile(path, "is not a report on test images")
    if content["model_sha256"] != run.best_trial.weights_sha256:
        return None, np.zeros((0, 0), np.float32)
    probabilities = read_array(beside, content["probabilities_sha256"])
    if probabilities.shape != (evaluation.images, len(evaluation.labels)):
        raise DamagedFile(beside, "does not match test.json")
    return content, probabilities


def winner_predictions(run: Run) -> np.ndarray:
    """The winner's stored predictions for the test images: classes int64[N]."""
    try:
        content, probabilities = _kept(run)
    except DamagedFile:
        content = None
    if content is None:
        raise UsageError(
            f"{run.directory.path}: has no test report of its winner; run"
            f" python -m jaxmnist evaluate {run.directory.path}"
        )
    classes: np.ndarray = probabilities.argmax(1)
    return classes


def describe(content: dict[str, Any]) -> str:
    """The content of best/test.json as text."""
    evaluation = Evaluation.from_json(content)
    low, high = evaluation.confidence_interval()
    looks = content["evaluations"]
    return "\n".join(
        [
            f"Test accuracy: {evaluation.accuracy:.4f} on {evaluation.images} images"
            f" (95 % interval {low:.4f} to {high:.4f};"
            f" test set evaluated {times(looks)})",
            describe_gap(content["validation_accuracy"], content["validation_images"], evaluation),
            "",
            describe_confusions(evaluation, "best/test.json"),
            "",
            describe_classes(evaluation, "best/test.json"),
        ]
    )
