"""What changes the weights at a step: optimizer, schedule and moving average."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmnist.models.network import is_kernel
from jaxmnist.training_settings import TrainingSettings

MOMENTUM = 0.9  # of SGD
WARM_UP = 0.2  # of a linear schedule: the part of all steps in which the rate rises
Rate = jax.Array | float


def weight_decay(factor: Rate, decayed: Any) -> optax.GradientTransformation:
    """Adds `factor` times the weights to their updates, before these are scaled by the rate.

    Args:
      factor: of the decay.
      decayed: a tree like the weights: whether each array decays, or which elements of it; None
        for those that `is_kernel`.
    """

    def update(updates: Any, state: Any, weights: Any = None) -> tuple[Any, Any]:
        def decay(change: jax.Array, weight: jax.Array, decays: Any) -> jax.Array:
            if decays is False:
                return change
            return change + jnp.where(decays, factor * weight, 0).astype(change.dtype)

        which = jax.tree_util.tree_map_with_path(is_kernel, weights) if decayed is None else decayed
        return jax.tree.map(decay, updates, weights, which), state

    return optax.GradientTransformation(lambda weights: optax.EmptyState(), update)


# Of learning rate and weight decay, which only some of them have.
OPTIMIZERS: dict[
    str, Callable[[Rate, optax.GradientTransformation], optax.GradientTransformation]
] = {
    "adam": lambda rate, decay: optax.adam(rate),
    "adamw": lambda rate, decay: optax.chain(
        optax.scale_by_adam(), decay, optax.scale_by_learning_rate(rate)
    ),
    "nadam": lambda rate, decay: optax.nadam(rate),
    "rmsprop": lambda rate, decay: optax.rmsprop(rate),
    "sgd": lambda rate, decay: optax.sgd(rate, MOMENTUM),
    "lion": lambda rate, decay: optax.chain(
        optax.scale_by_lion(), decay, optax.scale_by_learning_rate(rate)
    ),
}


def linear(steps: int) -> optax.Schedule:
    """Up from nearly 0 to 1 in the first part of the steps, then down to nearly 0 at the last."""

    def factor(step: Any) -> Any:
        rise = max(WARM_UP * steps, 1)
        return jnp.minimum((step + 1) / rise, (steps - step) / (steps - rise + 1))

    return factor


# By how much the learning rate is multiplied at a step, of the number of all steps.
SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
    "linear": linear,
    "one-cycle": lambda steps: optax.cosine_onecycle_schedule(steps, 1.0),
}


class Average(NamedTuple):
    """The state of `moving_average`: steps so far, int32[], and the average, like the weights."""

    steps: jax.Array
    weights: Any


def moving_average(momentum: Rate) -> optax.GradientTransformation:
    """Leaves updates as they are, and keeps the exponential moving average of the weights.

    The average is weighted to be one of the weights after each step so far, without the initial
    ones, as Adam's corrected moments are: after step t, the weights after step s count in
    proportion to momentum^(t − s).
    """

    def init(weights: Any) -> Average:
        return Average(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, weights))

    def update(updates: Any, state: Average, weights: Any = None) -> tuple[Any, Average]:
        steps = state.steps + 1
        new = (1 - momentum) / (1 - momentum**steps)
        average = jax.tree.map(
            lambda old, weight, change: old + (new * (weight + change - old)).astype(old.dtype),
            state.weights,
            weights,
            updates,
        )
        return updates, Average(steps, average)

    return optax.GradientTransformation(init, update)


def averaged(optimizer_state: Any, weights: Any) -> Any:
    """The moving average that an optimizer's state has; `weights` if it has none."""
    parts = jax.tree.leaves(optimizer_state, is_leaf=lambda part: isinstance(part, Average))
    return next((part.weights for part in parts if isinstance(part, Average)), weights)


def optimizer(
    settings: TrainingSettings,
    constants: Mapping[str, Any],
    own: optax.GradientTransformation | None = None,
    factor: Rate | None = None,
    decayed: Any = None,
) -> optax.GradientTransformation:
    """What changes the weights, with the numbers of `constants`.

    Args:
      settings: of the trial.
      constants: see `training.constants_of`.
      own: the network's own optimizer, in place of that of the settings.
      factor: what the schedule multiplies the learning rate by at this step; None for 1.
      decayed: see `weight_decay`.
    """
    rate = constants["learning_rate"]
    rate = rate if factor is None else rate * factor
    decay = weight_decay(constants["weight_decay"], decayed)
    found = own or OPTIMIZERS[settings.optimizer](rate, decay)
    if settings.ema_momentum > 0:
        return optax.chain(found, moving_average(constants["ema_momentum"]))
    return found
