"""Inverted dropout of a rate that is an argument of the program.

Reference: Srivastava et al., 'Dropout: a simple way to prevent neural networks from overfitting',
2014.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import jax
import jax.numpy as jnp
from jax import lax

from jaxmnist.models.network import StepInputs, stream_key

STREAM = "dropout"  # of random numbers, named like Flax's own
LEVELS = 2**16  # of a rate: 16 random bits decide on a value


def dropout_factors(
    inputs: StepInputs, places: jax.Array, widths: Mapping[str, int]
) -> dict[str, jax.Array]:
    """What dropout multiplies values by: 0 at the rate, else what keeps their mean.

    The random numbers depend on the key of the step and the place of an image in its batch, not on
    how batches are divided into blocks.

    Args:
      inputs: of the step; `numbers` has the rate as 'dropout', float[], rounded to a multiple of
        1 / `LEVELS`.
      places: int32[B], the place of each image of the block in its batch.
      widths: the number of values of an image, D, for each dropout layer by name.

    Returns:
      float[B, D] by name.
    """
    rate = inputs.numbers["dropout"]
    dropped = jnp.minimum(jnp.round(rate * LEVELS), LEVELS - 1)  # levels at which a value is 0
    kept = LEVELS / (LEVELS - dropped)
    words = -(-sum(widths.values()) // 2)
    stream = stream_key(inputs.key, STREAM)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(stream, places)
    # Each word of 32 bits is drawn once and serves two values: drawing is most of the work.
    drawn = jax.vmap(lambda key: jax.random.bits(key, (words,), jnp.uint32))(keys)
    halves = lax.bitcast_convert_type(drawn, jnp.uint16).reshape(len(places), -1)
    factors = jnp.where(halves >= dropped.astype(jnp.uint16), kept, jnp.zeros_like(kept))
    ends = accumulate(widths.values())
    return {
        name: factors[:, end - width : end]
        for (name, width), end in zip(widths.items(), ends, strict=True)
    }
