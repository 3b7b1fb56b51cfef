"""Scaler → PCA → support vector machine on flatten features.

`python -m jaxmnist.svm RUN` fits it on a finished run's features, of its own or of another dataset.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.command import Parser, add_settings, run_command
from jaxmnist.config import SearchSettings, flag
from jaxmnist.data import Dataset, load_dataset
from jaxmnist.errors import UsageError
from jaxmnist.evaluation import Evaluation, judge, winner_predictions
from jaxmnist.model import initial_parameters
from jaxmnist.run import Run
from jaxmnist.store import DamagedFile, array_bytes, read_json, write_bytes, write_json
from jaxmnist.support_vectors import SupportVectors, libsvm_arrays, one_against_one, project
from jaxmnist.trained import TrainedModel

COMPONENTS = 64
C = 5.0
ROWS = 1024  # rows that pass through the scaler at a time

# How to install what a backend needs.
INSTALL = {
    "sklearnex": "pip install scikit-learn-intelex",
    "cuml": "pip install cuml-cu12 (RAPIDS, for a CUDA GPU)",
}


def choose_backend(wanted: str, platform: str) -> str:
    """The library that fits the SVM: 'sklearn', 'sklearnex' or 'cuml'.

    Args:
      wanted: one of these, or 'auto': cuML on a GPU, else scikit-learn-intelex, where installed.
      platform: 'cpu', 'gpu' or 'tpu'.

    Raises:
      UsageError: the one that is wanted isn't installed; names the command that installs it.
    """
    if wanted == "auto":
        if platform == "gpu" and find_spec("cuml"):
            return "cuml"
        return "sklearnex" if find_spec("sklearnex") else "sklearn"
    try:
        classifier(wanted)
    except ImportError as error:
        if find_spec(wanted):
            raise UsageError(f"--svm-backend {wanted} can't be imported: {error}") from None
        raise UsageError(f"--svm-backend {wanted} is not installed: {INSTALL[wanted]}") from None
    return wanted


def classifier(backend: str) -> Callable[..., Any]:
    """The SVC class of a backend, with scikit-learn's parameters C and gamma."""
    if backend == "sklearnex":
        from sklearnex.svm import SVC
    elif backend == "cuml":
        # One classifier for each pair of classes, as scikit-learn trains; cuML's default differs.
        from functools import partial

        from cuml.svm import SVC as CumlSVC

        return partial(CumlSVC, decision_function_shape="ovo")
    else:
        from sklearn.svm import SVC
    return SVC


@dataclass
class Fit:
    """What fitting gave.

    seconds: wall time of each stage, by name.
    search: C, gamma and validation accuracy of each draw of the search, best first.
    """

    svm: SupportVectors
    backend: str
    seconds: dict[str, float] = field(default_factory=dict)
    search: list[dict[str, float]] = field(default_factory=list)


Batches = Callable[[np.ndarray], Iterator[tuple[int, np.ndarray]]]


