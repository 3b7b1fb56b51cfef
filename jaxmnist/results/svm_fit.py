"""Fitting scaler → PCA → SVC on features, with scikit-learn, scikit-learn-intelex or cuML."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxmnist.errors import UsageError
from jaxmnist.reading import memory
from jaxmnist.results.pipeline import SVMS, Projection, SvmPipeline
from jaxmnist.results.rbf import RbfSvm

COMPONENTS = 64
SCALER_ROWS = 1024  # rows that are scaled at a time
# Of many features, components are found by power iterations. On 8192 × 4032 features of a network,
# 4 on 64 + 32 directions take 0.79 of the time of scikit-learn's 7 on 64 + 10, and the components
# have slightly more of the variance.
RANDOMIZED = {"n_oversamples": 32, "iterated_power": 4}


@dataclass(frozen=True)
class Fitting:
    """How an SVM is fitted.

    backend: the library, as returned by `rbf.choose_backend`.
    draws: number of draws of its parameters to try; 0 for the default parameters.
    kind: the SVM's name in `pipeline.SVMS`.
    """

    backend: str
    draws: int = 0
    kind: str = "rbf"


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


def check_memory(kind: str, classes: int, images: int) -> None:
    """Raise `UsageError` if fitting on these images may need more than this machine's memory."""
    needed = SVMS[kind].largest_size(classes, images)
    if needed > memory():
        raise UsageError(
            f"an SVM of {classes} classes on {images} images can need {needed / 2**30:.0f} GiB, and"
            f" this machine has {memory() / 2**30:.0f} GiB of memory; take fewer images with"
            " --train-limit, or search with --no-svm"
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
    kind, backend = SVMS[how.kind], how.backend
    tried = tuned.tried if tuned else []
    if how.draws and not tuned:
        tried = _tried(batches, (x, train[1]), validation, project, how=how, seed=seed)
        clock.lap("search")
    parameters = kind.default(x)
    if tried:
        parameters = {name: tried[0][name] for name in parameters}
    fitted = _interruptible(lambda: kind.fit(x, train[1], backend, parameters))
    clock.lap("svc")
    return Fit(SvmPipeline(project, fitted), backend, clock.seconds, tried)


def tune(
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
    kind = SVMS[how.kind]
    held_out = np.concatenate([project(values) for _, values in batches(validation[0])])
    parts, default = (train, (held_out, validation[1])), kind.default(train[0])
    found: list[dict[str, float]] = _interruptible(
        lambda: _search(kind, how.backend, *parts, default, draws=how.draws, seed=seed)
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
    kind: type[RbfSvm],
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

    sampled = ParameterSampler(kind.space(default), draws, random_state=seed)
    fold = np.repeat([-1, 0], [len(train[0]), len(validation[0])])
    search = GridSearchCV(
        kind.estimator(backend),
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
