"""The support vector machine on the flatten features of a run's winner."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from jaxmnist.data.dataset import Dataset, joined
from jaxmnist.engine.devices import pool_size, start_jax
from jaxmnist.errors import UsageError, printable
from jaxmnist.results.classes import describe_classes
from jaxmnist.results.confusion import REPORT_SHAPE, Evaluation, beside_constant, judge
from jaxmnist.results.looks import describe_looks
from jaxmnist.results.rbf import choose_backend
from jaxmnist.results.run import Run
from jaxmnist.results.svm_fit import (
    SCALER_ROWS,
    Batches,
    Clock,
    Fit,
    Fitting,
    Tuned,
    check_memory,
    fit,
    tune,
)
from jaxmnist.runs.keys import TrialKey
from jaxmnist.runs.ledger import LOOK_SHAPE
from jaxmnist.whole_files import (
    DamagedFile,
    array_bytes,
    read_bytes,
    read_json,
    sha256,
)

if TYPE_CHECKING:
    from jaxmnist.results.trained import TrainedModel

FITTED_SHAPE = {
    **REPORT_SHAPE,
    "backend": str,
    "seconds": {str: float},
    "kind": str,
    "description": str,
    "components": int,
    "search": [{str: float}],
}
# What `svm_fit.tune` found; None where the fit itself searches.
# Fields of svm.json that are read again.
SVM_SHAPE = {
    **FITTED_SHAPE,
    "model_sha256": str,
    "data": str,
    "dataset": str,
    "folder": str,
    "draws": int,
    "baselines": {str: FITTED_SHAPE},
    "pipeline_sha256": str,
    "predictions_sha256": str,
    "test_sha256": str,
    "looks": [LOOK_SHAPE],
}


def raw_pixels(images: np.ndarray, scale: float) -> Iterator[tuple[int, np.ndarray]]:
    """Pixels divided by `scale`, to be used in place of features, a block of rows at a time."""
    for first in range(0, len(images), SCALER_ROWS):
        part = images[first : first + SCALER_ROWS]
        yield first, part.reshape(len(part), -1).astype(np.float32) / np.float32(scale)


@dataclass(frozen=True)
class Tested:
    """A fitted SVM with its evaluation on the test set.

    predictions: classes int64[N] of the test images, 0 to K − 1.
    """

    fit: Fit
    evaluation: Evaluation
    predictions: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """The fields `FITTED_SHAPE` of svm.json."""
        seconds = {stage: round(value, 3) for stage, value in self.fit.seconds.items()}
        return {
            **self.evaluation.to_json(),
            "backend": self.fit.backend,
            "seconds": {**seconds, "total": round(sum(self.fit.seconds.values()), 3)},
            **self.fit.svm.to_json(),
            "search": self.fit.search,
        }


def fit_and_test(
    batches: Batches,
    width: int,
    dataset: Dataset,
    *,
    how: Fitting,
    seed: int,
    tuned: Tuned | None = None,
) -> Tested:
    """Fit on the training part of `dataset`, evaluate on its test part once.

    tuned: as of `svm_fit.fit`.

    BLAS uses as many threads as XLA's pool, so that a run resumed on another number of cores gives
    the same SVM, bit for bit.
    """
    with threadpool_limits(pool_size(), user_api="blas"):
        return _fit_and_test(batches, width, dataset, how=how, seed=seed, tuned=tuned)


def _parts(dataset: Dataset) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The images and labels of the training part, and of the validation part."""
    labels = np.asarray(dataset.labels)
    train = dataset.x_train, labels[dataset.y_train]
    return train, (dataset.x_validation, labels[dataset.y_validation])


def _fit_and_test(
    batches: Batches, width: int, dataset: Dataset, *, how: Fitting, seed: int, tuned: Tuned | None
) -> Tested:
    labels = np.asarray(dataset.labels)
    fitted = fit(batches, width, *_parts(dataset), how=how, seed=seed, tuned=tuned)
    clock = Clock()
    projected = [fitted.svm.project(values) for _, values in batches(dataset.x_test)]
    predictions = np.searchsorted(labels, fitted.svm.classifier.predict(np.concatenate(projected)))
    clock.lap("predict")
    fitted.seconds.update(clock.seconds)
    evaluation = judge(dataset.y_test, predictions, dataset.labels, dataset.class_names)
    return Tested(fitted, evaluation, predictions)


