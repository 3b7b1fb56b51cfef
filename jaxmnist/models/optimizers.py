"""An optimizer of a person's own, as the training step can use it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist.errors import NetworkError, one_line
from jaxmnist.models.loading import in_own_code

MOST_STEPS = 20_000  # that an optimizer is tried for
NOTHING = 1e-6  # of the largest change: what compiled schedules leave of zero


def as_transformation(found: Any) -> optax.GradientTransformation:
    """What was returned beside a module; `NetworkError` unless it is an optimizer of Optax."""
    if isinstance(found, optax.MultiSteps):
        found = found.gradient_transformation()
    if not isinstance(found, optax.GradientTransformation):
        raise NetworkError(
            "what is returned beside the module must be an optimizer of Optax, not a"
            f" {type(found).__name__}"
        )
    return with_plain_keys(found)


def traced(found: optax.GradientTransformation, shapes: Any) -> list[Any]:
    """The functions of an optimizer of weights with these shapes, as closed jaxprs.

    Raises `NetworkError` unless it needs gradients and weights alone.
    """
    with in_own_code():
        start = jax.make_jaxpr(found.init)(shapes)
        state = jax.eval_shape(found.init, shapes)
        try:
            return [start, jax.make_jaxpr(found.update)(shapes, state, shapes)]
        except TypeError as problem:
            if "argument" not in one_line(problem):
                raise
            raise NetworkError(
                "the optimizer's update needs more arguments than gradients, state and weights"
                f" ({one_line(problem)}): it can't be used here"
            ) from problem


def last_update(found: optax.GradientTransformation, shapes: Any, steps: int) -> int:
    """The last of `steps` steps at which an optimizer changes weights, counted from 1.

    It is `steps` if later steps only pause, as they did before: an optimizer may sum up the
    gradients of several steps.

    Args:
      found: the optimizer.
      shapes: of the weights; they are tried with one element in place of each dimension.
      steps: of the training, of which the first `MOST_STEPS` are looked at.
    """
    tried = min(steps, MOST_STEPS)

    def small(x: Any) -> jax.Array:
        return jnp.ones((1,) * len(x.shape), x.dtype)

    def step(carry: tuple[Any, Any], _: Any) -> tuple[tuple[Any, Any], jax.Array]:
        weights, state = carry
        updates, state = found.update(weights, state, weights)
        changes = [jnp.abs(change).max().astype(jnp.float32) for change in jax.tree.leaves(updates)]
        return (weights, state), jnp.stack(changes).max()

    @jax.jit
    def run() -> jax.Array:
        weights = jax.tree.map(small, shapes)
        _, changes = jax.lax.scan(step, (weights, found.init(weights)), length=tried)
        return changes

    try:
        with in_own_code():
            changes = np.asarray(run())
    except NetworkError:  # it wants weights of their true shapes
        return steps
    changed = np.flatnonzero(changes > NOTHING * changes.max(initial=0))
    if not changed.size:
        return 0
    pause = int(np.diff(changed, prepend=-1).max())
    last = int(changed[-1]) + 1
    return steps if tried - last < max(pause, 2) else last


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
