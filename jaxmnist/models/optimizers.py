"""An optimizer of a person's own, as the training step can use it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist.errors import UsageError, one_line


def check_optimizer(found: Any) -> None:
    """Raise `UsageError` unless `found` is an optimizer that needs gradients and weights alone."""
    if not isinstance(found, optax.GradientTransformation):
        raise UsageError(
            "what is returned beside the module must be an optimizer of Optax, not a"
            f" {type(found).__name__}"
        )
    weights = {"w": jax.ShapeDtypeStruct((2, 2), np.float32)}
    try:
        state = jax.eval_shape(found.init, weights)
        jax.eval_shape(found.update, weights, state, weights)
    except TypeError as problem:
        raise UsageError(
            "the optimizer's update needs more than gradients and weights"
            f" ({one_line(problem)}): it can't be used here"
        ) from None
    except Exception:
        # It may want the weights that it will get; training says what is wrong.
        return
    if any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state)):
        raise UsageError(
            "the optimizer keeps a typed random key in its state, which can't be kept in a"
            " checkpoint: give it a key of jax.random.PRNGKey"
        )
