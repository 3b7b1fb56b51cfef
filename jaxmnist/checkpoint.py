"""A running trial as named arrays and JSON, so that it can go on after a restart."""

from __future__ import annotations

from dataclasses import astuple, fields
from typing import Any

import jax
import numpy as np

from jaxmnist.atomic import fits
from jaxmnist.config import Hyperparameters, TrainingSettings
from jaxmnist.events import Checkpoint, Metrics
from jaxmnist.model import parameter_shapes
from jaxmnist.training import TrainingState, start_training

METRIC = tuple(float for _ in fields(Metrics))
SHAPE = {"index": int, "epoch": int, "step": int, "history": [METRIC], "seconds": float}


def to_arrays(checkpoint: Checkpoint) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a checkpoint by name, and what else there is to it."""
    content = {
        "index": checkpoint.index,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "history": [list(astuple(metrics)) for metrics in checkpoint.history],
        "seconds": checkpoint.seconds,
    }
    return {name: np.asarray(array) for name, array in _named(checkpoint.state)}, content


def from_arrays(
    arrays: dict[str, np.ndarray],
    content: dict[str, Any],
    index: int,
    hyperparameters: Hyperparameters,
    image_shape: tuple[int, int, int],
    classes: int,
    settings: TrainingSettings,
) -> Checkpoint:
    """The checkpoint of `to_arrays`; ValueError if it isn't one of this trial and these settings.

    Another version of Optax may keep other moments: that is such an error too.
    """
    if not fits(content, SHAPE) or content["index"] != index:
        raise ValueError("another trial's")
    epoch, step, history = content["epoch"], content["step"], content["history"]
    if not (0 <= epoch < settings.epochs and step >= 0 and len(history) == epoch):
        raise ValueError("epochs that can't be right")
    shapes = parameter_shapes(hyperparameters, image_shape, classes)
    empty = {
        layer: {name: np.zeros(shape, np.float32) for name, shape in parts.items()}
        for layer, parts in shapes.items()
    }
    template = start_training(empty, settings)
    found = []
    for name, wanted in _named(template):
        array = arrays.get(name)
        if array is None or (array.shape, array.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(f"no {name} of this configuration")
        found.append(array)
    state = jax.tree.unflatten(jax.tree.structure(template), found)
    assert isinstance(state, TrainingState)
    metrics = tuple(Metrics(*epoch) for epoch in history)
    return Checkpoint(index, state, epoch, step, metrics, content["seconds"])


def _named(state: TrainingState) -> list[tuple[str, Any]]:
    """The arrays of a state in their order, each with its place: '.parameters['dense']['bias']'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path), array) for path, array in leaves]
