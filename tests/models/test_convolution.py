from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import float64, slow_after
from jax import lax

from jaxmnist.models.convolution import (
    CPU_BLOCK,
    block_size,
    convolve_pool,
    convolve_relu_pool_by_corners,
    relu,
    transposed_product,
    usual_method,
)
from jaxmnist.models.rewriting import rewritten


def convolve_relu_pool(x, kernel, bias, padding, method):
    """By a method, with what is behind the convolution."""
    if method == "corners":
        return convolve_relu_pool_by_corners(x, kernel, bias, padding)
    return relu(convolve_pool(x, kernel, padding, method) + bias)


def plain(x, kernel, bias, padding):
    """Convolution, bias, ReLU and pooling as XLA's own operations."""
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), padding.upper(), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = jax.nn.relu(y + bias)
    return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


METHODS = ["tiles", "convolution", "corners"]
CASES = [
    # height, width, channels, filters, kernel, padding
    (6, 7, 2, 3, 5, "valid"),
    (7, 13, 3, 5, 3, "same"),
    (9, 8, 2, 3, 2, "same"),
    (28, 28, 1, 8, 5, "valid"),
    (11, 14, 3, 5, 5, "valid"),
    (12, 12, 6, 7, 3, "same"),
    (6, 6, 4, 4, 3, "same"),
    (2, 3, 3, 2, 3, "same"),
    (9, 8, 2, 3, 5, "same"),
    (9, 8, 2, 3, 3, "valid"),
    (9, 8, 2, 3, 1, "same"),
    (6, 7, 2, 3, 4, "same"),
    (3, 4, 2, 2, 7, "same"),
]


def both(case, dtype, method):
    """Value, and gradients by all three arguments, of ours and of the plain one."""
    height, width, channels, filters, size, padding = case
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, height, width, channels)).astype(dtype)
    kernel = (rng.normal(size=(size, size, channels, filters)) / size).astype(dtype)
    bias = rng.normal(size=filters).astype(dtype)
    ours = lambda *args: convolve_relu_pool(*args, padding=padding, method=method)  # noqa: E731
    theirs = lambda *args: plain(*args, padding)  # noqa: E731
    weights = rng.normal(size=jax.eval_shape(theirs, x, kernel, bias).shape).astype(dtype)
    results = []
    for function in (ours, theirs):

        @jax.jit
        def value_and_gradients(*args, function=function):
            value, pull = jax.vjp(function, *args)
            return value, *pull(weights)

        results.append(value_and_gradients(x, kernel, bias))
    return results


@pytest.mark.parametrize("case", slow_after(3, CASES))
@pytest.mark.parametrize("method", METHODS)
def test_equals_xla_in_float64(case, method):
    with float64():
        for ours, theirs in zip(*both(case, np.float64, method), strict=True):
            assert ours.dtype == np.float64
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", slow_after(3, CASES))
def test_equals_xla_in_float32(case):
    for ours, theirs in zip(*both(case, np.float32, "tiles"), strict=True):
        assert ours.dtype == np.float32
        scale = float(np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * scale)


def tied(shape, rng):
    """Images with black borders and an area of one value, where the values of windows are equal."""
    x = np.full(shape, 0.75)
    x[:, :2] = x[:, -2:] = x[:, :, :3] = 0
    rows, columns = shape[1] // 2, shape[2] // 2
    x[0, rows:, columns:] = rng.integers(0, 3, x[0, rows:, columns:].shape) / 2
    return x


@pytest.mark.parametrize("case", slow_after(2, [case for case in CASES if case[4] in (3, 5)]))
@pytest.mark.parametrize("method", ["convolution", "corners"])
def test_of_equal_values_the_first_gets_the_gradient(case, method):
    """As in XLA's own gradient of pooling, for positive and negative values and for zero."""
    height, width, channels, filters, size, padding = case
    rng = np.random.default_rng(2)
    x = tied((3, height, width, channels), rng)  # all sums are exact
    kernel = rng.integers(-4, 5, (size, size, channels, filters)) / 8
    bias = rng.integers(-2, 9, filters) / 4

    def ours(*args):
        return convolve_relu_pool(*args, padding=padding, method=method)

    @jax.jit
    def value_and_gradients(*args):
        found = []
        for function in (ours, lambda *args: plain(*args, padding)):
            value, pull = jax.vjp(function, *args)
            found.append((value, *pull(jnp.arange(value.size).reshape(value.shape) % 7 - 3.0)))
        return found

    with float64():
        for found, expected in zip(*value_and_gradients(x, kernel, bias), strict=True):
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_corners_lose_two_bits_of_float32(dtype):
    """The outputs have the dtype of the inputs, also where sums are wider, and agree within it."""
    rng = np.random.default_rng(3)
    x, kernel = rng.random((2, 8, 8, 4)), rng.normal(size=(3, 3, 4, 5))
    arguments = [jnp.asarray(a, dtype) for a in (x, kernel, rng.normal(size=5))]
    found = convolve_relu_pool(*arguments, padding="same", method="corners")
    assert found.dtype == dtype
    with float64():
        exact = plain(*[np.asarray(a, np.float64) for a in arguments], "same")
    scale = float(np.abs(exact).max())
    bound = {jnp.float32: 2.0**-20, jnp.bfloat16: 2.0**-8}[dtype]
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=0, atol=bound * scale)


def test_the_program_of_a_cpu_has_no_convolution():
    """Inside a loop XLA's convolution is 14 times slower on a CPU."""
    arguments = (jnp.ones((2, 12, 12, 3)), jnp.ones((3, 3, 3, 4)), jnp.ones(4))

    def loss(*args, platform):
        return rewritten(partial(plain, padding="same"), usual_method(platform))(*args).sum()

    text = {
        platform: jax.jit(jax.grad(lambda *args, p=platform: loss(*args, platform=p)))
        .lower(*arguments)
        .as_text()
        for platform in ("cpu", "tpu")
    }
    assert "stablehlo.convolution" not in text["cpu"]
    assert "stablehlo.convolution" in text["tpu"]


@pytest.mark.parametrize("batch_size", [1, 31, 32, 33, 100, 127, 128])
def test_blocks_cover_a_batch(batch_size):
    block = block_size("cpu", batch_size)
    blocks = -(-batch_size // block)
    assert block <= CPU_BLOCK
    assert batch_size <= blocks * block < batch_size + blocks
    assert block_size("tpu", batch_size) == batch_size


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_number_stays_none(method):
    """Weights that are NaN are seen in the outputs, so that divergence is not hidden."""
    x = np.ones((2, 12, 12, 2), np.float32)
    kernel = np.full((3, 3, 2, 4), np.nan, np.float32)
    y = convolve_relu_pool(x, kernel, np.zeros(4, np.float32), padding="same", method=method)
    assert np.isnan(y).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_at_zero_is_zero(method):
    """What padding with zeros rests on: a filter of zeros, with no bias, learns nothing."""
    x = np.random.default_rng(0).random((2, 12, 12, 2), np.float32)
    kernel, bias = np.zeros((3, 3, 2, 4), np.float32), np.zeros(4, np.float32)

    def total(kernel, bias):
        return convolve_relu_pool(x, kernel, bias, padding="same", method=method).sum()

    for gradient in jax.grad(total, argnums=(0, 1))(kernel, bias):
        assert not gradient.any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_transposed_product(dtype):
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.integers(-8, 9, (16, n)), dtype) for n in (5, 3))
    product = jax.jit(transposed_product)(a, b)
    assert product.dtype == jnp.float32
    assert np.array_equal(product, np.asarray(a, np.float64).T @ np.asarray(b, np.float64))
