"""The support vector machine on the flatten features of a run's winner, and fitting it."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from jaxmnist.data.dataset import Dataset, joined
from jaxmnist.engine.devices import pool_size, start_jax
from jaxmnist.errors import SettingError, UsageError, printable
from jaxmnist.files import array_bytes, memory
from jaxmnist.results.confusion import Evaluation, beside_constant, describe_classes, judge
from jaxmnist.results.evaluation import describe_looks, read_report, write_report
from jaxmnist.results.pipeline import Projection, RbfSvm, SvmPipeline, choose_backend
from jaxmnist.results.run import Run
from jaxmnist.runs.records import SvmFit, SvmReport
from jaxmnist.runs.trial import Key

if TYPE_CHECKING:
    from jaxmnist.results.trained import TrainedModel


# --- Fitting scaler → PCA → SVC on features, with scikit-learn or cuML ---

COMPONENTS = 64
SCALER_ROWS = 1024  # rows that are scaled at a time
# Of many features, components are found by power iterations. On 8192 × 4032 features of a network,
# 4 on 64 + 32 directions take 0.79 of the time of scikit-learn's 7 on 64 + 10, and the components
# have slightly more of the variance.
RANDOMIZED = {"n_oversamples": 32, "iterated_power": 4}


@dataclass(frozen=True)
class Fitting:
    """How an SVM is fitted.

    backend: the library, as returned by `choose_backend`.
    draws: number of draws of its parameters to try; 0 for the default parameters.
    """

    backend: str
    draws: int = 0


@dataclass
class Fit:
    """A fitted SVM, and how it was fitted.

    seconds: wall time of each stage, by name.
    search: C, gamma and validation accuracy of each draw of the search, best first.
    """

    svm: SvmPipeline
    backend: str
    seconds: dict[str, float] = field(default_factory=dict)
    search: list[dict[str, float]] = field(default_factory=list)


Batches = Callable[[np.ndarray], Iterator[tuple[int, np.ndarray]]]


@dataclass(frozen=True)
class Tuned:
    """A search for an SVM's parameters.

    tried: parameters and validation accuracy of the default and of each draw, best first.
    seconds: what it took, with the features and their projection.
    """

    tried: list[dict[str, float]]
    seconds: float


def check_svm_memory(classes: int, images: int) -> None:
    """Raise `UsageError` if fitting on these images may need more than this machine's memory."""
    needed = RbfSvm.largest_size(classes, images)
    if needed > memory():
        raise SettingError(
            "an SVM of {classes} classes on {images} images can need {needed:.0f} GiB, and this"
            " machine has {there:.0f} GiB of memory; take fewer images with {train_limit}, or"
            " search without {svm}",
            classes=classes,
            images=images,
            needed=needed / 2**30,
            there=memory() / 2**30,
        )


def fit(
    batches: Batches,
    width: int,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    *,
    how: Fitting,
    seed: int,
    tuned: Tuned | None = None,
) -> Fit:
    """Fit scaler, PCA and SVC on training images alone.

    The features are one float32 matrix that scaler and PCA modify in place. Beyond it only blocks
    of rows are allocated, so that memory stays under twice its size.

    Args:
      batches: yields for images [N, …] batches (index of the first, features float32[B, width]).
      width: number of features of an image, D.
      train: images and labels to fit on.
      validation: images and labels that the search scores its draws on.
      how: the SVM, the backend and the number of draws.
      seed: seed of PCA and of the search.
      tuned: what `tune` found on other features, in place of a search here.
    """
    clock = Clock()
    if tuned:
        clock.seconds["search"] = tuned.seconds
    x, project = _fit_projection(batches, width, train[0], seed, clock)
    backend = how.backend
    tried = tuned.tried if tuned else []
    if how.draws and not tuned:
        tried = _tried(batches, (x, train[1]), validation, project, how=how, seed=seed)
        clock.lap("search")
    parameters = RbfSvm.default(x)
    if tried:
        parameters = {name: tried[0][name] for name in parameters}
    fitted = _interruptible(lambda: RbfSvm.fit(x, train[1], backend, parameters))
    clock.lap("svc")
    return Fit(SvmPipeline(project, fitted), backend, clock.seconds, tried)


def tune_svm(
    batches: Batches,
    width: int,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    *,
    how: Fitting,
    seed: int,
) -> Tuned:
    """Search for parameters alone; the arguments are those of `fit`."""
    clock = Clock()
    x, project = _fit_projection(batches, width, train[0], seed, clock)
    tried = _tried(batches, (x, train[1]), validation, project, how=how, seed=seed)
    clock.lap("search")
    return Tuned(tried, sum(clock.seconds.values()))


