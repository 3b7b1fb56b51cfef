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
        jax.eval_shape(found.update, weights, jax.eval_shape(found.init, weights), weights)
    except TypeError as problem:
        raise UsageError(
            "the optimizer's update needs more than gradients and weights"
            f" ({one_line(problem)}): it can't be used here"
        ) from None
    except Exception:
        # It may want the weights that it will get; training says what is wrong.
        return


def with_plain_keys(found: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, with typed random keys in its state kept as their data, uint32[…, 2].

    A state is copied to the host and written to checkpoints, which know numbers alone.
    """

    def init(weights: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.random.key_data(x) if _is_key(x) else x, found.init(weights)
        )

    def update(gradient: Any, state: Any, weights: Any = None) -> tuple[Any, Any]:
        like = jax.eval_shape(found.init, weights)
        typed = jax.tree.map(
            lambda x, kind: jax.random.wrap_key_data(x, impl=_name(kind)) if _is_key(kind) else x,
            state,
            like,
        )
        updates, after = found.update(gradient, typed, weights)
        plain = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, after)
        return updates, plain

    return optax.GradientTransformation(init, update)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def _name(key: Any) -> str:
    """The name of the kind of a typed key, 'threefry2x32' say."""
    kinds = []
    jax.eval_shape(lambda key: kinds.append(jax.random.key_impl(key)), key)
    return str(kinds[0])