@dataclass(frozen=True)
class Task:
    """A run and the dataset to fit its SVM on.

    name: name of the SVM's folder in svm/.
    own: whether `dataset` is the run's own.
    model_sha256: SHA-256 of the weights of the network in best/.
    key: of the trial, rerun or refit that the network comes from.
    """

    run: Run
    dataset: Dataset
    name: str
    own: bool
    model_sha256: str
    key: TrialKey

    @classmethod
    def of(cls, run: Run, dataset: Dataset) -> Task:
        """The task for `dataset`; `UsageError` if its image shape is not the network's."""
        config, final = run.winner(), run.final_trial
        assert final is not None  # as there is a winner
        takes = run.best_model.image_shape
        if dataset.image_shape != takes:
            raise UsageError(
                f"{dataset.name}: its images have shape {dataset.image_shape}; the network of"
                f" {run.directory.path} takes {takes}"
            )
        own = dataset.fingerprint == run.search["identity"]["data"]
        name = dataset.name
        if not own and name == run.settings.dataset_name:
            name += f"-{dataset.fingerprint[:8]}"  # other images under the run's own name
        return cls(run, dataset, name, own, config["model_sha256"], final.key)

    @property
    def model(self) -> TrainedModel:
        """The winner's network, for images on the scale of `dataset`."""
        return dataclasses.replace(self.run.best_model, scale=self.dataset.scale)

    @property
    def refitted(self) -> bool:
        """Whether the network was trained on the validation images of `dataset` too."""
        return self.own and self.run.settings.refit

    def tune(self, how: Fitting) -> Tuned | None:
        """For a refitted network search with the winner before the refit, as `svm_fit.tune` does.

        The refitted network has seen the validation images: on its features they would validate
        nothing.
        """
        if not (self.refitted and how.draws):
            return None
        before = self.run.load_model(self.run.best_trial)
        seed = self.run.settings.seed
        with threadpool_limits(pool_size(), user_api="blas"):
            return tune(
                lambda images: before.batches("features", images),
                before.feature_count,
                *_parts(self.dataset),
                how=how,
                seed=seed,
            )

    def test(
        self,
        batches: Batches,
        width: int,
        purpose: str,
        *,
        how: Fitting,
        tuned: Tuned | None = None,
    ) -> Tested:
        """Record the evaluation in the ledger, fit on features, and evaluate."""
        data = joined(self.dataset) if self.refitted else self.dataset
        seed = self.run.settings.seed
        # The same SVM on other training images is another evaluation of the same test images.
        trained_on = self.dataset.fingerprint[:16]
        details = f"{how.kind}, {how.backend}, {how.draws} draws, data {trained_on}"
        test_sha256 = self.dataset.test_sha256
        self.run.files.record_look(purpose, self.model_sha256, test_sha256, details)
        return fit_and_test(batches, width, data, how=how, seed=seed, tuned=tuned)

    def test_baselines(self, *, how: Fitting) -> dict[str, Any]:
        """The same SVM on raw pixels, and on the network's features before it was trained."""
        before = self.model.untrained(self.run.settings.seed, self.key)
        pixels = self.test(
            lambda images: raw_pixels(images, self.dataset.scale),
            math.prod(self.dataset.image_shape),
            "svm on raw pixels",
            how=how,
        )
        features = self.test(
            lambda images: before.batches("features", images),
            before.feature_count,
            "svm on the untrained network",
            how=how,
        )
        return {
            "raw pixels": pixels.to_json(),
            "the untrained network's features": features.to_json(),
        }


