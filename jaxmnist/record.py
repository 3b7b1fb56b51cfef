"""The record of a trial, as trial.json keeps it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jaxmnist.atomic import fits
from jaxmnist.config import Hyperparameters

METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")
STATUSES = ("running", "completed", "failed")
SHAPE = {
    "index": int,
    "hyperparameters": dict,
    "status": set(STATUSES),
    "history": {key: list for key in METRICS},
    "parameters": int,
    "seconds": float,
    "attempts": int,
    "error": None,
    "weights_sha256": None,
}


@dataclass(frozen=True)
class Trial:
    """The record of a trial.

    history: a list for each of loss, accuracy, val_loss and val_accuracy; NaN where not finite.
    seconds: wall time of the trial.
    attempts: how often it was begun, written down before it is; less those that were stopped.
    failures: how often an exception ended it; none where it failed by diverging.
    deaths: in how many attempts since its last checkpoint the process ended without a word.
    weights_sha256: of the safetensors file, wherever it is kept.
    """

    index: int
    hyperparameters: Hyperparameters
    status: str
    history: dict[str, list[float]]
    parameters: int
    seconds: float = 0.0
    attempts: int = 1
    error: str | None = None
    weights_sha256: str | None = None
    failures: int = 0
    deaths: int = 0

    @property
    def score(self) -> float | None:
        """The validation accuracy of the last epoch; None unless the trial completed."""
        return self.history["val_accuracy"][-1] if self.status == "completed" else None

    def to_json(self) -> dict[str, Any]:
        """The object in trial.json; numbers that are not finite are null."""
        history = {key: [_finite(x) for x in values] for key, values in self.history.items()}
        return {
            "index": self.index,
            "hyperparameters": self.hyperparameters.to_json(),
            "status": self.status,
            "history": history,
            "score": self.score,
            "seconds": self.seconds,
            "parameters": self.parameters,
            "attempts": self.attempts,
            "failures": self.failures,
            "deaths": self.deaths,
            "error": self.error,
            "weights_sha256": self.weights_sha256,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Trial:
        """The trial of `to_json`; ValueError or TypeError if it isn't one."""
        if not fits(content, SHAPE):
            raise ValueError("not a trial")
        history = {
            key: [math.nan if x is None else x for x in content["history"][key]] for key in METRICS
        }
        if not fits([x for values in history.values() for x in values if x == x], [float]):
            raise ValueError("a history that isn't numbers")
        if len({len(values) for values in history.values()}) != 1:
            raise ValueError("metrics of unequal length")
        accuracies = history["val_accuracy"]
        possible = bool(accuracies) and all(0 <= accuracy <= 1 for accuracy in accuracies)
        if content["status"] == "completed" and not possible:
            raise ValueError("a completed trial without validation accuracies")
        counted = {key: content.get(key, 0) for key in ("failures", "deaths")}
        if not fits(counted, {str: int}):
            raise ValueError("failures or deaths are no number")
        for key in ("error", "weights_sha256"):
            if not isinstance(content[key], str | None):
                raise ValueError(f"{key} is no text")
        return cls(
            content["index"],
            Hyperparameters(**content["hyperparameters"]),
            content["status"],
            history,
            content["parameters"],
            content["seconds"],
            content["attempts"],
            content["error"],
            content["weights_sha256"],
            **counted,
        )


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