def fit(
    batches: Batches,
    width: int,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    *,
    backend: str,
    seed: int,
    draws: int = 0,
) -> Fit:
    """Fit scaler, PCA and SVC on training images alone.

    The features are one float32 matrix, which scaler and PCA then work in: beside it only
    blocks of rows are taken, so that memory stays under twice its size.

    Args:
      batches: from images uint8[N, …] to (index of the first, features float32[B, width]).
      width: features of an image, D.
      train: images and labels to fit on.
      validation: images and labels that the search scores its draws on.
      backend: as `choose_backend` gives it.
      seed: of PCA and of the search.
      draws: pairs of C and gamma to try; 0 for C = 5 and scikit-learn's gamma, 'scale'.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    clock = _Clock()
    x = np.empty((len(train[0]), width), np.float32)
    for first, values in batches(train[0]):
        x[first : first + len(values)] = values
    clock.lap("features")
    rows = [slice(first, first + ROWS) for first in range(0, len(x), ROWS)]
    scaler = StandardScaler(copy=False)
    for part in rows:
        scaler.partial_fit(x[part])
    for part in rows:
        x[part] = scaler.transform(x[part])
    clock.lap("scaler")
    pca = PCA(min(COMPONENTS, *x.shape), copy=False, random_state=seed)
    projected = np.ascontiguousarray(pca.fit_transform(x), np.float32)
    del x
    clock.lap("pca")
    projection = {
        "scaler_mean": scaler.mean_.astype(np.float32),
        "scaler_scale": scaler.scale_.astype(np.float32),
        "pca_mean": pca.mean_.astype(np.float32),
        "pca_components": pca.components_.astype(np.float32),
    }
    variance = float(projected.var(dtype=np.float64))
    scale = 1 / (projected.shape[1] * variance) if variance else 1.0
    parameters = {"C": C, "gamma": scale}
    tried: list[dict[str, float]] = []
    make = classifier(backend)
    if draws:
        held_out = np.concatenate(
            [project(values, **projection) for _, values in batches(validation[0])]
        )
        parts = (projected, train[1]), (held_out, validation[1])
        tried = _interruptible(lambda: _search(make, *parts, scale, draws=draws, seed=seed))
        parameters = {"C": tried[0]["C"], "gamma": tried[0]["gamma"]}
        clock.lap("search")

    def fit_vectors() -> dict[str, np.ndarray]:
        if backend == "cuml":
            return one_against_one(make, projected, train[1], parameters)
        return libsvm_arrays(make(kernel="rbf", **parameters).fit(projected, train[1]))

    vectors = _interruptible(fit_vectors)
    clock.lap("svc")
    svm = SupportVectors(**projection, **vectors, gamma=parameters["gamma"], c=parameters["C"])
    return Fit(svm, backend, clock.seconds, tried)


class _Clock:
    """Wall time of stages, one after another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def _interruptible(work: Callable[[], Any]) -> Any:
    """What `work` returns; a signal ends the waiting for it, which libsvm itself never hears."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            with warnings.catch_warnings():
                # It uses all threads, which is what is wanted here.
                warnings.filterwarnings("ignore", "'Threading' parallel backend is not supported")
                result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result()


def _search(
    make: Callable[..., Any],
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    scale: float,
    *,
    draws: int,
    seed: int,
) -> list[dict[str, float]]:
    """C, gamma and validation accuracy of the default pair and of each draw, best first.

    C is log-uniform from 0.5 to 50, gamma from a tenth to ten times `scale`.
    """
    from scipy.stats import loguniform
    from sklearn.model_selection import GridSearchCV, ParameterSampler, PredefinedSplit

    space = {"C": loguniform(0.5, 50), "gamma": loguniform(scale / 10, scale * 10)}
    sampled = ParameterSampler(space, draws, random_state=seed)
    pairs = [{"C": C, "gamma": scale}, *sampled]
    fold = np.repeat([-1, 0], [len(train[0]), len(validation[0])])
    search = GridSearchCV(
        make(kernel="rbf"),
        [{name: [float(value)] for name, value in pair.items()} for pair in pairs],
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


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> dict[str, float]:
    """McNemar's exact test that two classifiers err equally often on the same images.

    Args:
      first_right, second_right: bool[N], which images each classified rightly.

    Returns:
      only_first, only_second: images that only one of them got right; p_value: two-sided,
      binomial. McNemar, 'Note on the sampling error of the difference between correlated
      proportions or percentages', 1947.
    """
    from scipy.stats import binomtest

    only_first = int((first_right & ~second_right).sum())
    only_second = int((~first_right & second_right).sum())
    different = only_first + only_second
    p_value = float(binomtest(only_first, different).pvalue) if different else 1.0
    return {"only_first": only_first, "only_second": only_second, "p_value": p_value}


# --- On a run -----------------------------------------------------------------------------------


def raw_pixels(images: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Pixels from 0 to 1 in place of features, a block of rows at a time."""
    for first in range(0, len(images), ROWS):
        part = images[first : first + ROWS]
        yield first, part.reshape(len(part), -1).astype(np.float32) / 255


def untrained(model: TrainedModel, seed: int, index: int) -> TrainedModel:
    """The network of trial `index` as it was before training."""
    classes = len(model.labels)
    parameters = initial_parameters(
        model.hyperparameters, model.image_shape, classes, seed=seed, index=index
    )
    return dataclasses.replace(model, parameters=parameters)


