from __future__ import annotations

import functools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import begin, float64, study_module

from jaxmnist.engine.training import (
    NO_IMAGE,
    apply,
    augmented,
    batches,
    cross_entropy,
    epoch_order,
    evaluate,
    key_of,
    start_epoch,
    train_block,
)
from jaxmnist.models.interface import DataSpec
from jaxmnist.models.network import STUDY
from jaxmnist.models.study import configuration
from jaxmnist.settings import RECIPES

HYPERPARAMETERS = configuration(5, 2, 1, 7)
SHAPE, CLASSES = (13, 12, 2), 4
DATA = DataSpec(SHAPE, CLASSES)


def model(method):
    return STUDY.bind(HYPERPARAMETERS, DATA).model(method, "default")


def problem(images: int, dtype=np.float32):
    rng = np.random.default_rng(0)
    parameters = STUDY.bind(HYPERPARAMETERS, DATA).initial_weights(seed=0, index=0)["params"]
    parameters = jax.tree.map(lambda x: x.astype(dtype), parameters)
    x = rng.integers(0, 256, (images, *SHAPE), np.uint8)
    # The network computes in the precision of float images.
    x = x if dtype == np.float32 else x.astype(dtype)
    return parameters, x, rng.integers(0, CLASSES, images).astype(np.int32)


