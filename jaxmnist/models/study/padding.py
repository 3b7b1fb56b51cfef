"""Zero-padding of weights, so that trials of different widths can share a program.

Padding the weights of a trial with zeros doesn't change its results, so configurations of the same
depth can share a compiled program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

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
