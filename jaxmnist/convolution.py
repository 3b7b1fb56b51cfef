"""How a convolution with its pooling is computed on each platform.

On a CPU XLA's own convolution is slow inside a loop (jax-ml/jax issue 12868), so everything is
matrix products there: a 3×3 'same' convolution by Winograd's minimal filtering, any other by its
patches. Elsewhere it is `lax.conv_general_dilated`, which accelerators are built for.

Pooling comes with the convolution because max-pooling commutes with adding a bias and with
ReLU: the two then touch a quarter of the numbers.

Source of the method: Lavin and Gray, 'Fast Algorithms for Convolutional Neural Networks', 2015.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = Literal["valid", "same"]

# Images that pass through the network at a time on a CPU, so that their tiles stay in its cache.
CPU_BLOCK = 32


def block_size(platform: str, batch_size: int) -> int:
    """Images of a batch that `platform` best computes together (gradients of blocks add up)."""
    if platform != "cpu":
        return batch_size
    blocks = -(-batch_size // CPU_BLOCK)
    return -(-batch_size // blocks)


def convolve_relu_pool(
    inputs: jax.Array, kernel: jax.Array, bias: jax.Array, *, padding: Padding, platform: str
) -> jax.Array:
    """Convolution with stride 1, ReLU, and 2×2 max-pooling that drops an odd last row or column.

    Args:
      inputs: float[N, H, W, C].
      kernel: float[K, L, C, F].
      bias: float[F].
      padding: 'valid', or 'same' (then K and L are odd).
      platform: 'cpu', 'gpu' or 'tpu'.

    Returns:
      float[N, H', W', F], with H' and W' half of the convolution's output, rounded down.
    """
    if platform != "cpu":
        dimensions = ("NHWC", "HWIO", "NHWC")
        outputs = lax.conv_general_dilated(
            inputs, kernel, (1, 1), padding.upper(), dimension_numbers=dimensions
        )
        pooled = _max_pool(outputs)
    elif padding == "same" and kernel.shape[:2] == (3, 3):
        pooled = _max_pool(_winograd(inputs, kernel, _tile_size(*inputs.shape[1:3])))
    else:
        if padding == "same":
            rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
            inputs = jnp.pad(inputs, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
        pooled = _convolve_pool_by_patches(inputs, kernel)
    return jax.nn.relu(pooled + bias)


def _max_pool(x: jax.Array) -> jax.Array:
    """2×2 max-pooling, float[N, H, W, F] → float[N, H // 2, W // 2, F].

    A maximum of strided views, because `reduce_window` has a slow gradient on a CPU.
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    return functools.reduce(jnp.maximum, [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])


# --- Any convolution, by its patches -----------------------------------------------------------


def _corner_patches(x: jax.Array, kernel_shape: tuple[int, ...]) -> list[jax.Array]:
    """The patches of a 'valid' convolution, apart by the corner of the pooling window they feed.

    Returns four float[N·H'·W', K·L·C], for the corners (0, 0), (0, 1), (1, 0), (1, 1).
    """
    rows, columns, channels, _ = kernel_shape
    height, width = (x.shape[1] - rows + 1) // 2, (x.shape[2] - columns + 1) // 2
    corners = []
    for top in (0, 1):
        for left in (0, 1):
            shifted = [
                x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
                for i in range(top, top + rows)
                for j in range(left, left + columns)
            ]
            corners.append(jnp.concatenate(shifted, -1).reshape(-1, rows * columns * channels))
    return corners


@jax.custom_vjp
def _convolve_pool_by_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """2×2 max-pooled 'valid' convolution, float[N, H, W, C] → float[N, H', W', F]."""
    return _convolve_pool_forward(x, kernel)[0]


def _convolve_pool_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    patches = _corner_patches(x, kernel.shape)
    filters = kernel.shape[-1]
    a, b, c, d = (patch @ kernel.reshape(-1, filters) for patch in patches)
    top, bottom = jnp.maximum(a, b), jnp.maximum(c, d)
    # One byte remembers which corner won; the four products need not be kept.
    winner = jnp.where(top >= bottom, jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3))
    height, width = (x.shape[1] - kernel.shape[0] + 1) // 2, (x.shape[2] - kernel.shape[1] + 1) // 2
    pooled = jnp.maximum(top, bottom).reshape(x.shape[0], height, width, filters)
    return pooled, (x, patches, kernel, winner.astype(jnp.int8))


