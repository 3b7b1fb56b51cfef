"""Fitting scaler → PCA → SVC on features, with scikit-learn, scikit-learn-intelex or cuML."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from jaxmnist.errors import UsageError
from jaxmnist.results.support_vectors import SupportVectors, libsvm_arrays, one_against_one, project

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
      wanted: one of these, or 'auto': cuML on a GPU where it is installed, else scikit-learn. On
        the features of a network scikit-learn-intelex takes longer at every size that was tried
        (experiments/README.md).
      platform: 'cpu', 'gpu' or 'tpu'.

    Raises:
      UsageError: the one that is wanted isn't installed; names the command that installs it.
    """
    if wanted == "auto":
        return "cuml" if platform == "gpu" and find_spec("cuml") else "sklearn"
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
      batches: from images [N, …] to (index of the first, features float32[B, width]).
      width: features of an image, D.
      train: images and labels to fit on.
      validation: images and labels that the search scores its draws on.
      backend: as `choose_backend` gives it.
      seed: of PCA and of the search.
      draws: pairs of C and gamma to try; 0 for C = 5 and scikit-learn's gamma, 'scale'.
    """
    clock = Clock()
    projected, projection = _fit_projection(batches, width, train[0], seed, clock)
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


def _fit_projection(
    batches: Batches, width: int, images: np.ndarray, seed: int, clock: Clock
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scaled features on their principal components float32[N, P], and what gives them."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    x = np.empty((len(images), width), np.float32)
    for first, values in batches(images):
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
    clock.lap("pca")
    return projected, {
        "scaler_mean": scaler.mean_.astype(np.float32),
        "scaler_scale": scaler.scale_.astype(np.float32),
        "pca_mean": pca.mean_.astype(np.float32),
        "pca_components": pca.components_.astype(np.float32),
    }


class Clock:
    """Wall time of stages, one after another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage."""
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
