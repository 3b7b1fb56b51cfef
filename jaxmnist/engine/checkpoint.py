"""Conversion of checkpoints to and from named arrays and JSON, for resuming after a restart."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxmnist.engine.events import Checkpoint
from jaxmnist.engine.training import TrainingState, first_state
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import DataSpec, Network
from jaxmnist.runs.keys import TrialKey, index_of, number_of
from jaxmnist.runs.trial import METRICS, agree, history_from_json, history_to_json
from jaxmnist.training_settings import TrainingSettings
from jaxmnist.whole_files import fits

CHECKPOINT_SHAPE = {
    "index": int,
    "rerun": None,
    "epoch": int,
    "step": int,
    "history": {key: list for key in METRICS},
    "seconds": float,
}
VALIDATION = "validation"  # name of the bits, uint8[epochs, B], of the correctly classified images


def to_arrays(checkpoint: Checkpoint) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a checkpoint by name, and its other values as JSON."""
    content = {
        "index": index_of(checkpoint.index),
        "rerun": number_of(checkpoint.index),
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "history": history_to_json(checkpoint.history),
        "seconds": checkpoint.seconds,
    }
    # What is the trial's own, and not of its training, is known without a checkpoint.
    state = checkpoint.state._replace(constants={})
    arrays = {name: np.asarray(array) for name, array in _named(state)}
    return {**arrays, VALIDATION: rows(checkpoint.validation)}, content


def rows(validation: tuple[bytes, ...]) -> np.ndarray:
    """The packed bits of each epoch as an array uint8[epochs, B]."""
    width = len(validation[0]) if validation else 0
    return np.frombuffer(b"".join(validation), np.uint8).reshape(len(validation), width)


def from_arrays(
    arrays: dict[str, np.ndarray],
    content: dict[str, Any],
    index: TrialKey,
    hyperparameters: Hyperparameters,
    network: Network,
    data: DataSpec,
    images: int,
    settings: TrainingSettings,
) -> Checkpoint:
    """The inverse of `to_arrays`; ValueError if the checkpoint doesn't fit trial and settings.

    A checkpoint from an Optax version with a different optimizer state doesn't fit either.

    images: the number of validation images.
    """
    own = {"index": index_of(index), "rerun": number_of(index)}
    if not fits(content, CHECKPOINT_SHAPE) or any(content[key] != own[key] for key in own):
        raise ValueError("it belongs to another trial")
    epoch, step = content["epoch"], content["step"]
    history = history_from_json(content["history"])
    if not (0 <= epoch < settings.epochs and step >= 0 and len(history) == epoch):
        raise ValueError("its epochs and steps are inconsistent")
    bits = arrays.get(VALIDATION)
    if bits is None or bits.dtype != np.uint8 or bits.ndim != 2:
        raise ValueError("the bits of the validation images are missing")
    validation = tuple(row.tobytes() for row in bits)
    if not agree(history, validation, images):
        raise ValueError("its bits don't match its validation accuracies")
    empty = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), network.shapes(hyperparameters, data)
    )
    template = first_state(network, hyperparameters, data, settings, empty)._replace(constants={})
    found = []
    for name, wanted in _named(template):
        array = arrays.get(name)
        if array is None or (array.shape, array.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(f"{name} doesn't fit this configuration")
        found.append(array)
    state = jax.tree.unflatten(jax.tree.structure(template), found)
    assert isinstance(state, TrainingState)
    return Checkpoint(index, state, epoch, step, history, content["seconds"], validation)


def _named(state: TrainingState) -> list[tuple[str, Any]]:
    """The arrays of a state in order, each with its path: '.parameters['dense']['bias']'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path), array) for path, array in leaves]