@dataclass(frozen=True)
class Tested:
    """A fitted SVM with what the test set says of it.

    predictions: classes int64[N] of the test images, 0 to K − 1.
    """

    fit: Fit
    evaluation: Evaluation
    predictions: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """What svm.json says of it."""
        seconds = {stage: round(value, 3) for stage, value in self.fit.seconds.items()}
        return {
            **self.evaluation.to_json(),
            "backend": self.fit.backend,
            "seconds": {**seconds, "total": round(sum(self.fit.seconds.values()), 3)},
            "C": self.fit.svm.c,
            "gamma": self.fit.svm.gamma,
            "components": len(self.fit.svm.pca_components),
            "support_vectors": len(self.fit.svm.vectors),
            "search": self.fit.search,
        }


def fit_and_test(
    batches: Batches, width: int, dataset: Dataset, *, backend: str, seed: int, draws: int
) -> Tested:
    """Fit on the training part of `dataset`, look at its test part once."""
    labels = np.asarray(dataset.labels)
    fitted = fit(
        batches,
        width,
        (dataset.x_train, labels[dataset.y_train]),
        (dataset.x_validation, labels[dataset.y_validation]),
        backend=backend,
        seed=seed,
        draws=draws,
    )
    clock = _Clock()
    projected = np.concatenate(
        [fitted.svm.project(values) for _, values in batches(dataset.x_test)]
    )
    predictions = np.searchsorted(labels, fitted.svm.predict_projected(projected))
    clock.lap("predict")
    fitted.seconds.update(clock.seconds)
    return Tested(fitted, judge(dataset.y_test, predictions, dataset.labels), predictions)


def fit_on_run(
    run: Run, dataset: Dataset, *, wanted: str, draws: int, baselines: bool = False
) -> dict[str, Any]:
    """Fit the SVM on the winner's features of `dataset`, and keep it under svm/.

    What is there already for the same network, data and settings is used again: no new look.

    Args:
      run: a run whose winner is kept.
      dataset: the run's own, or another with images of the same shape.
      wanted: the backend, or 'auto'.
      draws: of the search for C and gamma.
      baselines: fit the same SVM on raw pixels and on the untrained network's features too.

    Returns:
      The content of svm.json.
    """
    import jax

    model, config = run.best_model, run.result("best/config.json")
    if dataset.image_shape != model.image_shape:
        raise UsageError(
            f"{dataset.name}: its images are {dataset.image_shape}; the network of"
            f" {run.directory.path} takes {model.image_shape}"
        )
    own = dataset.fingerprint == run.search["identity"]["data"]
    name = dataset.name
    if not own and name == run.settings.dataset_name:
        name += f"-{dataset.fingerprint[:8]}"  # other images under the run's own name
    folder = run.directory.path / "svm" / name
    kept = _kept(folder, config["model_sha256"], dataset.fingerprint)
    if (
        kept
        and wanted in ("auto", kept["backend"])
        and draws in (0, kept["draws"])
        and (kept["baselines"] or not baselines)
    ):
        return kept
    network = winner_predictions(run) == dataset.y_test if own else None
    backend = choose_backend(wanted, jax.default_backend())

    def tested(batches: Batches, width: int, purpose: str) -> Tested:
        run.directory.write_look(purpose, config["model_sha256"], dataset.fingerprint)
        return fit_and_test(
            batches, width, dataset, backend=backend, seed=run.settings.seed, draws=draws
        )

    result = tested(lambda images: model.batches("features", images), model.feature_count, "svm")
    content = {
        "model_sha256": config["model_sha256"],
        "data": dataset.fingerprint,
        "dataset": name,
        "draws": draws,
        **result.to_json(),
        "baselines": {},
    }
    if network is not None:
        content["network_accuracy"] = float(network.mean())
        content["mcnemar"] = mcnemar(network, result.predictions == dataset.y_test)
    if baselines:
        pixels = tested(raw_pixels, math.prod(dataset.image_shape), "svm on raw pixels")
        before = untrained(model, run.settings.seed, config["trial"])
        features = tested(
            lambda images: before.batches("features", images),
            before.feature_count,
            "svm on the untrained network",
        )
        content["baselines"] = {
            "raw pixels": pixels.to_json(),
            "the untrained network's features": features.to_json(),
        }
    _keep(folder, content, result)
    return content


