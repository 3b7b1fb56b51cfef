"""What the project needs of the libraries under it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def test_jax_reduces_a_vmapped_product_rightly():
    """jax-ml/jax issue 39103: 0.10.2 computes wrong numbers on a CPU."""
    PLACEHOLDER