def _tried(
    batches: Batches,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    project: Projection,
    *,
    how: Fitting,
    seed: int,
) -> list[dict[str, float]]:
    """The search on projected features float32[N, P] and labels, and on validation images."""
    held_out = np.concatenate([project(values) for _, values in batches(validation[0])])
    parts, default = (train, (held_out, validation[1])), RbfSvm.default(train[0])
    found: list[dict[str, float]] = _interruptible(
        lambda: _search(how.backend, *parts, default, draws=how.draws, seed=seed)
    )
    return found


def _fit_projection(
    batches: Batches, width: int, images: np.ndarray, seed: int, clock: Clock
) -> tuple[np.ndarray, Projection]:
    """The projected features float32[N, P] of the images, and the fitted projection."""
    # Imported here: scikit-learn takes a second to import, which would delay the first trial.
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    x = np.empty((len(images), width), np.float32)
    for first, values in batches(images):
        x[first : first + len(values)] = values
    clock.lap("features")
    rows = [slice(first, first + SCALER_ROWS) for first in range(0, len(x), SCALER_ROWS)]
    scaler = StandardScaler(copy=False)
    for part in rows:
        scaler.partial_fit(x[part])
    for part in rows:
        x[part] = scaler.transform(x[part])
    clock.lap("scaler")
    pca = PCA(min(COMPONENTS, *x.shape), copy=False, random_state=seed, **RANDOMIZED)
    projected = np.ascontiguousarray(pca.fit_transform(x), np.float32)
    clock.lap("pca")
    return projected, Projection(
        scaler.mean_.astype(np.float32),
        scaler.scale_.astype(np.float32),
        pca.mean_.astype(np.float32),
        pca.components_.astype(np.float32),
    )


class Clock:
    """Wall time of consecutive stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage and begin the next one."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def _interruptible(work: Callable[[], Any]) -> Any:
    """What `work` returns, run in a thread so that a signal can end the wait: libsvm ignores it."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            with warnings.catch_warnings():
                # The warning is that all threads are used, which is intended here.
                warnings.filterwarnings("ignore", "'Threading' parallel backend is not supported")
                result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result()


def _search(
    backend: str,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    default: dict[str, float],
    *,
    draws: int,
    seed: int,
) -> list[dict[str, float]]:
    """Parameters and validation accuracy of the default and of each draw, best first."""
    # Imported here for the same reason as above.
    from sklearn.model_selection import GridSearchCV, ParameterSampler, PredefinedSplit

    sampled = ParameterSampler(RbfSvm.space(default), draws, random_state=seed)
    fold = np.repeat([-1, 0], [len(train[0]), len(validation[0])])
    search = GridSearchCV(
        RbfSvm.estimator(backend),
        [{name: [float(value)] for name, value in tried.items()} for tried in (default, *sampled)],
        cv=PredefinedSplit(fold),
        refit=False,
        error_score="raise",
    )
    search.fit(*(np.concatenate(parts) for parts in zip(train, validation, strict=True)))
    scores = search.cv_results_["mean_test_score"]
    return [
        {**search.cv_results_["params"][i], "val_accuracy": float(scores[i])}
        for i in np.argsort(-scores, kind="stable")
    ]


# --- The SVM of a run's winner ---


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

    def record(self) -> SvmFit:
        """What svm.json says of it."""
        seconds = {stage: round(value, 3) for stage, value in self.fit.seconds.items()}
        return SvmFit(
            **vars(self.evaluation.record()),
            backend=self.fit.backend,
            seconds={**seconds, "total": round(sum(self.fit.seconds.values()), 3)},
            **self.fit.svm.described(),
            search=tuple(self.fit.search),
        )


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

    tuned: see `fit`.

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
    key: Key

    @classmethod
    def of(cls, run: Run, dataset: Dataset) -> Task:
        """The task for `dataset`; `UsageError` if its image shape is not the network's."""
        winner, final = run.winner(), run.ranking.final
        assert final is not None  # as there is a winner
        takes = run.best_model.image_shape
        if dataset.image_shape != takes:
            raise UsageError(
                f"{dataset.name}: its images have shape {dataset.image_shape}; the network of"
                f" {run.store.path} takes {takes}"
            )
        own = dataset.fingerprint == run.store.search.identity["data"]
        name = dataset.name
        if not own and name == run.settings.data.dataset_name:
            name += f"-{dataset.fingerprint[:8]}"  # other images under the run's own name
        return cls(run, dataset, name, own, winner.model_sha256, final.key)

    @property
    def model(self) -> TrainedModel:
        """The winner's network, for images on the scale of `dataset`."""
        return dataclasses.replace(self.run.best_model, scale=self.dataset.scale)

    @property
    def refitted(self) -> bool:
        """Whether the network was trained on the validation images of `dataset` too."""
        return self.own and self.run.settings.selection.refit

    def tune(self, how: Fitting) -> Tuned | None:
        """For a refitted network, tune the SVM on the winner before the refit; see `tune_svm`.

        The refitted network has seen the validation images: on its features they would validate
        nothing.
        """
        if not (self.refitted and how.draws):
            return None
        before = self.run.load_model(self.run.best_trial)
        seed = self.run.settings.space.seed
        with threadpool_limits(pool_size(), user_api="blas"):
            return tune_svm(
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
        seed = self.run.settings.space.seed
        # The same SVM on other training images is another evaluation of the same test images.
        trained_on = self.dataset.fingerprint[:16]
        details = f"{RbfSvm.kind}, {how.backend}, {how.draws} draws, data {trained_on}"
        test_sha256 = self.dataset.test_sha256
        self.run.store.record_look(purpose, self.model_sha256, test_sha256, details)
        return fit_and_test(batches, width, data, how=how, seed=seed, tuned=tuned)

    def test_baselines(self, *, how: Fitting) -> dict[str, SvmFit]:
        """The same SVM on raw pixels, and on the network's features before it was trained."""
        before = self.model.untrained(self.run.settings.space.seed, self.key)
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
            "raw pixels": pixels.record(),
            "the untrained network's features": features.record(),
        }


