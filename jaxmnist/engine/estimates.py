"""About how long compiling and training take, told before either, for choices between programs.

They are estimates: enough to tell whether a wider program that more trials share is worth its
padding. Nothing is reported by them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxmnist.runs.layers import Layer


@dataclass(frozen=True)
class Costs:
    """Seconds, as linear functions of a network's layers.

    A training step of B images takes step + B · (value · the number of outputs of all layers +
    multiplication · the multiplications of a forward pass). The programs for training and
    evaluation take compiling + compiling_more · the multiplications seconds of a core.
    """

    step: float
    value: float
    multiplication: float
    compiling: float
    compiling_more: float = 0.0

    def step_seconds(self, layers: Sequence[Layer], batch_size: int) -> float:
        """The seconds of a training step."""
        values = sum(math.prod(layer.output_shape) for layer in layers)
        per_image = self.value * values + self.multiplication * multiplications(layers)
        return self.step + batch_size * per_image

    def compile_seconds(self, layers: Sequence[Layer]) -> float:
        """The core-seconds of compiling the programs for training and evaluation."""
        return self.compiling + self.compiling_more * multiplications(layers)


# By platform and way of training one trial after another. TPU: fitted to the cycles that the
# compiler expects of a v5e at 1.5 GHz (within 28 %), and to its seconds on a slow core
# (experiments/tpu_compiler.py). GPU: steps and compiling of one search of the whole space on an
# H200 (experiments/README.md), with its choosing of kernels by running them; without, the compiler
# takes a quarter to a fifth (experiments/gpu_compiler.py). CPU: two cores with AVX-512.
COSTS = {
    "tpu": {
        "alone": Costs(0.0, 2.2e-11, 3.3e-14, 36.0),
        "corners": Costs(4e-5, 2.7e-12, 3.4e-14, 23.0, 2.5e-6),
    },
    "gpu": {"alone": Costs(2e-4, 4e-12, 1e-13, 10.0)},
    "cpu": {"alone": Costs(5e-4, 2e-9, 6e-11, 3.0)},
}


def multiplications(layers: Sequence[Layer]) -> int:
    """About how many multiplications a forward pass of one image has.

    Each parameter of a layer is used once at each place of its output.
    """
    return sum(layer.parameters * math.prod(layer.output_shape[:-1]) for layer in layers)
