"""The gradient of a batch that is computed block by block, in float64, beside Flax's own."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import float64, study_module

from jaxmnist.engine.training import NO_IMAGE
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.interface import DataSpec
from jaxmnist.models.network import STUDY, Network
from jaxmnist.models.study import configuration

DATA = DataSpec((13, 12, 2), 4)
NOTHING = Hyperparameters()


class Twice(nn.Module):
    """A dense layer that is called twice, and one whose kernel is used again."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        again = nn.Dense(x.shape[-1], name="again")
        x = nn.tanh(again(nn.tanh(again(x))))
        last = nn.Dense(4, name="last")
        return last(x) + 0.1 * last.variables["params"]["kernel"].sum()


class Within(nn.Module):
    """Dense layers within what is jitted or computed again, on pixels, and without a bias."""

    @nn.compact
    def __call__(self, x):
        x = nn.jit(nn.Dense)(5, name="jitted")(x)
        x = nn.remat(nn.Dense)(5, name="again")(nn.relu(x))
        x = nn.Conv(3, (3, 3))(x).reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(6, use_bias=False, name="plain")(x))
        return nn.Dense(4, name="logits")(x)


class Mixed(nn.Module):
    """A product of real and complex numbers, and one of a row for each pixel."""

    @nn.compact
    def __call__(self, x):
        n, _, _, channels = x.shape
        x = nn.tanh(nn.Dense(3, name="pixels")(x.reshape(-1, channels))).reshape(n, -1)
        kernel = self.param("kernel", nn.initializers.normal(), (x.shape[1], 4), jnp.complex64)
        found = jax.lax.dot_general(x, kernel, (((1,), (0,)), ((), ())))
        return found.real + found.imag


MODULES = {
    "study": (
        STUDY.bind(configuration(5, 2, 1, 7), DATA),
        study_module(configuration(5, 2, 1, 7), DATA),
    ),
    "twice": (Network(lambda hp: Twice()).bind(NOTHING, DATA), Twice()),
    "mixed": (Network(lambda hp: Mixed()).bind(NOTHING, DATA), Mixed()),
    "within": (Network(lambda hp: Within()).bind(NOTHING, DATA), Within()),
}


# JAX 0.7 warns of it in the gradient of real times complex numbers.
@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize("name", MODULES)
def test_blocks_have_the_gradient_of_the_batch(name):
    """With blocks that are not full, whose sums are those of the images that are there."""
    bound, module = MODULES[name]
    assert bound.batching == "independent"
    rng = np.random.default_rng(0)
    with float64():
        parameters = bound.initial_weights(seed=0, index=0)["params"]
        parameters = jax.tree.map(
            lambda x: (
                x + (0.1 + 0.1j) * rng.normal(size=x.shape)
                if jnp.iscomplexobj(x)
                else x + 0.1 * rng.normal(size=x.shape)
            ),
            parameters,
        )
        images = jnp.asarray(rng.integers(0, 256, (8, *DATA.image_shape)), float)
        labels = jnp.asarray(rng.integers(0, 4, 8))

        def plain(parameters):
            logits = module.apply({"params": parameters}, images / 255)
            return -jax.nn.log_softmax(logits)[np.arange(8), labels].mean()

        def loss(logits, block):
            losses = -jax.nn.log_softmax(logits)[np.arange(len(block)), labels[block]]
            present = block != NO_IMAGE
            return jnp.where(present, losses, 0).sum() / 8, present.sum()

        blocks = np.array([*range(8), NO_IMAGE], np.int32).reshape(3, 3)
        model, key = bound.model("tiles", "default"), jax.random.key(0)

        def ours(parameters):
            return model.gradient(parameters, {}, lambda i: images[i], loss, blocks, key)

        gradient, count, collections = jax.jit(ours)(parameters)
        wanted = jax.jit(jax.grad(plain))(parameters)
    assert int(count) == 8
    assert collections == {}
    assert jax.tree.structure(gradient) == jax.tree.structure(wanted)
    for found, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
