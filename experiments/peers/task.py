"""What every peer of the benchmark is given, and what it answers: nothing here knows a framework.

A peer is a script that is started as `python PEER.py TASK [ARGUMENT…]`, TASK being a JSON object,
trains the network on the first images of MNIST, and prints one JSON object on its last line.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# NumPy is imported where it is needed, so that the time of importing it is counted.
STARTED = time.perf_counter()
MNIST = Path(__file__).parents[2] / "jaxmnist" / "data" / "mnist"


@dataclass(frozen=True)
class Task:
    """Train one configuration.

    trials: at the same time, in this one process (only jaxmnist does more than one).
    images: training images of an epoch.
    """

    filters: int
    conv_layers: int
    dense_layers: int
    units: int | None
    batch_size: int = 128
    images: int = 12_800
    epochs: int = 3
    learning_rate: float = 1e-3
    trials: int = 1


def read_task() -> Task:
    """The task that the command line gives."""
    return Task(**json.loads(sys.argv[1]))


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first training digits: uint8[N, 28, 28, 1] and their classes int32[N]."""
    import numpy as np

    with gzip.open(MNIST / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(16 + 784 * count), np.uint8, offset=16)
    with gzip.open(MNIST / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + count), np.uint8, offset=8)
    return images.reshape(-1, 28, 28, 1), labels.astype(np.int32)


def answer(
    packages: list[str],
    import_seconds: float,
    parameters: int,
    moments: list[list[float]],
    losses: list[list[float]],
    accuracies: list[list[float]],
) -> None:
    """Print what was measured.

    Args:
      packages: what the versions are told of.
      import_seconds: until the framework was imported.
      parameters: numbers that the network learns.
      moments: for each trial, by `time.perf_counter`, when its network began to be built and the
        end of each epoch; the first epoch compiles. Processes of one machine share this clock.
      losses: for each trial, the mean training loss of each epoch.
      accuracies: for each trial, the training accuracy of each epoch.
    """
    result = {
        "versions": {name: version(name) for name in packages},
        "import_seconds": import_seconds,
        "parameters": parameters,
        "moments": moments,
        "losses": losses,
        "accuracies": accuracies,
    }
    print(json.dumps(result))