@pytest.mark.parametrize(
    ("images", "batch_size", "block"), [(10, 4, 4), (10, 4, 3), (8, 4, 2), (3, 128, 32), (7, 7, 7)]
)
def test_batches_hold_every_image_once_in_order(images, batch_size, block):
    order = epoch_order(images, seed=1, epoch=2)
    cut = batches(order, batch_size, block)
    assert cut.shape[0] == -(-images // batch_size)
    assert cut.shape[2] == block
    flat = cut[cut != NO_IMAGE]
    assert np.array_equal(flat, order)
    assert sorted(flat) == list(range(images))
    for step, batch in enumerate(cut):
        real = batch[batch != NO_IMAGE]
        assert np.array_equal(real, order[step * batch_size : (step + 1) * batch_size])


def test_orders_depend_on_seed_and_epoch_alone():
    assert np.array_equal(epoch_order(50, 3, 1), epoch_order(50, 3, 1))
    assert not np.array_equal(epoch_order(50, 3, 1), epoch_order(50, 3, 2))
    assert not np.array_equal(epoch_order(50, 3, 1), epoch_order(50, 4, 1))


def test_an_epoch_equals_one_written_by_hand_in_float64():
    """Batch by batch, unpadded, with XLA's own convolution: the same losses and weights."""
    settings = replace(RECIPES["study"], batch_size=8, learning_rate=1e-2)
    with float64():
        parameters, images, labels = problem(21, np.float64)
        order = epoch_order(21, seed=0, epoch=0)
        train = jax.jit(train_block(model("tiles"), settings))
        state = begin(parameters, settings)
        cut = batches(order, 8, 3)
        state = train(state, images, labels, cut, 0, 1)
        state = train(state, images, labels, cut, 1, 3)
        assert not start_epoch(state).correct

        plain = study_module(HYPERPARAMETERS, DATA)
        adam = optax.adam(1e-2)
        optimizer_state = adam.init(parameters)
        total, right = 0.0, 0

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def step(parameters, x, y):
            logits = plain.apply({"params": parameters}, x / 255)
            return -jax.nn.log_softmax(logits)[np.arange(len(y)), y].mean(), logits

        for first in (0, 8, 16):
            rows = order[first : first + 8]
            (value, logits), gradient = step(parameters, images[rows], labels[rows])
            total += float(value) * len(rows)
            right += int((np.argmax(logits, 1) == labels[rows]).sum())
            updates, optimizer_state = adam.update(gradient, optimizer_state)
            parameters = optax.apply_updates(parameters, updates)
    assert abs(float(state.loss_sum) - total) < 1e-5
    assert int(state.correct) == right
    for ours, theirs in zip(
        jax.tree.leaves(state.parameters), jax.tree.leaves(parameters), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


def test_smoothed_labels_change_the_gradient_and_not_the_loss_that_is_told():
    settings = replace(
        RECIPES["study"], batch_size=8, learning_rate=0.1, optimizer="sgd", label_smoothing=0.2
    )
    with float64():
        parameters, images, labels = problem(8, np.float64)
        order = np.arange(8, dtype=np.int32)
        train = jax.jit(train_block(model("tiles"), settings))
        state = train(
            begin(parameters, settings), images, labels, batches(order, 8, 4), np.int32(0), 1
        )
        plain = study_module(HYPERPARAMETERS, DATA)

        def loss(parameters, targets):
            logits = plain.apply({"params": parameters}, images / 255)
            return optax.softmax_cross_entropy(logits, targets).mean()

        targets = np.eye(CLASSES)[labels]
        gradient = jax.jit(jax.grad(loss))(parameters, optax.smooth_labels(targets, 0.2))
        told = float(jax.jit(loss)(parameters, targets))
        expected = jax.tree.map(lambda x, g: x - 0.1 * g, parameters, gradient)
    assert abs(float(state.loss_sum) / 8 - told) < 1e-6
    for ours, theirs in zip(
        jax.tree.leaves(state.parameters), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


def test_an_epoch_with_augmentation_trains_on_the_augmented_images():
    """As training on images that are augmented beforehand, from the keys of the steps."""
    settings = replace(
        RECIPES["study"], batch_size=8, learning_rate=1e-2, random_shift=2, random_rotation=15.0
    )
    with float64():
        parameters, images, labels = problem(16, np.float64)
        cut = batches(np.arange(16, dtype=np.int32), 8, 4)
        state = begin(parameters, settings)
        augment = jax.jit(
            lambda block, step: augmented(
                jnp.asarray(images), block, key_of(state.constants, step), 2, np.float64(15)
            )
        )
        beforehand = np.concatenate(
            [augment(np.arange(8 * k, 8 * k + 8), np.int32(5 + k)) for k in range(2)]
        )
        plain = replace(RECIPES["study"], batch_size=8, learning_rate=1e-2)
        ours = jax.jit(train_block(model("tiles"), settings))(
            state, images, labels, cut, np.int32(0), 2, 5
        )
        theirs = jax.jit(train_block(model("tiles"), plain))(
            begin(parameters, plain), beforehand.astype(np.float64), labels, cut, np.int32(0), 2, 5
        )
    for a, b in zip(jax.tree.leaves(ours[:4]), jax.tree.leaves(theirs[:4]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_the_cross_entropy():
    """Optax's, with its gradient; NaN where a logit isn't finite, so that a divergence is seen."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 200, (40, 7))
    labels, weights = generator.integers(0, 7, 40), generator.normal(size=40)
    theirs = optax.softmax_cross_entropy_with_integer_labels
    with float64():
        for function in (lambda f: f, lambda f: jax.grad(lambda x: (f(x, labels) * weights).sum())):
            arguments = (logits, labels) if function(theirs) is theirs else (logits,)
            ours, expected = (function(f)(*arguments) for f in (cross_entropy, theirs))
            assert ours.dtype == np.float64
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-11)
    for wrong in (np.nan, np.inf):
        logits[1, 2] = wrong
        assert np.isnan(jax.jit(cross_entropy)(logits, labels)).tolist() == [
            i == 1 for i in range(40)
        ]
    logits[1, 2] = -np.inf
    assert np.isfinite(jax.jit(cross_entropy)(logits, labels)).sum() == 40 - (labels[1] == 2)


@pytest.mark.parametrize("images", [1, 5, 32, 33])
def test_evaluation_counts_every_image_once(images):
    parameters, x, y = problem(images)
    cut = batches(np.arange(images, dtype=np.int32), 16, 16)[:, 0]
    found = jax.jit(evaluate(model("tiles")))((parameters, {}), x, y, cut)
    plain = jax.jit(study_module(HYPERPARAMETERS, DATA).apply)
    logits = np.asarray(plain({"params": parameters}, x / np.float32(255)), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(images), y]
    right = np.asarray(found.right).reshape(-1)
    assert np.array_equal(right[:images], logits.argmax(1) == y)
    assert not right[images:].any()
    assert abs(float(found.loss_sum) - losses.sum()) < 1e-4 * images


def test_apply_in_blocks():
    parameters, x, _ = problem(12)
    module = study_module(HYPERPARAMETERS, DATA)
    logits, sown = jax.jit(partial(module.apply, mutable=["intermediates"]))(
        {"params": parameters}, x / np.float32(255)
    )
    expected = {"logits": logits, "features": sown["intermediates"]["features"][0]}
    for output in ("logits", "features"):
        values = jax.jit(apply(model("tiles"), output, 4))({"params": parameters}, x)
        np.testing.assert_allclose(values, expected[output], rtol=0, atol=1e-5)
