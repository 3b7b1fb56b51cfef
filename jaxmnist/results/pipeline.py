"""Scaler → PCA → support vector machine, stored as arrays; it predicts with NumPy alone.

Loading its file runs no code from it and doesn't need the library that fitted it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors.numpy import save as save_tensors

from jaxmnist.errors import local_path, wrong
from jaxmnist.files import (
    DamagedFile,
    as_json,
    content_sha256,
    read_tensors,
    record_of,
    tensors_sha256,
)
from jaxmnist.machine import cores

# --- A support vector machine with an RBF kernel: fitted by a library, stored as arrays ---

C = 5.0  # the default, used unless C is searched for
BLOCK = 1024  # rows for which the kernel is computed at a time
MOST_APART = 32  # classes whose pairs are fitted apart; with more, starting each costs too much
MOST_DECISIONS = 2**24  # numbers held for the decisions of a block of rows


def choose_backend(wanted: str, platform: str) -> str:
    """The library that fits the SVM: 'sklearn' or 'cuml'.

    Args:
      wanted: one of these, or 'auto': cuML on a GPU where it is installed, else scikit-learn.
      platform: 'cpu', 'gpu' or 'tpu'.

    Raises:
      UsageError: `wanted` isn't installed; the message names the command that installs it.
    """
    if wanted == "auto":
        return "cuml" if platform == "gpu" and find_spec("cuml") else "sklearn"
    try:
        classifier(wanted)
    except ImportError as error:
        if find_spec(wanted):
            raise wrong("svm_backend", f"{wanted} can't be imported: {error}") from None
        how = "pip install cuml-cu12 (RAPIDS, for a CUDA GPU)"
        raise wrong("svm_backend", f"{wanted} is not installed: {how}") from None
    return wanted


def classifier(backend: str) -> Callable[..., Any]:
    """The SVC class of a backend, with scikit-learn's parameters C and gamma."""
    # Only the backend that is used has to be installed, and each takes seconds to import.
    if backend == "cuml":
        # One classifier for each pair of classes, as scikit-learn trains; cuML's default differs.
        from cuml.svm import SVC as CumlSVC

        return partial(CumlSVC, decision_function_shape="ovo")
    from sklearn.svm import SVC

    found: Callable[..., Any] = SVC
    return found