def _convolve_pool_backward(residuals: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, patches, kernel, winner = residuals
    flat = cotangent.reshape(winner.shape)
    parts = [jnp.where(winner == corner, flat, 0) for corner in range(4)]
    kernel_gradient = sum(patch.T @ part for patch, part in zip(patches, parts, strict=True))
    # Dead code, which the compiler drops, where nobody asks for the gradient of the images.
    to_image = jax.linear_transpose(lambda x: _corner_patches(x, kernel.shape), x)
    (x_gradient,) = to_image([part @ kernel.reshape(-1, kernel.shape[-1]).T for part in parts])
    return x_gradient, jnp.reshape(kernel_gradient, kernel.shape)


_convolve_pool_by_patches.defvjp(_convolve_pool_forward, _convolve_pool_backward)


# --- 3×3 'same' convolution, by Winograd's minimal filtering F(m×m, 3×3) ------------------------


def _tile_size(height: int, width: int) -> int:
    """The output tile, m = 2 or 4, with fewer multiplications; 2, which rounds less, if equal."""

    def multiplications(m: int) -> int:
        return -(-height // m) * -(-width // m) * (m + 2) ** 2

    return min((2, 4), key=multiplications)


@functools.lru_cache
def _transforms(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transforms of output, kernel and input, each for both axes at once.

    They follow from evaluating polynomials at the points 0, ±1, ±2 and infinity (Toom and Cook).

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
    product = jnp.asarray(matrix, x.dtype) @ x.reshape(x.shape[0], -1)
    return product.reshape(matrix.shape[0], *x.shape[1:])


def _input_tiles(x: jax.Array, m: int) -> jax.Array:
    """Overlapping tiles of a zero-padded image: (N, H, W, C) → ((m + 2)², N, T, U, C)."""
    height, width = x.shape[1:3]
    rows, columns = -(-height // m) * m, -(-width // m) * m
    x = jnp.pad(x, ((0, 0), (1, rows + 1 - height), (1, columns + 1 - width), (0, 0)))
    shifts = range(m + 2)
    return jnp.stack(
        [
            x[:, i : i + rows - m + 1 : m, j : j + columns - m + 1 : m]
            for i in shifts
            for j in shifts
        ]
    )


def _output_tiles(y: jax.Array, m: int) -> jax.Array:
    """Tiles side by side: (N, H, W, F) → (m², N, T, U, F)."""
    n, height, width, filters = y.shape
    t, u = -(-height // m), -(-width // m)
    y = jnp.pad(y, ((0, 0), (0, t * m - height), (0, u * m - width), (0, 0)))
    return (
        y.reshape(n, t, m, u, m, filters)
        .transpose(2, 4, 0, 1, 3, 5)
        .reshape(m * m, n, t, u, filters)
    )


def _join_tiles(tiles: jax.Array, m: int, height: int, width: int) -> jax.Array:
    """The inverse of `_output_tiles`: (m², N, T, U, F) → (N, H, W, F)."""
    _, n, t, u, filters = tiles.shape
    y = tiles.reshape(m, m, n, t, u, filters).transpose(2, 3, 0, 4, 1, 5)
    return y.reshape(n, t * m, u * m, filters)[:, :height, :width]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _winograd(x: jax.Array, kernel: jax.Array, m: int) -> jax.Array:
    """3×3 'same' convolution in output tiles of m×m: (N, H, W, C), (3, 3, C, F) → (N, H, W, F)."""
    return _winograd_forward(x, kernel, m)[0]


def _winograd_forward(x: jax.Array, kernel: jax.Array, m: int) -> tuple[jax.Array, tuple]:
    to_output, to_kernel, to_input = _transforms(m)
    channels, filters = kernel.shape[2:]
    tiles = _transform(to_input, _input_tiles(x, m))  # ((m+2)², N, T, U, C)
    flat = tiles.reshape(tiles.shape[0], -1, channels)
    weights = _transform(to_kernel, kernel.reshape(9, channels, filters))
    products = (flat @ weights).reshape(*tiles.shape[:4], filters)
    return _join_tiles(_transform(to_output, products), m, *x.shape[1:3]), (flat, kernel)


def _winograd_backward(
    m: int, residuals: tuple, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The kernel's gradient in the transformed tiles; the input's as a convolution again."""
    flat, kernel = residuals
    to_output, to_kernel, _ = _transforms(m)
    tiles = _transform(to_output.T, _output_tiles(cotangent, m))
    weights = flat.mT @ tiles.reshape(flat.shape[0], -1, kernel.shape[-1])
    kernel_gradient = _transform(to_kernel.T, weights).reshape(kernel.shape)
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    return _winograd_forward(cotangent, mirrored, m)[0], kernel_gradient


_winograd.defvjp(_winograd_forward, _winograd_backward)
