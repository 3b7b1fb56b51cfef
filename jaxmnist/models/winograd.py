"""3×3 'same' convolution by Winograd's minimal filtering F(m×m, 3×3).

Source: Lavin and Gray, 'Fast Algorithms for Convolutional Neural Networks', 2015.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmnist.models.primitives import max_corner, product


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
    moved = product(jnp.asarray(matrix, x.dtype), x.reshape(x.shape[0], -1))
    return moved.reshape(matrix.shape[0], *x.shape[1:])


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


def convolve_pool_by_winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """2×2 max-pooled 3×3 'same' convolution, float[N, H, W, C] → float[N, H', W', F].

    It is pooled before the tiles are joined, so that a quarter of the numbers is moved.
    """
    _, height, width, _ = x.shape
    m = _tile_size(height, width)
    k = m // 2
    outputs = _output_tiles(x, kernel, m, by_corner=True)
    pooled = max_corner(*lax.split(outputs, [k * k] * 4))
    return _join_tiles(pooled)[:, : height // 2, : width // 2]


def convolve_by_winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3×3 'same' convolution with stride 1, float[N, H, W, C] → float[N, H, W, F]."""
    _, height, width, _ = x.shape
    tiles = _output_tiles(x, kernel, _tile_size(height, width), by_corner=False)
    return _join_tiles(tiles)[:, :height, :width]


def _output_tiles(x: jax.Array, kernel: jax.Array, m: int, *, by_corner: bool) -> jax.Array:
    """The tiles of m×m outputs: (m², N, T, U, F).

    by_corner: in the order of their place in 2×2 pooling windows, the first place of all windows
      first.
    """
    channels, filters = kernel.shape[2:]
    to_output, to_kernel, to_input = _transforms(m)
    if by_corner:
        k = m // 2
        to_output = to_output.reshape(k, 2, k, 2, -1).transpose(1, 3, 0, 2, 4).reshape(m * m, -1)
    tiles = _transform(to_input, _input_tiles(x, m))  # ((m+2)², N, T, U, C)
    weights = _transform(to_kernel, kernel.reshape(9, channels, filters))
    products = product(tiles.reshape(len(tiles), -1, channels), weights)
    return _transform(to_output, products.reshape(*tiles.shape[:4], filters))
