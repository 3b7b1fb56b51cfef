"""`build_model`: a Flax module with logits and flatten features; its weights; its summary.

No other module of the package knows Flax.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmnist.config import Hyperparameters
from jaxmnist.convolution import Padding, convolve_relu_pool

# The layers of `parameters` by name, each with its arrays: {"conv2d": {"kernel": …, "bias": …}}.
Parameters = Mapping[str, Mapping[str, np.ndarray | jax.Array]]


class Outputs(NamedTuple):
    """What the network gives for N images.

    logits: float[N, classes].
    features: float[N, D], the flatten layer; the compiler drops whichever of the two is not used.
    """

    logits: jax.Array
    features: jax.Array


class ConvolutionReluPool(nn.Module):
    """A convolution with ReLU and 2×2 max-pooling, (N, H, W, C) → (N, H', W', F)."""

    filters: int
    kernel_size: int
    padding: Padding
    platform: str

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """The pooled activations of `inputs`."""
        shape = (self.kernel_size, self.kernel_size, inputs.shape[-1], self.filters)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.filters,))
        return convolve_relu_pool(
            inputs, kernel, bias, padding=self.padding, platform=self.platform
        )


class ConvolutionalNetwork(nn.Module):
    """The network of one configuration, for `classes` classes, as `platform` computes it best."""

    hyperparameters: Hyperparameters
    classes: int = 10
    platform: str = "cpu"

    @nn.compact
    def __call__(self, images: jax.Array) -> Outputs:
        """Logits and flatten features of images uint8[N, H, W, C], or of floats from 0 to 255."""
        dtype = images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.float32
        x = images.astype(dtype) / 255
        for i, layer in enumerate(_convolutions(self.hyperparameters)):
            block = ConvolutionReluPool(**layer, platform=self.platform, name=_name("conv2d", i))
            x = block(x)
        features = x.reshape(x.shape[0], -1)
        x = features
        for i in range(self.hyperparameters.dense_layers):
            assert self.hyperparameters.units is not None
            x = nn.relu(nn.Dense(self.hyperparameters.units, name=_name("dense", i))(x))
        logits = nn.Dense(self.classes, name=_name("dense", self.hyperparameters.dense_layers))(x)
        return Outputs(logits, features)


def build_model(
    hyperparameters: Hyperparameters, classes: int = 10, platform: str = "cpu"
) -> ConvolutionalNetwork:
    """The Flax module of a configuration.

    >>> model = build_model(Hyperparameters(filters=112, conv_layers=2, dense_layers=1, units=224))
    >>> parameters = initial_parameters(model.hyperparameters, (28, 28, 1), 10, seed=0, index=0)
    >>> logits, features = outputs(model, parameters, np.zeros((3, 28, 28, 1), np.uint8))
    >>> logits.shape, features.shape
    ((3, 10), (3, 4032))
    """
    return ConvolutionalNetwork(hyperparameters, classes, platform)


def outputs(model: ConvolutionalNetwork, parameters: Parameters, images: jax.Array) -> Outputs:
    """Logits and flatten features of images uint8[N, H, W, C]."""
    result = model.apply({"params": parameters}, images)
    assert isinstance(result, Outputs)
    return result


def _convolutions(hyperparameters: Hyperparameters) -> list[dict]:
    """Filters, kernel size and padding of each convolution: the first 5×5, the others 3×3."""
    first = {"filters": hyperparameters.filters, "kernel_size": 5, "padding": "valid"}
    other = {"filters": hyperparameters.filters, "kernel_size": 3, "padding": "same"}
    return [first] + [other] * (hyperparameters.conv_layers - 1)


def _name(kind: str, i: int) -> str:
    return kind if i == 0 else f"{kind}_{i}"


@dataclass(frozen=True)
class Layer:
    """A row of the summary.

    output_shape is that of one image; parameter_shapes are those of kernel and bias, or empty.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameter_shapes: Mapping[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """How many numbers the layer learns."""
        return sum(math.prod(shape) for shape in self.parameter_shapes.values())


def layers(
    hyperparameters: Hyperparameters, image_shape: tuple[int, ...], classes: int
) -> list[Layer]:
    """The layers in the order of the data, for images of `image_shape` (H, W, C)."""
    height, width, channels = image_shape
    rows = []
    for i, layer in enumerate(_convolutions(hyperparameters)):
        size, filters = layer["kernel_size"], layer["filters"]
        if layer["padding"] == "valid":
            height, width = height - size + 1, width - size + 1
        shapes = {"kernel": (size, size, channels, filters), "bias": (filters,)}
        rows.append(Layer(_name("conv2d", i), "Conv2D", (height, width, filters), shapes))
        height, width, channels = height // 2, width // 2, filters
        pool = (height, width, filters)
        rows.append(Layer(_name("max_pooling2d", i), "MaxPooling2D", pool, {}))
    inputs = height * width * channels
    rows.append(Layer("flatten", "Flatten", (inputs,), {}))
    widths = [hyperparameters.units] * hyperparameters.dense_layers + [classes]
    for i, units in enumerate(widths):
        assert units is not None
        shapes = {"kernel": (inputs, units), "bias": (units,)}
        rows.append(Layer(_name("dense", i), "Dense", (units,), shapes))
        inputs = units
    return rows


def parameter_shapes(
    hyperparameters: Hyperparameters, image_shape: tuple[int, ...], classes: int
) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shape of every parameter, by layer and name."""
    rows = layers(hyperparameters, image_shape, classes)
    return {row.name: dict(row.parameter_shapes) for row in rows if row.parameter_shapes}


def count_parameters(
    hyperparameters: Hyperparameters, image_shape: tuple[int, ...], classes: int
) -> int:
    """How many numbers the network learns."""
    return sum(row.parameters for row in layers(hyperparameters, image_shape, classes))


def initial_parameters(
    hyperparameters: Hyperparameters,
    image_shape: tuple[int, ...],
    classes: int,
    *,
    seed: int,
    index: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Initial weights of trial `index` of `seed`, float32: Glorot-uniform kernels, zero biases.

    Drawn by NumPy, so that no shape needs a compilation. A kernel's numbers are uniform within
    ±√(6 / (fan-in + fan-out)): Glorot and Bengio, 'Understanding the difficulty of training deep
    feedforward neural networks', 2010.
    """
    generator = np.random.default_rng([seed, index, 1])
    parameters = {}
    for name, shapes in parameter_shapes(hyperparameters, image_shape, classes).items():
        kernel = shapes["kernel"]
        receptive_field = math.prod(kernel[:-2])
        limit = np.sqrt(6 / (receptive_field * (kernel[-2] + kernel[-1])))
        parameters[name] = {
            "kernel": generator.uniform(-limit, limit, kernel).astype(np.float32),
            "bias": np.zeros(shapes["bias"], np.float32),
        }
    return parameters


def summary(hyperparameters: Hyperparameters, image_shape: tuple[int, ...], classes: int) -> str:
    """The model's table under Keras' columns, with totals; all parameters are trainable."""
    rows = layers(hyperparameters, image_shape, classes)
    cells = [("Layer (type)", "Output Shape", "Param #")]
    for row in rows:
        shape = ", ".join(str(side) for side in (None, *row.output_shape))
        cells.append((f"{row.name} ({row.kind})", f"({shape})", str(row.parameters)))
    widths = [max(len(cell[i]) for cell in cells) for i in range(3)]
    lines = [
        "  ".join((a.ljust(widths[0]), b.ljust(widths[1]), c.rjust(widths[2]))) for a, b, c in cells
    ]
    rule = "=" * len(lines[0])
    total = sum(row.parameters for row in rows)
    size = f"{total} ({_bytes(4 * total)})"
    totals = [
        f"Total params: {size}",
        f"Trainable params: {size}",
        f"Non-trainable params: 0 ({_bytes(0)})",
    ]
    return "\n".join(['Model: "sequential"', lines[0], rule, *lines[1:], rule, *totals])


def _bytes(count: int) -> str:
    """`count` bytes in Keras' units, of 1024: '3.90 MB'."""
    size, unit = float(count), "Byte"
    for larger in ("KB", "MB", "GB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.2f} {unit}"
