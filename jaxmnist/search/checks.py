"""Checks before the first trial for problems that would make trials fail."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.events import TrialFinished
from jaxmnist.engine.local import Engine
from jaxmnist.errors import UsageError, one_line
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import DataSpec, Network
from jaxmnist.reading import memory
from jaxmnist.settings import SearchSettings, TrainingSettings

MOST_TRACED = 16


def check_memory(
    draws: Iterable[Hyperparameters],
    settings: SearchSettings,
    dataset: Dataset,
    network: Network,
) -> None:
    """Raise `UsageError` if a drawn configuration can't be trained in this machine's memory.

    The estimate is a lower bound: initial weights as drawn (float64), weights, Adam's two moments
    and gradients; outputs of all layers and their gradients for up to 32 images.
    """
    images = min(settings.batch_size, 32)
    # Tracing hundreds of networks would take minutes: then the first ones are looked at.
    most = MOST_TRACED if network.traced else None
    for draw in itertools.islice(dict.fromkeys(draws), most):
        rows = network.layers(draw, DataSpec.of(dataset))
        weights = sum(row.parameters for row in rows)
        outputs = sum(math.prod(row.output_shape) for row in rows)
        needed = 4 * (6 * weights + 2 * images * outputs)
        if needed > memory():
            raise UsageError(
                f"{draw}: training needs at least {needed / 2**30:.0f} GiB, and this machine has"
                f" {memory() / 2**30:.0f} GiB of memory; choose smaller values"
            )


def rehearse(
    network: Network, hyperparameters: Hyperparameters, dataset: Dataset, debugging: str
) -> None:
    """Raise `UsageError` if training fails with the current debugging settings of JAX.

    Without this check, every trial would fail with the same error.

    Args:
      network, hyperparameters: the configuration to train.
      dataset: its first two training and validation images are used.
      debugging: the changed settings, for the error message.
    """
    few = replace(
        dataset,
        **{
            name: getattr(dataset, name)[:2]
            for name in ("x_train", "y_train", "x_validation", "y_validation")
        },
    )
    error = None
    try:
        engine = Engine(network, few, TrainingSettings(epochs=1, batch_size=2), seed=0)
        with engine.run([(0, hyperparameters)]) as events:
            for event in events:
                if isinstance(event, TrialFinished) and not event.diverged:
                    error = event.error
    except Exception as problem:
        error = one_line(problem, named=True)
    if error:
        raise UsageError(f"nothing can be trained with JAX's {debugging}: {error}")
