from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import float64

from jaxmnist.engine.training import SCHEDULES, averaged, constants_of, moving_average, optimizer
from jaxmnist.settings import RECIPES
from jaxmnist.settings import SCHEDULES as NAMES


def test_every_schedule_has_a_name():
    assert {"constant", *SCHEDULES} == set(NAMES)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 100])
def test_a_linear_schedule_rises_for_a_fifth_and_falls_nearly_to_zero(steps):
    factor = SCHEDULES["linear"](steps)
    found = np.array([float(factor(step)) for step in range(steps)])
    peak = max(round(steps / 5), 1) - 1
    assert found.argmax() == peak
    assert found[peak] == 1
    assert (found > 0).all()
    rising, falling = np.diff(found[: peak + 1]), np.diff(found[peak:])
    np.testing.assert_allclose(rising, 1 / (peak + 1), rtol=1e-5)
    np.testing.assert_allclose(falling, -1 / (steps - peak), rtol=1e-5)


def test_the_moving_average_is_the_weighted_mean_of_all_steps():
    with float64():
        momentum, rng = 0.7, np.random.default_rng(0)
        found = optax.chain(optax.sgd(0.1), moving_average(momentum))
        weights = {"a": rng.normal(size=3), "b": rng.normal(size=(2, 2))}
        state, history = found.init(weights), []
        for step in range(1, 9):
            gradient = jax.tree.map(lambda x: rng.normal(size=x.shape), weights)
            updates, state = found.update(gradient, state, weights)
            plain = jax.tree.map(lambda x: -0.1 * x, gradient)
            np.testing.assert_array_equal(updates["a"], plain["a"])
            weights = optax.apply_updates(weights, updates)
            history.append(weights)
            shares = momentum ** np.arange(step - 1, -1, -1.0)
            for name, average in averaged(state, weights).items():
                expected = np.average([w[name] for w in history], axis=0, weights=shares)
                np.testing.assert_allclose(average, expected, rtol=0, atol=1e-12)


def test_without_an_average_the_weights_themselves_count():
    settings, weights = RECIPES["study"], {"a": jnp.ones(2)}
    state = optimizer(settings, constants_of(settings, 0, 0)).init(weights)
    assert averaged(state, weights) is weights


PEERS = {
    "adamw": lambda mask: optax.adamw(1e-2, weight_decay=0.3, mask=mask),
    "lion": lambda mask: optax.lion(1e-2, weight_decay=0.3, mask=mask),
}


@pytest.mark.parametrize("name", PEERS)
def test_weight_decay_leaves_biases_and_scales_alone(name):
    """As Optax's own does with a mask: kernels decay, and nothing else does."""
    shapes = {"dense": {"kernel": (3, 2), "bias": (2,)}, "norm": {"scale": (2, 2), "bias": (1, 2)}}
    weights = jax.tree.map(jnp.ones, shapes, is_leaf=lambda part: isinstance(part, tuple))
    mask = {"dense": {"kernel": True, "bias": False}, "norm": {"scale": False, "bias": False}}
    settings = replace(RECIPES["study"], optimizer=name, learning_rate=1e-2, weight_decay=0.3)
    ours, theirs = optimizer(settings, constants_of(settings, 0, 0)), PEERS[name](mask)
    found = []
    for each in (ours, theirs):
        state, now = each.init(weights), weights
        for seed in range(3):
            random = np.random.default_rng(seed)
            gradient = jax.tree.map(lambda x, r=random: r.normal(size=x.shape), weights)
            updates, state = each.update(gradient, state, now)
            now = optax.apply_updates(now, updates)
        found.append(now)
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