def fit_on_run(
    run: Run,
    dataset: Dataset,
    *,
    wanted: str,
    draws: int,
    baselines: bool = False,
) -> SvmReport:
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
      svm.json.
    """
    task = Task.of(run, dataset)
    place: tuple[str, ...] = (task.name,)
    kept = run.store.mended(lambda: _kept(task, place))
    how = Fitting(wanted, draws)
    if kept and wanted not in ("auto", kept.backend):
        place = (task.name, wanted)
        kept = run.store.mended(lambda: _kept(task, place))
    if (
        kept
        and wanted in ("auto", kept.backend)
        and kept.kind == RbfSvm.kind
        and draws in (0, kept.draws)
        and (kept.baselines or not baselines)
    ):
        return kept
    fitted = len(dataset.y_train) + task.refitted * len(dataset.y_validation)
    check_svm_memory(dataset.classes, fitted)
    how = dataclasses.replace(how, backend=choose_backend(wanted, start_jax()))
    model = task.model
    result = task.test(
        lambda images: model.batches("features", images),
        model.feature_count,
        "svm",
        how=how,
        tuned=task.tune(how),
    )
    return write_report(
        run.store,
        SvmReport,
        {
            "pipeline_sha256": result.fit.svm.to_bytes(),
            "predictions_sha256": array_bytes(result.predictions),
        },
        place,
        **vars(result.record()),
        model_sha256=task.model_sha256,
        data=dataset.fingerprint,
        dataset=task.name,
        folder="/".join(place),
        draws=draws,
        baselines=task.test_baselines(how=how) if baselines else {},
        test_sha256=dataset.test_sha256,
        looks=run.store.looks_to_keep(dataset.test_sha256),
    )


def _kept(task: Task, place: tuple[str, ...]) -> SvmReport | None:
    """The SVM at a place, see `read_report`; None if it is another network's or dataset's."""
    wanted = task.model_sha256, task.dataset.fingerprint
    return read_report(
        task.run.store, SvmReport, lambda kept: (kept.model_sha256, kept.data) == wanted, place
    )


def describe_svm(run: Run, report: SvmReport) -> list[str]:
    """The run's svm.json in lines, and all evaluations of the test set."""
    evaluation = Evaluation.of(report)
    low, high = evaluation.confidence_interval()
    stages = ", ".join(
        f"{printable(stage)} {value:.1f} s" for stage, value in report.seconds.items()
    )
    lines = [
        f"SVM on the flatten features of {printable(report.dataset)} (scaler, PCA to"
        f" {report.components}, {printable(report.description)};"
        f" {printable(report.backend)})",
        f"Seconds: {stages}",
        f"Test accuracy: {evaluation.accuracy:.4f} on {evaluation.images} images (95 % interval"
        f" {low:.4f} to {high:.4f})",
        *beside_constant(evaluation),
        describe_looks(run.store.read_looks(report.test_sha256), run.store.name),
    ]
    if report.search:
        lines.append(f"These parameters are the best of {len(report.search)} on validation:")
    for tried in report.search[:3]:
        values = ", ".join(
            f"{printable(name)} = {value:.3g}"
            for name, value in tried.items()
            if name != "val_accuracy"
        )
        lines.append(f"  {values}: validation accuracy {tried.get('val_accuracy', 0):.4f}")
    for name, baseline in report.baselines.items():
        low, high = baseline.confidence_interval
        lines.append(
            f"The same SVM on {printable(name)}: {baseline.accuracy:.4f} (95 % interval"
            f" {low:.4f} to {high:.4f})"
        )
    file = f"svm/{printable(report.folder)}/svm.json"
    return [*lines, "", *describe_classes(evaluation, file)]
