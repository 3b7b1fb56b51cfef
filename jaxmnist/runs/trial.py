"""The record of a trial, as trial.json keeps it, and its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.runs.layers import Layer, count_parameters
from jaxmnist.whole_files import fits

STATUSES = ("running", "completed", "failed")


@dataclass(frozen=True)
class Metrics:
    """One epoch of a trial: mean cross-entropy and accuracy over training and validation images."""

    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float

    @property
    def finite(self) -> bool:
        """Whether both losses are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.val_loss)


METRICS = tuple(item.name for item in fields(Metrics))
# A trial's epochs, oldest first: the one shape that a history has from the engine to the page.
History = tuple[Metrics, ...]
TRIAL_SHAPE = {
    "index": int,
    "hyperparameters": dict,
    "status": set(STATUSES),
    "history": {key: list for key in METRICS},
    "parameters": int,
    "layers": list,
    "seconds": float,
    "attempts": int,
    "failures": int,
    "deaths": int,
    "error": None,
    "weights_sha256": None,
    "validation_sha256": None,
    "validation_data_sha256": None,
}
HASHES = ("weights_sha256", "validation_sha256", "validation_data_sha256")


def history_to_json(history: Sequence[Metrics]) -> dict[str, list[float | None]]:
    """A list for each metric; what is not finite is null."""
    return {
        key: [value if math.isfinite(value := getattr(epoch, key)) else None for epoch in history]
        for key in METRICS
    }


def history_from_json(content: Mapping[str, Sequence[float | None]]) -> History:
    """The history of `history_to_json`; ValueError if it is none."""
    columns = [content[key] for key in METRICS]
    if len({len(column) for column in columns}) != 1:
        raise ValueError("metrics of unequal length")
    if not fits([x for column in columns for x in column if x is not None], [float]):
        raise ValueError("a history that isn't numbers")
    return tuple(
        Metrics(*(math.nan if x is None else float(x) for x in row))
        for row in zip(*columns, strict=True)
    )


def pack_right(right: np.ndarray) -> bytes:
    """Which of N images are right, bool[N], a bit each: (N + 7) // 8 bytes."""
    return np.packbits(right).tobytes()


def unpack_right(packed: bytes, images: int) -> np.ndarray:
    """The bool[images] of `pack_right`."""
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=images).astype(bool)


def agree(history: History, validation: Sequence[bytes], images: int) -> bool:
    """Whether the bits of each epoch, of `images` images, are those of its validation accuracy."""
    if len(history) != len(validation):
        return False
    for epoch, packed in zip(history, validation, strict=True):
        if len(packed) != -(-images // 8):
            return False
        accuracy = int(unpack_right(packed, images).sum()) / images
        if math.isfinite(epoch.val_accuracy) and accuracy != epoch.val_accuracy:
            return False
    return True


@dataclass(frozen=True)
class Trial:
    """The record of a trial.

    history: its epochs; NaN where a metric is not finite.
    layers: the layer table of its network.
    seconds: wall time of the trial.
    attempts: how often it was begun, written down before it is; less those that were stopped.
    failures: how often an exception ended it; none where it failed by diverging.
    deaths: in how many attempts since its last checkpoint the process ended without a word.
    weights_sha256: of the safetensors file, wherever it is kept.
    validation_sha256: of validation.npy: which validation images were right after each epoch.
    validation_data_sha256: of these images and their labels.
    """

    index: int
    hyperparameters: Hyperparameters
    status: str
    history: History
    layers: tuple[Layer, ...]
    seconds: float = 0.0
    attempts: int = 1
    error: str | None = None
    weights_sha256: str | None = None
    failures: int = 0
    deaths: int = 0
    validation_sha256: str | None = None
    validation_data_sha256: str | None = None

    @property
    def score(self) -> float | None:
        """The validation accuracy of the last epoch; None unless the trial completed."""
        return self.history[-1].val_accuracy if self.status == "completed" else None

    @property
    def parameters(self) -> int:
        """How many numbers its network learns."""
        return count_parameters(self.layers)

    def metric(self, name: str) -> list[float]:
        """One of the metrics, by epoch."""
        return [getattr(epoch, name) for epoch in self.history]

    def to_json(self) -> dict[str, Any]:
        """The object in trial.json; numbers that are not finite are null."""
        return {
            "index": self.index,
            "hyperparameters": self.hyperparameters.to_json(),
            "status": self.status,
            "history": history_to_json(self.history),
            "score": self.score,
            "seconds": self.seconds,
            "parameters": self.parameters,
            "layers": [layer.to_json() for layer in self.layers],
            "attempts": self.attempts,
            "failures": self.failures,
            "deaths": self.deaths,
            "error": self.error,
            "weights_sha256": self.weights_sha256,
            "validation_sha256": self.validation_sha256,
            "validation_data_sha256": self.validation_data_sha256,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Trial:
        """The trial of `to_json`; ValueError or TypeError if it isn't one."""
        if not fits(content, TRIAL_SHAPE):
            raise ValueError("not a trial")
        history = history_from_json(content["history"])
        possible = bool(history) and all(0 <= epoch.val_accuracy <= 1 for epoch in history)
        if content["status"] == "completed" and not possible:
            raise ValueError("a completed trial without validation accuracies")
        for key in ("error", *HASHES):
            if not isinstance(content[key], str | None):
                raise ValueError(f"{key} is no text")
        trial = cls(
            content["index"],
            Hyperparameters(content["hyperparameters"]),
            content["status"],
            history,
            tuple(Layer.from_json(row) for row in content["layers"]),
            content["seconds"],
            content["attempts"],
            content["error"],
            failures=content["failures"],
            deaths=content["deaths"],
            **{key: content[key] for key in HASHES},
        )
        if trial.parameters != content["parameters"]:
            raise ValueError("parameters that are not those of its layers")
        return trial
