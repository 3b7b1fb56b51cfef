"""Scaler → PCA → support vector machine, stored as arrays; it predicts with NumPy alone.

Loading its file runs no code from it and doesn't need the library that fitted it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_tensors

from jaxmnist.errors import local_path
from jaxmnist.results.rbf import RbfSvm
from jaxmnist.whole_files import DamagedFile, content_sha256, fits, read_tensors, tensors_sha256

SVM_METADATA = "svm"  # the metadata key for everything that isn't an array
SVMS = {svm.kind: svm for svm in (RbfSvm,)}


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

    def to_json(self) -> dict[str, Any]:
        """The fields of svm.json that describe the pipeline."""
        return {**self.classifier.to_json(), "components": len(self.project.pca_components)}

    def to_bytes(self) -> bytes:
        """The pipeline as a safetensors file that contains the SHA-256 of its content."""
        svm = self.classifier
        arrays = {name: np.ascontiguousarray(getattr(self.project, name)) for name in PROJECTION}
        arrays |= {name: np.ascontiguousarray(getattr(svm, name)) for name in svm.arrays}
        said = {"kind": svm.kind, **{name: getattr(svm, name) for name in svm.numbers}}
        said |= {"content_sha256": _sha256(arrays, said)}
        return save_tensors(arrays, {SVM_METADATA: json.dumps(said)})

    @classmethod
    def load(cls, path: Path) -> SvmPipeline:
        """Load a file with the content of `to_bytes`.

        Raises `DamagedFile` if its content isn't what `to_bytes` returned.
        """
        path = Path(local_path(path))
        arrays, said = read_tensors(path, SVM_METADATA)
        if not fits(said, {"kind": set(SVMS), "content_sha256": str}):
            raise DamagedFile(path, "is not a file of jaxmnist's SVM")
        kind = SVMS[said["kind"]]
        dtypes = {name: np.dtype(np.float32) for name in PROJECTION}
        dtypes |= {name: np.dtype(dtype) for name, dtype in kind.arrays.items()}
        found = {name: array.dtype for name, array in arrays.items()}
        if found != dtypes or not fits(said, dict.fromkeys(kind.numbers, float)):
            raise DamagedFile(path, "is not a file of jaxmnist's SVM")
        if said.pop("content_sha256") != _sha256(arrays, said):
            raise DamagedFile(path, "its content does not match its SHA-256")
        project = Projection(**{name: arrays.pop(name) for name in PROJECTION})
        fields: dict[str, Any] = {**arrays, **{name: float(said[name]) for name in kind.numbers}}
        svm = cls(project, kind(**fields))
        if not project.fits() or not svm.classifier.fits(len(project.pca_components)):
            raise DamagedFile(path, "is not a file of jaxmnist's SVM")
        return svm


def _sha256(arrays: dict[str, np.ndarray], said: dict[str, Any]) -> str:
    return content_sha256([tensors_sha256(arrays), said])
