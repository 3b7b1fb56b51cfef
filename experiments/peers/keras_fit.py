"""Keras' `model.fit` on arrays: `python keras_fit.py TASK BACKEND ARM`.

BACKEND: tensorflow or jax. ARM: 'default', Keras as it comes; 'steps', many steps an execution;
'steps-xla', the same with `jit_compile=True`, which on Keras' JAX backend is the default anyway.
"""

from __future__ import annotations

import os
import sys
import time

from task import STARTED, answer, digits, read_task

STEPS_PER_EXECUTION = 16
ARMS = {
    "default": {},
    "steps": {"steps_per_execution": STEPS_PER_EXECUTION},
    "steps-xla": {"steps_per_execution": STEPS_PER_EXECUTION, "jit_compile": True},
}

if __name__ == "__main__":
    backend, arm = sys.argv[2:]
    os.environ["KERAS_BACKEND"] = backend
    import keras
    import numpy as np
    from keras_network import compiled_network

    imported = time.perf_counter() - STARTED
    task = read_task()
    images, labels = digits(task.images)
    scaled = images.astype(np.float32) / 255
    keras.utils.set_random_seed(0)
    moments = [time.perf_counter()]
    model = compiled_network(
        task.filters,
        task.conv_layers,
        task.dense_layers,
        task.units,
        task.learning_rate,
        **ARMS[arm],
    )
    clock = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: moments.append(time.perf_counter())
    )
    history = model.fit(
        scaled,
        labels,
        batch_size=task.batch_size,
        epochs=task.epochs,
        callbacks=[clock],
        verbose=0,
    ).history
    losses, accuracies = history["loss"], history["accuracy"]
    packages = ["keras", backend]
    answer(packages, imported, model.count_params(), [moments], [losses], [accuracies])
