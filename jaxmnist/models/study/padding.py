"""Trials of unequal widths in one program: their weights padded with zeros.

A trial whose weights are padded with zeros is the same trial, so that configurations of one depth
can share a program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# What widths are padded to multiples of: few programs, or little waste. A TPU computes with 128
# channels at a time whatever is asked for.
PADDING = {
    "cpu": {"filters": 32, "units": 64},
    "gpu": {"filters": 64, "units": 256},
    "tpu": {"filters": 128, "units": 256},
}


def resize_parameters(
    parameters: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    pixels: int,
) -> dict[str, Any]:
    """The parameters of a configuration in the shapes of another one of the same depth.

    Where that is wider, the added weights are zeros, and training leaves them there: their
    activations and gradients are zero under ReLU, so that the padded network is the narrow one.
    Where it is narrower, weights are cut off, which undoes the padding.

    Args:
      parameters: arrays by layer and name.
      before, after: the shapes of the two configurations.
      pixels: of an image that goes into the flatten layer: the rows of the first dense kernel are
        pixels times filters.
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
