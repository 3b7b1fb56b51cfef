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
    multiplication · the multiplications of a forward pass). A pair of programs takes compiling ·
    (1 + the number of layers with parameters) seconds of a core.
    """

    step: float
    value: float
    multiplication: float
    compiling: float

    def step_seconds(self, layers: Sequence[Layer], batch_size: int) -> float:
        """The seconds of a training step."""
        values = sum(math.prod(layer.output_shape) for layer in layers)
        per_image = self.value * values + self.multiplication * multiplications(layers)
        return self.step + batch_size * per_image

    def compile_seconds(self, layers: Sequence[Layer]) -> float:
        """The core-seconds of compiling the programs for training and evaluation."""
        return self.compiling * (1 + sum(layer.parameters > 0 for layer in layers))


# TPU: fitted to the cycles that the compiler expects of a v5e at 1.5 GHz, and to its own time
# (experiments/tpu_compiler.py). GPU: steps and compiling of one search of the whole space on an
# H200 (experiments/README.md), with its choosing of kernels by running them; without, the compiler
# takes a quarter to a fifth (experiments/gpu_compiler.py). CPU: two cores with AVX-512.
COSTS = {
    "tpu": Costs(3e-5, 9e-12, 4e-14, 2.5),
    "gpu": Costs(2e-4, 4e-12, 1e-13, 2.0),
    "cpu": Costs(5e-4, 2e-9, 6e-11, 0.6),
}


def multiplications(layers: Sequence[Layer]) -> int:
    """About how many multiplications a forward pass of one image has.

    Each parameter of a layer is used once at each place of its output.
    """
    return sum(layer.parameters * math.prod(layer.output_shape[:-1]) for layer in layers)
