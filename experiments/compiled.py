"""A search's programs, compiled for a device that isn't there; what its compilers' scripts share.

JAX is imported here: a script sets its environment before it imports this module.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.lanes import Devices, Group, Stacking
from jaxmnist.engine.programs import Builder
from jaxmnist.engine.training import apply
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import block_size, usual_method
from jaxmnist.models.network import STUDY
from jaxmnist.models.space import Space
from jaxmnist.results.trained import BATCH_SIZE
from jaxmnist.runs.trial import Key
from jaxmnist.settings import SearchSettings, TrainingSettings

DRAWS = 10  # trials of the default search


def new_builder(
    dataset: Dataset, settings: TrainingSettings, platform: str, devices: list[jax.Device]
) -> Builder:
    """A builder of programs for devices that aren't there."""
    here = Devices(jax.local_devices()[:1])  # hold the images, whose shapes alone are used
    builder = Builder(STUDY, dataset, settings, 0, platform, here)
    builder.devices = Devices(devices)
    return builder


def default_trials(dataset: Dataset, *, whole: bool) -> list[tuple[Key, Hyperparameters]]:
    """The trials of the default search, or of the whole space, with their keys."""
    space = Space(STUDY.definition, {}, dataset.image_shape, dataset.classes)
    draws = space.draws(SearchSettings().space.seed)
    chosen = list(space.members()) if whole else [next(draws) for _ in range(DRAWS)]
    return [(Key(index), drawn) for index, drawn in enumerate(chosen)]


def programs(groups: list[Group]) -> dict[Group, int]:
    """A group for each program that these need, and the trials that the program trains."""
    served: dict[Any, tuple[Group, int]] = {}
    for group in groups:
        first, trials = served.get(group.program, (group, 0))
        served[group.program] = first, trials + len(group.trials)
    return dict(served.values())


def compile_for(function: Any, arguments: Any, sharding: Any) -> tuple[jax.stages.Compiled, float]:
    """A jitted function compiled for the devices of `sharding`, and the CPU-seconds of compiling.

    arguments: arrays, or shapes with shardings of their own.
    """

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        own = x.sharding if isinstance(x, jax.ShapeDtypeStruct) else None
        return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=own or sharding)

    lowered = function.lower(*jax.tree.map(shape, arguments))
    began = time.process_time()
    compiled = lowered.compile()
    return compiled, time.process_time() - began


def compile_group(
    builder: Builder, group: Group, stacking: Stacking
) -> Iterator[tuple[str, jax.stages.Compiled, float]]:
    """The name, program and CPU-seconds of compiling of a group's training, evaluation, features.

    The features are those of one trained network, which isn't stacked: only without stacking.
    """
    everywhere = builder.devices.everywhere
    train, evaluate = builder.functions(group, stacking)
    yield "training", *compile_for(*train, everywhere)
    yield "evaluation", *compile_for(*evaluate, everywhere)
    if stacking.alone:
        bound = builder.bind(group.widest)
        model = bound.model(usual_method(builder.platform), "default")
        images = jax.ShapeDtypeStruct((BATCH_SIZE, *builder.data.image_shape), np.uint8)
        arguments = bound.shapes, images
        features = apply(model, "features", block_size(builder.platform, BATCH_SIZE))
        yield "features", *compile_for(jax.jit(features), arguments, everywhere)
