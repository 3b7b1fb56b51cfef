"""jaxmnist's own engine: `trials` at once."""

from __future__ import annotations

import time
from itertools import pairwise

from task import STARTED, answer, digits, read_task

from jaxmnist.config import Hyperparameters, TrainingSettings
from jaxmnist.data import Dataset
from jaxmnist.engine import Engine, EpochFinished

if __name__ == "__main__":
    import jax

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
    )
    settings = TrainingSettings(task.epochs, task.batch_size, task.learning_rate)
    hyperparameters = Hyperparameters(task.filters, task.conv_layers, task.dense_layers, task.units)
    ends: dict[int, list[float]] = {index: [0.0] for index in range(task.trials)}
    engine = Engine(data, settings, 0, task.trials)
    with engine.run((index, hyperparameters) for index in ends) as events:
        for event in events:
            if isinstance(event, EpochFinished):
                ends[event.index].append(event.seconds)
    seconds = [[b - a for a, b in pairwise(e)] for e in ends.values()]
    answer(seconds, {"jax": jax.__version__}, imported)
