"""Operations whose gradients are written here, as a CPU computes those of JAX's own slowly."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

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
    """2×2 max-pooling, float[N, H, W, F] → float[N, H // 2, W // 2, F]."""
    if not isinstance(x.shape[0], int):  # left open, for export; slices would become gathers
        window = (1, 2, 2, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "valid")
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
