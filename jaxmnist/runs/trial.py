"""The record of a trial, as stored in trial.json: its key, metrics, layer table and state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import total_ordering
from typing import ClassVar, Literal

import msgspec
import numpy as np

from jaxmnist.files import NOT_STORED, stored
from jaxmnist.hyperparameters import Hyperparameters

# --- Keys that identify a trial or one of its reruns ---

REFIT = 0  # the number of a refit


@total_ordering
@dataclass(frozen=True)
class Key:
    """Identifies a trial or one of its reruns.

    A rerun trains the trial's configuration with fresh weights and another order of images. Keys
    are sorted by index; a trial precedes its refit and its reruns.

    index: of the trial.
    rerun: None for the trial itself; a number from 1 for a rerun; `REFIT` for the refit, which
      trains on the validation images too.
    """

    index: int
    rerun: int | None = None

    @property
    def refit(self) -> bool:
        """Whether it trains on training and validation images together."""
        return self.rerun == REFIT

    def __lt__(self, other: Key) -> bool:
        return self._place < other._place

    @property
    def _place(self) -> tuple[int, int]:
        return self.index, -1 if self.rerun is None else self.rerun

    def __str__(self) -> str:
        if self.rerun is None:
            return str(self.index)
        return f"{self.index} ({'refit' if self.refit else f'rerun {self.rerun}'})"


# --- The layer table of a network: its rows, as JSON, and as text with Keras' columns ---


@dataclass(frozen=True)
class Layer:
    """A row of the table.

    output_shape: for one image. parameters: the number of parameters of the layer.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int


def count_parameters(layers: Sequence[Layer]) -> int:
    """Return the number of parameters of a network."""
    return sum(layer.parameters for layer in layers)


def summary(layers: Sequence[Layer]) -> str:
    """Return the table as text with totals; all parameters are trainable."""
    cells = [("Layer (type)", "Output Shape", "Param #")]
    for layer in layers:
        shape = ", ".join(str(side) for side in (None, *layer.output_shape))
        cells.append((f"{layer.name} ({layer.kind})", f"({shape})", str(layer.parameters)))
    widths = [max(len(cell[i]) for cell in cells) for i in range(3)]
    lines = [
        "  ".join((a.ljust(widths[0]), b.ljust(widths[1]), c.rjust(widths[2]))) for a, b, c in cells
    ]
    rule = "=" * len(lines[0])
    total = count_parameters(layers)
    size = f"{total} ({_bytes(4 * total)})"
    totals = [
        f"Total params: {size}",
        f"Trainable params: {size}",
        f"Non-trainable params: 0 ({_bytes(0)})",
    ]
    return "\n".join(['Model: "sequential"', lines[0], rule, *lines[1:], rule, *totals])


def _bytes(count: int) -> str:
    """Return `count` bytes in Keras' units, powers of 1024: '3.90 MB'."""
    size, unit = float(count), "Byte"
    for larger in ("KB", "MB", "GB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.2f} {unit}"


# --- The record of a trial, as stored in trial.json, and its metrics ---

Status = Literal["running", "completed", "failed"]


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
    try:
        numbers = msgspec.convert(columns, list[list[float | None]])
    except msgspec.ValidationError:
        raise ValueError("a history that isn't numbers") from None
    return tuple(
        Metrics(*(math.nan if x is None else x for x in row)) for row in zip(*numbers, strict=True)
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
    rerun: the number of a rerun, see `Key`; None for the trial itself.
    computation: what its network computes, if that is a person's own.
    validation: of a completed trial, which validation images were classified correctly, for each
      epoch as `pack_right` packs them; the content of validation.npy, not a field of trial.json.
    """

    DERIVED: ClassVar[tuple[str, ...]] = (
        "score",
        "parameters",
    )  # in trial.json, for other programs

    index: int
    hyperparameters: Hyperparameters
    status: Status
    history: History = field(metadata=stored(history_to_json, history_from_json))
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
    validation: tuple[bytes, ...] = field(default=(), repr=False, metadata=NOT_STORED)

    def __post_init__(self) -> None:
        if self.rerun is not None and self.rerun < REFIT:
            raise ValueError("the number of a rerun is below 0")
        name = "accuracy" if self.rerun == REFIT else "val_accuracy"
        possible = bool(self.history) and all(0 <= value <= 1 for value in self.metric(name))
        if self.status == "completed" and not possible:
            raise ValueError("a completed trial without accuracies")

    @property
    def key(self) -> Key:
        """The key that identifies the trial or rerun."""
        return Key(self.index, self.rerun)

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


# --- The state of a trial according to its record ---

# A process that dies leaves its trials marked as running. It is unknown which trial caused it, so a
# trial counts as failed only after it was running in this many deaths plus the number of retries.
DEATHS = 5


class State(Enum):
    """The state of a trial according to its record, and how the search treats it."""

    FRESH = "has no record: it is trained first"
    INTERRUPTED = "was running when a process died: it is resumed together with the fresh ones"
    RETRY = "was ended by an exception: it is trained again after the fresh and interrupted ones"
    SUSPECT = "was running when several processes died: it is trained last, alone"
    GIVEN_UP = "was running when too many processes died: it has failed"
    FAILED = "diverged, or was ended by exceptions too often: it has failed"
    COMPLETED = "is done"


# The states whose trials are trained together, in order; those of the last set one at a time.
QUEUE = ({State.FRESH, State.INTERRUPTED}, {State.RETRY}, {State.SUSPECT})
DONE = {State.GIVEN_UP, State.FAILED, State.COMPLETED}


def state_of(trial: Trial | None, max_retries: int) -> State:
    """The state of a trial according to its record; the first matching row applies.

    | record                                              | state       |
    | --------------------------------------------------- | ----------- |
    | none                                                | FRESH       |
    | completed                                           | COMPLETED   |
    | deaths of at least DEATHS + max_retries             | GIVEN_UP    |
    | deaths above max_retries                            | SUSPECT     |
    | failures from 1 to max_retries                      | RETRY       |
    | running, failures above max_retries (lowered since) | RETRY       |
    | running, or some deaths (max_retries raised since)  | INTERRUPTED |
    | failed                                              | FAILED      |
    """
    if trial is None:
        return State.FRESH
    if trial.status == "completed":
        return State.COMPLETED
    if trial.deaths >= DEATHS + max_retries:
        return State.GIVEN_UP
    if trial.deaths > max_retries:
        return State.SUSPECT
    if 0 < trial.failures <= max_retries or (trial.failures and trial.status == "running"):
        return State.RETRY
    if trial.status == "running" or trial.deaths:
        return State.INTERRUPTED
    return State.FAILED
