"""The hyperparameters of the study's network: their names, ranges and bounds."""

from __future__ import annotations

from typing import NamedTuple

from jaxmnist.errors import UsageError, wrong
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.questions import Definition, Questions, answers_of
from jaxmnist.settings import RANGED, checked, part_below_1

HELP = {
    "filters": "filters of each convolution",
    "conv_layers": "number of convolutions",
    "dense_layers": "number of hidden dense layers",
    "units": "units of each hidden dense layer",
    "kernel_size": "rows and columns of the kernels of all convolutions but the first",
    "dropout": "dropout rate after the flatten layer and each hidden dense layer",
}
# The values of what stays as it is unless the user gives others.
FIXED = {"kernel_size": 3, "dropout": 0.0}
# The smallest and largest value of each hyperparameter; memory or time run out well before these.
BOUNDS = {
    "filters": (1, 10**5),
    "conv_layers": (1, 100),
    "dense_layers": (0, 100),
    "units": (1, 10**6),
    "kernel_size": (1, 100),
}


class Values(NamedTuple):
    """The values of a configuration: see `HELP`.

    units: 0 without hidden dense layers. kernel_size: 0 with a single convolution.
    dropout: from 0, which stands for no dropout, to less than 1.
    """

    filters: int
    conv_layers: int
    dense_layers: int
    units: int
    kernel_size: int
    dropout: float


def ask(hp: Questions) -> Values:
    """Ask for the hyperparameters of a configuration."""
    most = most_conv_layers(*hp.image_shape[:2])
    if most == 0:
        height, width = hp.image_shape[:2]
        raise UsageError(
            f"images of {height}×{width} pixels are too small: at least 6×6 are needed"
        )
    filters = hp.Int("filters", 32, 128, step=16)
    conv_layers = hp.Int("conv_layers", 1, min(3, most))
    dense_layers = hp.Int("dense_layers", 0, 2)
    units = hp.Int("units", 32, 256, step=32) if dense_layers else 0
    kernel_size = hp.Fixed("kernel_size", FIXED["kernel_size"]) if conv_layers > 1 else 0
    dropout = hp.Fixed("dropout", FIXED["dropout"])
    return Values(filters, conv_layers, dense_layers, units, kernel_size, dropout)


def values_of(hyperparameters: Hyperparameters) -> Values:
    """The values of a configuration, with those of `FIXED` where it lacks them.

    Raises `UsageError` if it isn't a configuration of the study's network.
    """
    return ask(Questions(answers_of({**FIXED, **hyperparameters})))


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


def most_conv_layers(height: int, width: int) -> int:
    """The largest number of convolutions for which pooling leaves at least one pixel.

    The first convolution removes 4 pixels from height and width; each pooling halves them, rounding
    down.
    """
    side = (min(height, width) - 4) // 2
    return max(side, 0).bit_length()


def configuration(
    filters: int,
    conv_layers: int,
    dense_layers: int,
    units: int | None = None,
    *,
    kernel_size: int = 3,
    dropout: float = 0.0,
) -> Hyperparameters:
    """A configuration of the study's network.

    `units` counts only with hidden dense layers, `kernel_size` only with several convolutions.

    >>> print(configuration(filters=112, conv_layers=2, dense_layers=1, units=224))
    filters=112 conv_layers=2 dense_layers=1 units=224 kernel_size=3 dropout=0.0
    """
    given: dict[str, float] = {
        "filters": filters,
        "conv_layers": conv_layers,
        "dense_layers": dense_layers,
    }
    if dense_layers:
        if units is None:
            raise UsageError("a configuration with hidden dense layers needs units")
        given["units"] = units
    if conv_layers > 1:
        given["kernel_size"] = kernel_size
    return Hyperparameters(given, dropout=float(dropout))


DEFINITION = Definition("study", ask, check, HELP)
