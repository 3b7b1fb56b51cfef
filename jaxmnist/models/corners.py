"""Convolution, 2×2 max-pooling, bias and ReLU for a TPU, without an array of unpooled values.

A strided convolution gives the values at one corner of all pooling windows. The maximum of four
such convolutions is computed as each of them ends, and the TPU's compiler fuses it with them. The
gradient needs to know which corner had the maximum. Its number is written into the lowest two bits
of the values, so that the maximum carries it along; an index beside the maximum isn't fused, and
the compiler expects a step of training with one to take twice the cycles.

The gradient of a window goes to one corner: the first maximum, where values that differ only in the
lowest two bits of their mantissa count as equal. The bias is added before the maximum, so that only
positive values matter: of these, the one with more bits set is larger.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxmnist.models.primitives import CORNERS, DIMENSIONS, Padding

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
LOWEST = 3  # the bits of a value that hold its corner


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def convolve_relu_pool_by_corners(
    inputs: jax.Array, kernel: jax.Array, bias: jax.Array, padding: Padding
) -> jax.Array:
    """`convolve_relu_pool`, with products accumulated in float32 or wider.

    The outputs lack the lowest two bits of the mantissa of sums.
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
