"""A fitted scaler → PCA → support vector machine as arrays, which predicts with NumPy alone.

Its file can't run code, and is read without the library that fitted it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_tensors

from jaxmnist.errors import local_path
from jaxmnist.whole_files import DamagedFile, fits, read_tensors

METADATA = "svm"  # where the file keeps gamma and C
ROWS = 1024  # rows that pass through the kernel at a time


def project(
    features: np.ndarray,
    scaler_mean: np.ndarray,
    scaler_scale: np.ndarray,
    pca_mean: np.ndarray,
    pca_components: np.ndarray,
) -> np.ndarray:
    """Scaled features on their principal components: float32[N, D] → float32[N, P]."""
    return ((features - scaler_mean) / scaler_scale - pca_mean) @ pca_components.T


@dataclass(frozen=True)
class SupportVectors:
    """A fitted scaler → PCA → SVC with an RBF kernel, as arrays; predicts with NumPy alone.

    scaler_mean, scaler_scale: float32[D].
    pca_mean: float32[D]; pca_components: float32[P, D].
    vectors: float32[V, P], those of class 0 first; counts: int32[K], vectors of each class.
    dual: float64[K − 1, V], the coefficients as libsvm lays them out.
    intercept: float64[K (K − 1) / 2].
    labels: int64[K].
    gamma, c: of the kernel and of the penalty.

    >>> svm = SupportVectors.load(directory / "svm" / "small" / "pipeline.safetensors")
    >>> svm.predict(model.features(images)).shape
    (5,)
    """

    scaler_mean: np.ndarray
    scaler_scale: np.ndarray
    pca_mean: np.ndarray
    pca_components: np.ndarray
    vectors: np.ndarray
    counts: np.ndarray
    dual: np.ndarray
    intercept: np.ndarray
    labels: np.ndarray
    gamma: float
    c: float

    def project(self, features: np.ndarray) -> np.ndarray:
        """Principal components of features: float32[N, D] → float32[N, P]."""
        return project(
            features, self.scaler_mean, self.scaler_scale, self.pca_mean, self.pca_components
        )

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Labels of features float32[N, D]: int64[N]."""
        return self.predict_projected(self.project(features))

    def predict_projected(self, x: np.ndarray) -> np.ndarray:
        """Labels of principal components float32[N, P]: int64[N].

        Each pair of classes votes; of equal votes the class that comes first wins. This is
        libsvm's rule: Chang and Lin, 'LIBSVM: a library for support vector machines', 2011.
        """
        return np.concatenate(
            [self.labels[self._votes(x[i : i + ROWS]).argmax(1)] for i in range(0, len(x), ROWS)]
            or [self.labels[:0]]
        )

    def _votes(self, x: np.ndarray) -> np.ndarray:
        """Won pairs of each class: float[N, P] → int64[N, K]."""
        x, vectors = x.astype(np.float64), self.vectors.astype(np.float64)
        squares = (x**2).sum(1)[:, None] + (vectors**2).sum(1) - 2 * (x @ vectors.T)
        kernel = np.exp(-self.gamma * squares)
        classes = len(self.labels)
        ends = np.cumsum(self.counts)
        of = [slice(end - count, end) for end, count in zip(ends, self.counts, strict=True)]
        votes = np.zeros((len(x), classes), np.int64)
        pair = 0
        for i in range(classes):
            for j in range(i + 1, classes):
                decision = kernel[:, of[i]] @ self.dual[j - 1, of[i]]
                decision += kernel[:, of[j]] @ self.dual[i, of[j]]
                first = decision + self.intercept[pair] > 0
                votes[:, i] += first
                votes[:, j] += ~first
                pair += 1
        return votes

    def to_bytes(self) -> bytes:
        """As a safetensors file, with the SHA-256 of what it says."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in DTYPES}
        numbers = {"gamma": self.gamma, "c": self.c}
        metadata = {**numbers, "content_sha256": _content_sha256(arrays, numbers)}
        return save_tensors(arrays, {METADATA: json.dumps(metadata)})

    @classmethod
    def load(cls, path: Path) -> SupportVectors:
        """Read `to_bytes`; it can't run code, and needs no library that fits.

        Raises `DamagedFile` if it isn't what `to_bytes` gave.
        """
        path = Path(local_path(path))
        arrays, metadata = read_tensors(path, METADATA)
        if (
            not fits(metadata, {"gamma": float, "c": float, "content_sha256": str})
            or {name: array.dtype for name, array in arrays.items()} != DTYPES
        ):
            raise DamagedFile(path, "is no file of jaxmnist's SVM")
        gamma, c = float(metadata["gamma"]), float(metadata["c"])
        if metadata["content_sha256"] != _content_sha256(arrays, {"gamma": gamma, "c": c}):
            raise DamagedFile(path, "its content does not match its SHA-256")
        svm = cls(**arrays, gamma=gamma, c=c)
        if not svm._is_consistent():
            raise DamagedFile(path, "is no file of jaxmnist's SVM")
        return svm

    def _is_consistent(self) -> bool:
        """Whether the arrays fit together, so that predicting can't fail."""
        if self.labels.ndim != 1 or self.vectors.ndim != 2 or self.pca_components.ndim != 2:
            return False
        classes, vectors = len(self.labels), len(self.vectors)
        components, width = self.pca_components.shape
        return (
            classes >= 2
            and self.dual.shape == (classes - 1, vectors)
            and self.counts.shape == (classes,)
            and bool(self.counts.min() >= 0)
            and int(self.counts.sum(dtype=np.int64)) == vectors
            and self.intercept.shape == (classes * (classes - 1) // 2,)
            and self.vectors.shape == (vectors, components)
            and self.scaler_mean.shape == self.scaler_scale.shape == self.pca_mean.shape == (width,)
        )


DTYPES = {
    "scaler_mean": np.dtype(np.float32),
    "scaler_scale": np.dtype(np.float32),
    "pca_mean": np.dtype(np.float32),
    "pca_components": np.dtype(np.float32),
    "vectors": np.dtype(np.float32),
    "counts": np.dtype(np.int32),
    "dual": np.dtype(np.float64),
    "intercept": np.dtype(np.float64),
    "labels": np.dtype(np.int64),
}


def _content_sha256(arrays: dict[str, np.ndarray], numbers: dict[str, float]) -> str:
    digest = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(repr((name, array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def libsvm_arrays(svc: Any) -> dict[str, np.ndarray]:
    """Support vectors and coefficients of a fitted SVC, in libsvm's layout."""
    dual, intercept = np.asarray(svc.dual_coef_), np.asarray(svc.intercept_)
    if len(svc.classes_) == 2:
        # scikit-learn turns the sign where there are two classes: the second is positive.
        dual, intercept = -dual, -intercept
    return {
        "vectors": np.asarray(svc.support_vectors_, np.float32),
        "counts": np.asarray(svc.n_support_, np.int32),
        "dual": np.asarray(dual, np.float64),
        "intercept": np.asarray(intercept, np.float64).reshape(-1),
        "labels": np.asarray(svc.classes_, np.int64),
    }


def one_against_one(
    make: Callable[..., Any], x: np.ndarray, y: np.ndarray, parameters: dict[str, float]
) -> dict[str, np.ndarray]:
    """One classifier for each pair of classes, in libsvm's layout.

    This is what libsvm trains. It serves libraries that give away the support vectors of two
    classes only.

    Args:
      make: an SVC of two classes with `support_`, `dual_coef_` and `intercept_`.
      x: float32[N, P].
      y: labels int64[N].
      parameters: C and gamma.

    Returns:
      vectors, counts, dual, intercept and labels, as in `SupportVectors`.
    """
    labels, classes = np.unique(y, return_inverse=True)
    dual = np.zeros((len(labels) - 1, len(x)))
    intercept = []
    for i in range(len(labels)):
        for j in range(i + 1, len(labels)):
            rows = np.flatnonzero((classes == i) | (classes == j))
            svc = make(kernel="rbf", **parameters).fit(x[rows], classes[rows])
            support = rows[np.asarray(svc.support_, np.int64)]
            # scikit-learn's decision is positive for the second class, libsvm's for the first.
            coefficients = -np.asarray(svc.dual_coef_, np.float64).reshape(-1)
            dual[np.where(classes[support] == i, j - 1, i), support] = coefficients
            intercept.append(-float(np.asarray(svc.intercept_).reshape(-1)[0]))
    used = np.flatnonzero(dual.any(0))
    used = used[np.argsort(classes[used], kind="stable")]
    return {
        "vectors": x[used],
        "counts": np.bincount(classes[used], minlength=len(labels)).astype(np.int32),
        "dual": dual[:, used],
        "intercept": np.array(intercept),
        "labels": labels.astype(np.int64),
    }
