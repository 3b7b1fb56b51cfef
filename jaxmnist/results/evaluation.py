"""The test set: accuracy with its interval, confusion matrix, classification report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.data.dataset import Dataset
from jaxmnist.results.calibration import (
    CALIBRATION_SHAPE,
    Calibration,
    calibration,
    describe_calibration,
)
from jaxmnist.results.classes import describe_classes, describe_confusions
from jaxmnist.results.confusion import REPORT_SHAPE, Evaluation, beside_constant, judge
from jaxmnist.results.gap import about_gap
from jaxmnist.results.looks import describe_looks
from jaxmnist.results.run import Run
from jaxmnist.runs.ledger import LOOK_SHAPE
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
    "looks": [LOOK_SHAPE],
}
GAP_SHAPE = {"validation_accuracy": float, "validation_images": int}
REFIT_SHAPE = {"refit_images": int}  # in place of `GAP_SHAPE`, for a refitted network


def prepare() -> None:
    """Import in advance the modules that evaluation needs, which takes about a second."""
    for name in ("scipy.stats", "sklearn.metrics"):
        import_module(name)


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
    model_sha256 = subject.model_sha256
    run.files.record_look(purpose, model_sha256, dataset.test_sha256)
    probabilities = subject.predict_proba(dataset.x_test)
    predictions = array_bytes(probabilities)
    evaluation = judge(dataset.y_test, probabilities.argmax(1), dataset.labels, dataset.class_names)
    content = {
        "model_sha256": model_sha256,
        **evaluation.to_json(),
        **calibration(dataset.y_test, probabilities).to_json(),
        "probabilities_sha256": sha256(predictions),
        "looks": run.files.looks_to_keep(dataset.test_sha256),
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
    if content["model_sha256"] != model_sha256:
        return None, np.zeros((0, 0), np.float32)
    probabilities = read_array(beside, content["probabilities_sha256"])
    if probabilities.shape != (evaluation.images, len(evaluation.labels)):
        raise DamagedFile(beside, f"does not match {path.name}")
    return content, probabilities


def looks_at_test(run: Run) -> str:
    """How often the run's test set was evaluated, by this run and others, and for what."""
    return describe_looks(run.directory.read_looks(run.directory.test_sha256), run.directory.name)


def about_probabilities(run: Run, content: dict[str, Any]) -> str:
    """The loss and the calibration in best/test.json, with what in training explains them."""
    trained = run.settings.training().for_trial(run.best_trial.hyperparameters)
    return describe_calibration(Calibration.from_json(content), trained.label_smoothing)


def describe(run: Run, content: dict[str, Any]) -> str:
    """The content of the run's best/test.json as text, and all evaluations of the test set."""
    evaluation = Evaluation.from_json(content)
    low, high = evaluation.confidence_interval()
    return "\n".join(
        [
            f"Test accuracy: {evaluation.accuracy:.4f} on {evaluation.images} images"
            f" (95 % interval {low:.4f} to {high:.4f})",
            *beside_constant(evaluation),
            looks_at_test(run),
            about_probabilities(run, content),
            about_gap(run, content, evaluation),
            "",
            describe_confusions(evaluation, "best/test.json"),
            "",
            describe_classes(evaluation, "best/test.json"),
        ]
    )
