"""A running trial as named arrays and JSON, so that it can go on after a restart."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxmnist.engine.events import Checkpoint
from jaxmnist.engine.training import TrainingState, start_training
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import DataSpec, Network
from jaxmnist.runs.trial import METRICS, agree, history_from_json, history_to_json
from jaxmnist.settings import TrainingSettings
from jaxmnist.whole_files import fits

CHECKPOINT_SHAPE = {
    "index": int,
    "epoch": int,
    "step": int,
    "history": {key: list for key in METRICS},
    "seconds": float,
}
VALIDATION = "validation"  # which validation images are right, uint8[epochs, B], beside the state


def to_arrays(checkpoint: Checkpoint) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a checkpoint by name, and what else there is to it."""
    content = {
        "index": checkpoint.index,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "history": history_to_json(checkpoint.history),
        "seconds": checkpoint.seconds,
    }
    arrays = {name: np.asarray(array) for name, array in _named(checkpoint.state)}
    return {**arrays, VALIDATION: rows(checkpoint.validation)}, content


def rows(validation: tuple[bytes, ...]) -> np.ndarray:
    """The bits of epochs as uint8[epochs, B]."""
    width = len(validation[0]) if validation else 0
    return np.frombuffer(b"".join(validation), np.uint8).reshape(len(validation), width)


def from_arrays(
    arrays: dict[str, np.ndarray],
    content: dict[str, Any],
    index: int,
    hyperparameters: Hyperparameters,
    network: Network,
    data: DataSpec,
    images: int,
    settings: TrainingSettings,
) -> Checkpoint:
    """The checkpoint of `to_arrays`; ValueError if it isn't one of this trial and these settings.

    images: for validation. Another version of Optax may keep other moments: that is such an error
    too.
    """
    if not fits(content, CHECKPOINT_SHAPE) or content["index"] != index:
        raise ValueError("another trial's")
    epoch, step = content["epoch"], content["step"]
    history = history_from_json(content["history"])
    if not (0 <= epoch < settings.epochs and step >= 0 and len(history) == epoch):
        raise ValueError("epochs that can't be right")
    bits = arrays.get(VALIDATION)
    if bits is None or bits.dtype != np.uint8 or bits.ndim != 2:
        raise ValueError("no bits of the validation images")
    validation = tuple(row.tobytes() for row in bits)
    if not agree(history, validation, images):
        raise ValueError("bits that are not those of its validation accuracies")
    empty = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), network.shapes(hyperparameters, data)
    )
    template = start_training(empty, settings)
    found = []
    for name, wanted in _named(template):
        array = arrays.get(name)
        if array is None or (array.shape, array.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(f"no {name} of this configuration")
        found.append(array)
    state = jax.tree.unflatten(jax.tree.structure(template), found)
    assert isinstance(state, TrainingState)
    return Checkpoint(index, state, epoch, step, history, content["seconds"], validation)


def _named(state: TrainingState) -> list[tuple[str, Any]]:
    """The arrays of a state in their order, each with its place: '.parameters['dense']['bias']'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path), array) for path, array in leaves]
