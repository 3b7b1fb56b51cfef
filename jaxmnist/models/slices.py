"""Convolution and pooling of every kind as matrix products and sums of slices, for a CPU.

Inside a loop XLA computes a convolution's gradient 14 times slower than outside of it on a CPU
(jax-ml/jax issue 12868), and the gradient of a pooling window is slow everywhere. What is here
computes the same numbers, within rounding, from slices: `convolution.py` has the kinds that are
worth an algorithm of their own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmnist.models.primitives import max_corner, product
from jaxmnist.models.winograd import convolve_by_winograd

Pairs = tuple[tuple[int, int], tuple[int, int]]
Corners = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
# Multiplications that cost as much as copying one number into a patch (measured on one machine).
COPY = 35
# Patches of a batch that are larger than this are not made: rows of the kernel are added up.
LARGEST_PATCHES = 2**27  # numbers


@dataclass(frozen=True)
class Window:
    """How a window of pixels moves over an image; all pairs are (vertical, horizontal).

    size, strides, dilation: of the window. padding: pixels before and behind the image, negative
    ones cut it. base_dilation: of the image, whose pixels are moved apart by zeros.
    """

    size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: Pairs = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    base_dilation: tuple[int, int] = (1, 1)

    def places(self) -> Sequence[tuple[int, int]]:
        """The positions within the window, row by row."""
        return list(itertools.product(range(self.size[0]), range(self.size[1])))

    def pad(self, x: jax.Array, value: float) -> jax.Array:
        """The images [N, H, W, C] with their padding and dilation, filled with `value`."""
        spread = [
            (*pair, gap - 1) for pair, gap in zip(self.padding, self.base_dilation, strict=True)
        ]
        return lax.pad(x, jnp.asarray(value, x.dtype), ((0, 0, 0), *spread, (0, 0, 0)))

    def slices(self, padded: jax.Array) -> Callable[[int, int], jax.Array]:
        """The function of (i, j) that gives what each window has there: [N, H', W', C]."""
        extents = [
            (length - (size - 1) * gap - 1) // stride + 1
            for length, size, gap, stride in zip(
                padded.shape[1:3], self.size, self.dilation, self.strides, strict=True
            )
        ]

        def at(i: int, j: int) -> jax.Array:
            first = [i * self.dilation[0], j * self.dilation[1]]
            last = [
                a + (extent - 1) * stride + 1
                for a, extent, stride in zip(first, extents, self.strides, strict=True)
            ]
            n, channels = padded.shape[0], padded.shape[3]
            return lax.slice(padded, (0, *first, 0), (n, *last, channels), (1, *self.strides, 1))

        return at


def convolve(x: jax.Array, kernel: jax.Array, window: Window, groups: int = 1) -> jax.Array:
    """The convolution of images with a kernel.

    Args:
      x: float[N, H, W, C].
      kernel: float[K, L, C / groups, F].
      window: of the size (K, L).
      groups: into which channels and filters are divided; each sees its own channels only.

    Returns:
      float[N, H', W', F].
    """
    plain = Window(window.size, padding=((1, 1), (1, 1)))
    if groups == 1 and window.size == (3, 3) and window == plain and kernel.shape[2] >= 4:
        return convolve_by_winograd(x, kernel)
    padded = window.pad(x, 0)
    if groups > 1:
        return _convolve_groups(window, padded, kernel, groups)
    columns, filters = kernel.shape[1], kernel.shape[3]
    if window == Window(window.size, padding=window.padding) and (
        padded.shape[2] * filters <= columns * (filters + COPY)
    ):
        return _convolve_by_rows(padded, kernel)
    return _convolve_by_patches(window.slices(padded), kernel)


def _convolve_by_rows(padded: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 'valid' convolution as one product of whole rows of pixels with a matrix mostly of zeros.

    It multiplies more than patches need, but copies less: for small images of few channels.
    """
    rows, columns, channels, filters = kernel.shape
    n, seen, wide, _ = padded.shape
    height, width = seen - rows + 1, wide - columns + 1
    # Where the output pixel o sees the input pixel w: at the kernel's column w - o.
    places = np.arange(wide)[:, None] - np.arange(width) == np.arange(columns)[:, None, None]
    matrix = jnp.einsum("jwo,ijcf->iwcof", jnp.asarray(places, kernel.dtype), kernel)
    lines = padded.reshape(n, seen, wide * channels)
    above = jnp.concatenate([lines[:, i : i + height] for i in range(rows)], -1)
    outputs = product(above.reshape(n * height, -1), matrix.reshape(-1, width * filters))
    return outputs.reshape(n, height, width, filters)


