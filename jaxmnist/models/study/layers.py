"""The layers of the study's network, which the Flax module and all shapes are derived from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import Method, convolve_relu_pool
from jaxmnist.models.network import Outputs, pixels
from jaxmnist.models.primitives import Padding
from jaxmnist.models.questions import Questions
from jaxmnist.models.study.space import Values, ask, values_of

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Convolution:
    """A convolution with stride 1; the ReLU and pooling that follow are computed with it."""

    name: str
    filters: int
    kernel_size: int
    padding: Padding
    kind = "Conv2D"

    def output_shape(self, inputs: Shape) -> Shape:
        """The output shape for inputs (H, W, C)."""
        less = self.kernel_size - 1 if self.padding == "valid" else 0
        return inputs[0] - less, inputs[1] - less, self.filters

    def parameter_shapes(self, inputs: Shape) -> dict[str, Shape]:
        """The parameter shapes by name, for inputs (H, W, C)."""
        size = self.kernel_size
        return {"kernel": (size, size, inputs[2], self.filters), "bias": (self.filters,)}


@dataclass(frozen=True)
class MaxPooling:
    """2×2 max-pooling with stride 2, which drops an odd last row or column."""

    name: str
    kind = "MaxPooling2D"

    def output_shape(self, inputs: Shape) -> Shape:
        """The output shape for inputs (H, W, C)."""
        return inputs[0] // 2, inputs[1] // 2, inputs[2]

    def parameter_shapes(self, inputs: Shape) -> dict[str, Shape]:
        """Empty: the layer has no parameters."""
        return {}


@dataclass(frozen=True)
class Flatten:
    """Flattens the values of an image into one vector, the features."""

    name: str = "flatten"
    kind = "Flatten"

    def output_shape(self, inputs: Shape) -> Shape:
        """The output shape for inputs of any shape."""
        return (math.prod(inputs),)

    def parameter_shapes(self, inputs: Shape) -> dict[str, Shape]:
        """Empty: the layer has no parameters."""
        return {}


@dataclass(frozen=True)
class Dense:
    """A dense layer; hidden ones have a ReLU, the last one gives the logits."""

    name: str
    width: int
    hidden: bool
    kind = "Dense"

    def output_shape(self, inputs: Shape) -> Shape:
        """The output shape for inputs (D,)."""
        return (self.width,)

    def parameter_shapes(self, inputs: Shape) -> dict[str, Shape]:
        """The parameter shapes by name, for inputs (D,)."""
        return {"kernel": (inputs[0], self.width), "bias": (self.width,)}


@dataclass(frozen=True)
class Dropout:
    """Inverted dropout; its rate is no part of it, but an argument of the training program."""

    name: str
    kind = "Dropout"

    def output_shape(self, inputs: Shape) -> Shape:
        """The output shape for inputs (D,)."""
        return inputs

    def parameter_shapes(self, inputs: Shape) -> dict[str, Shape]:
        """Empty: the layer has no parameters."""
        return {}


StudyLayer = Convolution | MaxPooling | Flatten | Dense | Dropout


def study_layers(h: Values, classes: int) -> tuple[StudyLayer, ...]:
    """The layers: convolutions, each followed by pooling; then dense layers.

    The first convolution is 5×5, the others have the kernel size of the configuration. With
    dropout, each dense layer follows a dropout layer.
    """
    layers: list[StudyLayer] = []
    for i in range(h.conv_layers):
        padding: Padding = "same" if i else "valid"
        size = h.kernel_size if i else 5
        layers.append(Convolution(_name("conv2d", i), h.filters, size, padding))
        layers.append(MaxPooling(_name("max_pooling2d", i)))
    layers.append(Flatten())
    for i in range(h.dense_layers + 1):
        if h.dropout > 0:
            layers.append(Dropout(_name("dropout", i)))
        hidden = i < h.dense_layers
        layers.append(Dense(_name("dense", i), h.units if hidden else classes, hidden))
    return tuple(layers)


def _name(kind: str, i: int) -> str:
    return kind if i == 0 else f"{kind}_{i}"


class Row(NamedTuple):
    """A layer with its shapes for a given image shape."""

    layer: StudyLayer
    output_shape: Shape
    parameter_shapes: Mapping[str, Shape]


def rows(layers: tuple[StudyLayer, ...], image_shape: Shape) -> list[Row]:
    """The layers with their shapes, in the order in which data passes through them."""
    found, shape = [], image_shape
    for layer in layers:
        inputs, shape = shape, layer.output_shape(shape)
        found.append(Row(layer, shape, layer.parameter_shapes(inputs)))
    return found


class ConvolutionReluPool(nn.Module):
    """A convolution with ReLU and 2×2 max-pooling, (N, H, W, C) → (N, H', W', F)."""

    filters: int
    kernel_size: int
    padding: Padding
    method: Method

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """The pooled activations of `inputs`."""
        shape = (self.kernel_size, self.kernel_size, inputs.shape[-1], self.filters)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.filters,))
        kernel, bias = kernel.astype(inputs.dtype), bias.astype(inputs.dtype)
        return convolve_relu_pool(inputs, kernel, bias, padding=self.padding, method=self.method)


class ConvolutionalNetwork(nn.Module):
    """The Flax module of a configuration, which applies `layers` in order.

    method: how convolutions are computed. precision: see `TrainingSettings`.
    scale: the number that pixels are divided by; see `Dataset`.
    """

    layers: tuple[StudyLayer, ...]
    method: Method = "tiles"
    precision: str = "default"
    scale: float = 255.0

    def setup(self) -> None:
        """Create a module for each layer with parameters, under the layer's name."""
        dtype = jnp.bfloat16 if self.precision == "bfloat16" else None
        for layer in self.layers:
            if isinstance(layer, Convolution):
                size, padding = layer.kernel_size, layer.padding
                module: nn.Module = ConvolutionReluPool(layer.filters, size, padding, self.method)
            elif isinstance(layer, Dense):
                module = nn.Dense(layer.width, dtype=dtype)
            else:
                continue
            setattr(self, layer.name, module)

    def __call__(self, images: jax.Array) -> Outputs:
        """Logits and flatten features of images [N, H, W, C] with pixels from 0 to `scale`."""
        features = self.flatten(images)
        logits, _ = self.classify(features)
        if self.precision == "bfloat16":
            features = features.astype(jnp.float32)
        return Outputs(logits, features)

    def flatten(self, images: jax.Array) -> jax.Array:
        """The flatten features float[N, D] of images [N, H, W, C]."""
        x = pixels(images, self.scale, self.precision)
        for layer in self.layers:
            if isinstance(layer, Convolution):
                x = getattr(self, layer.name)(x)
        return x.reshape(x.shape[0], -1)

    def classify(
        self,
        features: jax.Array,
        added: Mapping[str, jax.Array] = MappingProxyType({}),
        factors: Mapping[str, jax.Array] = MappingProxyType({}),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The logits float[N, classes] of flatten features, and the inputs of each dense layer.

        Args:
          features: float[N, D].
          added: arrays added to the outputs of dense layers before their ReLU, by layer name. A
            derivative with respect to them is the derivative with respect to those outputs.
          factors: what dropout multiplies by, float[N, D], by the name of the dropout layer; empty
            in an evaluation.
        """
        x, inputs = features, {}
        for layer in self.layers:
            if layer.name in factors:
                x = x * factors[layer.name].astype(x.dtype)
            elif isinstance(layer, Dense):
                inputs[layer.name] = x
                x = getattr(self, layer.name)(x)
                if layer.name in added:
                    x = x + added[layer.name].astype(x.dtype)
                x = nn.relu(x) if layer.hidden else x
        return x.astype(jnp.float32) if self.precision == "bfloat16" else x, inputs


def build_model(
    hp: Questions | Hyperparameters,
    classes: int = 10,
    method: Method = "tiles",
    precision: str = "default",
    scale: float = 255.0,
) -> ConvolutionalNetwork:
    """The Flax module of a configuration, or of the values that `hp` gives.

    >>> h = Hyperparameters(filters=112, conv_layers=2, dense_layers=1, units=224)
    >>> model = build_model(h)
    >>> images = jnp.zeros((3, 28, 28, 1), jnp.uint8)
    >>> variables = model.init(jax.random.key(0), images)
    >>> logits, features = model.apply(variables, images)
    >>> logits.shape, features.shape
    ((3, 10), (3, 4032))
    """
    if isinstance(hp, Questions):
        return ConvolutionalNetwork(study_layers(ask(hp), hp.classes), method, precision, scale)
    return ConvolutionalNetwork(study_layers(values_of(hp), classes), method, precision, scale)