@dataclass(frozen=True)
class RbfSvm:
    """A fitted SVC with an RBF kernel, as arrays; it predicts with NumPy alone.

    vectors: float32[V, P], the support vectors, ordered by class.
    counts: int32[K], the number of support vectors of each class.
    dual: float64[K − 1, V], the dual coefficients in libsvm's layout.
    intercept: float64[K (K − 1) / 2].
    labels: int64[K].
    gamma: coefficient of the kernel; c: the penalty C.
    """

    vectors: np.ndarray
    counts: np.ndarray
    dual: np.ndarray
    intercept: np.ndarray
    labels: np.ndarray
    gamma: float
    c: float
    kind: ClassVar[str] = "rbf"
    arrays: ClassVar[dict[str, Any]] = {
        "vectors": np.float32,
        "counts": np.int32,
        "dual": np.float64,
        "intercept": np.float64,
        "labels": np.int64,
    }

    @staticmethod
    def default(x: np.ndarray) -> dict[str, float]:
        """The C and gamma used without a search: 5, and scikit-learn's 'scale'."""
        variance = float(x.var(dtype=np.float64))
        return {"C": C, "gamma": 1 / (x.shape[1] * variance) if variance else 1.0}

    @staticmethod
    def space(default: dict[str, float]) -> dict[str, Any]:
        """The distributions of a search: C from 0.5 to 50, gamma from 1/10 to 10 times default."""
        # Imported here: scipy.stats takes half a second to import, which would delay trials.
        from scipy.stats import loguniform

        gamma = default["gamma"]
        return {"C": loguniform(0.5, 50), "gamma": loguniform(gamma / 10, gamma * 10)}

    @staticmethod
    def largest_size(classes: int, rows: int) -> int:
        """The bytes that fitting may take: four copies of `dual`, every row being a vector."""
        return 4 * 8 * (classes - 1) * rows

    @staticmethod
    def estimator(backend: str, **parameters: float) -> Any:
        """The library's unfitted classifier with these parameters."""
        return classifier(backend)(kernel="rbf", **parameters)

    @classmethod
    def fit(
        cls, x: np.ndarray, y: np.ndarray, backend: str, parameters: dict[str, float]
    ) -> RbfSvm:
        """Fit on features float32[N, P] and labels int64[N]."""
        if backend == "cuml":
            arrays = one_against_one(classifier(backend), x, y, parameters)
        elif 2 < len(np.unique(y)) <= MOST_APART:
            arrays = one_against_one(classifier(backend), x, y, parameters, jobs=cores())
        else:
            arrays = libsvm_arrays(cls.estimator(backend, **parameters).fit(x, y))
        return cls(**arrays, gamma=parameters["gamma"], c=parameters["C"])

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Labels of features float32[N, P]: int64[N].

        Each pair of classes votes; the first of the classes with equal votes wins. This is
        libsvm's rule: Chang and Lin, 'LIBSVM: a library for support vector machines', 2011.
        """
        classes = len(self.labels)
        rows = min(BLOCK, max(1, MOST_DECISIONS // classes**2))
        return np.concatenate(
            [self.labels[self._votes(x[i : i + rows]).argmax(1)] for i in range(0, len(x), rows)]
            or [self.labels[:0]]
        )

    def _votes(self, x: np.ndarray) -> np.ndarray:
        """The number of pairs that each class wins: float[N, P] → int64[N, K]."""
        x, vectors = x.astype(np.float64), self.vectors.astype(np.float64)
        squares = (vectors**2).sum(1)[:, None] + (x**2).sum(1) - 2 * (vectors @ x.T)
        kernel = np.exp(-self.gamma * squares)
        classes, ends = len(self.labels), np.cumsum(self.counts)
        # A class's part in the decisions between it and each of the others: [K, K − 1, N].
        parts = np.empty((classes, classes - 1, len(x)))
        for k, (end, count) in enumerate(zip(ends, self.counts, strict=True)):
            own = slice(end - count, end)
            np.matmul(self.dual[:, own], kernel[own], out=parts[k])
        votes = np.zeros((classes, len(x)), np.int64)
        pair = 0
        for i in range(classes - 1):
            others = classes - 1 - i  # the pairs of class i and each later one
            decisions = parts[i, i:] + parts[i + 1 :, i]
            first = decisions + self.intercept[pair : pair + others, None] > 0
            votes[i] += first.sum(0)
            votes[i + 1 :] += ~first
            pair += others
        return votes.T

    def fits(self, components: int) -> bool:
        """Whether the shapes of the arrays agree, and match features of `components` columns."""
        if self.labels.ndim != 1 or self.vectors.ndim != 2:
            return False
        classes, vectors = len(self.labels), len(self.vectors)
        return (
            classes >= 2
            and self.dual.shape == (classes - 1, vectors)
            and self.counts.shape == (classes,)
            and bool(self.counts.min() >= 0)
            and int(self.counts.sum(dtype=np.int64)) == vectors
            and self.intercept.shape == (classes * (classes - 1) // 2,)
            and self.vectors.shape == (vectors, components)
        )

    def described(self) -> dict[str, Any]:
        """The fields of `SvmFit` that describe the SVM."""
        return {
            "kind": self.kind,
            "description": self.describe(),
            "C": self.c,
            "gamma": self.gamma,
            "support_vectors": len(self.vectors),
        }

    def describe(self) -> str:
        """The kernel, its parameters and the number of support vectors, as text."""
        return (
            f"RBF kernel with C = {self.c:.3g} and gamma = {self.gamma:.3g},"
            f" {len(self.vectors):,} support vectors"
        )


def libsvm_arrays(svc: Any) -> dict[str, np.ndarray]:
    """Support vectors and coefficients of a fitted SVC, in libsvm's layout."""
    dual, intercept = np.asarray(svc.dual_coef_), np.asarray(svc.intercept_)
    if len(svc.classes_) == 2:
        # With two classes scikit-learn flips the signs: the second class is positive.
        dual, intercept = -dual, -intercept
    return {
        "vectors": np.asarray(svc.support_vectors_, np.float32),
        "counts": np.asarray(svc.n_support_, np.int32),
        "dual": np.asarray(dual, np.float64),
        "intercept": np.asarray(intercept, np.float64).reshape(-1),
        "labels": np.asarray(svc.classes_, np.int64),
    }


def one_against_one(
    make: Callable[..., Any],
    x: np.ndarray,
    y: np.ndarray,
    parameters: dict[str, float],
    jobs: int = 1,
) -> dict[str, np.ndarray]:
    """One classifier for each pair of classes, in libsvm's layout.

    libsvm trains the same classifiers, one after another. This serves libraries that expose the
    support vectors of two-class problems only, and machines with several cores.

    Args:
      make: returns an SVC for two classes with `support_`, `dual_coef_` and `intercept_`.
      x: float32[N, P].
      y: labels int64[N].
      parameters: C and gamma.
      jobs: number of pairs to train at once, in threads; it changes nothing else.

    Returns:
      vectors, counts, dual, intercept and labels, as in `RbfSvm`.
    """
    # Imported here: it takes a tenth of a second.
    from joblib import Parallel, delayed

    labels, classes = np.unique(y, return_inverse=True)
    pairs = list(combinations(range(len(labels)), 2))
    members = [np.flatnonzero(classes == k) for k in range(len(labels))]

    def fit(i: int, j: int) -> tuple[np.ndarray, np.ndarray, float]:
        """The support vectors of a pair, by row, their coefficients, and the intercept."""
        rows = np.sort(np.concatenate([members[i], members[j]]))
        svc = make(kernel="rbf", **parameters).fit(x[rows], classes[rows])
        # scikit-learn's decision is positive for the second class, libsvm's for the first.
        coefficients = -np.asarray(svc.dual_coef_, np.float64).reshape(-1)
        intercept = -float(np.asarray(svc.intercept_).reshape(-1)[0])
        return rows[np.asarray(svc.support_, np.int64)], coefficients, intercept

    dual = np.zeros((len(labels) - 1, len(x)))
    # libsvm's own code runs without Python's lock.
    fitted = Parallel(n_jobs=jobs, prefer="threads")(delayed(fit)(i, j) for i, j in pairs)
    for (i, j), (support, coefficients, _) in zip(pairs, fitted, strict=True):
        dual[np.where(classes[support] == i, j - 1, i), support] = coefficients
    used = np.flatnonzero(dual.any(0))
    used = used[np.argsort(classes[used], kind="stable")]
    return {
        "vectors": x[used],
        "counts": np.bincount(classes[used], minlength=len(labels)).astype(np.int32),
        "dual": dual[:, used],
        "intercept": np.array([intercept for _, _, intercept in fitted]),
        "labels": labels.astype(np.int64),
    }


