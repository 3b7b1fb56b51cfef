"""The study's network, implementing the interface that the engine uses."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import Method, block_size
from jaxmnist.models.network import (
    DataSpec,
    Images,
    Loss,
    Model,
    Network,
    Outputs,
    Parameters,
    StepInputs,
)
from jaxmnist.models.study.gradient import gradient_over_blocks
from jaxmnist.models.study.layers import (
    ConvolutionalNetwork,
    Flatten,
    MaxPooling,
    Row,
    Shape,
    build_model,
    rows,
    study_layers,
)
from jaxmnist.models.study.padding import MULTIPLES, resize_parameters
from jaxmnist.models.study.space import DEFINITION, values_of
from jaxmnist.runs.layers import Layer


@dataclass(frozen=True)
class StudyModel(Model):
    """The outputs and gradient of a configuration's Flax module, as pure functions."""

    module: ConvolutionalNetwork

    def outputs(
        self, parameters: Parameters, images: jax.Array, collections: Any = None
    ) -> Outputs:
        """Logits and flatten features of images, uint8 or float[N, H, W, C]."""
        with self._precision():
            result = self.module.apply({"params": parameters}, images)
        assert isinstance(result, Outputs)
        return result

    def gradient(
        self,
        parameters: Parameters,
        images: Images,
        loss: Loss,
        blocks: jax.Array,
        inputs: StepInputs,
    ) -> tuple[Any, Any, Any]:
        """The gradient, computed block by block: see `gradient_over_blocks`."""
        with self._precision():
            gradient, sums = gradient_over_blocks(
                self.module, parameters, images, loss, blocks, inputs
            )
        return gradient, sums, inputs.collections

    def _precision(self) -> AbstractContextManager[None]:
        """A context in which products and their gradients are traced in the model's precision."""
        highest = self.module.precision == "highest"
        return jax.default_matmul_precision("highest") if highest else nullcontext()


class StudyNetwork(Network):
    """The study's network; its outputs for an image do not depend on other images."""

    definition = DEFINITION
    uses_method = True

    def layers(self, hyperparameters: Hyperparameters, data: DataSpec) -> tuple[Layer, ...]:
        """The layer table, in the order in which data passes through the layers."""
        return tuple(
            Layer(row.layer.name, row.layer.kind, row.output_shape, _count(row.parameter_shapes))
            for row in _rows(hyperparameters, data)
        )

    def initial_parameters(
        self, hyperparameters: Hyperparameters, data: DataSpec, *, seed: int, index: int
    ) -> dict[str, Any]:
        """Initial weights of trial `index` with `seed`: Glorot-uniform kernels and zero biases.

        NumPy draws them, so that no shape needs compiling: float32, uniform within
        ±√(6 / (fan-in + fan-out)).

        Reference: Glorot and Bengio, 'Understanding the difficulty of training deep feedforward
        neural networks', 2010.
        """
        generator = np.random.default_rng([seed, index, 1])
        parameters = {}
        for row in _rows(hyperparameters, data):
            if row.parameter_shapes:
                kernel = row.parameter_shapes["kernel"]
                receptive_field = math.prod(kernel[:-2])
                limit = np.sqrt(6 / (receptive_field * (kernel[-2] + kernel[-1])))
                parameters[row.layer.name] = {
                    "kernel": generator.uniform(-limit, limit, kernel).astype(np.float32),
                    "bias": np.zeros(row.parameter_shapes["bias"], np.float32),
                }
        return parameters

    def model(
        self, hyperparameters: Hyperparameters, data: DataSpec, method: Method, precision: str
    ) -> StudyModel:
        """The model of a configuration."""
        module = build_model(hyperparameters, data.classes, method, precision, data.scale)
        return StudyModel(module)

    def shapes(self, hyperparameters: Hyperparameters, data: DataSpec) -> dict[str, Any]:
        """The shape of every parameter, by layer and name."""
        return {
            row.layer.name: {
                name: jax.ShapeDtypeStruct(shape, np.float32)
                for name, shape in row.parameter_shapes.items()
            }
            for row in _rows(hyperparameters, data)
            if row.parameter_shapes
        }

    def feature_count(self, hyperparameters: Hyperparameters, data: DataSpec) -> int:
        """The number of flatten features of an image, D."""
        flatten = [row for row in _rows(hyperparameters, data) if isinstance(row.layer, Flatten)]
        return flatten[0].output_shape[0]

    def block_size(
        self, hyperparameters: Hyperparameters, data: DataSpec, platform: str, batch_size: int
    ) -> int:
        """The number of images to compute at a time, so that a block fits in a CPU's cache."""
        return block_size(platform, batch_size)

    def numbers(self, hyperparameters: Hyperparameters) -> Mapping[str, float]:
        """The dropout rate, of a configuration with dropout."""
        rate = values_of(hyperparameters).dropout
        return {"dropout": rate} if rate > 0 else {}

    def program_key(self, hyperparameters: Hyperparameters, data: DataSpec) -> Hashable:
        """All but numbers: whether there is dropout counts, its rate doesn't."""
        has_dropout = values_of(hyperparameters).dropout > 0
        return super().program_key(hyperparameters.replace(dropout=has_dropout), data)

    @property
    def multiples(self) -> Mapping[str, tuple[int, ...]]:
        """The multiples to which widths may be padded: see `MULTIPLES`."""
        return MULTIPLES

    def pads(self, hyperparameters: Hyperparameters) -> bool:
        """Not with dropout, whose random numbers would be others in a wider layer."""
        return values_of(hyperparameters).dropout == 0

    def resize(
        self,
        parameters: Parameters,
        hyperparameters: Hyperparameters,
        resized: Hyperparameters,
        data: DataSpec,
    ) -> dict[str, Any]:
        """Weights with zeros added or cut off: see `resize_parameters`."""
        before, after = (self.shapes(h, data) for h in (hyperparameters, resized))
        pixels = _pixels(hyperparameters, data)
        return resize_parameters(parameters, before, after, pixels)


STUDY = StudyNetwork()


def _rows(hyperparameters: Hyperparameters, data: DataSpec) -> list[Row]:
    return rows(study_layers(values_of(hyperparameters), data.classes), data.image_shape)


def _count(shapes: Mapping[str, Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _pixels(hyperparameters: Hyperparameters, data: DataSpec) -> int:
    """The number of pixels of an image at the input of the flatten layer."""
    pooled = [r for r in _rows(hyperparameters, data) if isinstance(r.layer, MaxPooling)][-1]
    return pooled.output_shape[0] * pooled.output_shape[1]