def _keep(folder: Path, content: dict[str, Any], result: Tested) -> None:
    """Write the pipeline and the predictions, then svm.json, which names the pipeline's hash."""
    pipeline = result.fit.svm.to_bytes()
    write_bytes(folder / "pipeline.safetensors", pipeline)
    write_bytes(folder / "test_predictions.npy", array_bytes(result.predictions))
    content["pipeline_sha256"] = hashlib.sha256(pipeline).hexdigest()
    write_json(folder / "svm.json", content)


def _kept(folder: Path, model_sha256: str, data: str) -> dict[str, Any] | None:
    """What svm.json says, if it is of this network and data and its pipeline is beside it."""
    try:
        content = read_json(folder / "svm.json")
        pipeline = (folder / "pipeline.safetensors").read_bytes()
    except (DamagedFile, OSError):
        return None
    matches = {
        "model_sha256": model_sha256,
        "data": data,
        "pipeline_sha256": hashlib.sha256(pipeline).hexdigest(),
    }
    return content if matches.items() <= content.items() else None


def describe(content: dict[str, Any]) -> str:
    """The SVM's report of svm.json as text."""
    evaluation = Evaluation.from_json(content)
    low, high = content["confidence_interval"]
    stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in content["seconds"].items())
    lines = [
        f"SVM on the flatten features of {content['dataset']} (scaler, PCA to"
        f" {content['components']}, RBF with C = {content['C']:.3g} and gamma ="
        f" {content['gamma']:.3g}; {content['backend']}):"
        f" {content['support_vectors']} support vectors",
        f"Seconds: {stages}",
        f"Test accuracy: {evaluation.accuracy:.4f} on {evaluation.images} images (95 % interval"
        f" {low:.4f} to {high:.4f})",
    ]
    if "mcnemar" in content:
        pairs = content["mcnemar"]
        chance = pairs["p_value"] >= 0.05
        difference = evaluation.accuracy - content["network_accuracy"]
        lines.append(
            f"The network has {content['network_accuracy']:.4f}, so the SVM's difference is"
            f" {difference:+.4f}: {pairs['only_first']} images only the network has right,"
            f" {pairs['only_second']} only the SVM (McNemar's exact test: p ="
            f" {pairs['p_value']:.3g}, {'within' if chance else 'more than'} chance)"
        )
    if content["search"]:
        lines.append(f"C and gamma are the best of {len(content['search'])} pairs on validation:")
    for tried in content["search"][:3]:
        lines.append(
            f"  C = {tried['C']:.3g}, gamma = {tried['gamma']:.3g}: validation accuracy"
            f" {tried['val_accuracy']:.4f}"
        )
    for name, baseline in content["baselines"].items():
        low, high = baseline["confidence_interval"]
        lines.append(
            f"The same SVM on {name}: {baseline['accuracy']:.4f} (95 % interval {low:.4f} to"
            f" {high:.4f})"
        )
    return "\n".join([*lines, "", evaluation.classification_table().rstrip()])


def main(arguments: list[str]) -> None:
    """The command: the SVM on a finished run, on its own data or on another task's."""
    parser = Parser("svm", "Fit the SVM on the features of a run's winner, as it is.")
    parser.add_argument(
        "run", metavar="RUN", help="directory of a finished run, such as runs/mnist"
    )
    names = ("dataset", "data_dir", "train_limit", "validation_split", "svm_backend", "svm_search")
    add_settings(parser, names)
    given = vars(parser.parse_args(arguments))
    run = Run(given.pop("run"))
    own = not given.keys() & {"dataset", "data_dir"}
    for name in ("train_limit", "validation_split"):
        if own and name in given:
            raise UsageError(f"{flag(name)} goes with --dataset or --data-dir")
    settings = SearchSettings(**{"seed": run.settings.seed, **given})
    dataset = run.load_dataset() if own else load_dataset(settings)
    with run.directory.locked():
        content = fit_on_run(
            run,
            dataset,
            wanted=settings.svm_backend,
            draws=settings.svm_search,
            baselines=not own,
        )
    print(describe(content))


if __name__ == "__main__":
    sys.exit(run_command(main))
