"""Convolution, ReLU and max-pooling, computed in the way that suits each platform.

On a CPU, XLA's own convolution is slow inside a loop (jax-ml/jax issue 12868), so convolutions are
computed as matrix products: a 3×3 'same' convolution by Winograd's minimal filtering, any other
from its patches. Other platforms use `lax.conv_general_dilated`, which is fast on accelerators.

Max-pooling commutes with adding a bias and with ReLU. Pooling is therefore done first, so that
bias and ReLU process a quarter of the values.

Reference: Lavin and Gray, 'Fast Algorithms for Convolutional Neural Networks', 2015.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pair = tuple[jax.Array, jax.Array]
Padding = Literal["valid", "same"]
# 'tiles': matrix products of tiles that fit in a CPU's cache; 'patches': one matrix product of all
# patches, which is efficient for stacked trials; 'convolution': XLA's own convolution.
Method = Literal["tiles", "patches", "convolution"]

# Images that a CPU processes at a time, so that their tiles stay in its cache.
CPU_BLOCK = 16


def best_method(platform: str) -> Method:
    """The fastest method for the convolutions of one network on 'cpu', 'gpu' or 'tpu'."""
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
      padding: 'valid', or 'same' (then K and L are odd).
      method: how the convolution is computed.

    Returns:
      float[N, H', W', F]; H' and W' are half the convolution's output size, rounded down.
    """
    if method == "convolution":
        dimensions = ("NHWC", "HWIO", "NHWC")
        outputs = lax.conv_general_dilated(
            inputs, kernel, (1, 1), padding.upper(), dimension_numbers=dimensions
        )
        pooled = _max_pool(outputs)
    elif method == "patches":
        pooled = _max_pool(_patches(_padded(inputs, kernel, padding), kernel) @ _flat(kernel))
    elif padding == "same" and kernel.shape[:2] == (3, 3):
        pooled = _convolve_pool_by_winograd(inputs, kernel)
    else:
        pooled = _convolve_pool_by_patches(_padded(inputs, kernel, padding), kernel)
    return _relu(pooled + bias)


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
    rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
    return jnp.pad(inputs, ((0, 0), (rows, rows), (columns, columns), (0, 0)))


def _flat(kernel: jax.Array) -> jax.Array:
    """A kernel as a matrix: (K, L, C, F) → (K·L·C, F)."""
    return kernel.reshape(-1, kernel.shape[-1])


