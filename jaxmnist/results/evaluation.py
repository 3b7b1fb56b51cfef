"""The test set: accuracy with its interval, confusion matrix, classification report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.data.dataset import Dataset
from jaxmnist.errors import UsageError
from jaxmnist.results.calibration import (
    CALIBRATION_SHAPE,
    Calibration,
    calibration,
    describe_calibration,
)
from jaxmnist.results.classes import describe_classes, describe_confusions
from jaxmnist.results.confusion import REPORT_SHAPE, Evaluation, judge
from jaxmnist.results.run import Run
from jaxmnist.runs.ledger import MOST_LOOKS
from jaxmnist.whole_files import (
    DamagedFile,
    array_bytes,
    fits,
    read_array,
    read_json,
    sha256,
)

TEST_SHAPE = {
    **REPORT_SHAPE,
    **CALIBRATION_SHAPE,
    "model_sha256": str,
    "probabilities_sha256": str,
    "evaluations": int,
}
GAP_SHAPE = {"validation_accuracy": float, "validation_images": int}
REFIT_SHAPE = {"refit_images": int}  # in place of `GAP_SHAPE`, for a refitted network


def times(count: int) -> str:
    """'once', '2 times'."""
    return "once" if count == 1 else f"{count} times"


def prepare() -> None:
    """Import in advance the modules that evaluation needs, which takes about a second."""
    for name in ("scipy.stats", "sklearn.metrics"):
        import_module(name)


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


def gap_of(content: dict[str, Any], test: Evaluation) -> str:
    """What best/test.json says about the gap between validation and test accuracy."""
    if "refit_images" in content:
        return (
            f"The network was refitted on {content['refit_images']:,} images; no validation images"
            " are left, so no gap is shown."
        )
    return describe_gap(content["validation_accuracy"], content["validation_images"], test)


@dataclass(frozen=True)
class Subject:
    """What is evaluated on the test set, and where the results lie.

    model_sha256: of the model's weights.
    predict_proba: returns the probabilities float32[N, K] of images [N, H, W, C].
    report, beside: the paths of the report, and of the probabilities for the test images.
    says: what else the report says.
    """

    model_sha256: str
    predict_proba: Callable[[np.ndarray], np.ndarray]
    report: Path
    beside: Path
    says: Mapping[str, Any]


def look(run: Run, dataset: Dataset, purpose: str) -> dict[str, Any]:
    """Evaluate the winner on the test set once, and save the results under best/.

    The ledger records the evaluation before it happens. Returns the content of best/test.json.
    """
    config, place = run.winner(), run.directory
    winner = Subject(
        config["model_sha256"],
        run.best_model.predict_proba,
        place.test_path,
        place.probabilities_path,
        {"refit_images": len(dataset.y_train) + len(dataset.y_validation)}
        if config.get("refit")
        else validated(config["score"], dataset),
    )
    return look_at(winner, run, dataset, purpose)


def validated(accuracy: float, dataset: Dataset) -> dict[str, Any]:
    """What a report says of a model's accuracy on the validation images."""
    return {"validation_accuracy": accuracy, "validation_images": len(dataset.y_validation)}


def look_at(subject: Subject, run: Run, dataset: Dataset, purpose: str) -> dict[str, Any]:
    """Evaluate a model on the test set once, and save the results; returns the report.

    The ledger records the evaluation before it happens.
    """
    model_sha256, data = subject.model_sha256, run.search["identity"]["data"]
    run.files.write_look(purpose, model_sha256, data)
    probabilities = subject.predict_proba(dataset.x_test)
    predictions = array_bytes(probabilities)
    evaluation = judge(dataset.y_test, probabilities.argmax(1), dataset.labels, dataset.class_names)
    content = {
        "model_sha256": model_sha256,
        **evaluation.to_json(),
        **calibration(dataset.y_test, probabilities).to_json(),
        "probabilities_sha256": sha256(predictions),
        "evaluations": run.directory.looks_at(data),
        **subject.says,
    }
    run.files.write_file(subject.beside, predictions)
    run.files.write_json(subject.report, content)
    return content


def kept_look(run: Run) -> dict[str, Any] | None:
    """The content of best/test.json; None if it belongs to another winner.

    Raises `DamagedFile` if the file, or that of its predictions, is damaged.
    """
    return _kept(run)[0]


def _kept(run: Run) -> tuple[dict[str, Any] | None, np.ndarray]:
    """The content of best/test.json, or None, and the probabilities float32[N, K] beside it."""
    path, beside = run.directory.test_path, run.directory.probabilities_path
    return read_report(path, beside, run.tested_sha256)


def read_report(
    path: Path, beside: Path, model_sha256: str | None, shape: Any = None
) -> tuple[dict[str, Any] | None, np.ndarray]:
    """A report on test images, None if it is another model's; and the probabilities beside it.

    Args:
      path, beside: of the report, and of the probabilities float32[N, K].
      model_sha256: of the model's weights.
      shape: fields that the report has beyond `TEST_SHAPE`.

    Raises `DamagedFile` if one of the files is damaged.
    """
    content = read_json(path, {**TEST_SHAPE, **(shape or {})})
    try:
        evaluation = Evaluation.from_json(content)
        if Calibration.from_json(content).images != evaluation.images:
            raise ValueError("counts other images")
    except ValueError:
        raise DamagedFile(path, "is not a report on test images") from None
    about: dict[str, Any] = REFIT_SHAPE if "refit_images" in content else GAP_SHAPE
    possible = fits(content, about) and min(content[name] for name in about) >= 0
    if not possible or content.get("validation_accuracy", 0) > 1:
        raise DamagedFile(path, "is not a report on test images")
    if content["evaluations"] not in range(MOST_LOOKS):
        raise DamagedFile(path, "is not a report on test images")
    if content["model_sha256"] != model_sha256:
        return None, np.zeros((0, 0), np.float32)
    probabilities = read_array(beside, content["probabilities_sha256"])
    if probabilities.shape != (evaluation.images, len(evaluation.labels)):
        raise DamagedFile(beside, f"does not match {path.name}")
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
            describe_calibration(Calibration.from_json(content)),
            gap_of(content, evaluation),
            "",
            describe_confusions(evaluation, "best/test.json"),
            "",
            describe_classes(evaluation, "best/test.json"),
        ]
    )
