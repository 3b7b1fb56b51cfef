"""The events that the engine yields, and checkpoints as arrays and JSON.

An event's `key` identifies the trial or rerun.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxmnist.engine.lanes import Stacking
from jaxmnist.engine.training import TrainingState, first_state
from jaxmnist.files import as_json, from_json, stored
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import BoundNetwork
from jaxmnist.runs.trial import (
    Computation,
    History,
    Key,
    Metrics,
    agree,
    history_from_json,
    history_to_json,
)
from jaxmnist.settings import TrainingSettings

# --- Events ---


@dataclass(frozen=True)
class TrialStarted:
    """A trial has begun to compile and train.

    history: the epochs finished before an interruption.
    device: what it trains on, see `devices.device_name`.
    node: the name of the machine, or of the cluster's node.
    """

    key: Key
    hyperparameters: Hyperparameters
    history: History = ()
    device: str = ""
    node: str = ""


@dataclass(frozen=True)
class TrialCompiled:
    """A trial's programs are compiled; its first step follows, or the next one if it was resumed.

    epoch: finished epochs. images: images of the next epoch so far.
    seconds: wall time since the trial began.
    computation: what its network computes, if that is a person's own.
    """

    key: Key
    epoch: int = 0
    images: int = 0
    seconds: float = 0.0
    computation: Computation | None = None


@dataclass(frozen=True)
class StepsFinished:
    """The progress of a trial within an epoch, reported about twice a second.

    epoch: counted from 1. images: images of the epoch so far. accuracy: over these images.
    seconds: wall time since the trial began.
    """

    key: Key
    epoch: int
    images: int
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class EpochFinished:
    """A trial has finished an epoch, counted from 1.

    seconds: wall time since the trial began.
    validation: one bit per validation image, 1 if correctly classified: see `trial.pack_right`.
    """

    key: Key
    epoch: int
    metrics: Metrics
    seconds: float
    validation: bytes = b""


@dataclass(frozen=True)
class TrialFinished:
    """A trial has ended.

    history: its epochs, including one that diverged.
    parameters: its weights, a tree of float32 NumPy arrays; None if it failed.
    seconds: wall time, including compilation.
    error: why it failed, or None.
    diverged: whether it failed because its loss stopped being finite; a retry would fail too.
    refused: whether it failed because its network can't be built or traced; so would a retry.
    traceback: of the exception that it failed with; empty if there was none.
    validation: for each epoch, the bits of the correctly classified validation images, all 0 if
      the epoch was not evaluated.
    """

    key: Key
    history: History
    parameters: dict[str, Any] | None
    seconds: float
    error: str | None = None
    diverged: bool = False
    refused: bool = False
    traceback: str = ""
    validation: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class TrialLost:
    """The process that trained a trial has ended without a word, or its node has.

    node: where it ran.
    node_lost: whether the node is lost: then the trial starts again elsewhere from its last
      checkpoint. Otherwise the trial may have ended the process.
    """

    key: Key
    node: str
    node_lost: bool


@dataclass(frozen=True)
class Checkpoint:
    """The state of a trial between two steps, in host memory, from which it can be resumed.

    state: NumPy arrays in the configuration's own shapes; its sums are those of the epoch so far.
    epoch, step: finished epochs, and finished steps of the next one.
    history: the finished epochs.
    seconds: wall time so far; for a group, divided by the number of its trials.
    validation: for each finished epoch, the bits of the correctly classified validation images.
    """

    key: Key
    state: TrainingState
    epoch: int
    step: int
    history: History
    seconds: float
    validation: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class StackingChosen:
    """How the trials of this run share programs."""

    stacking: Stacking


TrialEvent = (
    TrialStarted
    | TrialCompiled
    | StepsFinished
    | EpochFinished
    | TrialFinished
    | TrialLost
    | Checkpoint
)
Event = TrialEvent | StackingChosen


# --- Conversion of checkpoints to and from named arrays and JSON ---

VALIDATION = "validation"  # name of the bits, uint8[epochs, B], of the correctly classified images


@dataclass(frozen=True)
class CheckpointRecord:
    """What the file of a checkpoint has beside its arrays; see `Checkpoint`."""

    index: int
    rerun: int | None
    epoch: int
    step: int
    history: History = field(metadata=stored(history_to_json, history_from_json))
    seconds: float


def to_arrays(checkpoint: Checkpoint) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a checkpoint by name, and its record as JSON."""
    record = CheckpointRecord(
        checkpoint.key.index,
        checkpoint.key.rerun,
        checkpoint.epoch,
        checkpoint.step,
        checkpoint.history,
        checkpoint.seconds,
    )
    # What is the trial's own, and not of its training, is known without a checkpoint.
    state = checkpoint.state._replace(constants={})
    arrays = {name: np.asarray(array) for name, array in _named(state)}
    return {**arrays, VALIDATION: rows(checkpoint.validation)}, as_json(record)


def rows(validation: tuple[bytes, ...]) -> np.ndarray:
    """The packed bits of each epoch as an array uint8[epochs, B]."""
    width = len(validation[0]) if validation else 0
    return np.frombuffer(b"".join(validation), np.uint8).reshape(len(validation), width)


def from_arrays(
    arrays: dict[str, np.ndarray],
    content: dict[str, Any],
    key: Key,
    bound: BoundNetwork,
    images: int,
    settings: TrainingSettings,
) -> Checkpoint:
    """The inverse of `to_arrays`; ValueError if the checkpoint doesn't fit trial and settings.

    A checkpoint from an Optax version with a different optimizer state doesn't fit either.

    images: the number of validation images.
    """
    record = from_json(CheckpointRecord, content)
    if key != Key(record.index, record.rerun):
        raise ValueError("it belongs to another trial")
    epoch, step, history = record.epoch, record.step, record.history
    if not (0 <= epoch < settings.epochs and step >= 0 and len(history) == epoch):
        raise ValueError("its epochs and steps are inconsistent")
    bits = arrays.get(VALIDATION)
    if bits is None or bits.dtype != np.uint8 or bits.ndim != 2:
        raise ValueError("the bits of the validation images are missing")
    validation = tuple(row.tobytes() for row in bits)
    if not agree(history, validation, images):
        raise ValueError("its bits don't match its validation accuracies")
    empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), bound.shapes)
    template = first_state(bound, bound.training(settings), empty)._replace(constants={})
    found = []
    for name, wanted in _named(template):
        array = arrays.get(name)
        if array is None or (array.shape, array.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(f"{name} doesn't fit this configuration")
        found.append(array)
    state = jax.tree.unflatten(jax.tree.structure(template), found)
    assert isinstance(state, TrainingState)
    return Checkpoint(key, state, epoch, step, history, record.seconds, validation)


def _named(state: TrainingState) -> list[tuple[str, Any]]:
    """The arrays of a state in order, each with its path: '.parameters['dense']['bias']'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path), array) for path, array in leaves]
