"""The record of a trial, as stored in trial.json, and its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.runs.keys import REFIT, Rerun, TrialKey
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
        """Whether both losses are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.val_loss)


METRICS = tuple(item.name for item in fields(Metrics))
# A trial's epochs, oldest first: the type of a history everywhere from the engine to the page.
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
    "computation": None,
}
HASHES = ("weights_sha256", "validation_sha256", "validation_data_sha256")


def history_to_json(history: Sequence[Metrics]) -> dict[str, list[float | None]]:
    """Return a list for each metric; values that are not finite become null."""
    return {
        key: [value if math.isfinite(value := getattr(epoch, key)) else None for epoch in history]
        for key in METRICS
    }


def history_from_json(content: Mapping[str, Sequence[float | None]]) -> History:
    """Return the history from the object of `history_to_json`; ValueError if it isn't one."""
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
    """Pack which of N images are classified correctly, bool[N], into (N + 7) // 8 bytes."""
    return np.packbits(right).tobytes()


def unpack_right(packed: bytes, images: int) -> np.ndarray:
    """Return the bool[images] that `pack_right` packed."""
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=images).astype(bool)


def agree(history: History, validation: Sequence[bytes], images: int) -> bool:
    """Return whether each epoch's bits, of `images` images, match its validation accuracy."""
    if len(history) != len(validation):
        return False
    for epoch, packed in zip(history, validation, strict=True):
        if len(packed) != -(-images // 8):
            return False
        if not images:  # the accuracy of none isn't a number
            continue
        accuracy = int(unpack_right(packed, images).sum()) / images
        if math.isfinite(epoch.val_accuracy) and accuracy != epoch.val_accuracy:
            return False
    return True


@dataclass(frozen=True)
class Computation:
    """What a network of one's own computes, as SHA-256s that can be compared.

    versions: of JAX and Flax, which write the same computation in other ways.
    initial: of the function that draws initial weights. training: of the gradient, and of the
      network's own optimizer. evaluation: of the outputs in evaluation.
    """

    versions: str
    initial: str
    training: str
    evaluation: str

    def differences(self, other: Computation) -> str:
        """What differs, in words, '' if nothing does; versions must be equal."""
        words = {"initial": "initial weights", "training": "training", "evaluation": "evaluation"}
        found = [say for name, say in words.items() if getattr(self, name) != getattr(other, name)]
        return " and ".join(filter(None, (", ".join(found[:-1]), *found[-1:])))

    def to_json(self) -> dict[str, str]:
        """The object in trial.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Computation | None:
        """The inverse of `to_json`; ValueError for invalid content."""
        if content is None:
            return None
        if not fits(content, {item.name: str for item in fields(cls)}):
            raise ValueError("not what a network computes")
        return cls(**{item.name: content[item.name] for item in fields(cls)})


@dataclass(frozen=True)
class Trial:
    """The record of a trial.

    history: its epochs; NaN where a metric is not finite.
    layers: the layer table of its network.
    seconds: wall time of the trial.
    attempts: number of attempts, recorded before each begins; those that were stopped don't count.
    failures: number of attempts that raised an exception; divergence doesn't count.
    deaths: number of attempts since its last checkpoint during which the process died.
    weights_sha256: SHA-256 of the safetensors file of its weights, wherever that is stored.
    validation_sha256: SHA-256 of validation.npy: which validation images were classified correctly
      after each epoch.
    validation_data_sha256: SHA-256 of the validation images and their labels.
    device, node: what it trains on, and the machine that has it; None in a record without them.
    rerun: the number of a rerun, see `keys.Rerun`; None for the trial itself.
    computation: what its network computes, if that is a person's own.
    validation: of a completed trial, which validation images were classified correctly, for each
      epoch as `pack_right` packs them; the content of validation.npy, not a field of trial.json.
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
    computation: Computation | None = None
    rerun: int | None = None
    device: str | None = None
    node: str | None = None
    validation: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def key(self) -> TrialKey:
        """What names it: its index, or which rerun of it it is."""
        return self.index if self.rerun is None else Rerun(self.index, self.rerun)

    @property
    def score(self) -> float | None:
        """The validation accuracy of the last epoch; None unless the trial completed.

        A refit has none: no image is left for validation.
        """
        scored = self.status == "completed" and self.rerun != REFIT
        return self.history[-1].val_accuracy if scored else None

    @property
    def parameters(self) -> int:
        """The number of parameters of its network."""
        return count_parameters(self.layers)

    def metric(self, name: str) -> list[float]:
        """Return the values of a metric, by epoch."""
        return [getattr(epoch, name) for epoch in self.history]

    def to_json(self) -> dict[str, Any]:
        """Return the object in trial.json; numbers that are not finite become null."""
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
            "computation": self.computation and self.computation.to_json(),
            "rerun": self.rerun,
            "device": self.device,
            "node": self.node,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Trial:
        """Return the trial from the object of `to_json`; ValueError or TypeError if invalid."""
        if not fits(content, TRIAL_SHAPE):
            raise ValueError("not a trial")
        history = history_from_json(content["history"])
        rerun = content.get("rerun")
        if rerun is not None and (not fits(rerun, int) or rerun < 0):
            raise ValueError("rerun is not a number")
        name = "accuracy" if rerun == REFIT else "val_accuracy"
        possible = bool(history) and all(0 <= getattr(epoch, name) <= 1 for epoch in history)
        if content["status"] == "completed" and not possible:
            raise ValueError("a completed trial without accuracies")
        for key in ("error", "device", "node", *HASHES):
            if not isinstance(content.get(key), str | None):
                raise ValueError(f"{key} is not text")
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
            computation=Computation.from_json(content["computation"]),
            rerun=rerun,
            device=content.get("device"),
            node=content.get("node"),
            **{key: content[key] for key in HASHES},
        )
        if trial.parameters != content["parameters"]:
            raise ValueError("parameters that don't match the layers")
        return trial
