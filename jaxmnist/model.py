"""`build_model`: a Flax module with logits and flatten features; its weights; its summary.

No other module of the package knows Flax.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmnist.config import Hyperparameters
from jaxmnist.convolution import Method, Padding, convolve_relu_pool, transposed_product

# The layers of `parameters` by name, each with its arrays: {"conv2d": {"kernel": …, "bias": …}}.
Parameters = Mapping[str, Mapping[str, np.ndarray | jax.Array]]


# Flax's collections for what goes into dense layers, and for what is added to what comes out.
INPUTS, ADDED = "inputs", "added"


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
    """The network of one configuration, for `classes` classes.

    method: how its convolutions are computed; precision: see `TrainingSettings`.
    scale: what pixels are divided by; see `Dataset`.
    """

    hyperparameters: Hyperparameters
    classes: int = 10
    method: Method = "tiles"
    precision: str = "default"
    scale: float = 255.0

    @nn.compact
    def __call__(self, images: jax.Array) -> Outputs:
        """Logits and flatten features of images [N, H, W, C] with pixels from 0 to `scale`."""
        if self.precision == "bfloat16":
            dtype = jnp.dtype(jnp.bfloat16)
        else:
            dtype = images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.float32
        x = images.astype(dtype) / self.scale
        for i, layer in enumerate(_convolutions(self.hyperparameters)):
            block = ConvolutionReluPool(**layer, method=self.method, name=_name("conv2d", i))
            x = block(x)
        features = x.reshape(x.shape[0], -1)
        hidden = features
        for i in range(self.hyperparameters.dense_layers):
            assert self.hyperparameters.units is not None
            hidden = nn.relu(self._dense(_name("dense", i), self.hyperparameters.units, hidden))
        last = _name("dense", self.hyperparameters.dense_layers)
        logits = self._dense(last, self.classes, hidden)
        if self.precision == "bfloat16":
            logits, features = logits.astype(jnp.float32), features.astype(jnp.float32)
        return Outputs(logits, features)

    def _dense(self, name: str, units: int, inputs: jax.Array) -> jax.Array:
        """A dense layer, (N, D) → (N, units); `gradient_over_blocks` looks into it."""
        self.sow(INPUTS, _inputs_of(name), inputs)
        outputs = nn.Dense(units, dtype=inputs.dtype, name=name)(inputs)
        added = self.get_variable(ADDED, _outputs_of(name), 0)
        return outputs + jnp.asarray(added, outputs.dtype)


def build_model(
    hyperparameters: Hyperparameters,
    classes: int = 10,
    method: Method = "tiles",
    precision: str = "default",
    scale: float = 255.0,
) -> ConvolutionalNetwork:
    """The Flax module of a configuration.

    >>> model = build_model(Hyperparameters(filters=112, conv_layers=2, dense_layers=1, units=224))
    >>> parameters = initial_parameters(model.hyperparameters, (28, 28, 1), 10, seed=0, index=0)
    >>> logits, features = outputs(model, parameters, np.zeros((3, 28, 28, 1), np.uint8))
    >>> logits.shape, features.shape
    ((3, 10), (3, 4032))
    """
    return ConvolutionalNetwork(hyperparameters, classes, method, precision, scale)


def outputs(model: ConvolutionalNetwork, parameters: Parameters, images: jax.Array) -> Outputs:
    """Logits and flatten features of images uint8 or float[N, H, W, C]."""
    with _precision(model):
        result = model.apply({"params": parameters}, images)
    assert isinstance(result, Outputs)
    return result


def _precision(model: ConvolutionalNetwork) -> AbstractContextManager[None]:
    """Where products are traced in the model's precision, which their gradients then have too."""
    highest = model.precision == "highest"
    return jax.default_matmul_precision("highest") if highest else nullcontext()


