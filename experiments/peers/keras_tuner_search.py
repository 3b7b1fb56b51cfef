"""A random search of KerasTuner over given configurations: `python keras_tuner_search.py TASK`.

TASK is a JSON object: backend, data (an .npz with x_train, y_train, x_validation, y_validation),
configurations, epochs, batch_size, learning_rate, directory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from typing import Any

STARTED = time.perf_counter()


def active(configuration: dict[str, Any]) -> dict[str, int]:
    """The hyperparameters of a configuration that count in it."""
    return {name: value for name, value in configuration.items() if value is not None}


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    os.environ["KERAS_BACKEND"] = task["backend"]
    import keras
    import keras_tuner
    import numpy as np
    from keras_network import compiled_network
    from keras_tuner.engine.trial import TrialStatus

    imported = time.perf_counter() - STARTED
    configurations = [active(configuration) for configuration in task["configurations"]]

    def build(hp: keras_tuner.HyperParameters) -> keras.Model:
        """The network of the hyperparameters, which are the study's four."""
        filters = hp.Int("filters", 32, 128, step=16)
        conv_layers = hp.Int("conv_layers", 1, 3)
        dense_layers = hp.Int("dense_layers", 0, 2)
        with hp.conditional_scope("dense_layers", [1, 2]):
            units = hp.Int("units", 32, 256, step=32)
        return compiled_network(filters, conv_layers, dense_layers, units, task["learning_rate"])

    class GivenConfigurations(keras_tuner.oracles.RandomSearchOracle):
        """KerasTuner's random search, which draws what it is given."""

        def populate_space(self, trial_id: str) -> dict[str, Any]:
            """The values of the trial."""
            return {"status": TrialStatus.RUNNING, "values": dict(configurations[int(trial_id)])}

    keras.utils.set_random_seed(0)
    with np.load(task["data"]) as data:
        x_train, y_train = data["x_train"].astype(np.float32) / 255, data["y_train"]
        x_validation = data["x_validation"].astype(np.float32) / 255
        y_validation = data["y_validation"]
    tuner = keras_tuner.Tuner(
        GivenConfigurations(objective="val_accuracy", max_trials=len(configurations)),
        build,
        executions_per_trial=1,
        directory=task["directory"],
        project_name="search",
    )
    tuner.search(
        x_train,
        y_train,
        validation_data=(x_validation, y_validation),
        epochs=task["epochs"],
        batch_size=task["batch_size"],
        verbose=0,
    )
    trials = [tuner.oracle.trials[trial_id] for trial_id in sorted(tuner.oracle.trials)]
    searched = [active(trial.hyperparameters.values) for trial in trials]
    assert searched == configurations, f"searched {searched}, not {configurations}"
    assert all(trial.status == TrialStatus.COMPLETED for trial in trials)
    packages = ["keras-tuner", "keras", task["backend"]]
    result = {
        "versions": {name: version(name) for name in packages},
        "import_seconds": imported,
        "configurations": searched,
        "scores": [trial.score for trial in trials],
        "images": [len(x_train), len(x_validation)],
    }
    print(json.dumps(result))
