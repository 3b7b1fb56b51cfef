"""Behaviour of libraries that the project relies on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.mark.parametrize("rows", [1000, 16_385, 32_769, 70_000])
def test_jax_reduces_a_vmapped_product_rightly(rows):
    """jax-ml/jax issue 39103: on a CPU 0.10.2 gives wrong sums where the rows are many."""
    x = np.zeros((rows, 3), np.float32)
    x[:, 0] = np.arange(rows)
    identity = jnp.eye(3)
    squares = jax.jit(jax.vmap(lambda row: ((identity @ row) ** 2).sum()))(x)
    assert np.array_equal(squares, x[:, 0] ** 2)