def gradient_over_blocks(
    model: ConvolutionalNetwork,
    parameters: Parameters,
    loss: Callable[[Callable[[jax.Array], jax.Array], jax.Array], tuple[jax.Array, Any]],
    blocks: jax.Array,
) -> tuple[Any, Any]:
    """The gradient of a loss that is a sum over blocks of images.

    Blocks pass through the network one after another, so that they stay in a CPU's cache. The
    weights of dense layers get their gradient at the end, as one product over the images of all
    blocks: adding it up block by block would move all these weights each time.

    Args:
      model: the network.
      parameters: its weights.
      loss: of (a function from images [B, H, W, C] to logits, one of `blocks`), gives the block's
        part of the loss, a scalar, and a tree of sums.
      blocks: int32[K, B], which images each of the K blocks has.

    Returns:
      The gradient in the shape of `parameters`, and the trees, added up.
    """
    dense = {name: layer for name, layer in parameters.items() if name.startswith("dense")}
    others = {name: layer for name, layer in parameters.items() if name not in dense}
    # The derivative by what is added to a layer's outputs is that by the outputs themselves.
    zeros = {
        _outputs_of(name): jnp.zeros((blocks.shape[1], layer["bias"].size), layer["bias"].dtype)
        for name, layer in dense.items()
    }

    def block_loss(others: Any, added: Any, block: jax.Array) -> tuple[jax.Array, Any]:
        inputs: dict[str, Any] = {}

        def logits(images: jax.Array) -> jax.Array:
            variables = {"params": {**others, **dense}, ADDED: added}
            result, kept = model.apply(variables, images, mutable=[INPUTS])
            inputs.update(kept[INPUTS])
            return result.logits

        value, sums = loss(logits, block)
        return value, (sums, inputs)

    def add_block(total: Any, block: jax.Array) -> tuple[Any, Any]:
        (gradient, deltas), (sums, inputs) = jax.grad(block_loss, argnums=(0, 1), has_aux=True)(
            others, zeros, block
        )
        return jax.tree.map(jnp.add, total, gradient), (sums, inputs, deltas)

    with _precision(model):
        gradient, (sums, inputs, deltas) = lax.scan(
            add_block, jax.tree.map(jnp.zeros_like, others), blocks
        )
        for name in dense:
            x, delta = inputs[_inputs_of(name)][0], deltas[_outputs_of(name)]
            x, delta = x.reshape(-1, x.shape[-1]), delta.reshape(-1, delta.shape[-1])
            product = transposed_product(x, delta.astype(x.dtype), model.method)
            gradient[name] = {"kernel": product, "bias": delta.sum(0)}
    return gradient, jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), sums)


def _inputs_of(layer: str) -> str:
    return f"{layer} inputs"


def _outputs_of(layer: str) -> str:
    return f"{layer} outputs"


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


def resize_parameters(
    parameters: Parameters,
    hyperparameters: Hyperparameters,
    resized: Hyperparameters,
    image_shape: tuple[int, ...],
    classes: int,
) -> dict[str, dict[str, np.ndarray]]:
    """The parameters of a configuration in the shapes of another one of the same depth.

    Where that is wider, the added weights are zeros, and training leaves them there: their
    activations and gradients are zero under ReLU, so that the padded network is the narrow one.
    Where it is narrower, weights are cut off, which undoes the padding.
    """

    def split(h: Hyperparameters) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shapes, but for the first dense kernel's rows: pixels times filters."""
        shapes = parameter_shapes(h, image_shape, classes)
        rows, units = shapes[_name("dense", 0)]["kernel"]
        shapes[_name("dense", 0)]["kernel"] = (rows // h.filters, h.filters, units)
        return shapes

    own, wanted = split(hyperparameters), split(resized)
    shapes = parameter_shapes(resized, image_shape, classes)

    def resize(layer: str, name: str, array: np.ndarray) -> np.ndarray:
        new = np.zeros(wanted[layer][name], array.dtype)
        common = tuple(map(slice, map(min, own[layer][name], new.shape)))
        new[common] = array.reshape(own[layer][name])[common]
        return new.reshape(shapes[layer][name])

    return {
        layer: {name: resize(layer, name, np.asarray(array)) for name, array in arrays.items()}
        for layer, arrays in parameters.items()
    }


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
