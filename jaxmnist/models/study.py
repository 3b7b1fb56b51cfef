"""The study's network as `build_model(hp)`, and what else this package knows of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxmnist.errors import UsageError, wrong
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.questions import Definition, Questions, answers_of
from jaxmnist.settings import RANGED, checked, part_below_1


class Answers(NamedTuple):
    """The values of a configuration: see `HELP`."""

    filters: int
    conv_layers: int
    dense_layers: int
    units: int
    kernel_size: int
    dropout: float


def ask(hp: Questions) -> Answers:
    """Ask for the hyperparameters; apart from the module, as `--help` can't wait for Flax."""
    height, width, _ = hp.image_shape
    most = most_conv_layers(height, width)
    if most == 0:
        raise UsageError(
            f"images of {height}×{width} pixels are too small: at least 6×6 are needed"
        )
    filters = hp.Int("filters", 32, 128, step=16)
    conv_layers = hp.Int("conv_layers", 1, min(3, most))
    dense_layers = hp.Int("dense_layers", 0, 2)
    units = hp.Int("units", 32, 256, step=32) if dense_layers else 0
    kernel_size = hp.Fixed("kernel_size", 3) if conv_layers > 1 else 0
    return Answers(filters, conv_layers, dense_layers, units, kernel_size, hp.Fixed("dropout", 0.0))