# --- The pipeline: scaler, PCA and SVM ---

SVM_METADATA = "svm"  # the metadata key for everything that isn't an array


@dataclass(frozen=True)
class Projection:
    """Scales features and projects them onto principal components.

    scaler_mean, scaler_scale: float32[D].
    pca_mean: float32[D]; pca_components: float32[P, D].
    """

    scaler_mean: np.ndarray
    scaler_scale: np.ndarray
    pca_mean: np.ndarray
    pca_components: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """float32[N, D] → float32[N, P]."""
        scaled = (features - self.scaler_mean) / self.scaler_scale
        projected: np.ndarray = (scaled - self.pca_mean) @ self.pca_components.T
        return projected

    def fits(self) -> bool:
        """Whether the shapes of the arrays agree."""
        if self.pca_components.ndim != 2:
            return False
        width = (self.pca_components.shape[1],)
        return self.scaler_mean.shape == self.scaler_scale.shape == self.pca_mean.shape == width


PROJECTION = ("scaler_mean", "scaler_scale", "pca_mean", "pca_components")


@dataclass(frozen=True)
class PipelineRecord:
    """What the file of a pipeline has beside its arrays.

    kind: `RbfSvm.kind`. gamma, c: see `RbfSvm`. content_sha256: of arrays and the other fields.
    """

    kind: str
    gamma: float
    c: float
    content_sha256: str = ""

    def __post_init__(self) -> None:
        if self.kind != RbfSvm.kind:
            raise ValueError("an unknown SVM")


@dataclass(frozen=True)
class SvmPipeline:
    """A fitted scaler → PCA → SVM, which predicts with NumPy alone.

    >>> svm = SvmPipeline.load(directory / "svm" / "small" / "pipeline.safetensors")
    >>> svm.predict(model.features(images)).shape
    (5,)
    """

    project: Projection
    classifier: RbfSvm

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Labels of features float32[N, D]: int64[N]."""
        return self.classifier.predict(self.project(features))

    def described(self) -> dict[str, Any]:
        """The fields of `SvmFit` that describe the pipeline."""
        return {**self.classifier.described(), "components": len(self.project.pca_components)}

    def to_bytes(self) -> bytes:
        """The pipeline as a safetensors file that contains the SHA-256 of its content."""
        svm = self.classifier
        arrays = {name: np.ascontiguousarray(getattr(self.project, name)) for name in PROJECTION}
        arrays |= {name: np.ascontiguousarray(getattr(svm, name)) for name in svm.arrays}
        record = PipelineRecord(svm.kind, svm.gamma, svm.c)
        record = replace(record, content_sha256=_sha256(arrays, record))
        return save_tensors(arrays, {SVM_METADATA: json.dumps(as_json(record))})

    @classmethod
    def load(cls, path: Path) -> SvmPipeline:
        """Load a file with the content of `to_bytes`.

        Raises `DamagedFile` if its content isn't what `to_bytes` returned.
        """
        path = Path(local_path(path))
        arrays, content = read_tensors(path, SVM_METADATA)
        problem = "is not a file of jaxmnist's SVM"
        record = record_of(path, content, PipelineRecord, problem)
        dtypes = {name: np.dtype(np.float32) for name in PROJECTION}
        dtypes |= {name: np.dtype(dtype) for name, dtype in RbfSvm.arrays.items()}
        if {name: array.dtype for name, array in arrays.items()} != dtypes:
            raise DamagedFile(path, problem)
        if record.content_sha256 != _sha256(arrays, record):
            raise DamagedFile(path, "its content does not match its SHA-256")
        project = Projection(**{name: arrays.pop(name) for name in PROJECTION})
        fields: dict[str, Any] = arrays
        svm = cls(project, RbfSvm(**fields, gamma=record.gamma, c=record.c))
        if not project.fits() or not svm.classifier.fits(len(project.pca_components)):
            raise DamagedFile(path, problem)
        return svm


def _sha256(arrays: dict[str, np.ndarray], record: PipelineRecord) -> str:
    content = as_json(record)
    del content["content_sha256"]
    return content_sha256([tensors_sha256(arrays), content])
