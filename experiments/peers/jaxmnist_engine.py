"""jaxmnist's own engine: `trials` at once."""

from __future__ import annotations

import time
from dataclasses import replace

from task import STARTED, answer, digits, read_task

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.events import EpochFinished, TrialStarted
from jaxmnist.engine.local import Engine
from jaxmnist.models.interface import DataSpec
from jaxmnist.models.network import STUDY
from jaxmnist.models.study import configuration
from jaxmnist.runs.trial import Key, count_parameters
from jaxmnist.settings import RECIPES

if __name__ == "__main__":
    imported = time.perf_counter() - STARTED
    task = read_task()
    images, labels = digits(task.images + 64)
    few = slice(task.images, None)
    data = Dataset(
        "mnist",
        images[: task.images],
        labels[: task.images],
        images[few],
        labels[few],
        images[few],
        labels[few],
        tuple(range(10)),
        255.0,
    )
    settings = replace(
        RECIPES["study"],
        epochs=task.epochs,
        batch_size=task.batch_size,
        learning_rate=task.learning_rate,
    )
    hyperparameters = configuration(
        task.filters, task.conv_layers, task.dense_layers, task.units or 0
    )
    moments: list[list[float]] = [[] for _ in range(task.trials)]
    losses: list[list[float]] = [[] for _ in range(task.trials)]
    accuracies: list[list[float]] = [[] for _ in range(task.trials)]
    engine = Engine(STUDY, data, settings, 0, task.trials)
    with engine.run((Key(index), hyperparameters) for index in range(task.trials)) as events:
        for event in events:
            if isinstance(event, TrialStarted | EpochFinished):
                moments[event.key.index].append(time.perf_counter())
            if isinstance(event, EpochFinished):
                losses[event.key.index].append(event.metrics.loss)
                accuracies[event.key.index].append(event.metrics.accuracy)
    parameters = count_parameters(STUDY.bind(hyperparameters, DataSpec.of(data, settings)).layers)
    packages = ["jaxmnist", "jax", "flax", "optax"]
    answer(packages, imported, parameters, moments, losses, accuracies)