def fit_on_run(
    run: Run,
    dataset: Dataset,
    *,
    wanted: str,
    draws: int,
    baselines: bool = False,
) -> dict[str, Any]:
    """Fit the SVM on the winner's features of `dataset`, and save it under svm/.

    An SVM saved for the same network, data and settings is reused without evaluating the test set
    again. One by another backend stays, and the new one is saved below it, in a folder named like
    its backend.

    Args:
      run: a run with its winner in best/, locked by the caller.
      dataset: the run's own, or another with images of the same shape.
      wanted: the backend, or 'auto'.
      draws: number of draws of the search for C and gamma; 0 for no search.
      baselines: fit the same SVM on raw pixels and on the untrained network's features too.

    Returns:
      The content of svm.json.
    """
    task = Task.of(run, dataset)
    place: tuple[str, ...] = (task.name,)
    kept = run.files.mended(lambda: _kept(task, place))
    how = Fitting(wanted, draws)
    if kept and wanted not in ("auto", kept["backend"]):
        place = (task.name, wanted)
        kept = run.files.mended(lambda: _kept(task, place))
    if (
        kept
        and wanted in ("auto", kept["backend"])
        and kept["kind"] == how.kind
        and draws in (0, kept["draws"])
        and (kept["baselines"] or not baselines)
    ):
        return kept
    fitted = len(dataset.y_train) + task.refitted * len(dataset.y_validation)
    check_memory(how.kind, dataset.classes, fitted)
    how = dataclasses.replace(how, backend=choose_backend(wanted, start_jax()))
    model = task.model
    result = task.test(
        lambda images: model.batches("features", images),
        model.feature_count,
        "svm",
        how=how,
        tuned=task.tune(how),
    )
    content = {
        "model_sha256": task.model_sha256,
        "data": dataset.fingerprint,
        "dataset": task.name,
        "folder": "/".join(place),
        "draws": draws,
        **result.to_json(),
        "baselines": task.test_baselines(how=how) if baselines else {},
        "test_sha256": dataset.test_sha256,
        "looks": run.files.looks_to_keep(dataset.test_sha256),
    }
    _keep(task, place, content, result)
    return content


def _keep(task: Task, place: tuple[str, ...], content: dict[str, Any], result: Tested) -> None:
    """Write the pipeline and the predictions, then svm.json, which names their hashes."""
    pipeline, predictions = result.fit.svm.to_bytes(), array_bytes(result.predictions)
    files = task.run.files
    files.write_file(files.pipeline_path(*place), pipeline)
    files.write_file(files.predictions_path(*place), predictions)
    content["pipeline_sha256"] = sha256(pipeline)
    content["predictions_sha256"] = sha256(predictions)
    files.write_json(files.svm_path(*place), content)


def _kept(task: Task, place: tuple[str, ...]) -> dict[str, Any] | None:
    """The content of svm.json at a place; None if it belongs to another network or dataset.

    Raises `DamagedFile` if it is damaged, or a file whose hash it contains.
    """
    directory = task.run.directory
    path = directory.svm_path(*place)
    content = read_json(path, SVM_SHAPE)
    for part in (content, *content["baselines"].values()):
        try:
            Evaluation.from_json(part)
        except ValueError:
            raise DamagedFile(path, "is not a report on test images") from None
    if (content["model_sha256"], content["data"]) != (
        task.model_sha256,
        task.dataset.fingerprint,
    ):
        return None
    for beside, key in (
        (directory.pipeline_path(*place), "pipeline_sha256"),
        (directory.predictions_path(*place), "predictions_sha256"),
    ):
        if content[key] != (found := sha256(read_bytes(beside))):
            raise DamagedFile(beside, f"its SHA-256 is {found}, not svm.json's")
    return content


def describe(run: Run, content: dict[str, Any]) -> str:
    """The content of the run's svm.json as text, and all evaluations of the test set."""
    evaluation = Evaluation.from_json(content)
    low, high = evaluation.confidence_interval()
    stages = ", ".join(
        f"{printable(stage)} {value:.1f} s" for stage, value in content["seconds"].items()
    )
    lines = [
        f"SVM on the flatten features of {printable(content['dataset'])} (scaler, PCA to"
        f" {content['components']}, {printable(content['description'])};"
        f" {printable(content['backend'])})",
        f"Seconds: {stages}",
        f"Test accuracy: {evaluation.accuracy:.4f} on {evaluation.images} images (95 % interval"
        f" {low:.4f} to {high:.4f})",
        *beside_constant(evaluation),
        describe_looks(run.directory.read_looks(content["test_sha256"]), run.directory.name),
    ]
    if content["search"]:
        lines.append(f"These parameters are the best of {len(content['search'])} on validation:")
    for tried in content["search"][:3]:
        values = ", ".join(
            f"{printable(name)} = {value:.3g}"
            for name, value in tried.items()
            if name != "val_accuracy"
        )
        lines.append(f"  {values}: validation accuracy {tried.get('val_accuracy', 0):.4f}")
    for name, baseline in content["baselines"].items():
        low, high = baseline["confidence_interval"]
        lines.append(
            f"The same SVM on {printable(name)}: {baseline['accuracy']:.4f} (95 % interval"
            f" {low:.4f} to {high:.4f})"
        )
    file = f"svm/{printable(content['folder'])}/svm.json"
    return "\n".join([*lines, "", describe_classes(evaluation, file)])