def _convolve_groups(
    window: Window, padded: jax.Array, kernel: jax.Array, groups: int
) -> jax.Array:
    """The sum over the kernel's places: a loop over rows, to have fewer operations to compile."""
    rows, columns, each, filters = kernel.shape
    kernels = kernel.reshape(rows, columns, each, groups, filters // groups)
    # Of a row of places; the image is as high as what the windows see at their first row.
    row = replace(window, size=(1, columns))
    seen = padded.shape[1] - (rows - 1) * window.dilation[0]

    def add_row(total: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        first, kernel_row = item
        at = row.slices(lax.dynamic_slice_in_dim(padded, first, seen, 1))
        for j in range(columns):
            part = at(0, j)
            grouped = part.reshape(*part.shape[:3], groups, each)
            if each == 1:
                total = total + grouped * kernel_row[j, 0]
            else:
                total = total + jnp.einsum("nhwgc,cgf->nhwgf", grouped, kernel_row[j])
        return total, None

    height, width = jax.eval_shape(lambda: window.slices(padded)(0, 0)).shape[1:3]
    nothing = jnp.zeros((len(padded), height, width, groups, filters // groups), padded.dtype)
    firsts = jnp.arange(rows) * window.dilation[0]
    total, _ = lax.scan(add_row, nothing, (firsts, kernels))
    return total.reshape(*total.shape[:3], filters)


def _convolve_by_patches(at: Callable[[int, int], jax.Array], kernel: jax.Array) -> jax.Array:
    """One product of all patches; of a row of the kernel at a time where they are too many."""
    rows, columns, _, filters = kernel.shape
    at_once = rows
    n, height, width, _ = jax.eval_shape(lambda: at(0, 0)).shape
    if math.prod((n, height, width, *kernel.shape[:3])) > LARGEST_PATCHES:
        at_once = 1
    total = None
    for first in range(0, rows, at_once):
        parts = [at(i, j) for i in range(first, first + at_once) for j in range(columns)]
        patches = parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)
        matrix = kernel[first : first + at_once].reshape(-1, filters)
        term = product(patches.reshape(n * height * width, -1), matrix)
        total = term if total is None else total + term
    assert total is not None
    return total.reshape(n, height, width, filters)


def max_pool(x: jax.Array, window: Window) -> jax.Array:
    """The largest number in each window, float[N, H, W, C] → float[N, H', W', C].

    Its gradient goes to the first of a window's largest numbers, row by row.
    """
    if window == Window((2, 2), (2, 2)):
        return max_corner(*corners(x))
    at = window.slices(window.pad(x, -jnp.inf))
    best, *others = [at(i, j) for i, j in window.places()]
    for other in others:
        best = jnp.where(best >= other, best, other)
    return best


def max_pool_by_axis(x: jax.Array, window: Window) -> jax.Array:
    """The values of `max_pool`: of each column of a window the largest number, then of those.

    Each step pools along the middle one of three axes, which runtimes do that can't pool over
    four. N may be symbolic.
    """
    n, _, width, channels = x.shape
    rows = _pool_middle(x.reshape(n, -1, width * channels), window, 0)
    height = rows.shape[1]
    pooled = _pool_middle(rows.reshape(n * height, width, channels), window, 1)
    return pooled.reshape(n, height, -1, channels)


def _pool_middle(x: jax.Array, window: Window, axis: int) -> jax.Array:
    """Max-pooling of [A, B, C] along B, as a window does along one of its axes."""

    def along(value: int) -> tuple[int, int, int]:
        return 1, value, 1

    found: jax.Array = lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        along(window.size[axis]),
        along(window.strides[axis]),
        ((0, 0), window.padding[axis], (0, 0)),
        along(window.base_dilation[axis]),
        along(window.dilation[axis]),
    )
    return found


def sum_pool(x: jax.Array, window: Window) -> jax.Array:
    """The sum of each window, float[N, H, W, C] → float[N, H', W', C]."""
    if window == Window((2, 2), (2, 2)):
        a, b, c, d = corners(x)
        return a + b + c + d
    at = window.slices(window.pad(x, 0))
    total, *others = [at(i, j) for i, j in window.places()]
    for other in others:
        total = total + other
    return total


@jax.custom_vjp
def corners(x: jax.Array) -> Corners:
    """The numbers of each 2×2 window, row by row: float[N, H, W, C] → 4 × float[N, H', W', C].

    An odd last row or column is in no window.
    """
    n, height, width, channels = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    pairs = even.reshape(n, height // 2, 2, width // 2, 2 * channels)
    top, bottom = pairs[:, :, 0], pairs[:, :, 1]
    return (
        top[..., :channels], top[..., channels:], bottom[..., :channels], bottom[..., channels:]
    )  # fmt: skip


def _corners_forward(x: jax.Array) -> tuple[Corners, jax.Array]:
    return corners(x), x[:0]


def _corners_backward(like: jax.Array, cotangents: Corners) -> tuple[jax.Array]:
    """The cotangents put side by side, instead of a sum of four arrays of zeros between numbers."""
    a, b, c, d = cotangents
    n, rows, columns, channels = a.shape
    pairs = jnp.stack([jnp.concatenate([a, b], -1), jnp.concatenate([c, d], -1)], 2)
    even = pairs.reshape(n, 2 * rows, 2 * columns, channels)
    _, height, width, _ = like.shape
    return (jnp.pad(even, ((0, 0), (0, height % 2), (0, width % 2), (0, 0))),)


corners.defvjp(_corners_forward, _corners_backward)