def build_model(hp: Questions) -> Any:
    """Convolutions, each with ReLU and max-pooling, then dense layers: a Flax module."""
    from flax import linen as nn

    filters, conv_layers, dense_layers, units, kernel_size, dropout = ask(hp)

    class ConvolutionalNetwork(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            def drop(x: Any) -> Any:
                return nn.Dropout(dropout, deterministic=not train)(x) if dropout else x

            for i in range(conv_layers):
                size, padding = (kernel_size, "SAME") if i else (5, "VALID")
                x = nn.relu(nn.Conv(filters, (size, size), padding=padding)(x))
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = x.reshape(x.shape[0], -1)
            self.sow("intermediates", "features", x)
            for _ in range(dense_layers):
                x = nn.relu(nn.Dense(units)(drop(x)))
            return nn.Dense(hp.classes)(drop(x))

    return ConvolutionalNetwork()


# --- Its hyperparameters in words, and which values it accepts ---

HELP = {
    "filters": "filters of each convolution",
    "conv_layers": "number of convolutions",
    "dense_layers": "number of hidden dense layers",
    "units": "units of each hidden dense layer",
    "kernel_size": "rows and columns of the kernels of all convolutions but the first",
    "dropout": "dropout rate after the flatten layer and each hidden dense layer",
}
# The smallest and largest value of each hyperparameter; memory or time run out well before these.
BOUNDS = {
    "filters": (1, 10**5),
    "conv_layers": (1, 100),
    "dense_layers": (0, 100),
    "units": (1, 10**6),
    "kernel_size": (1, 100),
}


def most_conv_layers(height: int, width: int) -> int:
    """The largest number of convolutions for which pooling leaves at least one pixel.

    The first convolution removes 4 pixels from height and width; each pooling halves them, rounding
    down.
    """
    side = (min(height, width) - 4) // 2
    return max(side, 0).bit_length()


def check(hyperparameters: Hyperparameters, image_shape: tuple[int, int, int] | None) -> None:
    """Raise `UsageError` if the network can't be built, or not for images of this shape."""
    for name, value in hyperparameters.items():
        if name in RANGED:  # has been checked as such
            continue
        if name == "dropout":
            checked(name, value, part_below_1)
            continue
        low, high = BOUNDS[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise wrong(name, f"must be a whole number from {low} to {high}, not {value}")
    if image_shape is None:
        return
    height, width, _ = image_shape
    most = most_conv_layers(height, width)
    if hyperparameters["conv_layers"] > most:
        raise wrong(
            "conv_layers",
            f"{hyperparameters['conv_layers']} is too many for images of {height}×{width} pixels:"
            f" at most {most} fit",
        )
    if (size := hyperparameters.get("kernel_size", 1)) > max(height, width):
        raise wrong("kernel_size", f"{size} is larger than the images of {height}×{width} pixels")


DEFINITION = Definition("study", ask, check, HELP)


def configuration(
    filters: int,
    conv_layers: int,
    dense_layers: int,
    units: int = 0,
    *,
    kernel_size: int = 3,
    dropout: float = 0.0,
) -> Hyperparameters:
    """A configuration; what it doesn't ask for is left out.

    >>> print(configuration(filters=112, conv_layers=1, dense_layers=1, units=224))
    filters=112 conv_layers=1 dense_layers=1 units=224 dropout=0.0
    """
    given = Answers(filters, conv_layers, dense_layers, units, kernel_size, float(dropout))
    hp = Questions(answers_of(given._asdict()))
    ask(hp)
    check(hp.values, None)
    return hp.values


# --- Its initial weights, drawn without compiling ---

DEVIATION = 0.8796256610342398  # of the standard normal distribution, cut off at 2


def draw(shapes: Any, seed: int, index: int) -> dict[str, Any]:
    """The initial variables of trial `index` with `seed`, arrays in host memory, drawn by NumPy.

    Of the distributions that Flax's layers have by default. Kernels are normal, cut off at two
    standard deviations, with the variance 1 / fan-in; biases are zero; float32.

    Reference: LeCun, Bottou, Orr and Müller, 'Efficient BackProp', 1998.

    Args:
      shapes: of the variables: {'params': {layer: {'kernel': …, 'bias': …}}}.
      seed, index: of the trial.
    """
    import numpy as np

    random = np.random.default_rng([seed, index, 1])

    def kernel(shape: tuple[int, ...]) -> Any:
        """Of this shape: the last axis is filters or units, the others are what each takes."""
        found = random.standard_normal(shape)
        while (beyond := np.abs(found) > 2).any():
            found[beyond] = random.standard_normal(int(beyond.sum()))
        return (found / (DEVIATION * math.sqrt(math.prod(shape[:-1])))).astype(np.float32)

    layers = {
        layer: {
            name: kernel(x.shape) if name == "kernel" else np.zeros(x.shape, np.float32)
            for name, x in arrays.items()
        }
        for layer, arrays in sorted(shapes["params"].items())
    }
    return {"params": layers}


# --- Zero-padding, so that trials of different widths share programs on an accelerator ---

# Units cost little, filters much: the first ones are tried first.
PADDINGS = (
    {"units": 256},
    {"filters": 32, "units": 256},
    {"filters": 64, "units": 256},
    {"filters": 128, "units": 256},
)


def pads(hyperparameters: Hyperparameters) -> bool:
    """Not with dropout, whose random numbers would be others in a wider layer."""
    return not hyperparameters["dropout"]


def resize(
    parameters: Mapping[str, Any], shapes: Any, before: Hyperparameters, after: Hyperparameters
) -> dict[str, Any]:
    """The parameters of a configuration in the shapes of another one of the same depth.

    In a wider one the added weights are zero. They stay zero in training, because their activations
    and gradients are zero under ReLU, so the padded network is equivalent to the original one. In a
    narrower one weights are cut off, which undoes the padding.

    Args:
      parameters: arrays by layer and name.
      shapes: of the other configuration's parameters, a tree like them.
      before, after: the two configurations.
    """

    import numpy as np

    def resized(layer: str, name: str, array: Any) -> Any:
        """An array of a layer, in its other shape."""
        wanted = shapes[layer][name].shape
        old, new = array.shape, wanted
        if (layer, name) == ("Dense_0", "kernel"):  # its rows are pixels × filters
            filters = before["filters"], after["filters"]
            old, new = (
                (shape[0] // channels, channels, shape[1])
                for shape, channels in zip((old, new), filters, strict=True)
            )
        found = np.zeros(new, array.dtype)
        common = tuple(map(slice, map(min, old, new)))
        found[common] = array.reshape(old)[common]
        return found.reshape(wanted)

    return {
        layer: {name: resized(layer, name, np.asarray(array)) for name, array in arrays.items()}
        for layer, arrays in parameters.items()
    }
