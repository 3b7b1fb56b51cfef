"""The study's network: its layers, gradient, dropout and padding.

The images of a batch pass through the network in blocks, so that a block's activations stay in a
CPU's cache. The gradient of the convolutions is accumulated over the blocks. That of the dense
layers is not, because accumulating it would move all their weights for each block. A dense layer's
gradient is the product of its inputs and the derivative with respect to its outputs, so both are
stored for all blocks and multiplied once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import (
    Method,
    Padding,
    block_size,
    convolve_relu_pool,
    transposed_product,
)
from jaxmnist.models.network import (
    DataSpec,
    Images,
    Loss,
    Model,
    Network,
    Outputs,
    Parameters,
    StepInputs,
    pixels,
    stream_key,
)
from jaxmnist.models.questions import Questions
from jaxmnist.models.study_space import DEFINITION, Values, ask, values_of
from jaxmnist.runs.trial import Layer

# --- Zero-padding of weights, so that trials of different widths can share a program ---

# The multiples to which widths may be padded. Larger ones need fewer programs but waste more work.
MULTIPLES = {"filters": (1, 32, 64, 128), "units": (1, 64, 128, 256)}


def resize_parameters(
    parameters: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    pixels: int,
) -> dict[str, Any]:
    """The parameters of a configuration in the shapes of another one of the same depth.

    If the other configuration is wider, the added weights are zero. They stay zero in training,
    because their activations and gradients are zero under ReLU, so the padded network is equivalent
    to the original one. If it is narrower, weights are cut off, which undoes the padding.

    Args:
      parameters: arrays by layer and name.
      before, after: the shapes of the two configurations.
      pixels: the number of pixels of an image at the input of the flatten layer; the first dense
        kernel has pixels × filters rows.
    """

    def resize(layer: str, name: str, array: np.ndarray) -> np.ndarray:
        old, new = before[layer][name].shape, after[layer][name].shape
        if (layer, name) == ("dense", "kernel"):
            old, new = ((pixels, shape[0] // pixels, shape[1]) for shape in (old, new))
        resized = np.zeros(new, array.dtype)
        common = tuple(map(slice, map(min, old, new)))
        resized[common] = array.reshape(old)[common]
        return resized.reshape(after[layer][name].shape)

    return {
        layer: {name: resize(layer, name, np.asarray(array)) for name, array in arrays.items()}
        for layer, arrays in parameters.items()
    }


# --- The layers of the study's network, which the Flax module and all shapes are derived from ---

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


# --- Inverted dropout of a rate that is an argument of the program ---

STREAM = "dropout"  # of random numbers, named like Flax's own
LEVELS = 2**16  # of a rate: 16 random bits decide on a value


def dropout_factors(
    inputs: StepInputs, places: jax.Array, widths: Mapping[str, int]
) -> dict[str, jax.Array]:
    """What dropout multiplies values by: 0 at the rate, else what keeps their mean.

    The random numbers depend on the key of the step and the place of an image in its batch, not on
    how batches are divided into blocks.

    Args:
      inputs: of the step; `numbers` has the rate as 'dropout', float[], rounded to a multiple of
        1 / `LEVELS`.
      places: int32[B], the place of each image of the block in its batch.
      widths: the number of values of an image, D, for each dropout layer by name.

    Returns:
      float[B, D] by name.
    """
    rate = inputs.numbers["dropout"]
    dropped = jnp.minimum(jnp.round(rate * LEVELS), LEVELS - 1)  # levels at which a value is 0
    kept = LEVELS / (LEVELS - dropped)
    words = -(-sum(widths.values()) // 2)
    stream = stream_key(inputs.key, STREAM)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(stream, places)
    # Each word of 32 bits is drawn once and serves two values: drawing is most of the work.
    drawn = jax.vmap(lambda key: jax.random.bits(key, (words,), jnp.uint32))(keys)
    halves = lax.bitcast_convert_type(drawn, jnp.uint16).reshape(len(places), -1)
    factors = jnp.where(halves >= dropped.astype(jnp.uint16), kept, jnp.zeros_like(kept))
    ends = accumulate(widths.values())
    return {
        name: factors[:, end - width : end]
        for (name, width), end in zip(widths.items(), ends, strict=True)
    }


# --- The gradient of the study's network, computed block by block to suit a CPU's cache ---


def gradient_over_blocks(
    module: ConvolutionalNetwork,
    parameters: Parameters,
    images: Images,
    loss: Loss,
    blocks: jax.Array,
    inputs: StepInputs,
) -> tuple[Any, Any]:
    """The gradient of a loss that is a sum over blocks of images: see `Model.gradient`."""
    dense = {layer.name: parameters[layer.name] for layer in module.layers if layer.kind == "Dense"}
    convolutions = {name: layer for name, layer in parameters.items() if name not in dense}

    widths = {
        layer.name: dense[after.name]["kernel"].shape[0]
        for layer, after in pairwise(module.layers)
        if layer.kind == "Dropout"
    }
    # The place of each image in the batch, which its random numbers depend on.
    places = jnp.arange(blocks.size).reshape(blocks.shape) if widths else None

    def block_loss(
        convolutions: Any,
        added: dict[str, jax.Array],
        block: jax.Array,
        factors: dict[str, jax.Array],
    ) -> tuple[jax.Array, Any]:
        features = module.apply({"params": convolutions}, images(block), method="flatten")
        logits, dense_inputs = module.apply(
            {"params": dense}, features, added, factors, method="classify"
        )
        value, sums = loss(logits, block)
        return value, (sums, dense_inputs)

    def add_block(total: Any, item: tuple[jax.Array, jax.Array | None]) -> tuple[Any, Any]:
        block, places = item
        factors = {} if places is None else dropout_factors(inputs, places, widths)
        # Zeros are added to the outputs of dense layers to get derivatives with respect to these.
        zeros = {
            name: jnp.zeros((len(block), layer["bias"].size), layer["bias"].dtype)
            for name, layer in dense.items()
        }
        (gradient, derivatives), (sums, dense_inputs) = jax.grad(block_loss, (0, 1), has_aux=True)(
            convolutions, zeros, block, factors
        )
        return jax.tree.map(jnp.add, total, gradient), (sums, dense_inputs, derivatives)

    nothing = jax.tree.map(jnp.zeros_like, convolutions)
    gradient, (sums, dense_inputs, derivatives) = lax.scan(add_block, nothing, (blocks, places))
    for name in dense:
        x, derivative = (_joined(values[name]) for values in (dense_inputs, derivatives))
        product = transposed_product(x, derivative.astype(x.dtype), module.method)
        gradient[name] = {"kernel": product, "bias": derivative.sum(0)}
    return gradient, jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), sums)


def _joined(blocks: jax.Array) -> jax.Array:
    """The blocks concatenated: (K, B, D) → (K·B, D)."""
    return blocks.reshape(-1, blocks.shape[-1])


# --- The study's network, implementing the interface that the engine uses ---


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
