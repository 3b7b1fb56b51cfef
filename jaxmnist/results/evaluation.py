"""The test set: accuracy with its interval, confusion matrix, classification report."""

from __future__ import annotations

import math
from importlib import import_module
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


def look(run: Run, dataset: Dataset, purpose: str) -> dict[str, Any]:
    """Evaluate the winner on the test set once, and save the results under best/.

    The ledger records the evaluation before it happens. Returns the content of best/test.json.
    """
    config = run.winner()
    model_sha256, data = config["model_sha256"], run.search["identity"]["data"]
    run.files.write_look(purpose, model_sha256, data)
    probabilities = run.best_model.predict_proba(dataset.x_test)
    predictions = array_bytes(probabilities)
    evaluation = judge(dataset.y_test, probabilities.argmax(1), dataset.labels, dataset.class_names)
    validated = len(dataset.y_validation)
    gap = {"validation_accuracy": config["score"], "validation_images": validated}
    if config.get("refit"):
        gap = {"refit_images": len(dataset.y_train) + validated}
    content = {
        "model_sha256": model_sha256,
        **evaluation.to_json(),
        **calibration(dataset.y_test, probabilities).to_json(),
        **gap,
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
        if Calibration.from_json(content).images != evaluation.images:
            raise ValueError("counts other images")
    except ValueError:
        raise DamagedFile(path, "is not a report on test images") from None
    shape = REFIT_SHAPE if "refit_images" in content else GAP_SHAPE
    possible = fits(content, shape) and min(content[name] for name in shape) >= 0
    if not possible or content.get("validation_accuracy", 0) > 1:
        raise DamagedFile(path, "is not a report on test images")
    if content["evaluations"] not in range(MOST_LOOKS):
        raise DamagedFile(path, "is not a report on test images")
    final = run.final_trial
    if final is None or content["model_sha256"] != final.weights_sha256:
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
            describe_calibration(Calibration.from_json(content)),
            gap_of(content, evaluation),
            "",
            describe_confusions(evaluation, "best/test.json"),
            "",
            describe_classes(evaluation, "best/test.json"),
        ]
    )
