"""Convolution, ReLU and max-pooling, computed in the way that suits each platform.

On a CPU, XLA's own convolution is slow inside a loop (jax-ml/jax issue 12868), so convolutions are
computed as matrix products: a 3×3 'same' convolution by Winograd's minimal filtering, any other
from its patches. Other platforms use `lax.conv_general_dilated`, which is fast on accelerators; on
a TPU once for each corner of the pooling windows.

Max-pooling commutes with adding a bias and with ReLU. Pooling is therefore done first, so that
bias and ReLU process a quarter of the values.

Reference: Lavin and Gray, 'Fast Algorithms for Convolutional Neural Networks', 2015.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmnist.models.corners import convolve_relu_pool_by_corners
from jaxmnist.models.primitives import (
    CORNERS,
    DIMENSIONS,
    Padding,
    max_corner,
    max_pool_2x2,
    product,
    relu,
)
from jaxmnist.models.winograd import convolve_pool_by_winograd

# 'tiles': matrix products of tiles that fit in a CPU's cache; 'patches': one matrix product of all
# patches, which is efficient for stacked trials; 'convolution': XLA's own convolution; 'corners':
# XLA's own, strided, once for each corner of the pooling windows.
Method = Literal["tiles", "patches", "convolution", "corners"]

# Images that a CPU processes at a time, so that their tiles stay in its cache.
CPU_BLOCK = 16


def best_method(platform: str) -> Method:
    """The usual method for the convolutions of one network on 'cpu', 'gpu' or 'tpu'.

    'corners' trains faster on a TPU, but takes its compiler longer.
    """
    return "tiles" if platform == "cpu" else "convolution"


def block_size(platform: str, batch_size: int) -> int:
    """The number of images of a batch to process at a time on `platform`."""
    if platform != "cpu":
        return batch_size
    blocks = -(-batch_size // CPU_BLOCK)
    return -(-batch_size // blocks)


def convolve_relu_pool(
    inputs: jax.Array, kernel: jax.Array, bias: jax.Array, *, padding: Padding, method: Method
) -> jax.Array:
    """Convolution with stride 1, ReLU, and 2×2 max-pooling that drops an odd last row or column.

    Args:
      inputs: float[N, H, W, C].
      kernel: float[K, L, C, F].
      bias: float[F].
      padding: 'valid', or 'same', which for an even K or L pads one more at the end.
      method: how the convolution is computed.

    Returns:
      float[N, H', W', F]; H' and W' are half the convolution's output size, rounded down.
    """
    if method == "corners":
        return convolve_relu_pool_by_corners(inputs, kernel, bias, padding)
    return relu(convolve_pool(inputs, kernel, padding=padding, method=method) + bias)


def convolve_pool(
    inputs: jax.Array, kernel: jax.Array, *, padding: Padding, method: Method
) -> jax.Array:
    """`convolve_relu_pool` without bias and ReLU; 'corners' is 'convolution' here."""
    if method in ("convolution", "corners"):
        outputs = lax.conv_general_dilated(
            inputs, kernel, (1, 1), padding.upper(), dimension_numbers=DIMENSIONS
        )
        return max_pool_2x2(outputs)
    if method == "patches":
        return max_pool_2x2(_patches(_padded(inputs, kernel, padding), kernel) @ _flat(kernel))
    if padding == "same" and kernel.shape[:2] == (3, 3):
        return convolve_pool_by_winograd(inputs, kernel)
    return _convolve_pool_by_patches(_padded(inputs, kernel, padding), kernel)


def transposed_product(a: jax.Array, b: jax.Array, method: Method) -> jax.Array:
    """`a.T @ b` of float[N, P] and float[N, Q], accumulated in float32 or wider.

    On a CPU, XLA computes such a product with a routine that is slow for a small Q (five times
    slower for the ten logits), so the transposed array is materialized first.
    """
    transposed = lax.optimization_barrier(a.T) if method == "tiles" else a.T
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.matmul(transposed, b, preferred_element_type=wide)


def _padded(inputs: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """The inputs, zero-padded so that a 'valid' convolution gives the result for `padding`."""
    if padding == "valid":
        return inputs
    rows, columns = (((size - 1) // 2, size // 2) for size in kernel.shape[:2])
    return jnp.pad(inputs, ((0, 0), rows, columns, (0, 0)))


def _flat(kernel: jax.Array) -> jax.Array:
    """A kernel as a matrix: (K, L, C, F) → (K·L·C, F)."""
    return kernel.reshape(-1, kernel.shape[-1])


def _patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The patches of a 'valid' convolution: (N, H, W, C) → (N, H', W', K·L·C)."""
    rows, columns = kernel.shape[:2]
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    shifted = [x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    return jnp.concatenate(shifted, -1)


def _convolve_pool_by_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """2×2 max-pooled 'valid' convolution, float[N, H, W, C] → float[N, H', W', F].

    One product for each corner of the pooling windows. All four use the same patches, which cover
    the inputs of a whole window, and a kernel padded with zeros: building patches costs more than
    multiplying by zeros.
    """
    rows, columns, _, filters = kernel.shape
    height, width = (x.shape[1] - rows + 1) // 2, (x.shape[2] - columns + 1) // 2
    r, s = rows // 2 + 1, columns // 2 + 1  # inputs of a window, in cells of 2×2 pixels
    patches = _cell_patches(x, r, s, height, width)
    corners = [product(patches, each) for each in _corner_kernels(kernel)]
    return max_corner(*corners).reshape(-1, height, width, filters)


def _corner_kernels(kernel: jax.Array) -> jax.Array:
    """A kernel at each of the four corners of a window: (K, L, C, F) → (4, r·s·4·C, F).

    A product with zeros and ones places the weights: it has fewer operations to compile than
    padding, and so has its gradient.
    """
    rows, columns, _, filters = kernel.shape
    places = jnp.asarray(_places(rows, columns), kernel.dtype)
    return product(places, kernel.reshape(rows * columns, -1)).reshape(4, -1, filters)


@functools.lru_cache
def _places(rows: int, columns: int) -> np.ndarray:
    """Which weight of a K×L kernel meets which pixel of r×s cells, for each corner of a window.

    Returns float64[4·r·s·4, K·L] of zeros and ones; the rows are, for each corner, pixels in the
    order of `_cell_patches`.
    """
    r, s = rows // 2 + 1, columns // 2 + 1
    found = np.zeros((4, 2 * r, 2 * s, rows, columns))
    for corner, (i, j) in enumerate(CORNERS):
        for row, column in np.ndindex(rows, columns):
            found[corner, i + row, j + column, row, column] = 1
    cells = found.reshape(4, r, 2, s, 2, -1).swapaxes(2, 3)
    return cells.reshape(-1, rows * columns)


def _cell_patches(x: jax.Array, r: int, s: int, height: int, width: int) -> jax.Array:
    """Patches of r×s cells, with a stride of one cell: (N, H, W, C) → (N·H'·W', r·s·4·C).

    A cell is 2×2 pixels; H' and W' are `height` and `width`.
    """
    n, _, _, channels = x.shape
    t, u = height + r - 1, width + s - 1
    rows, columns = 2 * t - x.shape[1], 2 * u - x.shape[2]  # negative: crop
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, ((0, 0, 0), (0, rows, 0), (0, columns, 0), (0, 0, 0)))
    cells = x.reshape(n, t, 2, u, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    cells = cells.reshape(n, t, u, 4 * channels)
    across = jnp.concatenate([cells[:, :, j : j + width] for j in range(s)], -1)
    patches = jnp.concatenate([across[:, i : i + height] for i in range(r)], -1)
    return patches.reshape(n * height * width, -1)