def _patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The patches of a 'valid' convolution: (N, H, W, C) → (N, H', W', K·L·C)."""
    rows, columns = kernel.shape[:2]
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    shifted = [x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    return jnp.concatenate(shifted, -1)


def _max_pool(x: jax.Array) -> jax.Array:
    """2×2 max-pooling, float[N, H, W, F] → float[N, H // 2, W // 2, F]."""
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    return _max_corner(*[x[:, i::2, j::2] for i, j in _CORNERS])


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The elementwise maximum of two arrays; `b` where either of them is NaN.

    A CPU does this in one instruction; `jnp.maximum`, which propagates every NaN, takes several.
    A NaN that pooling drops in this way has infinite or NaN neighbours, which make the loss NaN,
    so a diverging trial is still detected.
    """
    return jnp.where(a > b, a, b)


@jax.custom_vjp
def _relu(x: jax.Array) -> jax.Array:
    """The maximum of x and 0, and NaN for NaN; the gradient at 0 is 0."""
    return _larger(jnp.zeros((), x.dtype), x)


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = _relu(x)
    return y, y


def _relu_backward(y: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(y > 0, cotangent, 0),)


_relu.defvjp(_relu_forward, _relu_backward)


# The four corners of a pooling window.
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


@jax.custom_vjp
def _max_corner(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    """The elementwise maximum of four arrays; the gradient goes to the first maximum."""
    return _max_corner_forward(a, b, c, d)[0]


def _max_corner_forward(
    a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array
) -> tuple[jax.Array, jax.Array]:
    top, bottom = _larger(a, b), _larger(c, d)
    # One byte records which corner is the maximum, so the four arrays need not be kept.
    winner = jnp.where(top >= bottom, jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3))
    return _larger(top, bottom), winner.astype(jnp.int8)


def _max_corner_backward(winner: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.where(winner == corner, cotangent, 0) for corner in range(4))


_max_corner.defvjp(_max_corner_forward, _max_corner_backward)


@jax.custom_vjp
def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b`, with gradients computed as products that a CPU need not transpose again."""
    return a @ b


def _product_forward(a: jax.Array, b: jax.Array) -> tuple[jax.Array, Pair]:
    return a @ b, (a, b)


def _product_backward(
    factors: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # The compiler removes the product whose gradient is not used.
    a, b = factors
    return cotangent @ b.mT, a.mT @ cotangent


_product.defvjp(_product_forward, _product_backward)


# --- Any convolution, from its patches ---------------------------------------------------------


def _convolve_pool_by_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """2×2 max-pooled 'valid' convolution, float[N, H, W, C] → float[N, H', W', F].

    One product for each corner of the pooling windows. All four use the same patches, which cover
    the inputs of a whole window, and a kernel padded with zeros: building patches costs more than
    multiplying by zeros.
    """
    rows, columns, channels, filters = kernel.shape
    height, width = (x.shape[1] - rows + 1) // 2, (x.shape[2] - columns + 1) // 2
    r, s = rows // 2 + 1, columns // 2 + 1  # inputs of a window, in cells of 2×2 pixels
    patches = _cell_patches(x, r, s, height, width)
    corners = []
    for i, j in _CORNERS:
        margins = ((i, 2 * r - rows - i), (j, 2 * s - columns - j), (0, 0), (0, 0))
        cells = jnp.pad(kernel, margins).reshape(r, 2, s, 2, channels, filters)
        cells = cells.transpose(0, 2, 1, 3, 4, 5)
        corners.append(_product(patches, cells.reshape(-1, filters)))
    return _max_corner(*corners).reshape(-1, height, width, filters)


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


# --- 3×3 'same' convolution, by Winograd's minimal filtering F(m×m, 3×3) ------------------------


def _tile_size(height: int, width: int) -> int:
    """The size m of an output tile, 2 or 4, with fewer multiplications.

    A tie goes to 2, which has the smaller rounding error.
    """

    def multiplications(m: int) -> int:
        return -(-height // m) * -(-width // m) * (m + 2) ** 2

    return min((2, 4), key=multiplications)


@functools.lru_cache
def _transforms(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transforms of output, kernel and input, each over both axes at once.

    They evaluate polynomials at the points 0, ±1, ±2 and infinity (the Toom-Cook method).

    Returns:
      float64[m², n²], float64[n², 9] and float64[n², n²], where n = m + 2.
    """
    points = np.array([0.0, 1.0, -1.0, 2.0, -2.0][: m + 1])
    n = m + 2
    output, kernel, inputs = np.zeros((m, n)), np.zeros((n, 3)), np.zeros((n, n))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        output[:, i] = point ** np.arange(m)
        kernel[i] = point ** np.arange(3) / np.prod(point - others)
        inputs[i, : n - 1] = np.polynomial.polynomial.polyfromroots(others)
    output[-1, -1] = kernel[-1, -1] = 1
    inputs[-1] = np.polynomial.polynomial.polyfromroots(points)
    return np.kron(output, output), np.kron(kernel, kernel), np.kron(inputs, inputs)


def _transform(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """`matrix` (P, Q) times the first axis of `x` (Q, …), as one product: (P, …)."""
    product = _product(jnp.asarray(matrix, x.dtype), x.reshape(x.shape[0], -1))
    return product.reshape(matrix.shape[0], *x.shape[1:])


def _input_tiles(x: jax.Array, m: int) -> jax.Array:
    """Overlapping tiles of a zero-padded image: (N, H, W, C) → ((m + 2)², N, T, U, C)."""
    n, height, width, channels = x.shape
    t, u = -(-height // m), -(-width // m)
    rows, columns = (t + 1) * m - height - 1, (u + 1) * m - width - 1
    x = jnp.pad(x, ((0, 0), (1, rows), (1, columns), (0, 0)))
    # A tile has m×m pixels and the first two rows and columns of its neighbours. The pixel axes are
    # moved to the front first, so that whole planes are concatenated and memory is read in order.
    cells = x.reshape(n, t + 1, m, u + 1, m, channels).transpose(2, 4, 0, 1, 3, 5)
    bands = jnp.concatenate([cells[:, :, :, :-1], cells[:2, :, :, 1:]], 0)
    tiles = jnp.concatenate([bands[:, :, :, :, :-1], bands[:, :2, :, :, 1:]], 1)
    return tiles.reshape((m + 2) ** 2, n, t, u, channels)


def _join_tiles(tiles: jax.Array) -> jax.Array:
    """Tiles side by side: (k², N, T, U, F) → (N, k·T, k·U, F)."""
    k = math.isqrt(tiles.shape[0])
    _, n, t, u, filters = tiles.shape
    y = tiles.reshape(k, k, n, t, u, filters).transpose(2, 3, 0, 4, 1, 5)
    return y.reshape(n, k * t, k * u, filters)


def _convolve_pool_by_winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """2×2 max-pooled 3×3 'same' convolution, float[N, H, W, C] → float[N, H', W', F].

    Pooling comes before the tiles are joined, so that only a quarter of the values is moved.
    """
    _, height, width, channels = x.shape
    filters = kernel.shape[-1]
    m = _tile_size(height, width)
    to_output, to_kernel, to_input = _transforms(m)
    # The tile's outputs, grouped by their corner of the pooling window.
    k = m // 2
    by_corner = to_output.reshape(k, 2, k, 2, -1).transpose(1, 3, 0, 2, 4).reshape(m * m, -1)
    tiles = _transform(to_input, _input_tiles(x, m))  # ((m+2)², N, T, U, C)
    weights = _transform(to_kernel, kernel.reshape(9, channels, filters))
    products = _product(tiles.reshape(len(tiles), -1, channels), weights)
    outputs = _transform(by_corner, products.reshape(*tiles.shape[:4], filters))
    pooled = _max_corner(*lax.split(outputs, [k * k] * 4))
    return _join_tiles(pooled)[:, : height // 2, : width // 2]
