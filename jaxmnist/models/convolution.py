"""Convolution, ReLU and max-pooling, computed in the way that suits each platform.

On a CPU, XLA's own convolution is slow inside a loop (jax-ml/jax issue 12868), so convolutions are
computed as matrix products: a 3×3 'same' convolution by Winograd's minimal filtering, any other
from patches. On a TPU a convolution that is pooled is computed once for each corner of the pooling
windows. Max-pooling commutes with adding a bias and with ReLU. Pooling is therefore done first, so
that bias and ReLU process a quarter of the values.

Reference: Lavin and Gray, 'Fast Algorithms for Convolutional Neural Networks', 2015.
"""

from __future__ import annotations

import functools
import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# --- Operations whose gradients are written here, as a CPU computes those of JAX's own slowly ---

Pair = tuple[jax.Array, jax.Array]
Padding = Literal["valid", "same"]
DIMENSIONS = ("NHWC", "HWIO", "NHWC")  # of a convolution's inputs, kernel and outputs


def larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The elementwise maximum of two arrays; `b` where either of them is NaN.

    A CPU does this in one instruction; `jnp.maximum`, which propagates every NaN, takes several.
    A NaN that pooling drops in this way has infinite or NaN neighbours, which make the loss NaN,
    so a diverging trial is still detected.
    """
    return jnp.where(a > b, a, b)


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """The maximum of x and 0, and NaN for NaN; the gradient at 0 is 0."""
    return larger(jnp.zeros((), x.dtype), x)


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = relu(x)
    return y, y


def _relu_backward(y: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(y > 0, cotangent, 0),)


relu.defvjp(_relu_forward, _relu_backward)


# The four corners of a pooling window.
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


@jax.custom_vjp
def max_corner(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    """The elementwise maximum of four arrays; the gradient goes to the first maximum."""
    return _max_corner_forward(a, b, c, d)[0]


def _max_corner_forward(
    a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array
) -> tuple[jax.Array, jax.Array]:
    top, bottom = larger(a, b), larger(c, d)
    # One byte records which corner is the maximum, so the four arrays need not be kept.
    winner = jnp.where(top >= bottom, jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3))
    return larger(top, bottom), winner.astype(jnp.int8)


def _max_corner_backward(winner: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.where(winner == corner, cotangent, 0) for corner in range(4))


max_corner.defvjp(_max_corner_forward, _max_corner_backward)


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """2×2 max-pooling, float[N, H, W, F] → float[N, H // 2, W // 2, F].

    The gradient of XLA's own is slow on every device.
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    return max_corner(*[x[:, i::2, j::2] for i, j in CORNERS])


@jax.custom_vjp
def product(a: jax.Array, b: jax.Array) -> jax.Array:
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


product.defvjp(_product_forward, _product_backward)


# --- 3×3 'same' convolution by Winograd's minimal filtering F(m×m, 3×3) ---


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


# --- Convolution ---

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
LOWEST = 3  # the bits of a value that hold its corner


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def convolve_relu_pool_by_corners(
    inputs: jax.Array, kernel: jax.Array, bias: jax.Array, padding: Padding
) -> jax.Array:
    """Convolution with stride 1, bias, ReLU and 2×2 max-pooling; sums in float32 or wider.

    The outputs lack the lowest two bits of the mantissa of sums.

    Args:
      inputs: float[N, H, W, C].
      kernel: float[K, L, C, F].
      bias: float[F].
      padding: 'valid', or 'same', for an odd K and L.

    Returns:
      float[N, H', W', F]; H' and W' are half the convolution's output size, rounded down.
    """
    return _forward(inputs, kernel, bias, padding)[0]


def _forward(
    inputs: jax.Array, kernel: jax.Array, bias: jax.Array, padding: Padding
) -> tuple[jax.Array, Residuals]:
    wide = jnp.promote_types(inputs.dtype, jnp.float32)
    largest = None
    for number, y in enumerate(_corner_values(inputs, kernel, padding, wide)):
        y = _with_corner(y + bias.astype(wide), number)
        largest = y if largest is None else jnp.maximum(largest, y)
    assert largest is not None
    value = lax.bitcast_convert_type(_bits(largest) & ~LOWEST, wide)
    outputs = jnp.maximum(value, 0).astype(inputs.dtype)
    return outputs, (inputs, kernel, bias, largest, outputs)


def _backward(
    padding: Padding, residuals: Residuals, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    inputs, kernel, bias, largest, outputs = residuals
    active = jnp.where(outputs > 0, cotangent, 0)
    corner = LOWEST - (_bits(largest) & LOWEST)
    parts = [jnp.where(corner == number, active, 0) for number in range(len(CORNERS))]
    _, pull = jax.vjp(lambda x, k: _corner_values(x, k, padding), inputs, kernel)
    by_inputs, by_kernel = pull(parts)
    return by_inputs, by_kernel, _sum_of_images(active).astype(bias.dtype)


convolve_relu_pool_by_corners.defvjp(_forward, _backward)


def _corner_values(
    x: jax.Array, kernel: jax.Array, padding: Padding, dtype: jnp.dtype | None = None
) -> list[jax.Array]:
    """The convolution's values at each corner of the pooling windows, four of [N, H', W', F]."""
    values = []
    for corner in CORNERS:
        margins = []
        for side, size, offset in zip(x.shape[1:3], kernel.shape[:2], corner, strict=True):
            before = (size - 1) // 2 if padding == "same" else 0
            windows = (side if padding == "same" else side - size + 1) // 2
            reach = 2 * (windows - 1) + size  # pixels from the first of the inputs to the last
            margins.append((before - offset, reach - side - before + offset))
        values.append(
            lax.conv_general_dilated(
                x,
                kernel,
                (2, 2),
                margins,
                dimension_numbers=DIMENSIONS,
                preferred_element_type=dtype,
            )
        )
    return values


def _bits(x: jax.Array) -> jax.Array:
    """The bits of floats, as integers of their size."""
    return lax.bitcast_convert_type(x, jnp.dtype(f"int{8 * x.dtype.itemsize}"))


def _with_corner(x: jax.Array, number: int) -> jax.Array:
    """The values with 3 − `number` in their lowest bits, so that the first of equal ones wins."""
    return lax.bitcast_convert_type((_bits(x) & ~LOWEST) | (LOWEST - number), x.dtype)


def _sum_of_images(x: jax.Array) -> jax.Array:
    """The sum over images and pixels, [N, H, W, F] → [F], in float32 or wider.

    It is computed as a kernel's gradient, by matrix products: the compiler expects a reduction to
    take ten times the cycles.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    ones = lax.optimization_barrier(jnp.ones((*x.shape[:3], 1), x.dtype))
    kernel = jnp.zeros((1, 1, 1, x.shape[-1]), x.dtype)

    def convolve(kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(ones, kernel, (1, 1), "VALID", dimension_numbers=DIMENSIONS)

    _, pull = jax.vjp(convolve, kernel)
    total: jax.Array = pull(x)[0]
    return total.reshape(-1).astype(wide)


# --- How convolutions are computed ---

# 'tiles': matrix products of tiles that fit in a CPU's cache; 'corners': XLA's own convolution,
# strided, once for each corner of the pooling windows; 'convolution': XLA's own.
Method = Literal["tiles", "corners", "convolution"]

# Images that a CPU processes at a time, so that their tiles stay in its cache.
CPU_BLOCK = 16


def usual_method(platform: str) -> Method:
    """The usual method on 'cpu', 'gpu' or 'tpu'.

    'corners' trains faster on a TPU, but takes its compiler longer.
    """
    return "tiles" if platform == "cpu" else "convolution"


def block_size(platform: str, batch_size: int) -> int:
    """The number of images of a batch to process at a time on `platform`."""
    if platform != "cpu":
        return batch_size
    blocks = -(-batch_size // CPU_BLOCK)
    return -(-batch_size // blocks)


def convolve_pool(
    inputs: jax.Array, kernel: jax.Array, padding: Padding, method: Method
) -> jax.Array:
    """Convolution with stride 1, and 2×2 max-pooling.

    Args:
      inputs: float[N, H, W, C].
      kernel: float[K, L, C, F].
      padding: 'valid', or 'same', for an odd K and L.
      method: 'tiles', or else XLA's own convolution.

    Returns:
      float[N, H', W', F]; H' and W' are half the convolution's output size, rounded down.
    """
    if method != "tiles":
        outputs = lax.conv_general_dilated(
            inputs, kernel, (1, 1), padding.upper(), dimension_numbers=DIMENSIONS
        )
        return max_pool_2x2(outputs)
    if padding == "same" and kernel.shape[:2] == (3, 3):
        return convolve_pool_by_winograd(inputs, kernel)
    return _convolve_pool_by_patches(_padded(inputs, kernel, padding), kernel)


def transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a.T @ b` of float[N, P] and float[N, Q], accumulated in float32 or wider.

    On a CPU, XLA computes such a product with a routine that is slow for a small Q (five times
    slower for the ten logits), so the transposed array is materialized first.
    """
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.matmul(lax.optimization_barrier(a.T), b, preferred_element_type=wide)


def _padded(inputs: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """The inputs, zero-padded so that a 'valid' convolution gives the result for `padding`."""
    if padding == "valid":
        return inputs
    rows, columns = (((size - 1) // 2, size // 2) for size in kernel.shape[:2])
    return jnp.pad(inputs, ((0, 0), rows, columns, (0, 0)))


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
